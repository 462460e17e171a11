"""What the market's documents show: every command run as it stands, and the integration guide's programs."""

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from typer.testing import CliRunner
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc
from utrn.v1 import types_pb2
from utrn_client.ids import make_transaction_id

from app.__main__ import app
from app.devstack.files import AUDITOR, HELPDESK, OPERATOR, PSP, SECOND_OPERATOR, SUPPLIERS
from app.devstack.fleet import meter_by_pan
from app.devstack.stack import DevStack
from app.terminal import output
from core.domain.meter import luhn_digit
from core.gateways.system_clock import SystemClock
from tests.support.calls import caller
from tests.support.guide import PROGRAMS, ended, environment, make_guide, objects, options, serving, started
from tests.support.patience import PATIENCE_S
from tests.support.teller import command_of, meant
from tests.support.vends import POINT, utrn

pytestmark = [pytest.mark.real]
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NORTH, SOUTH = SUPPLIERS
SECOND = "north-second"
# In the order of their commands: what one gives, the next one uses.
MARKET = (
    "authorization.md",
    "guides/selling-models.md",
    "guides/onboard-psp.md",
    "guides/cards.md",
    "guides/change-of-supplier.md",
    "guides/change-of-tenancy.md",
    "registry-changes.md",
    "guides/meter-exchange.md",
    "guides/enrol-from-smso.md",
    "guides/urgent-changes.md",
    "guides/goodwill-credit.md",
    "audit-log.md",
)
RUNBOOK, FILE, GUIDE = "runbooks/market.md", "registry-file.md", "integration/README.md"
# What one party has changed is known at every node within a second; a machine with two cores is given more.
KNOWN_WITHIN_S = 10.0
CLOCK = SystemClock()
# Run by the tests of their own pages, and of the book of commands (test_command_sales.py).
NOT_OF_THE_MARKET = {"hsm list", "sales list", "sales close"}
APPROVAL = re.compile(r"\b[0-9a-f]{32}\b", re.ASCII)
FIVE_FOURS = re.compile(r"\d{4}( \d{4}){4}")


# What a page shows.


@dataclass(frozen=True)
class Shown:
    """A command of a page, and the reason for which it is refused, if it is."""

    section: str
    command: str
    refused: str = ""


def shown_in(text: str) -> list[Shown]:
    """Return the commands of a page, in order: every line of its shell blocks, and what begins with utrn in others."""
    found: list[Shown] = []
    section, fence, begun = "", "", ""
    for line in text.splitlines():
        if line.startswith("```"):
            fence = "" if fence else line
        elif not fence and line.startswith("## "):
            section = line.removeprefix("## ")
        elif fence == "```sh" or (fence and re.match(r"(\.venv/bin/)?utrn ", line)):
            begun += line.removesuffix("\\")
            if not line.endswith("\\") and begun.strip():
                command, _, comment = begun.partition("#")
                reason = re.match(r" ([A-Z]+_[A-Z_]+)", comment)
                found.append(Shown(section, " ".join(command.split()), reason[1] if reason else ""))
                begun = ""
    assert not begun
    return found


def named_in(text: str) -> set[str]:
    """Return the commands that a page names in its sentences and tables."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    named = set()
    for words in re.findall(r"`(?:\.venv/bin/)?utrn ([^`]+)`", prose):
        # "supplier|psp resume" names two.
        first, *rest = words.split()
        named |= {command_of((one, *rest)) for one in first.split("|")}
    return named


def test_what_a_page_shows_is_found() -> None:
    text = """## A
