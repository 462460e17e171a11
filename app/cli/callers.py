"""`utrn topup`, `utrn issue`, `utrn vend show`: a caller's side, for trying out and for the helpdesk."""

import secrets
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from app.cli.asking import ask_nodes
from app.cli.output import EXIT_USAGE, console, errors, fail, print_json, print_table

if TYPE_CHECKING:
    import grpc
    from utrn.v1 import types_pb2

_T = TypeVar("_T")

vend = typer.Typer(no_args_is_help=True, help="One vend.")

_Pan = Annotated[str, typer.Argument(help="The PAN the consumer quotes.")]
_Amount = Annotated[str, typer.Argument(help="Pounds, such as 10 or 12.34.")]
_Target = Annotated[str, typer.Option("--target", help="host:port of nodes, comma between them.")]
_Cert = Annotated[Path, typer.Option("--cert", help="PEM file of the caller's certificate.")]
_Key = Annotated[Path, typer.Option("--key", help="PEM file of its private key.")]
_Ca = Annotated[Path, typer.Option("--ca", help="PEM file of the node's authority.")]
_Id = Annotated[str | None, typer.Option("--transaction-id", help="To repeat a vend; else a new one is made.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


def topup(
    pan: _Pan, amount: _Amount, target: _Target, cert: _Cert, key: _Key, ca: _Ca,
    transaction_id: _Id = None, as_json: _Json = False,
) -> None:  # fmt: skip
    """Issue a code and have it sent to the meter, in one step."""
    _sell(pan, amount, target, (cert, key, ca), transaction_id, one_step=True, as_json=as_json)


def issue(
    pan: _Pan, amount: _Amount, target: _Target, cert: _Cert, key: _Key, ca: _Ca,
    transaction_id: _Id = None, as_json: _Json = False,
) -> None:  # fmt: skip
    """Issue a code and send nothing: step one of two."""
    _sell(pan, amount, target, (cert, key, ca), transaction_id, one_step=False, as_json=as_json)


@vend.command("show")
def show(
    transaction_id: Annotated[str, typer.Argument(help="The vend's transaction id.")],
    target: _Target, cert: _Cert, key: _Key, ca: _Ca,
    participant: Annotated[str, typer.Option(help="Who made it, if not the caller.")] = "",
    as_json: _Json = False,
) -> None:  # fmt: skip
    """Show all that the service knows of one vend."""
    from google.protobuf.json_format import MessageToDict
    from utrn.v1 import top_up_service_pb2 as pb
    from utrn.v1 import top_up_service_pb2_grpc as rpc

    async def ask(channel: "grpc.aio.Channel") -> "types_pb2.Vend":
        request = pb.GetVendRequest(transaction_id=transaction_id, participant_id=participant)
        reply = await rpc.TopUpServiceStub(channel).GetVend(request, timeout=5.0)
        return reply.vend

    found = MessageToDict(ask_nodes(ask, target, (cert, key, ca)), preserving_proto_field_name=True)
    if as_json:
        print_json(found)
    else:
        print_table(f"Vend {transaction_id}", ("field", "value"), _flat(found))


@vend.callback()
def _vend() -> None:
    """One vend."""


def _sell(
    pan: str, amount: str, target: str, tls: tuple[Path, Path, Path], transaction_id: str | None,
    *, one_step: bool, as_json: bool,
) -> None:  # fmt: skip
    from utrn.v1 import top_up_service_pb2 as pb
    from utrn.v1 import top_up_service_pb2_grpc as rpc
    from utrn.v1 import types_pb2

    from app.clock import SystemClock
    from core.domain.transaction_id import make_transaction_id

    now_ms = int(SystemClock().now().timestamp() * 1000)
    sale_id = transaction_id or make_transaction_id(now_ms, secrets.randbits(74))
    if transaction_id is None:
        errors.print(f"transaction_id {sale_id}: repeat with --transaction-id if no answer comes", highlight=False)
    pence = pence_of(amount)

    async def ask(channel: "grpc.aio.Channel") -> pb.TopUpResponse | pb.IssueUtrnResponse:
        stub = rpc.TopUpServiceStub(channel)
        common: dict[str, Any] = {
            "transaction_id": sale_id,
            "pan": pan,
            "amount_pence": pence,
            "channel": types_pb2.CHANNEL_PHONE,
        }
        if one_step:
            return await stub.TopUp(pb.TopUpRequest(**common), timeout=10.0)
        return await stub.IssueUtrn(pb.IssueUtrnRequest(**common), timeout=10.0)

    reply = ask_nodes(ask, target, tls)
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
        console.print(f"[bold]{reply.code.utrn_printed}[/bold]", highlight=False)
        again = " (issued before)" if reply.replayed else ""
        console.print(f"{reply.code.amount_pence / 100:.2f} pounds{again}", highlight=False)


def pence_of(amount: str) -> int:
    """Return pounds as pence; end with what is wrong with them."""
    try:
        pence = Decimal(amount) * 100
    except InvalidOperation:
        fail(f"{amount!r} is no amount of pounds, such as 10 or 12.34", code=EXIT_USAGE)
    if not pence.is_finite() or pence != int(pence):
        fail(f"{amount!r} is not a whole number of pence", code=EXIT_USAGE)
    return int(pence)


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for name, one in value.items():
        rows += _flat(one, f"{prefix}{name}.") if isinstance(one, dict) else [(prefix + name, one)]
    return rows
