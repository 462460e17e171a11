"""A line of a registry file -> what it says: a RegistryRecord in ProtoJSON, checked as the request that it holds.

Parsing finds that a line is none; what is wrong is then looked for, so that the refusal names the field by its path in
the request, says what is needed there, and quotes nothing: any value may be a PAN. See docs/registry-file.md.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from utrn.v1 import meter_model_service_pb2, meter_service_pb2, participant_service_pb2
from utrn.v1 import registry_service_pb2 as pb

from core.api.appointment_messages import signed_appointment
from core.api.meter_messages import added_meter, new_model
from core.api.pan_messages import new_pan
from core.api.participant_messages import new_participant
from core.domain.effective_dated import Ms
from core.domain.errors import BadField
from core.domain.meter import PanRule
from core.registry.bulk_load import Loadable

LINE_CHARACTERS_MAX: Final = 20_000
# What json and json_format raise for what is no record: wrong types, numbers without end, lists in lists in lists.
_NO_RECORD = (ParseError, ValueError, TypeError, OverflowError, RecursionError)
# What a name in a line must look like to be told back: a value that slipped into its place may be a PAN.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII | re.IGNORECASE)
# A servicer passes these over in a request. Who writes them into a file means them: a history, a meter not enrolled.
ANSWERS_ONLY: Final = frozenset(
    message.fields_by_name[name]
    for message, names in (
        (participant_service_pb2.Participant.DESCRIPTOR, ("statuses", "profiles", "identity_history", "ceilings")),
        (meter_model_service_pb2.MeterModel.DESCRIPTOR, ("history",)),
        (meter_service_pb2.Meter.DESCRIPTOR,
         ("registrations", "settings", "carried_out_to", "balance_pence", "balance_at")),
        (meter_service_pb2.MeterSettings.DESCRIPTOR, ("tenancy", "enrolled")),
    )
    for name in names
)  # fmt: skip
# No other field of a message that a request holds has one of these names.
_ANSWERS_ONLY_NAMES = frozenset(name for field in ANSWERS_ONLY for name in (field.name, field.json_name))
_RECORD: Final = pb.RegistryRecord.DESCRIPTOR
_NUMBER = re.compile(r"-?[0-9]+", re.ASCII)


def _fields(kind: Descriptor) -> Iterator[FieldDescriptor]:
    """Yield the fields of a message and of those in it, as far as a line may tell them."""
    for field in kind.fields:
        if field not in ANSWERS_ONLY and field.message_type is not Timestamp.DESCRIPTOR:
            yield field
            if field.message_type is not None:
                yield from _fields(field.message_type)


# Names of numbers (True) and of enums (False).
_STRICT: Final = {
    name: field.enum_type is None
    for field in _fields(_RECORD)
    if field.type in (FieldDescriptor.TYPE_ENUM, FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64)
    for name in (field.name, field.json_name)
}
_NEEDED: Final = {
    FieldDescriptor.TYPE_BOOL: "true or false",
    FieldDescriptor.TYPE_BYTES: "base64",
    FieldDescriptor.TYPE_MESSAGE: "an object",
    FieldDescriptor.TYPE_STRING: "a text",
}


def read_line(line: str, *, pan_rule: PanRule, now: Ms, by: str) -> Loadable:
    """Return what a line says.

    Args:
        line: A RegistryRecord as JSON.
        pan_rule: What a PAN looks like.
        now: When it is read.
        by: Who loads it.

    Raises:
        BadField, DatesReversed: as the servicer of its request; names the field.
    """
    record = parse_record(line)
    match record.WhichOneof("request"):
        case "add_participant":
            return new_participant(record.add_participant)
        case "set_meter_model":
            return new_model(record.set_meter_model, now=now)
        case "appoint":
            return signed_appointment(record.appoint, now=now)
        case "add_meter":
            return added_meter(record.add_meter, now=now, by=by)
        case _:
            return new_pan(record.assign_pan, pan_rule, now=now, blocked=record.blocked)


def parse_record(line: str) -> pb.RegistryRecord:
    """Return the record that a line is, with exactly one request; what is in its fields is not checked.

    Raises:
        BadField: it is none; names the field.
    """
    if len(line) > LINE_CHARACTERS_MAX:
        raise line_too_long()
    record = pb.RegistryRecord()
    try:
        values = json.loads(line, object_pairs_hook=_object)
        if "\\u" in line or not line.isascii():
            _check_texts(values)
        if isinstance(values, dict) and not _tells_of_answers(values):
            ParseDict(values, record)
    except _NO_RECORD:
        record.Clear()
    if record.WhichOneof("request") is None:
        raise _refusal(line)
    if record.blocked and not record.HasField("assign_pan"):
        raise BadField("blocked: goes with assign_pan only", field="blocked")
    return record


def line_too_long() -> BadField:
    """Return the refusal of a line that is longer than any honest one."""
    return BadField(f"line: longer than {LINE_CHARACTERS_MAX} characters", field="line")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; raise ValueError if it tells a field twice, or loosely."""
    values = dict(pairs)
    if len(values) < len(pairs) or not ("".join(values).islower() or len(set(map(_plain, values))) == len(values)):
        raise ValueError("told twice")
    if not _STRICT.keys().isdisjoint(values) and any(_loose(name, value) for name, value in pairs):
        raise ValueError("no number, or no enum")
    return values


