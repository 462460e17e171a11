"""`utrn topup`, `utrn issue`, `utrn vend`: a caller's side, for trying out and for the helpdesk."""

import secrets
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from app.cli.market import (
    CA,
    CERT,
    JSON,
    KEY,
    TARGET,
    Files,
    choice,
    enum_name,
    instant_text,
    message_json,
    pence_of,
    top_up,
)
from app.cli.output import console, errors, print_json, print_table

if TYPE_CHECKING:
    from utrn.v1 import top_up_service_pb2 as top_up_pb
    from utrn.v1 import types_pb2

vend = typer.Typer(no_args_is_help=True, help="One vend.")

_Pan = Annotated[str, typer.Argument(help="The PAN the consumer quotes.")]
_Amount = Annotated[str, typer.Argument(help="Pounds, such as 10 or 12.34.")]
_Id = Annotated[str, typer.Option("--transaction-id", help="To repeat a vend; else a new one is made.")]
_Channel = Annotated[str, typer.Option(help="Where the consumer paid, such as online.")]
_Vend = Annotated[str, typer.Argument(help="The vend's transaction id.")]
_Participant = Annotated[str, typer.Option(help="Who made it, if not the caller.")]


def topup(
    pan: _Pan, amount: _Amount, target: TARGET, cert: CERT, key: KEY, ca: CA, channel: _Channel = "phone",
    transaction_id: _Id = "", as_json: JSON = False,
) -> None:  # fmt: skip
    """Issue a code and have it sent to the meter, in one step."""
    _sell("TopUp", _Sale(pan, amount, channel, transaction_id), target, (cert, key, ca), as_json=as_json)


def issue(
    pan: _Pan, amount: _Amount, target: TARGET, cert: CERT, key: KEY, ca: CA, channel: _Channel = "phone",
    transaction_id: _Id = "", as_json: JSON = False,
) -> None:  # fmt: skip
    """Issue a code and send nothing: step one of two."""
    _sell("IssueUtrn", _Sale(pan, amount, channel, transaction_id), target, (cert, key, ca), as_json=as_json)


@vend.command("show")
def show(
    transaction_id: _Vend, target: TARGET, cert: CERT, key: KEY, ca: CA, participant: _Participant = "",
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Show all that the service knows of one vend."""
    from utrn.v1 import top_up_service_pb2 as pb

    request = pb.GetVendRequest(transaction_id=transaction_id, participant_id=participant)
    found = message_json(top_up("GetVend", request, target, (cert, key, ca)).vend)
    if as_json:
        print_json(found)
    else:
        print_table(f"Vend {transaction_id}", ("field", "value"), _flat(found))


@vend.command("send")
def send(
    transaction_id: _Vend, target: TARGET, cert: CERT, key: KEY, ca: CA, participant: _Participant = "",
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Send a code issued here to its meter: step two of two; a supplier may send what its PSP has sold."""
    from utrn.v1 import top_up_service_pb2 as pb

    request = pb.SendTopUpRequest(transaction_id=transaction_id, participant_id=participant)
    _print_sent(top_up("SendTopUp", request, target, (cert, key, ca)), as_json=as_json)


@vend.command("send-made-elsewhere")
def send_made_elsewhere(
    pan: _Pan,
    utrn: Annotated[str, typer.Argument(help="The 20 digits, no spaces.")],
    counter: Annotated[int, typer.Option(min=1, max=2**32 - 1, help="The counter it was made under.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA, channel: _Channel = "phone", transaction_id: _Id = "",
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Send a code that the supplier's own generator made to its meter."""
    from utrn.v1 import top_up_service_pb2 as pb

    made = pb.UtrnMadeElsewhere(pan=pan, utrn=utrn, utrn_counter=counter, channel=_channel(channel))
    request = pb.SendTopUpRequest(transaction_id=transaction_id or new_transaction_id(), made_elsewhere=made)
    _print_sent(top_up("SendTopUp", request, target, (cert, key, ca)), as_json=as_json)


def new_transaction_id() -> str:
    """Return a new transaction id, and tell of it, so that the command can be repeated if no answer comes."""
    from app.clock import SystemClock
    from core.domain.transaction_id import make_transaction_id

    made = make_transaction_id(int(SystemClock().now().timestamp() * 1000), secrets.randbits(74))
    text = f"transaction_id {made}: repeat with --transaction-id if no answer comes"
    errors.print(text, highlight=False, soft_wrap=True)
    return made


class _Sale(NamedTuple):
    """What is to be sold, as it was typed."""

    pan: str
    amount: str
    channel: str
    transaction_id: str


def _sell(method: str, sale: _Sale, target: str, tls: Files, *, as_json: bool) -> None:
    from utrn.v1 import top_up_service_pb2 as pb

    kind = pb.TopUpRequest if method == "TopUp" else pb.IssueUtrnRequest
    request = kind(pan=sale.pan, amount_pence=pence_of(sale.amount), channel=_channel(sale.channel))
    request.transaction_id = sale.transaction_id or new_transaction_id()
    reply = top_up(method, request, target, tls)
    if as_json:
        code = reply.code
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
        console.print(reply.code.utrn_printed, style="bold", highlight=False)
        again = " (issued before)" if reply.replayed else ""
        console.print(f"{reply.code.amount_pence / 100:.2f} pounds{again}", highlight=False)


def _channel(text: str) -> "types_pb2.Channel.ValueType":
    from utrn.v1 import types_pb2

    from core.domain.vend import SOLD_THROUGH

    return types_pb2.Channel.ValueType(choice(text, SOLD_THROUGH, "--channel"))


def _print_sent(reply: "top_up_pb.SendTopUpResponse", *, as_json: bool) -> None:
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
