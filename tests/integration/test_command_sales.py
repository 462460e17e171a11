"""Commands that make an id: it is in a book before a node is asked, and the same command again takes it up."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from utrn.v1 import credit_service_pb2 as credit_pb
from utrn.v1 import credit_service_pb2_grpc as credit_rpc
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc
from utrn.v1 import types_pb2
from utrn_client.outcomes import OUTCOMES

from app.cli import requests
from app.cli.sales import CommandBook
from app.devstack.files import PSP, SUPPLIERS
from app.devstack.stack import DevStack
from app.terminal import output
from tests.support.guide import options, serving
from tests.support.teller import invoke

pytestmark = [pytest.mark.real]
PAN = "9826000000000000009"
UTRN = "01234567890123456789"
CODE = "0123 4567 8901 2345 6789"
NORTH = next(iter(SUPPLIERS))
# A command, who gives it, and what it asks for.
COMMANDS = {
    "issue-and-deliver": (PSP, ("vend", "issue", "--deliver", PAN, "10.99")),
    "issue": (PSP, ("vend", "issue", PAN, "10.99", "--channel", "online")),
    "deliver-external": (NORTH, ("vend", "deliver-external", PAN, UTRN, "--counter", "7")),
    "credit-request": (NORTH, ("credit", "request", PAN, "5", "--note", "cold snap")),
}
EVERY = pytest.mark.parametrize("command", COMMANDS)


class Scripted(rpc.TopUpServiceServicer, credit_rpc.CreditServiceServicer):
    """A node that answers what stands next in its script, a reason and what is final of it, and then what was asked."""

    def __init__(self, book: Path, *script: tuple[str, str]) -> None:
        self.book = book
        self.script = list(script)
        self.asked: list[tuple[str, bool]] = []

    async def _answer(self, transaction_id: str, context: Any, *, repeat: bool) -> None:
        assert transaction_id in self.book.read_text(), "it is on disk before it is asked"
        self.asked.append((transaction_id, repeat))
        if not self.script:
            return
        reason, final = self.script.pop(0)
        if reason == "silence":
            await asyncio.Event().wait()
        info = error_details_pb2.ErrorInfo(reason=reason, domain="utrn.v1")
        if final:
            info.metadata["final"] = final
        packed = any_pb2.Any()
        packed.Pack(info)
        status = status_pb2.Status(code=_status(reason), message="x", details=[packed])
        await context.abort_with_status(rpc_status.to_status(status))

    async def TopUp(self, request: pb.TopUpRequest, context: Any) -> pb.TopUpResponse:  # noqa: N802
        await self._answer(request.transaction_id, context, repeat=request.repeat)
        return pb.TopUpResponse(code=_code(request), replayed=request.repeat)

    async def IssueUtrn(self, request: pb.IssueUtrnRequest, context: Any) -> pb.IssueUtrnResponse:  # noqa: N802
        await self._answer(request.transaction_id, context, repeat=request.repeat)
        return pb.IssueUtrnResponse(code=_code(request), replayed=request.repeat)

    async def DeliverVend(self, request: pb.DeliverVendRequest, context: Any) -> pb.DeliverVendResponse:  # noqa: N802
        await self._answer(request.transaction_id, context, repeat=request.repeat)
        return pb.DeliverVendResponse(replayed=request.repeat)

    async def RequestCredit(self, request: Any, context: Any) -> credit_pb.RequestCreditResponse:  # noqa: N802
        await self._answer(request.credit.transaction_id, context, repeat=bool(self.asked))
        return credit_pb.RequestCreditResponse(credit=request.credit)


def _code(request: pb.TopUpRequest | pb.IssueUtrnRequest) -> types_pb2.IssuedCode:
    return types_pb2.IssuedCode(
        transaction_id=request.transaction_id, utrn=UTRN, utrn_printed=CODE, amount_pence=request.amount_pence
    )


def _status(reason: str) -> int:
    return int(code_pb2.Code.Value(OUTCOMES[reason].status)) if reason in OUTCOMES else 13


class Desk:
    """Gives commands to a node of a script, as a participant, by one book."""

    def __init__(self, stack: DevStack, target: str, book: Path) -> None:
        self.stack, self.target, self.book = stack, target, book

    async def gives(self, who: str, *arguments: str) -> tuple[int, str, str]:
        """Return the exit code, what was printed, and the errors."""
        given = [*arguments, *options(self.stack, who, self.target).split(), "--sales", str(self.book)]
        return await asyncio.to_thread(invoke, given)

    def open(self) -> list[str]:
        """Return the ids that are open in the book."""
        with closing(CommandBook(self.book)) as book:
            return [one.transaction_id for one in book.open()]


@pytest.fixture
def book(module_stack: DevStack, tmp_path: Path) -> Path:
    for who in (PSP, NORTH):
        module_stack.certs(who)
    return tmp_path / "sales.jsonl"


def _scripted(book: Path, script: Sequence[tuple[str, str]]) -> Any:
    return Scripted(book, *script)  # type: ignore[abstract]  # commands ask for these only


@EVERY
@pytest.mark.parametrize("reason", ["OUTCOME_UNKNOWN", "LEDGER_UNAVAILABLE", "CALLER_SUSPENDED", "silence"])
async def test_the_same_command_takes_up_what_nobody_knows_the_end_of(
    module_stack: DevStack, book: Path, monkeypatch: pytest.MonkeyPatch, command: str, reason: str
) -> None:
    monkeypatch.setattr(requests, "TIMEOUT_S", 0.5 if reason == "silence" else 30.0)
    who, typed = COMMANDS[command]
    node = _scripted(book, [(reason, "")])
    async with serving(module_stack, node, node) as target:
        desk = Desk(module_stack, target, book)
        code, printed, errors = await desk.gives(who, *typed)
        ((first, _),) = node.asked
        assert (code, printed, desk.open()) == (75, "", [first])
        assert f"{first} stays open, it may have been done: repeat the same command, which takes it up" in errors
        monkeypatch.setattr(requests, "TIMEOUT_S", 30.0)
        code, printed, errors = await desk.gives(who, *typed)
        assert (code, node.asked[1:]) == (0, [(first, True)])
        assert f"transaction_id {first}: taken up" in errors
        assert printed
        assert desk.open() == []
        # What has its answer is not taken up: the same command now is another payment.
        code, _, _ = await desk.gives(who, *typed)
        assert (code, len({one for one, _ in node.asked})) == (0, 2)


@EVERY
async def test_a_second_one_of_what_is_open_is_made_on_an_explicit_word_only(
    module_stack: DevStack, book: Path, command: str
) -> None:
    who, typed = COMMANDS[command]
    node = _scripted(book, [("OUTCOME_UNKNOWN", "")] * 2)
    async with serving(module_stack, node, node) as target:
        desk = Desk(module_stack, target, book)
        for again in ((), ("--new-id",)):
            assert (await desk.gives(who, *typed, *again))[0] == 75
        first, second = desk.open()
        assert first != second
        assert [one for one, _ in node.asked] == [first, second]
        assert (await desk.gives(who, *typed))[0] == 0
        assert desk.open() == [second], "the oldest is taken up first"


@EVERY
async def test_a_refusal_is_final_to_a_first_attempt_or_fenced(
    module_stack: DevStack, book: Path, command: str
) -> None:
    who, typed = COMMANDS[command]
    reason = "PAN_BLOCKED"
    node = _scripted(book, [(reason, "if-first"), ("NOT_READY", ""), (reason, ""), (reason, "fenced")])
    async with serving(module_stack, node, node) as target:
        desk = Desk(module_stack, target, book)
        ends = []
        for _ in range(4):
            code, _, errors = await desk.gives(who, *typed)
            ends.append((code, len(desk.open())))
            assert ("stays open" in errors) is (code == 75)
            paid = typed[:2] == ("vend", "issue")
            assert ("not sold, the money may go back" in errors) is (paid and code == 1)
    assert ends == [(1, 0), (75, 1), (75, 1), (1, 0)]
    ids = [one for one, _ in node.asked]
    assert ids[1:] == [ids[1]] * 3 != [ids[0]] * 3


async def test_what_differs_is_not_taken_up(module_stack: DevStack, book: Path) -> None:
    node = _scripted(book, [("OUTCOME_UNKNOWN", "")] * 6)
    async with serving(module_stack, node, node) as target:
        desk = Desk(module_stack, target, book)
        for who, *typed in (
            (PSP, "vend", "issue", "--deliver", PAN, "10.99"),
            (NORTH, "vend", "issue", "--deliver", PAN, "10.99"),
            (PSP, "vend", "issue", "--deliver", PAN, "10.98"),
            (PSP, "vend", "issue", "--deliver", PAN, "10.99", "--channel", "app"),
            (PSP, "vend", "issue", PAN, "10.99"),
            (PSP, "vend", "issue", "--deliver", "9826000000000000017", "10.99"),
        ):
            assert (await desk.gives(who, *typed))[0] == 75
        assert len(desk.open()) == 6
        first = desk.open()[0]
        code, _, errors = await desk.gives(PSP, "vend", "issue", "--deliver", PAN, "11", "--transaction-id", first)
        assert (code, "open with other content" in errors) == (2, True)
        assert (await desk.gives(PSP, "vend", "issue", "--deliver", PAN, "10.99", "--transaction-id", first))[0] == 0
        assert node.asked[-1] == (first, True)


async def test_an_id_that_was_typed_may_have_been_asked_for_elsewhere(module_stack: DevStack, book: Path) -> None:
    """So it is asked as a repeat: a till's first attempt may be under way."""
    node = _scripted(book, [])
    async with serving(module_stack, node, node) as target:
        desk = Desk(module_stack, target, book)
        given = "01990000-0000-7000-8000-000000000001"
        assert (await desk.gives(PSP, "vend", "issue", "--deliver", PAN, "10", "--transaction-id", given))[0] == 0
        assert node.asked == [(given, True)]


