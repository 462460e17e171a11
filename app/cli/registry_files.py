"""Loads a registry file, JSON lines or CSV: part by part, through a node or straight into the ledger."""

import csv
import json
import re
from codecs import BOM_UTF8
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import grpc
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.timestamp_pb2 import Timestamp
from utrn.v1 import registry_service_pb2 as pb
from utrn.v1 import registry_service_pb2_grpc as rpc

from app.node.config import Config
from app.node.tls import callers_of
from cluster.audit.anchors import EtcdAuditAnchors
from cluster.etcd.client import EtcdClient, EtcdUnreachable
from cluster.etcd.keys import Keys
from cluster.etcd.ledger_guard import LedgerGuard
from cluster.ledger.identity import LedgerUnfit, look, unfit
from cluster.membership.head_ends import head_end_names
from cluster.registry.store import EtcdRegistryStore
from core.access.approvals import ConsentOfLedger
from core.api.registry_file import LINE_CHARACTERS_MAX, line_too_long, read_line
from core.domain.effective_dated import EffectiveDated, Ms, ms_of
from core.domain.errors import BadField, LedgerUnavailable, Refused
from core.domain.meter import PanRule
from core.domain.participant import Participant, ParticipantId, Principal, Role
from core.gateways.audit_log_file import AuditLogFile
from core.gateways.system_clock import SystemClock
from core.registry.appointments import Appoint
from core.registry.bulk_load import Loadable, LoadRecords
from core.registry.participants import ParticipantAdmin

# Line numbers and bytes in one message; a node takes 2 MiB (`[api] message_bytes_max`) unless it is told otherwise.
_PART = 1000
_PART_BYTES_MAX = 1_000_000
# No character has more than four bytes.
_LINE_BYTES_MAX = 4 * LINE_CHARACTERS_MAX + 2
_PROBLEMS_MAX = 1000
# Whoever holds etcd's certificate can write anything; the audit log of the registry names this hand.
_BOOTSTRAP = Principal(
    Participant(
        participant_id=ParticipantId("bootstrap"),
        role=Role.OPERATOR,
        identity_history=EffectiveDated(),
        statuses=EffectiveDated(),
    )
)
_NUMBER = re.compile(r"[0-9]{1,15}", re.ASCII)
_NUMBER_TYPES = (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64)

# Its path in a record, and its field there; no field, and no path, for a remark.
Column = tuple[str, FieldDescriptor | None]
# Its number, and its text or why it has none.
Line = tuple[int, str | BadField]


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

    A line that cannot be read comes as what is wrong with it; the others are not touched by it.

    Raises:
        UnreadableFile: it is not there, or a CSV does not begin with the fields' names.
    """
    try:
        with path.open("rb") as file:
            lines = _texts(file)
            rows = _rows(path, lines) if path.suffix.lower() == ".csv" else lines
            for number, line in rows:
                if number > after:
                    yield number, line_too_long() if isinstance(line, str) and len(line) > LINE_CHARACTERS_MAX else line
    except OSError as error:
        raise UnreadableFile(f"{path}: cannot be read: {error}") from error


def _texts(file: BinaryIO) -> Iterator[Line]:
    """Yield the lines of a file that are not blank; they end where an editor ends them, at line feeds."""
    number = 0
    while piece := file.readline(_LINE_BYTES_MAX):
        number += 1
        if len(piece) == _LINE_BYTES_MAX and not piece.endswith(b"\n"):
            _pass_over(file)
            yield number, line_too_long()
            continue
        try:
            text = (piece.removeprefix(BOM_UTF8) if number == 1 else piece).decode()
        except UnicodeDecodeError as error:
            yield number, BadField(f"line: not UTF-8 at byte {error.start + 1}", field="line")
            continue
        if text.strip():
            yield number, text.rstrip("\r\n")


def _pass_over(file: BinaryIO) -> None:
    """Read on to the end of the line, without keeping it."""
    while (piece := file.readline(_LINE_BYTES_MAX)) and not piece.endswith(b"\n"):
        pass


def _rows(path: Path, lines: Iterator[Line]) -> Iterator[Line]:
    """Yield the rows of a CSV as JSON. A row is a line, whatever its quotes: a broken one takes no others with it."""
    columns = _columns(path, lines)
    for number, line in lines:
        yield number, _row(columns, line)


def _columns(path: Path, lines: Iterator[Line]) -> list[Column]:
    """Return the columns, which the first line names by the fields' paths in a record."""
    for number, line in lines:
        cells = _cells(line)
        columns = [] if isinstance(cells, BadField) else [(name, _field(name)) for name in cells]
        told = [name for name, _ in columns if name]
        if not told or len(set(told)) < len(told) or any(name and field is None for name, field in columns):
            problem = "the fields' paths are needed, each once, such as add_meter.meter.meter_id"
            raise UnreadableFile(f"{path}: cannot be read: line {number}: {problem}")
        return columns
    return []


def _field(path: str) -> FieldDescriptor | None:
    """Return the field of a record that a path names, if a cell can hold what is in it."""
    kind: Descriptor | None = pb.RegistryRecord.DESCRIPTOR
    found: FieldDescriptor | None = None
    for name in path.split("."):
        found = None if kind is None else kind.fields_by_name.get(name)
        kind = None if found is None or found.is_repeated else found.message_type
        if kind is Timestamp.DESCRIPTOR:
            kind = None
    return found if found is not None and found.message_type in (None, Timestamp.DESCRIPTOR) else None


