"""`utrn approval`: what needs two operators: list it, approve what another has asked for, withdraw it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.command import Commands
from app.cli.options import CA, CERT, JSON, KEY, TARGET
from app.cli.requests import enum_name, instant_text, message_json
from app.cli.rpc import ask_nodes
from app.terminal.output import console, print_json, print_table

if TYPE_CHECKING:
    import grpc

app = Commands(help="What needs two operators: list, approve, withdraw.")

_Id = Annotated[str, typer.Argument(help="Approval id: 32 hex digits, as NEEDS_APPROVAL told it.")]
_TIMEOUT_S = 10.0
_PAGE = 1000


@app.command("list")
def list_all(
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    every: Annotated[bool, typer.Option("--all", help="Also those that were withdrawn or carried out.")] = False,
    as_json: JSON = False,
) -> None:  # fmt: skip
    """List what operators have asked for: who, what, and from when it may be carried out."""
    from utrn.admin.v1 import admin_service_pb2 as pb

    from core.domain.approval import ApprovalState

    found: list[pb.Approval] = []
    while True:
        after = found[-1].approval_id if found else ""
        page = _ask("ListApprovals", pb.ListApprovalsRequest(after=after, limit=_PAGE), target, (cert, key, ca))
        found += page.approvals
        if len(page.approvals) < _PAGE:
            break
    shown = [one for one in found if every or int(one.state) in (ApprovalState.WAITING, ApprovalState.APPROVED)]
    if as_json:
        print_json({"approvals": [message_json(one) for one in shown]})
        return
    rows = [
        (
            one.approval_id, enum_name(one.state, ApprovalState), one.method, one.subject, one.asked_by, one.decided_by,
            instant_text(one.not_before), instant_text(one.expires_at),
        )
        for one in shown
    ]  # fmt: skip
    columns = ("approval", "state", "call", "what", "asked by", "decided by", "not before", "until")
    print_table("Approvals", columns, rows)


@app.command("approve")
def approve(approval_id: _Id, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """Approve what another operator has asked for; then one of the two repeats its command, after the waiting time."""
    from utrn.admin.v1 import admin_service_pb2 as pb

    request = pb.ApproveOperationRequest(approval_id=approval_id)
    _told(_ask("ApproveOperation", request, target, (cert, key, ca)).approval, as_json=as_json)


@app.command("withdraw")
def withdraw(approval_id: _Id, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """Withdraw what was asked for and not carried out."""
    from utrn.admin.v1 import admin_service_pb2 as pb

    request = pb.WithdrawOperationRequest(approval_id=approval_id)
    _told(_ask("WithdrawOperation", request, target, (cert, key, ca)).approval, as_json=as_json)


def _ask(method: str, request: Any, target: str, tls: Any) -> Any:
    async def ask(channel: "grpc.aio.Channel") -> Any:
        from utrn.admin.v1 import admin_service_pb2_grpc as rpc

        return await getattr(rpc.AdminServiceStub(channel), method)(request, timeout=_TIMEOUT_S)

    return ask_nodes(ask, target, tls)


def _told(one: Any, *, as_json: bool) -> None:
    from core.domain.approval import ApprovalState

    if as_json:
        print_json(message_json(one))
        return
    state = enum_name(one.state, ApprovalState)
    console.print(f"{one.approval_id} is {state}: {one.method}, {one.subject}", highlight=False)
    if one.state == ApprovalState.APPROVED:
        console.print(f"{one.asked_by} repeats its command, not before {instant_text(one.not_before)}", highlight=False)
