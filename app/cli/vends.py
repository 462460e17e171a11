"""`utrn vend`: a seller's side, for trying out and for the helpdesk."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from app.cli.cases import cases, settle, settles
from app.cli.command import Commands
from app.cli.options import CA, CERT, JSON, KEY, TARGET
from app.cli.requests import (
    Files,
    call,
    choice,
    enum_name,
    instant_text,
    message_json,
    pence_of,
)
from app.cli.sales import GIVEN_ID, NEW_ID, SALES, Asked, carry_out, digest
from app.terminal.output import console, print_json, print_table

if TYPE_CHECKING:
    from utrn.v1 import top_up_service_pb2 as top_up_pb
    from utrn.v1 import types_pb2

vend = Commands(help="Vends: issued, delivered, shown, settled.")

_Pan = Annotated[str, typer.Argument(help="The PAN the consumer quotes.")]
_Amount = Annotated[str, typer.Argument(help="Pounds, such as 10 or 12.34.")]
_Channel = Annotated[str, typer.Option(help="Where the consumer paid, such as online.")]
_Vend = Annotated[str, typer.Argument(help="The vend's transaction id.")]
_Participant = Annotated[str, typer.Option(help="Who made it, if not the caller.")]


@vend.command("issue")
def issue(
    pan: _Pan, amount: _Amount, target: TARGET, cert: CERT, key: KEY, ca: CA, channel: _Channel = "phone",
    deliver: Annotated[bool, typer.Option("--deliver", help="Have it sent to the meter, in the same step.")] = False,
    transaction_id: GIVEN_ID = "", sales: SALES = None, new_id: NEW_ID = False, as_json: JSON = False,
) -> None:  # fmt: skip
    """Issue a code; with --deliver it is sent to the meter too. What is open already is taken up."""
    how = _How(transaction_id, new_id, sales, target, (cert, key, ca), as_json)
    command, method = ("vend issue --deliver", "TopUp") if deliver else ("vend issue", "IssueUtrn")
    _sell(command, method, _Sale(pan, amount, channel), how)


@vend.command("show")
def show(
    transaction_id: _Vend, target: TARGET, cert: CERT, key: KEY, ca: CA, participant: _Participant = "",
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Show all that the service knows of one vend."""
    from utrn.v1 import top_up_service_pb2 as pb

    request = pb.GetVendRequest(transaction_id=transaction_id, participant_id=participant)
    found = message_json(call(request, target, (cert, key, ca)).vend)
    if as_json:
        print_json(found)
    else:
        print_table(f"Vend {transaction_id}", ("field", "value"), _flat(found))


@vend.command("deliver")
def deliver(
    transaction_id: _Vend, target: TARGET, cert: CERT, key: KEY, ca: CA, participant: _Participant = "",
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Send a code issued here to its meter: step two of two; a supplier may send what its PSP has sold."""
    from utrn.v1 import top_up_service_pb2 as pb

    # An earlier command may have asked: nothing here knows.
    request = pb.DeliverVendRequest(transaction_id=transaction_id, participant_id=participant, repeat=True)
    _print_sent(call(request, target, (cert, key, ca)), as_json=as_json)


@vend.command("deliver-external")
def send_externally_issued(
    pan: _Pan,
    utrn: Annotated[str, typer.Argument(help="The 20 digits, no spaces.")],
    counter: Annotated[int, typer.Option(min=1, max=2**32 - 1, help="The counter it was made under.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA, channel: _Channel = "phone", transaction_id: GIVEN_ID = "",
    sales: SALES = None, new_id: NEW_ID = False, as_json: JSON = False,
) -> None:  # fmt: skip
    """Send a code that the supplier's own generator made to its meter; what is open already is taken up."""
    from utrn.v1 import top_up_service_pb2 as pb
    from utrn_client.verdict import judge_request

    made = pb.ExternallyIssuedUtrn(pan=pan, utrn=utrn, utrn_counter=counter, channel=_channel(channel))
    content: dict[str, str | int] = {
        "pan": pan,
        "code_sha256": digest(utrn),
        "counter": counter,
        "channel": made.channel,
    }
    asked = Asked(
        command="vend deliver-external", method="DeliverVend", content=content,
        judge=judge_request,
    )  # fmt: skip

    def request(one: str, repeat: bool) -> pb.DeliverVendRequest:  # as the book calls it
        return pb.DeliverVendRequest(transaction_id=one, externally_issued=made, repeat=repeat)

    def tell(reply: "top_up_pb.DeliverVendResponse") -> None:
        _print_sent(reply, as_json=as_json)

    carry_out(
        asked, request, tell, given=transaction_id, new_id=new_id, sales=sales, target=target, tls=(cert, key, ca)
    )


class _Sale(NamedTuple):
    """What is to be sold, as it was typed."""

    pan: str
    amount: str
    channel: str


class _How(NamedTuple):
    """Under which id, by which book, whom and as whom it is asked, and how it is told."""

    transaction_id: str
    new_id: bool
    sales: Path | None
    target: str
    tls: Files
    as_json: bool


def _sell(command: str, method: str, sale: _Sale, how: _How) -> None:
    from utrn.v1 import top_up_service_pb2 as pb
    from utrn_client.verdict import judge_sale

    kind = pb.TopUpRequest if method == "TopUp" else pb.IssueUtrnRequest
    pence, channel = pence_of(sale.amount), _channel(sale.channel)
    content: dict[str, str | int] = {"pan": sale.pan, "amount_pence": pence, "channel": channel}
    asked = Asked(command=command, method=method, content=content, judge=judge_sale, paid=True)

    def request(one: str, repeat: bool) -> "pb.TopUpRequest | pb.IssueUtrnRequest":  # as the book calls it
        return kind(transaction_id=one, pan=sale.pan, amount_pence=pence, channel=channel, repeat=repeat)

    def tell(reply: Any) -> None:
        _print_code(reply, as_json=how.as_json)

    carry_out(
        asked, request, tell, given=how.transaction_id, new_id=how.new_id, sales=how.sales, target=how.target,
        tls=how.tls,
    )  # fmt: skip


def _print_code(reply: Any, *, as_json: bool) -> None:
    from utrn_client.amounts import pounds_text

    code = reply.code
    if as_json:
        print_json(
            {
                "transaction_id": code.transaction_id,
                "utrn": code.utrn,
                "amount_pence": code.amount_pence,
                "issued_at": code.issued_at.ToJsonString(),
                "replayed": reply.replayed,
            }
        )
    else:
        console.print(code.utrn_printed, style="bold", highlight=False)
        again = " (issued before)" if reply.replayed else ""
        console.print(f"{pounds_text(code.amount_pence)} pounds{again}", highlight=False)


def _channel(text: str) -> "types_pb2.Channel.ValueType":
    from utrn.v1 import types_pb2

    from core.domain.vend import SOLD_THROUGH

    return types_pb2.Channel.ValueType(choice(text, SOLD_THROUGH, "--channel"))


def _print_sent(reply: "top_up_pb.DeliverVendResponse", *, as_json: bool) -> None:
    from core.domain.delivery import DeliveryState

    if as_json:
        print_json(message_json(reply))
        return
    delivery = reply.delivery
    again = " (asked for before)" if reply.replayed else ""
    state = enum_name(delivery.state, DeliveryState)
    console.print(f"{state}, owed since {instant_text(delivery.queued_at)}{again}", highlight=False)


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, one in value.items():
        rows += _flat(one, f"{prefix}{name}.") if isinstance(one, dict) else [(prefix + name, one)]
    return rows


vend.command("cases")(cases)
vend.command("settle", for_good=settles)(settle)
