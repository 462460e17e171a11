"""`utrn approval`: what needs two operators: list it, approve what another has asked for, withdraw it."""

from typing import Annotated, Any

import typer

from app.cli.command import Commands
from app.cli.options import CA, CERT, JSON, KEY, TARGET
from app.cli.requests import call, enum_name, instant_text, message_json
from app.terminal.output import console, print_json, print_table

app = Commands(help="What needs two operators: list, approve, withdraw.")

_Id = Annotated[str, typer.Argument(help="Approval id: 32 hex digits, as NEEDS_APPROVAL told it.")]
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
    token = ""
    while True:
        page = call(pb.ListApprovalsRequest(page_token=token, page_size=_PAGE), target, (cert, key, ca))
        found += page.approvals
        token = page.next_page_token
        if not token:
            break
    shown = [
        approval
        for approval in found
        if every or int(approval.state) in (ApprovalState.WAITING, ApprovalState.APPROVED)
    ]
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
    _told(call(request, target, (cert, key, ca)).approval, as_json=as_json)


@app.command("withdraw")
def withdraw(approval_id: _Id, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """Withdraw what was asked for and not carried out."""
    from utrn.admin.v1 import admin_service_pb2 as pb

    request = pb.WithdrawOperationRequest(approval_id=approval_id)
    _told(call(request, target, (cert, key, ca)).approval, as_json=as_json)


def _told(one: Any, *, as_json: bool) -> None:
    from core.domain.approval import ApprovalState

    if as_json:
        print_json(message_json(one))
        return
    state = enum_name(one.state, ApprovalState)
    console.print(f"{one.approval_id} is {state}: {one.method}, {one.subject}", highlight=False)
    if one.state == ApprovalState.APPROVED:
        console.print(f"{one.asked_by} repeats its command, not before {instant_text(one.not_before)}", highlight=False)
