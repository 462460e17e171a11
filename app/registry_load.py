"""Loads a registry file, JSON lines or CSV: part by part, through a node or straight into the ledger."""

import csv
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from utrn.v1 import registry_service_pb2 as pb
from utrn.v1 import registry_service_pb2_grpc as rpc

from app.clock import SystemClock
from app.config import Config
from cluster.client import EtcdClient
from cluster.registry_store import EtcdRegistryStore
from core.api.lines import read_line
from core.domain.errors import Refused
from core.domain.meter import PanRule
from core.domain.party import Participant, ParticipantId, Principal, Role
from core.domain.timeline import Ms, Timeline, ms_of
from core.flows.appoint import Appoint
from core.flows.keep_parties import KeepParties
from core.flows.load_records import Loadable, LoadRecords

_PART = 1000
_PROBLEMS_MAX = 1000
# Whoever holds etcd's certificate can write anything; the trail of the registry names this hand.
_BOOTSTRAP = Principal(
    Participant(
        participant_id=ParticipantId("bootstrap"), role=Role.OPERATOR, known_as=Timeline(), standings=Timeline()
    )
)
_NUMBERS = ("_pence", "channel")
_LISTS = frozenset({"identities", "schemes", "credit_approvers"})

Line = tuple[int, str]


class UnreadableFile(Exception):
    """The file cannot be read at all; the message says why."""


@dataclass(slots=True, kw_only=True)
class Total:
    """What became of a file so far. `problems` are (line, reason, sentence); go on after `last_line`."""

    loaded: int = 0
    unchanged: int = 0
    last_line: int = 0
    problem_count: int = 0
    problems: list[tuple[int, str, str]] = field(default_factory=list)

    def refuse(self, line: int, reason: str, message: str) -> None:
        """Count a wrong line, and keep what is wrong with the first ones."""
        self.problem_count += 1
        if len(self.problems) < _PROBLEMS_MAX:
            self.problems.append((line, reason, message))


def read_lines(path: Path, *, after: int = 0) -> Iterator[Line]:
    """Yield the lines of a file after line `after`, each with its number, as JSON; rows of a CSV become JSON.

    Raises:
        UnreadableFile: it is not there, or no text.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = _rows(file) if path.suffix == ".csv" else enumerate(file, start=1)
            yield from ((number, line) for number, line in rows if number > after and line.strip())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnreadableFile(f"{path}: cannot be read: {error}") from error


def _rows(file: Iterator[str]) -> Iterator[Line]:
    reader = csv.DictReader(file)
    for row in reader:
        values = {name: _cell(name, text) for name, text in row.items() if name is not None and text not in (None, "")}
        yield reader.line_num, json.dumps(values)


def _cell(name: str, text: str) -> object:
    if name in _LISTS:
        return text.split(";")
    if text in ("true", "false"):
        return text == "true"
    return int(text) if name.endswith(_NUMBERS) and text.isdecimal() else text


def parts(lines: Iterator[Line]) -> Iterator[list[Line]]:
    """Yield lines in parts. A part has no gap in its numbers, so that it can be sent as it is."""
    part: list[Line] = []
    for number, line in lines:
        if part and (len(part) == _PART or number != part[-1][0] + 1):
            yield part
            part = []
        part.append((number, line))
    if part:
        yield part


def check_lines(lines: Iterator[Line], pan_rule: PanRule) -> Total:
    """Read every line, load nothing."""
    total, now = Total(), ms_of(SystemClock().now())
    for number, line in lines:
        read = _read(line, pan_rule, now)
        if isinstance(read, Refused):
            total.refuse(number, read.reason, read.message)
        else:
            total.loaded += 1
        total.last_line = number
    return total


def _read(line: str, pan_rule: PanRule, now: Ms) -> Loadable | Refused:
    try:
        return read_line(line, pan_rule=pan_rule, now=now, by=_BOOTSTRAP.participant_id)
    except Refused as refusal:
        return refusal


async def load_direct(config: Config, lines: Iterator[Line], progress: Callable[[Total], None]) -> Total:
    """Write straight into the ledger: how the first operator comes in. Needs etcd's certificate.

    Raises:
        LedgerUnavailable, OutcomeUnknown: go on after the `last_line` that `progress` heard of.
    """
    clock, client = SystemClock(), EtcdClient(config.etcd)
    store = EtcdRegistryStore(client, config.etcd, clock)
    load = LoadRecords(
        store=store,
        parties=KeepParties(store=store, clock=clock),
        appoint=Appoint(store=store, clock=clock, roots=config.api.client_ca.read_bytes()),
        clock=clock,
    )
    total = Total()
    try:
        for part in parts(lines):
            now = ms_of(clock.now())
            done = await load(_BOOTSTRAP, [(number, _read(line, config.flow.pan, now)) for number, line in part])
            total.loaded += done.loaded
            total.unchanged += done.unchanged
            for number, problem in sorted(done.problems.items()):
                total.refuse(number, problem.reason, problem.message)
            total.last_line = part[-1][0]
            progress(total)
    finally:
        await client.close()
    return total


async def load_remote(channel: grpc.aio.Channel, lines: Iterator[Line], progress: Callable[[Total], None]) -> Total:
    """Stream a file to a node.

    Raises:
        grpc.aio.AioRpcError: go on after the `last_line` that `progress` heard of.
    """
    total = Total()
    call = rpc.RegistryServiceStub(channel).LoadRecords(_requests(parts(lines)))
    async for done in call:
        total.loaded += done.loaded
        total.unchanged += done.unchanged
        for one in done.problems:
            total.refuse(one.line, one.reason, one.message)
        total.last_line = done.last_line
        progress(total)
    return total


async def _requests(some: Iterator[Sequence[Line]]) -> AsyncIterator[pb.LoadRecordsRequest]:
    for part in some:
        yield pb.LoadRecordsRequest(first_line=part[0][0], lines=[line for _, line in part])
