"""`utrn credit`: credit without payment, asked for by one person and decided by another."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.command import Commands
from app.cli.options import CA, CERT, JSON, KEY, TARGET
from app.cli.paging import Listing, print_listing
from app.cli.requests import (
    call,
    choice,
    enum_name,
    instant_text,
    message_json,
    pence_of,
)
from app.cli.sales import GIVEN_ID, NEW_ID, SALES, Asked, carry_out
from app.terminal.output import console, print_json

if TYPE_CHECKING:
    from utrn.v1 import credit_service_pb2 as pb

app = Commands(help="Credit without payment: two people of a supplier.")

_Id = Annotated[str, typer.Argument(help="The request's transaction id.")]


def _decision(values: Mapping[str, Any]) -> str:
    word = "approves the request, and issues the code of" if values["approve"] else "rejects the request of"
    return f"{word} {values['transaction_id']}"


@app.command("request")
def ask_credit(
    pan: Annotated[str, typer.Argument(help="The PAN.")],
    amount: Annotated[str, typer.Argument(help="Pounds, such as 10 or 12.34.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    reason: Annotated[str, typer.Option(help="goodwill, emergency or additional_support.")] = "goodwill",
    note: Annotated[str, typer.Option(help="For people.")] = "",
    transaction_id: GIVEN_ID = "", sales: SALES = None, new_id: NEW_ID = False, as_json: JSON = False,
) -> None:  # fmt: skip
    """Ask for credit; a colleague with another certificate decides. What is open already is taken up."""
    from utrn.v1 import credit_service_pb2 as pb
    from utrn_client.verdict import judge_request

    from core.domain.goodwill_credit import CreditReason

    why = pb.CreditReason.ValueType(choice(reason, CreditReason, "--reason"))
    pence = pence_of(amount)
    content: dict[str, str | int] = {"pan": pan, "amount_pence": pence, "reason": why, "note": note}
    asked = Asked(command="credit request", method="RequestCredit", content=content, judge=judge_request)

    def request(one: str, _repeat: bool) -> pb.RequestCreditRequest:  # as the book calls it
        return pb.RequestCreditRequest(
            credit=pb.Credit(transaction_id=one, pan=pan, amount_pence=pence, reason=why, note=note)
        )

    def tell(reply: pb.RequestCreditResponse) -> None:
        if as_json:
            print_json(message_json(reply.credit))
        else:
            console.print(f"asked; to be decided under {reply.credit.transaction_id}", highlight=False)

    carry_out(
        asked, request, tell, given=transaction_id, new_id=new_id, sales=sales, target=target, tls=(cert, key, ca)
    )


@app.command("decide", for_good=_decision)
def decide(
    transaction_id: _Id, target: TARGET, cert: CERT, key: KEY, ca: CA,
    approve: Annotated[bool, typer.Option("--approve/--reject", help="Which of the two; one must be said.")],
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Approve a request and issue its code, or reject it."""
    from utrn.v1 import credit_service_pb2 as pb

    # Not as a repeat: nobody has paid, and what is refused today may be approved later, under the same id.
    request = pb.DecideCreditRequest(transaction_id=transaction_id, approve=approve)
    reply = call(request, target, (cert, key, ca))
    if as_json:
        print_json(message_json(reply))
    else:
        console.print(f"approved: {reply.code.utrn_printed}" if approve else "rejected", highlight=False)


@app.command("report")
def report(
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    supplier: Annotated[str, typer.Option(help="Whose; your own if left out.")] = "",
    day: Annotated[str, typer.Option(help="UTC day, as 2026-11-24; today if left out.")] = "",
    waiting: Annotated[bool, typer.Option(help="Every request that waits for its second person, of any day.")] = False,
    as_json: JSON = False,
) -> None:  # fmt: skip
    """What was asked for and approved on a day, and what the day comes to."""
    from utrn.v1 import credit_service_pb2 as pb

    listing = Listing(
        request=pb.ListCreditsRequest(supplier_id=supplier, day=day, waiting_only=waiting), field="credits",
        title="Credit without payment",
        columns=("id", "PAN", "pence", "why", "state", "asked by", "at", "decided by", "at", "note"), row=_row,
    )  # fmt: skip
    last = print_listing(listing, target, (cert, key, ca), as_json=as_json)
    if not as_json:
        text = f"{last.approved} approved on {day or 'this day (UTC)'}, {last.approved_pence} pence"
        console.print(text, highlight=False)


def _row(credit: "pb.Credit") -> tuple[object, ...]:
    from core.domain.goodwill_credit import CreditReason, CreditState

    return (
        credit.transaction_id, credit.pan, credit.amount_pence, enum_name(credit.reason, CreditReason),
        enum_name(credit.state, CreditState), credit.asked_by, instant_text(credit.asked_at), credit.decided_by or "-",
        instant_text(credit.decided_at), credit.note or "-",
    )  # fmt: skip
