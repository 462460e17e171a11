"""Reads a registry file: one JSON object a line. Every error names its line and field; one wrong line refuses the file.

Lines, by "type":
  participant: participant_id, role (supplier, psp, operator), name, identities, and for suppliers originator_id,
               key_id, prepayment_public_point, appointed_psps; optional suspended
  meter: meter_id, kind (ESME, GSME), supplier_id, scheme, public_point, head_end
  pan: pan, meter_id; optional blocked
"""

import json
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from core.domain.errors import BadField
from core.domain.meter import Card, Meter, MeterId, MeterKind, PanRule, parse_eui64, parse_pan
from core.domain.party import Participant, ParticipantId, Role, SupplierKey, parse_participant_id

_ERRORS_MAX = 50
_LINE_CHARACTERS_MAX = 20_000
_KEY_ID = re.compile(r"(?:[0-9a-f]{2}){1,32}", re.ASCII)
_IDENTITY = re.compile(r"[a-z][a-z0-9+.-]*:\S{1,500}", re.ASCII)
_SCHEMES = frozenset({"gbcs"})
_ROLES = {"supplier": Role.SUPPLIER, "psp": Role.PSP, "operator": Role.OPERATOR}

Record = Participant | Meter | Card


class BadRegistryFile(Exception):
    """The file cannot be loaded. `problems` has one sentence per error, each naming line and field."""

    def __init__(self, problems: list[str]) -> None:
        """Keep the problems."""
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(slots=True)
class _Reader:
    """Reads the fields of one line, and remembers which were read."""

    values: dict[str, Any]
    read: set[str] = field(default_factory=lambda: {"type"})

    def text(self, name: str) -> str:
        value = self._get(name)
        if not isinstance(value, str):
            raise BadField(f"{name}: a text is needed", field=name)
        return value

    def flag(self, name: str) -> bool:
        value = self.values.get(name, False)
        self.read.add(name)
        if not isinstance(value, bool):
            raise BadField(f"{name}: true or false is needed", field=name)
        return value

    def texts(self, name: str, *, optional: bool = False) -> tuple[str, ...]:
        if optional and name not in self.values:
            return ()
        value = self._get(name)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise BadField(f"{name}: a list of texts is needed", field=name)
        return tuple(value)

    def point(self, name: str) -> bytes:
        text = self.text(name)
        try:
            point = bytes.fromhex(text)
            ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
        except ValueError as error:
            raise BadField(f"{name}: a point of P-256 in hex, 65 bytes uncompressed, is needed", field=name) from error
        if len(point) != 65:
            raise BadField(f"{name}: the uncompressed form, 65 bytes, is needed", field=name)
        return point

    def one_of(self, name: str, choices: Collection[str]) -> str:
        text = self.text(name)
        if text not in choices:
            raise BadField(f"{name}: one of {', '.join(sorted(choices))} is needed", field=name)
        return text

    def finish(self) -> None:
        unknown = sorted(set(self.values) - self.read)
        if unknown:
            raise BadField(f"{unknown[0]}: no field of this name is known here", field=unknown[0])

    def _get(self, name: str) -> Any:  # whatever JSON holds
        self.read.add(name)
        if name not in self.values:
            raise BadField(f"{name}: is missing", field=name)
        return self.values[name]


def read_registry_file(
    path: Path,
    *,
    pan_rule: PanRule,
    known_participants: Iterable[Participant] = (),
    known_meters: Collection[MeterId] = frozenset(),
) -> list[Record]:
    """Return the records of `path`, in its order.

    Args:
        path: The file.
        pan_rule: What a PAN looks like.
        known_participants: Registered already; lines may refer to them.
        known_meters: Registered already.

    Raises:
        BadRegistryFile: at least one line is wrong; nothing should be loaded.
    """
    problems: list[str] = []
    records: list[tuple[int, Record]] = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadRegistryFile([f"{path}: cannot be read: {error}"]) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append((number, _record(line, pan_rule)))
        except BadField as error:
            problems.append(f"line {number}: {error.message}")
        if len(problems) >= _ERRORS_MAX:
            break
    problems += _contradictions(records, list(known_participants), known_meters)
    if problems:
        raise BadRegistryFile(problems[:_ERRORS_MAX])
    return [record for _, record in records]


def _record(line: str, pan_rule: PanRule) -> Record:
    if len(line) > _LINE_CHARACTERS_MAX:
        raise BadField(f"line: longer than {_LINE_CHARACTERS_MAX} characters", field="line")
    try:
        values = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        at = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise BadField(f"line: not JSON{at}", field="line") from error
    if not isinstance(values, dict):
        raise BadField("line: a JSON object is needed", field="line")
    reader = _Reader(values)
    kinds: dict[str, Callable[[_Reader, PanRule], Record]] = {
        "participant": _participant,
        "meter": _meter,
        "pan": _card,
    }
    record = kinds[reader.one_of("type", kinds)](reader, pan_rule)
    reader.finish()
    return record