`utrn pan show`, `utrn supplier|participant resume` and `.venv/bin/utrn meter cancel EUI64 --registration`.
```
utrn pan block $CARD   # PAN_BLOCKED
no command
```
## B
```sh
.venv/bin/utrn pan show \\
    $CARD   # it is blocked
```
"""
    assert shown_in(text) == [
        Shown("A", "utrn pan block $CARD", "PAN_BLOCKED"),
        Shown("B", ".venv/bin/utrn pan show $CARD"),
    ]
    assert named_in(text) == {"pan show", "supplier resume", "participant resume", "meter cancel"}


# The commands of the market's pages, in order.


def meters_of_north(stack: DevStack) -> list[tuple[str, str]]:
    """Return meter and PAN of every meter of the northern supplier."""
    lines = map(json.loads, (stack.folder / "sandbox" / "meters.jsonl").read_text().splitlines())
    added = [line["add_meter"] for line in lines if "add_meter" in line]
    whose = {one["meter"]["meter_id"]: one["supplier_id"] for one in added}
    pairs = meter_by_pan(stack.folder / "sandbox").items()
    return [(meter_id, pan) for pan, meter_id in pairs if whose[meter_id] == NORTH]


def in_(**shift: float) -> str:
    return (CLOCK.now() + timedelta(**shift)).isoformat(timespec="milliseconds")


@dataclass
class Story:
    """What the pages' words stand for, and which commands have run. Each section has a meter and ids of its own."""

    stack: DevStack
    folder: Path
    ran: set[str]
    numbers: Iterator[int]

    def parties(self) -> dict[str, str]:
        names = {
            "OPERATOR": OPERATOR, "NORTH": NORTH, "SOUTH": SOUTH, "PSP": PSP, "HELPDESK": HELPDESK, "AUDITOR": AUDITOR,
            "WEB": "psp-web", "WEB_2027": "psp-web-2027", "SECOND": SECOND, "SECOND_OPERATOR": SECOND_OPERATOR,
        }  # fmt: skip
        for who in (OPERATOR, SECOND_OPERATOR, NORTH, SOUTH, PSP, HELPDESK, AUDITOR, SECOND):
            self.stack.certs(who)
        return {name: options(self.stack, who) for name, who in names.items()}

    def section(self) -> dict[str, str]:
        """Return what one section's words stand for."""
        number, meters = next(self.numbers), meters_of_north(self.stack)
        meter_id, pan = meters[number]
        digits = f"9826000000008{number:05d}"
        values = {
            "METER": meter_id, "CARD": pan, "OTHER_METER": meters[-1][0],
            "NEW_METER": f"00db18{number:010x}", "NEW_CARD": digits + luhn_digit(digits),
            "SALE": make_transaction_id(), "CREDIT": make_transaction_id(), "UTRN": utrn(1, 500), "POINT": POINT.hex(),
            "THEN": in_(), "MIDNIGHT": in_(days=1), "LATER": in_(days=2), "TODAY": CLOCK.now().date().isoformat(),
            "PKI": str(self.stack.folder / "pki"), "NODE_CONFIG": str(self.stack.node_config("node-a")),
            "TRAIL": " ".join(map(str, sorted((self.stack.folder / "trail").glob("node-a-*.trail")))),
            "CODES": str(self.folder / f"codes{number}.jsonl"),
            "OPEN_CODES": str(self.folder / f"open{number}.jsonl"),
        }  # fmt: skip
        key = self.stack.make_keys()[SOUTH]
        certs = self.stack.certs(NORTH)
        values |= {"KEY_ID": key.key_id, "KEY_POINT": key.public_point}
        values |= {"NORTH_CERT": str(certs.cert), "NORTH_KEY": str(certs.key)}
        code = {
            "participant_id": PSP, "transaction_id": make_transaction_id(), "pan": values["NEW_CARD"],
            "utrn": utrn(41, 1000), "utrn_counter": 41, "issued_at": in_(hours=-1), "deliver": True,
            "channel": "CHANNEL_COUNTER_CASH", "reference": {"receipt_id": "R-99120"},
        }  # fmt: skip
        Path(values["CODES"]).write_text(json.dumps(code) + "\n")
        return self.parties() | values

    def tell(self, commands: Iterable[Shown]) -> None:
        """Run commands in order."""
        section, values = "", dict[str, str]()
        for shown in commands:
            if shown.section != section or not values:
                section, values = shown.section, self.section()
            self.run(shown, values)

    def run(self, shown: Shown, values: dict[str, str]) -> None:
        """Run a command as it is shown; it ends as the page says, once the node knows what came before."""
        text = re.sub(r"\$([A-Z][A-Z0-9_]*)", lambda name: values[name[1]], shown.command)
        program, *arguments = shlex.split(text)
        assert program in ("utrn", ".venv/bin/utrn")
        self.ran.add(command_of(tuple(arguments)))
        until = time.monotonic() + KNOWN_WITHIN_S
        while True:
            done = CliRunner().invoke(app, meant(arguments), catch_exceptions=False)
            said = done.stdout + done.stderr
            wanted = (1, True) if shown.refused else (0, True)
            if (done.exit_code, shown.refused in said) == wanted:
                approval = APPROVAL.search(said)
                values |= {"APPROVAL": approval[0]} if approval else {}
                return
            assert time.monotonic() < until, (shown, done.exit_code, said)


