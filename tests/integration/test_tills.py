"""The guide's two tills, in Python and in Node, hold to the same rules: closed list, repeats, book, amounts."""

import asyncio
import fcntl
import json
import os
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc
from utrn.v1 import types_pb2
from utrn_client.ids import make_transaction_id

from app.devstack.files import PSP
from app.devstack.stack import DevStack
from tests.support.guide import PROGRAMS, ended, environment, make_guide, options, serving

pytestmark = [pytest.mark.real]
PAN = "9826000000000000009"
CODE = "1234 5678 9012 3456 7890"
BOTH = pytest.mark.parametrize("program", PROGRAMS)


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_guide(tmp_path_factory.mktemp("guide"))


class Scripted(rpc.TopUpServiceServicer):
    """A node that answers TopUp with what stands next in its script, a reason and a status, and then with a code."""

    def __init__(self, *script: tuple[str, int, str]) -> None:
        self.script = list(script)
        self.asked: list[tuple[str, bool]] = []

    async def CheckEligibility(self, request: Any, context: Any) -> pb.CheckEligibilityResponse:  # noqa: N802
        return pb.CheckEligibilityResponse(eligible=True)

    async def TopUp(self, request: pb.TopUpRequest, context: Any) -> pb.TopUpResponse:  # noqa: N802
        self.asked.append((request.transaction_id, request.repeat))
        if self.script:
            reason, code, final = self.script.pop(0)
            info = error_details_pb2.ErrorInfo(reason=reason, domain="utrn.v1")
            if final:
                info.metadata["final"] = final
            packed = any_pb2.Any()
            packed.Pack(info)
            status = status_pb2.Status(code=code, message="why", details=[packed] if reason else [])
            await context.abort_with_status(rpc_status.to_status(status))
        code_of = types_pb2.IssuedCode(transaction_id=request.transaction_id, utrn_printed=CODE)
        return pb.TopUpResponse(code=code_of, replayed=request.repeat)

    async def GetVend(self, request: Any, context: Any) -> pb.GetVendResponse:  # noqa: N802
        return pb.GetVendResponse(vend=types_pb2.Vend(delivery=types_pb2.Delivery()))


def _node(*script: tuple[str, int, str]) -> Scripted:
    return Scripted(*script)  # type: ignore[abstract]  # a till asks for these three only


UNAVAILABLE, PERMISSION_DENIED, INTERNAL, FAILED_PRECONDITION = 14, 7, 13, 9
BUSY = ("NOT_READY", UNAVAILABLE, "")
_BLOCKED = ("PAN_BLOCKED", FAILED_PRECONDITION, "")


def _open_ids(book: Path) -> set[str]:
    entries = [json.loads(line) for line in book.read_text().splitlines() if line.startswith("{")]
    ends = {entry["end"] for entry in entries if entry.get("told", True) and "end" in entry}
    return {entry["begin"]["transaction_id"] for entry in entries if "begin" in entry} - ends


@BOTH
@pytest.mark.parametrize(
    "script",
    [
        [BUSY, ("CALLER_SUSPENDED", PERMISSION_DENIED, "")],
        [BUSY, ("TRANSACTION_ID_REUSED", 6, "")],
        [("UNKNOWN_CALLER", 16, ""), ("UNKNOWN_CALLER", 16, "")],
    ],
)
async def test_what_is_not_in_the_closed_list_keeps_the_sale_open(
    module_stack: DevStack, guide: Path, tmp_path: Path, program: str, script: list[tuple[str, int, str]]
) -> None:
    node, book = _node(*script), tmp_path / "sales.jsonl"
    async with serving(module_stack, node) as target:
        arguments = [*options(module_stack, PSP, target).split(), "--sales", str(book)]
        code, (said,) = await ended(program, guide, *arguments, PAN, "700")
        assert (code, "refused" in said) == (75, False)
        assert script[-1][0] in said["no_answer"]
        assert _open_ids(book) == {said["transaction_id"]}
        assert await ended(program, guide, *arguments) == (
            0, [{"transaction_id": said["transaction_id"], "code": CODE, "replayed": True, "taken_up": True}],
        )  # fmt: skip
    assert len({one for one, _ in node.asked}) == 1
    assert [repeat for _, repeat in node.asked] == [False, *[True] * len(script)]
    assert _open_ids(book) == set()


@BOTH
@pytest.mark.parametrize(
    "script",
    [
        [_BLOCKED],
        [BUSY, _BLOCKED, ("", INTERNAL, ""), ("PAN_BLOCKED", FAILED_PRECONDITION, "fenced")],
        [BUSY, ("A_REASON_OF_A_NEWER_VERSION", FAILED_PRECONDITION, "fenced")],
    ],
)  # fmt: skip
async def test_a_refusal_is_final_to_a_first_attempt_or_fenced(
    module_stack: DevStack, guide: Path, tmp_path: Path, program: str, script: list[tuple[str, int, str]]
) -> None:
    node, book = _node(*script), tmp_path / "sales.jsonl"
    async with serving(module_stack, node) as target:
        arguments = [*options(module_stack, PSP, target).split(), "--sales", str(book)]
        code, (said,) = await ended(program, guide, *arguments, PAN, "700")
        assert (code, said["refused"]) == (1, f"{script[-1][0]}: why")
        assert await ended(program, guide, *arguments) == (0, [])
    assert len(node.asked) == len(script)


