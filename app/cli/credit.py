"""`utrn credit`: credit without payment, asked for by one person and decided by another."""

import secrets
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.callers import pence_of
from app.cli.market import CA, CERT, JSON, KEY, TARGET, Files, ask, choice, enum_name, instant_text, message_json
from app.cli.output import console, print_json, print_table

if TYPE_CHECKING:
    from google.protobuf.message import Message

app = typer.Typer(no_args_is_help=True, help="Credit without payment: two people of a supplier.")

_Id = Annotated[str, typer.Argument(help="The request's transaction id.")]


def _call(method: str, request: "Message", target: str, tls: Files) -> Any:
    from utrn.v1 import credit_service_pb2_grpc as rpc

    return ask(lambda channel: getattr(rpc.CreditServiceStub(channel), method)(request), target, tls)


@app.command("ask")
def ask_credit(
    pan: Annotated[str, typer.Argument(help="The PAN.")],
    amount: Annotated[str, typer.Argument(help="Pounds, such as 10 or 12.34.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    reason: Annotated[str, typer.Option(help="goodwill, emergency or additional_support.")] = "goodwill",
    note: Annotated[str, typer.Option(help="For people.")] = "",
    transaction_id: Annotated[str, typer.Option(help="To repeat a request; else a new one is made.")] = "",
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Ask for credit; a colleague with another certificate decides."""
    from utrn.v1 import credit_service_pb2 as pb

    from app.clock import SystemClock
    from core.domain.credit import CreditReason
    from core.domain.transaction_id import make_transaction_id

    now = int(SystemClock().now().timestamp() * 1000)
    asked = pb.Credit(
        transaction_id=transaction_id or make_transaction_id(now, secrets.randbits(74)), pan=pan,
        amount_pence=pence_of(amount), reason=pb.CreditReason.ValueType(choice(reason, CreditReason, "--reason")),
        note=note,
    )  # fmt: skip
    reply = _call("AskCredit", pb.AskCreditRequest(credit=asked), target, (cert, key, ca))
    if as_json:
        print_json(message_json(reply.credit))
    else:
        console.print(f"asked; to be decided under {reply.credit.transaction_id}", highlight=False)


@app.command("decide")
def decide(
    transaction_id: _Id, target: TARGET, cert: CERT, key: KEY, ca: CA,
    approve: Annotated[bool, typer.Option("--approve/--reject")] = True, as_json: JSON = False,
) -> None:  # fmt: skip
    """Approve a request and issue its code, or reject it."""
    from utrn.v1 import credit_service_pb2 as pb

    request = pb.DecideCreditRequest(transaction_id=transaction_id, approve=approve)
    reply = _call("DecideCredit", request, target, (cert, key, ca))
    if as_json:
        print_json(message_json(reply))
    else:
        console.print(f"approved: {reply.code.utrn_printed}" if approve else "rejected", highlight=False)


@app.command("report")
def report(
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    supplier: Annotated[str, typer.Option(help="Whose; your own if left out.")] = "",
    day: Annotated[str, typer.Option(help="UTC day, as 2026-11-24; today if left out.")] = "", as_json: JSON = False,
) -> None:  # fmt: skip
    """What was asked for and decided, and what a day comes to."""
    from utrn.v1 import credit_service_pb2 as pb

    from core.domain.credit import CreditReason, CreditState

    request = pb.ListCreditsRequest(supplier_id=supplier, day=day)
    reply = _call("ListCredits", request, target, (cert, key, ca))
    if as_json:
        print_json(message_json(reply))
        return
    rows = [
        (
            one.transaction_id, one.amount_pence, enum_name(one.reason, CreditReason),
            enum_name(one.state, CreditState), one.asked_by, instant_text(one.asked_at), one.decided_by or "-",
        )
        for one in reply.credits
    ]  # fmt: skip
    print_table("Credit without payment", ("id", "pence", "why", "state", "asked by", "at", "decided by"), rows)
    console.print(f"{reply.approved} approved on the day, {reply.approved_pence} pence", highlight=False)