def _row(columns: Sequence[Column], line: str | BadField) -> str | BadField:
    """Return a row as the JSON of a record; cells that are blank say nothing."""
    cells = _cells(line)
    if isinstance(cells, BadField):
        return cells
    if len(cells) != len(columns):
        return BadField(f"line: {len(cells)} cells under {len(columns)} names", field="line")
    record: dict[str, Any] = {}
    for (path, wanted), text in zip(columns, cells, strict=True):
        if not text:
            continue
        if wanted is not None and wanted.type in _NUMBER_TYPES and not _NUMBER.fullmatch(text):
            return BadField(f"{path}: a whole number is needed", field=path)
        *rooms, name = path.split(".")
        inside = record
        for room in rooms:
            inside = inside.setdefault(room, {})
        inside[name] = _value(wanted, text)
    return json.dumps(record, ensure_ascii=False)


def _cells(line: str | BadField) -> list[str] | BadField:
    if isinstance(line, BadField):
        return line
    try:
        (cells,) = csv.reader([line], strict=True)
    except csv.Error as error:
        return BadField(f"line: no row of a CSV: {error}", field="line")
    return cells


def _value(field: FieldDescriptor | None, text: str) -> object:
    """Return a cell as ProtoJSON, which takes numbers, enums, instants and bytes as texts."""
    if field is not None and field.is_repeated:
        return text.split(";")
    if field is not None and field.type == FieldDescriptor.TYPE_BOOL:
        return {"true": True, "false": False}.get(text, text)
    return text


def parts(lines: Iterator[Line]) -> Iterator[list[Line]]:
    """Yield lines in parts, each of so few numbers and bytes that a node takes it as one message."""
    part: list[Line] = []
    size = 0
    for number, line in lines:
        more = len(line.encode()) if isinstance(line, str) else 0
        if part and (number - part[0][0] >= _PART or size + more > _PART_BYTES_MAX):
            yield part
            part, size = [], 0
        part.append((number, line))
        size += more
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


def _read(line: str | BadField, pan_rule: PanRule, now: Ms) -> Loadable | Refused:
    if isinstance(line, BadField):
        return line
    try:
        return read_line(line, pan_rule=pan_rule, now=now, by=_BOOTSTRAP.participant_id)
    except Refused as refusal:
        return refusal


async def load_direct(config: Config, lines: Iterator[Line], progress: Callable[[Total], None]) -> Total:
    """Write straight into the ledger: how the first operator comes in. Needs etcd's certificate.

    Raises:
        LedgerUnavailable, OutcomeUnknown: go on after the `last_line` that `progress` heard of.
        LedgerUnfit: there is no ledger under the configuration's prefix.
        EtcdUnreachable: no member answered; nothing was written.
    """
    clock, guard, keys = SystemClock(), LedgerGuard(), Keys(config.etcd.prefix)
    client = EtcdClient(config.etcd, guard)
    anchors = EtcdAuditAnchors(client, config.etcd, clock)
    audit_log = AuditLogFile(config.node.trail, _BOOTSTRAP.participant_id, clock, anchors)
    store = EtcdRegistryStore(client, config.etcd, clock)
    callers = callers_of(config.api)
    await _open(client, guard, keys)
    names = await _head_end_names(client, config)
    load = LoadRecords(
        store=store,
        parties=ParticipantAdmin(store=store, clock=clock, consents=ConsentOfLedger()),
        appoint=Appoint(store=store, clock=clock, authority=lambda: callers),
        clock=clock,
        audit_log=audit_log,
        head_ends=lambda: names,
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
        await audit_log.end()
        await client.close()
    return total


async def _open(client: EtcdClient, guard: LedgerGuard, keys: Keys) -> None:
    """Load into a ledger that is there, and only while it is that one: a mistyped prefix must not begin another."""
    try:
        seen = await look(client, keys)
    except EtcdUnreachable:
        await client.close()
        raise
    if seen.value is None:
        await client.close()
        raise LedgerUnfit(unfit(keys, seen, None))
    guard.know(seen.record.incarnation, (keys.ledger(), seen.value), seen.revision, seen.cluster_id)


async def _head_end_names(client: EtcdClient, config: Config) -> frozenset[str]:
    """Return the head ends that there are: in the ledger, or in this node's configuration, before a node ever ran."""
    try:
        return (await head_end_names(client, config.etcd)).union(head_end.name for head_end in config.head_ends)
    except EtcdUnreachable as error:
        await client.close()
        raise LedgerUnavailable("the ledger cannot be reached; nothing was written") from error


async def load_remote(channel: grpc.aio.Channel, lines: Iterator[Line], progress: Callable[[Total], None]) -> Total:
    """Stream a file to a node.

    Raises:
        grpc.aio.AioRpcError: go on after the `last_line` that `progress` heard of.
    """
    total = Total()
    unsent: deque[tuple[int, BadField]] = deque()
    call = rpc.RegistryServiceStub(channel).LoadRecords(_requests(parts(lines), unsent))
    async for done in call:
        total.loaded += done.loaded
        total.unchanged += done.unchanged
        problems = [(one.line, one.reason, one.message) for one in done.problems]
        while unsent and unsent[0][0] <= done.last_line:
            number, problem = unsent.popleft()
            problems.append((number, problem.reason, problem.message))
        for line, reason, message in sorted(problems):
            total.refuse(line, reason, message)
        total.last_line = done.last_line
        progress(total)
    return total


async def _requests(
    some: Iterator[Sequence[Line]], unsent: deque[tuple[int, BadField]]
) -> AsyncIterator[pb.LoadRecordsRequest]:
    """Yield parts as they are sent; lines that cannot be read are left blank in them, and kept in `unsent`."""
    for part in some:
        first = part[0][0]
        texts = [""] * (part[-1][0] - first + 1)
        for number, line in part:
            if isinstance(line, BadField):
                unsent.append((number, line))
            else:
                texts[number - first] = line
        yield pb.LoadRecordsRequest(first_line=first, lines=texts)