@pytest.fixture
def story(module_stack: DevStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Story:
    # So wide that no reason is folded.
    monkeypatch.setattr(output.console, "_width", 400)
    monkeypatch.setattr(output.errors, "_width", 400)
    return Story(module_stack, tmp_path, set(), count())


def test_every_command_that_the_pages_show_runs_as_it_is_shown(story: Story) -> None:
    pages = {name: (DOCS / name).read_text() for name in (FILE, *MARKET, RUNBOOK, GUIDE)}
    stack = story.stack
    stands_for = {
        "FILE": str(stack.folder / "registry.jsonl"),
        "NODE.toml": str(stack.node_config("node-a")),
        "--target HOST:PORT --cert C --key K --ca CA": story.parties()["OPERATOR"],
    }
    loads = shown_in(pages[FILE])
    assert {load.command.split()[2] for load in loads} == {"check", "load"}
    for shown in loads:
        command = shown.command
        for word, value in stands_for.items():
            command = command.replace(word, value)
        story.run(Shown(shown.section, command), {})
    market = [shown for name in MARKET for shown in shown_in(pages[name])]
    assert len(market) > 100
    story.tell(market)
    story.tell(shown_in(pages[RUNBOOK]))
    # A command that a sentence names has been run too.
    for name, text in pages.items():
        assert named_in(text) - NOT_OF_THE_MARKET <= story.ran, name


# The integration guide.


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (install,) = [command.command for command in guide_commands() if command.command.startswith("(")]
    return make_guide(tmp_path_factory.mktemp("guide"), install)


def guide_commands() -> list[Shown]:
    return shown_in((DOCS / GUIDE).read_text())


def by_name(stack: DevStack, who: str) -> str:
    """Return a participant's options with the name that is in the node's certificate."""
    return options(stack, who, stack.node_target("node-a").replace("127.0.0.1", "localhost"))


def test_the_guide_runs_as_it_is_written(module_stack: DevStack, guide: Path, story: Story) -> None:
    parties = story.parties()
    identities = " ".join(f"--identity spiffe://utrn/participant/{one}" for one in (NORTH, SECOND))
    story.run(Shown("", f"utrn supplier certificates {NORTH} --name North {identities} $OPERATOR"), parties)
    story.run(Shown("", "utrn supplier show $SECOND"), parties)
    values = {"PSP": by_name(module_stack, PSP), "NORTH": by_name(module_stack, NORTH), "CARD": north_card(story, -2)}
    values["SECOND"] = by_name(module_stack, SECOND)
    said: list[dict[str, Any]] = []
    for shown in guide_commands():
        if shown.command.startswith("("):
            continue
        done = subprocess.run(
            ["sh", "-c", shown.command], cwd=guide, env=environment(**values), capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (shown.command, done.stdout, done.stderr)
        said += objects(done.stdout)
        ids = [one["transaction_id"] for one in said if "transaction_id" in one]
        values["SALE"] = values["CREDIT"] = ids[-1]
    codes = [one["code"] for one in said if "code" in one]
    assert len(set(codes)) == 4, "sold in Python, in Node, in two steps, and given"
    assert all(FIVE_FOURS.fullmatch(code) for code in codes)
    assert "DELIVERY_STATE_NOT_REQUESTED" in {one.get("delivery") for one in said}
    assert {"delivery": "DELIVERY_STATE_QUEUED", "replayed": False} in said
    assert [one["state"] for one in said if "state" in one] == ["CREDIT_STATE_WAITING", "CREDIT_STATE_APPROVED"]


def north_card(story: Story, place: int) -> str:
    return meters_of_north(story.stack)[place][1]


@asynccontextmanager
async def silent_once_sold(target: str, book: Path) -> AsyncIterator[str]:
    """A way to a node by which every answer comes back until a sale is in the book, and none from then on."""
    host, _, port = target.partition(":")

    async def pump(one: asyncio.StreamReader, other: asyncio.StreamWriter, *, back: bool) -> None:
        with suppress(ConnectionError):
            while data := await one.read(65536):
                if not (back and book.exists() and book.stat().st_size):
                    other.write(data)
                    await other.drain()
        other.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_node, to_node = await asyncio.open_connection(host, int(port))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(pump(reader, to_node, back=False))
            tasks.create_task(pump(from_node, writer, back=True))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"localhost:{server.sockets[0].getsockname()[1]}"


async def committed(stack: DevStack, book: Path) -> types_pb2.Vend:
    """Return the vend of the one sale of a book, once it is in the ledger."""
    async with asyncio.timeout(PATIENCE_S), caller(stack) as stub:
        while True:
            lines = book.read_text().splitlines() if book.exists() else []
            if lines:
                asked = pb.GetVendRequest(transaction_id=json.loads(lines[0])["begin"]["transaction_id"])
                with suppress(grpc.aio.AioRpcError):
                    return (await stub.GetVend(asked)).vend
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(("program", "other"), [("python", "node"), ("node", "python")])
async def test_a_till_killed_before_its_answer_takes_the_sale_up_when_it_starts_again(
    module_stack: DevStack, guide: Path, tmp_path: Path, program: str, other: str
) -> None:
    _, pan = meters_of_north(module_stack)[-3]
    book = tmp_path / "sales.jsonl"
    sales = ("--sales", str(book))
    async with silent_once_sold(module_stack.node_target("node-a"), book) as target:
        first = options(module_stack, PSP, target).split()
        till = await started(program, guide, *first, *sales, pan, "700")
        vend = await committed(module_stack, book)
        os.killpg(till.pid, signal.SIGKILL)
        said, _ = await till.communicate()
    assert said == b"", "the node has the sale, and the till no answer"
    again = by_name(module_stack, PSP).split()
    answer = {"transaction_id": vend.code.transaction_id, "code": vend.code.utrn_printed, "replayed": True}
    assert await ended(program, guide, *again, *sales) == (0, [{**answer, "taken_up": True}])
    # Nothing is open any more; the other program reads the same book.
    assert await ended(other, guide, *again, *sales) == (0, [])


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_till_that_died_in_the_middle_of_a_line_sells_on(
    module_stack: DevStack, guide: Path, tmp_path: Path, program: str
) -> None:
    _, pan = meters_of_north(module_stack)[-4]
    book = tmp_path / "sales.jsonl"
    book.write_text('{"begin": {"transaction_id": "0199')
    arguments = [*by_name(module_stack, PSP).split(), "--sales", str(book)]
    code, (receipt, delivery) = await ended(program, guide, *arguments, pan, "700")
    assert (code, FIVE_FOURS.fullmatch(receipt["code"]) is not None, receipt["replayed"]) == (0, True, False)
    assert delivery["delivery"].startswith("DELIVERY_STATE_")
    assert await ended(program, guide, *arguments) == (0, [])


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_sale_that_is_refused_says_why(
    module_stack: DevStack, guide: Path, tmp_path: Path, program: str
) -> None:
    arguments = [*by_name(module_stack, PSP).split(), "--sales", str(tmp_path / "sales.jsonl")]
    unknown = await ended(program, guide, *arguments, "9826000000000000009", "700")
    assert unknown == (1, [{"eligible": False, "objections": ["PAN_UNKNOWN"]}])
    code, (answer,) = await ended(program, guide, *arguments, "12", "700")
    assert (code, answer["refused"].split(":")[0]) == (1, "BAD_FIELD")


class BusyOnce(rpc.TopUpServiceServicer):
    """A node that has too much to do at first, says when to come back, and remembers when it was asked, for what."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, str]] = []

    async def CheckEligibility(self, request: Any, context: Any) -> pb.CheckEligibilityResponse:  # noqa: N802
        return pb.CheckEligibilityResponse(eligible=True)

    async def TopUp(self, request: Any, context: Any) -> pb.TopUpResponse:  # noqa: N802
        self.asked.append((time.monotonic(), request.transaction_id))
        if len(self.asked) == 1:
            status = status_pb2.Status(
                code=code_pb2.RESOURCE_EXHAUSTED, message="as many vends wait as can be finished"
            )
            for one in (
                error_details_pb2.ErrorInfo(reason="OVERLOADED", domain="utrn.v1"),
                error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=700_000_000)),
            ):
                status.details.add().Pack(one)
            await context.abort_with_status(rpc_status.to_status(status))
        code = types_pb2.IssuedCode(transaction_id=request.transaction_id, utrn_printed="1234 5678 9012 3456 7890")
        return pb.TopUpResponse(code=code)

    async def GetVend(self, request: Any, context: Any) -> pb.GetVendResponse:  # noqa: N802
        return pb.GetVendResponse(vend=types_pb2.Vend(delivery=types_pb2.Delivery()))


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_till_comes_back_when_it_is_told_to_and_under_the_same_id(
    module_stack: DevStack, guide: Path, tmp_path: Path, program: str
) -> None:
    node = BusyOnce()  # type: ignore[abstract]  # a till asks for these three only
    async with serving(module_stack, node) as target:
        arguments = [*options(module_stack, PSP, target).split(), "--sales", str(tmp_path / "sales.jsonl")]
        code, said = await ended(program, guide, *arguments, "9826000000000000009", "700")
    assert (code, said[0]["code"]) == (0, "1234 5678 9012 3456 7890")
    (first, one), (second, same) = node.asked
    assert one == same
    assert second - first >= 0.7


# What the pages point to.


PAGES = [
    ROOT / "README.md",
    *(DOCS / name for name in (*MARKET, RUNBOOK, FILE, GUIDE, "threat-model.md", "GLOSSARY.md")),
    *sorted((DOCS / "decisions").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_points_to_is_there(page: Path) -> None:
    text = page.read_text()
    headings = {heading_id(one) for one in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    for link in re.findall(r"\]\(([^)]+)\)", text):
        place, _, heading = link.partition("#")
        assert (page.parent / place).exists() if place else heading in headings, link
    defined = every_test()
    for name in re.findall(r"`(test_\w+)`", text):
        assert name in defined, name
    for file in re.findall(r"`(?:\.venv/bin/python -m pytest )?(tests/[\w/]+\.py)", text):
        assert (ROOT / file).exists(), file


def heading_id(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def every_test() -> set[str]:
    files = (ROOT / "tests").rglob("test_*.py")
    return {
        name for file in files for name in re.findall(r"^\s*(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE)
    }