@BOTH
async def test_a_receipt_that_does_not_come_out_leaves_the_sale_open(
    module_stack: DevStack, guide: Path, tmp_path: Path, program: str
) -> None:
    """Whoever dies between the answer and the receipt prints the same code when it starts again."""
    node, book = _node(), tmp_path / "sales.jsonl"
    async with serving(module_stack, node) as target:
        arguments = [*options(module_stack, PSP, target).split(), "--sales", str(book)]
        read, write = os.pipe()
        os.close(read)
        till = await asyncio.create_subprocess_exec(
            *PROGRAMS[program], *arguments, PAN, "700", cwd=guide, env=environment(), stdout=write,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        os.close(write)
        assert await till.wait() != 0
        (sale,) = _open_ids(book)
        assert await ended(program, guide, *arguments) == (
            0, [{"transaction_id": sale, "code": CODE, "replayed": True, "taken_up": True}],
        )  # fmt: skip
    assert [repeat for _, repeat in node.asked] == [False, True]


@BOTH
@pytest.mark.parametrize("amount", ["10.99", "1e3", "-5", "+5", "0", "ten", "819101", "10,99", "0x10", " 7", None])
async def test_an_amount_that_is_none_is_told_and_nothing_is_sold(
    guide: Path, tmp_path: Path, program: str, amount: str | None
) -> None:
    book = tmp_path / "sales.jsonl"
    files = [part for name in ("cert", "key", "ca") for part in (f"--{name}", "none.pem")]
    typed = [PAN, *([amount] if amount is not None else [])]
    till = await asyncio.create_subprocess_exec(
        *PROGRAMS[program], "--target", "localhost:1", *files, "--sales", str(book), "--", *typed, cwd=guide,
        env=environment(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, errors = await till.communicate()
    assert (till.returncode, said) == (2, b"")
    assert b"needed" in errors
    assert not book.exists()


@BOTH
async def test_two_tills_do_not_share_a_book(module_stack: DevStack, guide: Path, tmp_path: Path, program: str) -> None:
    book = tmp_path / "sales.jsonl"
    node = _node()
    async with serving(module_stack, node) as target:
        arguments = [*options(module_stack, PSP, target).split(), "--sales", str(book)]
        with book.open("a") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            code, (said,) = await ended(program, guide, *arguments, PAN, "700")
        assert (code, "in use by another process" in said["book"]) == (74, True)
        assert node.asked == []
        assert (await ended(program, guide, *arguments, PAN, "700"))[0] == 0, "and let go of, it is free"


@BOTH
async def test_a_broken_line_costs_that_line_only(
    module_stack: DevStack, guide: Path, tmp_path: Path, program: str
) -> None:
    book, sales = tmp_path / "sales.jsonl", [make_transaction_id(), make_transaction_id()]
    lines = [
        json.dumps({"begin": {"transaction_id": sale, "pan": PAN, "amount_pence": 7, "channel": 3, "deliver": True}})
        for sale in sales
    ]
    broken = [b"\0" * 50, b'{"begin": {"transaction_id": 7}}', b"\xff\xfe", b"null", b'{"begin": {"trans']
    book.write_bytes(b"\n".join([lines[0].encode(), *broken, b"\0\0" + lines[1].encode()]))
    node = _node()
    async with serving(module_stack, node) as target:
        arguments = [*options(module_stack, PSP, target).split(), "--sales", str(book)]
        code, said = await ended(program, guide, *arguments)
        # They are asked for side by side.
        assert (code, sorted(one["transaction_id"] for one in said)) == (0, sorted(sales))
        assert await ended(program, guide, *arguments) == (0, [])
    assert sorted(node.asked) == sorted((sale, True) for sale in sales)


@BOTH
async def test_a_full_disk_is_told_and_nothing_is_asked(
    module_stack: DevStack, guide: Path, tmp_path: Path, program: str
) -> None:
    """The till may write nothing at all: as a full disk, it is known before the consumer's money is."""
    node, book = _node(), tmp_path / "sales.jsonl"
    async with serving(module_stack, node) as target:
        arguments = [*options(module_stack, PSP, target).split(), "--sales", str(book)]
        limited = ("sh", "-c", "trap '' XFSZ; ulimit -f 0; exec \"$@\"", "sh", *PROGRAMS[program])
        till = await asyncio.create_subprocess_exec(
            *limited, *arguments, PAN, "700", cwd=guide, env=environment(), stdout=asyncio.subprocess.PIPE
        )
        said, _ = await till.communicate()
    assert till.returncode == 74
    assert "nothing was asked: take no money" in json.loads(said)["book"]
    assert node.asked == []
    assert book.read_bytes() == b""