def _participant(reader: _Reader, _: PanRule) -> Participant:
    role = _ROLES[reader.one_of("role", _ROLES)]
    identities = reader.texts("identities")
    if not identities or not all(_IDENTITY.fullmatch(identity) for identity in identities):
        raise BadField("identities: one SAN URI or more are needed", field="identities")
    return Participant(
        participant_id=parse_participant_id(reader.text("participant_id"), field="participant_id"),
        role=role,
        name=reader.text("name"),
        identities=identities,
        suspended=reader.flag("suspended"),
        supplier_key=_supplier_key(reader) if role is Role.SUPPLIER else None,
        appointed_psps=frozenset(
            parse_participant_id(psp, field="appointed_psps")
            for psp in (reader.texts("appointed_psps", optional=True) if role is Role.SUPPLIER else ())
        ),
    )


def _supplier_key(reader: _Reader) -> SupplierKey:
    key_id = reader.text("key_id")
    if not _KEY_ID.fullmatch(key_id):
        raise BadField("key_id: the CKA_ID, 1 to 32 bytes in lower-case hex, is needed", field="key_id")
    return SupplierKey(
        originator_id=parse_eui64(reader.text("originator_id"), field="originator_id"),
        key_id=key_id,
        public_point=reader.point("prepayment_public_point"),
    )


def _meter(reader: _Reader, _: PanRule) -> Meter:
    head_end = reader.text("head_end")
    return Meter(
        meter_id=MeterId(parse_eui64(reader.text("meter_id"), field="meter_id")),
        kind=MeterKind[reader.one_of("kind", MeterKind.__members__)],
        supplier_id=parse_participant_id(reader.text("supplier_id"), field="supplier_id"),
        scheme=reader.one_of("scheme", _SCHEMES),
        public_point=reader.point("public_point"),
        head_end=parse_participant_id(head_end, field="head_end"),
    )


def _card(reader: _Reader, pan_rule: PanRule) -> Card:
    return Card(
        pan=parse_pan(reader.text("pan"), pan_rule),
        meter_id=MeterId(parse_eui64(reader.text("meter_id"), field="meter_id")),
        blocked=reader.flag("blocked"),
    )


def _contradictions(
    records: list[tuple[int, Record]], known: list[Participant], known_meters: Collection[MeterId]
) -> list[str]:
    """Return what is wrong between lines: twice the same, or referring to what is not there."""
    problems: list[str] = []
    first: dict[tuple[str, str], int] = {}
    for number, record in records:
        key = _key(record)
        if key in first:
            # By its field only: a PAN is the consumer's, and this text may end up in a ticket.
            problems.append(f"line {number}: {key[0]}: the same as on line {first[key]}")
        first.setdefault(key, number)
    in_file = [record for _, record in records if isinstance(record, Participant)]
    named = {one.participant_id for one in in_file}
    participants = {one.participant_id: one for one in known if one.participant_id not in named}
    participants |= {one.participant_id: one for one in in_file}
    meters = set(known_meters) | {record.meter_id for _, record in records if isinstance(record, Meter)}
    problems += _identity_clashes(records, [one for one in known if one.participant_id not in named])
    for number, record in records:
        problem = _dangling(record, participants, meters)
        if problem:
            problems.append(f"line {number}: {problem}")
    return problems


def _identity_clashes(records: list[tuple[int, Record]], known: list[Participant]) -> list[str]:
    """Return which certificates would stand for two participants."""
    users = {identity: one.participant_id for one in known for identity in one.identities}
    problems: list[str] = []
    for number, record in records:
        if isinstance(record, Participant):
            for identity in record.identities:
                user = users.setdefault(identity, record.participant_id)
                if user != record.participant_id:
                    problems.append(f"line {number}: identities: {identity} is used by {user}")
    return problems


def _dangling(record: Record, participants: dict[ParticipantId, Participant], meters: set[MeterId]) -> str | None:
    match record:
        case Participant(appointed_psps=psps):
            missing = sorted(one for one in psps if one not in participants or participants[one].role is not Role.PSP)
            return f"appointed_psps: {missing[0]} is no registered PSP" if missing else None
        case Meter(supplier_id=supplier_id):
            supplier = participants.get(supplier_id)
            known = supplier is not None and supplier.role is Role.SUPPLIER
            return None if known else f"supplier_id: {supplier_id} is no registered supplier"
        case Card(meter_id=meter_id):
            return None if meter_id in meters else f"meter_id: {meter_id} is not registered"


def _key(record: Record) -> tuple[str, str]:
    match record:
        case Participant(participant_id=participant_id):
            return "participant_id", participant_id
        case Meter(meter_id=meter_id):
            return "meter_id", meter_id
        case Card(pan=pan):
            return "pan", pan