async def test_without_a_book_nothing_is_asked(module_stack: DevStack, book: Path) -> None:
    node = _scripted(book, [])
    async with serving(module_stack, node, node) as target:
        desk = Desk(module_stack, target, book / "file" / "sales.jsonl")
        book.write_text("a file, where a folder is needed")
        code, _, errors = await desk.gives(PSP, "vend", "issue", "--deliver", PAN, "10")
        assert (code, "nothing was asked" in errors) == (2, True)
        missing = Path(desk.stack.folder) / "pki" / "none.pem"
        files = [part for name in ("--cert", "--key", "--ca") for part in (name, str(missing))]
        given = [
            "vend",
            "issue",
            "--deliver",
            PAN,
            "10",
            "--target",
            target,
            *files,
            "--sales",
            str(book.parent / "other.jsonl"),
        ]
        code, _, errors = await asyncio.to_thread(invoke, given)
        assert (code, (book.parent / "other.jsonl").exists()) == (2, False), "and no sale is begun that cannot be asked"
    assert node.asked == []


async def test_what_the_operator_has_settled_is_closed_by_hand(
    module_stack: DevStack, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output.console, "_width", 400)
    node = _scripted(book, [("TRANSACTION_ID_REUSED", "")])
    sales = ("--sales", str(book))
    async with serving(module_stack, node, node) as target:
        desk = Desk(module_stack, target, book)
        await desk.gives(PSP, "vend", "issue", "--deliver", PAN, "10.99")
        ((first, _),) = node.asked
        told = json.loads(invoke(["sales", "list", "--json", *sales])[1])["open"]
        assert [(one["transaction_id"], one["content"]["amount_pence"]) for one in told] == [(first, 1099)]
        assert first in invoke(["sales", "list", *sales])[1]
        assert invoke(["sales", "close", "none", "--because", "x", *sales])[0] == 2
        assert invoke(["sales", "close", first, "--because", "never sold, says ops", *sales])[0] == 0
        assert desk.open() == []
        await desk.gives(PSP, "vend", "issue", "--deliver", PAN, "10.99")
        assert node.asked[1][0] != first


def test_the_book_has_no_code_and_is_its_owners(book: Path) -> None:
    with closing(CommandBook(book)):
        assert book.stat().st_mode & 0o077 == 0