def _loose(name: str, value: object) -> bool:
    """Return whether json_format would make a number or an enum of what is none: of true, 1.5 or "1_000"."""
    if name not in _STRICT or value is None or type(value) is int:
        return False
    return not isinstance(value, str) or (_STRICT[name] and not _NUMBER.fullmatch(value))


def _check_texts(values: object) -> None:
    """Raise ValueError if a text has half a surrogate pair: JSON can spell it, and look-ups of protobuf break at it."""
    json.dumps(values, ensure_ascii=False).encode()


class _Object(dict[str, Any]):
    """A JSON object, and a field that it tells twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        names = [_plain(name) for name, _ in pairs]
        self.twice = next((name for name, _ in pairs if names.count(_plain(name)) > 1), None)


def _plain(name: str) -> str:
    """Return what the two names of a field, meter_id and meterId, have in common."""
    return name.replace("_", "").lower()


def _tells_of_answers(values: dict[str, Any]) -> bool:
    """Return whether a message in a request tells what is of answers only."""
    return any(
        isinstance(part, dict) and not _ANSWERS_ONLY_NAMES.isdisjoint(part)
        for request in values.values()
        if isinstance(request, dict)
        for part in request.values()
    )


def _refusal(line: str) -> BadField:
    """Return what is wrong with a line that is no record: the first misfit in it."""
    try:
        values = json.loads(line, object_pairs_hook=_Object)
        if not isinstance(values, _Object):
            return BadField("line: a JSON object is needed", field="line")
        found = _misfit(values, _RECORD, "")
    except json.JSONDecodeError as error:
        return BadField(f"line: not JSON at column {error.colno}", field="line")
    except (ValueError, RecursionError):
        # A number of thousands of digits, or lists in lists in lists.
        return BadField("line: not JSON that can be read here", field="line")
    requests = ", ".join(field.name for field in _RECORD.oneofs_by_name["request"].fields)
    return found or BadField(f"line: exactly one of {requests} is needed", field="line")


def _misfit(values: _Object, kind: Descriptor, room: str) -> BadField | None:
    """Return the first thing in a JSON object that keeps it from being a message of a kind, if anything does.

    Args:
        values: The object.
        kind: The message's descriptor.
        room: What precedes its fields' names in their paths.
    """
    if values.twice is not None:
        return _unnamed(room, values.twice, "told twice")
    fields = {name: field for field in kind.fields for name in (field.name, field.json_name)}
    for name, value in values.items():
        field, path = fields.get(name), room + name
        if field is None:
            return _unnamed(room, name, "no field of this name is known here")
        if field in ANSWERS_ONLY:
            return BadField(f"{path}: is of answers only; leave it out", field=path)
        if value is None:
            continue
        if field.message_type in (None, Timestamp.DESCRIPTOR):
            if _loose(name, value) or not _fits({name: value}, kind):
                return BadField(f"{path}: {_need(field)}", field=path)
            continue
        parts = value if field.is_repeated else [value]
        if not isinstance(parts, list) or not all(isinstance(part, _Object) for part in parts):
            return BadField(f"{path}: {_need(field)}", field=path)
        inside = "" if kind is _RECORD else f"{path}."
        found = (_misfit(part, field.message_type, inside) for part in parts)
        if misfit := next(filter(None, found), None):
            return misfit
    return None


def _fits(values: dict[str, Any], kind: Descriptor) -> bool:
    try:
        _check_texts(values)
        ParseDict(values, GetMessageClass(kind)())
    except _NO_RECORD:
        return False
    return True


def _need(field: FieldDescriptor) -> str:
    """Return what is needed in a field, for people."""
    if field.message_type is Timestamp.DESCRIPTOR:
        one = "an instant as 2026-11-24T12:00:00Z"
    elif field.enum_type is not None:
        one = f"one of {', '.join(value.name for value in field.enum_type.values if value.number)}"
    else:
        one = _NEEDED.get(field.type, "a whole number")
    return f"a list, each item {one}, is needed" if field.is_repeated else f"{one} is needed"


def _unnamed(room: str, name: str, problem: str) -> BadField:
    """Return the refusal of a field by a name that a stranger chose."""
    if not _NAME.fullmatch(name):
        return BadField(f"line: {problem}: a field whose name is not of letters, digits and _", field="line")
    return BadField(f"{room}{name}: {problem}", field=room + name)
