"""A line of a registry file -> what it says. Errors name the field and quote no PAN. See docs/registry-file.md."""

import base64
import json
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from google.protobuf.message import DecodeError
from utrn.v1 import appointment_service_pb2 as appointment_pb

from core.api.appointment_messages import terms_of
from core.api.validation import (
    SCHEMES,
    THRESHOLD_PENCE_MAX,
    check_instant,
    check_profile,
    parse_approvers,
    parse_certificate,
    parse_intermediates,
    parse_key_id,
    parse_meter_id,
    parse_point,
    parse_schemes,
    parse_text,
    parse_uris,
)
from core.domain.appointment import Evidence
from core.domain.ceiling import parse_ceiling
from core.domain.effective_dated import Ms, begin, ms_of
from core.domain.errors import BadField
from core.domain.meter import (
    Generation,
    Meter,
    MeterCapabilities,
    MeterKind,
    PanForm,
    PanRule,
    PaymentMode,
    Registration,
    Settings,
    parse_eui64,
    parse_pan,
)
from core.domain.participant import CreditRule, Limit, Profile, Role, SellingModel, SupplierKey, parse_participant_id
from core.registry.bulk_load import Loadable, NewModel, NewPan, SignedAppointment
from core.registry.participants import NewParticipant

LINE_CHARACTERS_MAX: Final = 20_000
_EVIDENCE_BYTES_MAX = 10_000
# The bounds proper are checked with those of requests.
_NUMBER_MAX = 2**53
# What a name in a line must look like to be told back: a value that slipped into its place may be a PAN.
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}", re.ASCII | re.IGNORECASE)


@dataclass(slots=True)
class _Reader:
    """Reads the fields of one object of a line, `room` in their full names, and remembers which were read."""

    values: dict[str, Any]
    now: Ms
    by: str
    pan_rule: PanRule
    room: str = ""
    read: set[str] = field(default_factory=set)

    def text(self, name: str, *, optional: bool = False) -> str:
        value = self._get(name, "" if optional else None)
        if not isinstance(value, str):
            raise self.wrong(name, "a text is needed")
        return value

    def short(self, name: str, *, least: int = 0, most: int = 40) -> str:
        return parse_text(self.text(name, optional=not least), self.room + name, least=least, most=most)

    def flag(self, name: str, *, default: bool = False) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false is needed")
        return value

    def number(self, name: str, *, most: int) -> int:
        value = self._get(name, 0)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise self.wrong(name, f"a whole number, 0 to {most}, is needed")
        return value

    def texts(self, name: str) -> list[str]:
        value = self._get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(name, "a list of texts is needed")
        return value

    def point(self, name: str) -> bytes:
        try:
            point = bytes.fromhex(self.text(name))
        except ValueError as error:
            raise self.wrong(name, "hex is needed") from error
        return parse_point(point, self.room + name)

    def one_of(self, name: str, choices: Collection[str], *, default: str | None = None) -> str:
        value = self._get(name, default)
        if not isinstance(value, str) or value not in choices:
            raise self.wrong(name, f"one of {', '.join(sorted(choices))} is needed")
        return value

    def instant(self, name: str) -> Ms | None:
        text = self.text(name, optional=True)
        if not text:
            return None
        try:
            instant = datetime.fromisoformat(text)
        except ValueError as error:
            raise self.wrong(name, "an instant as 2026-11-24T12:00:00Z is needed") from error
        if instant.tzinfo is None:
            raise self.wrong(name, "an instant with its offset, such as Z, is needed")
        return check_instant(ms_of(instant), self.room + name, now=self.now)

    def part(self, name: str) -> "_Reader | None":
        value = self._get(name, {})
        if not isinstance(value, dict):
            raise self.wrong(name, "an object is needed")
        return self._inside(value, name) if value else None

    def parts(self, name: str) -> "list[_Reader]":
        value = self._get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.wrong(name, "a list of objects is needed")
        return [self._inside(item, name) for item in value]

    def raw(self, name: str) -> bytes:
        return self._decoded(self.text(name), name)

    def raws(self, name: str) -> list[bytes]:
        return [self._decoded(text, name) for text in self.texts(name)]

    def _decoded(self, text: str, name: str) -> bytes:
        try:
            raw = base64.b64decode(text, validate=True)
        except ValueError as error:
            raise self.wrong(name, "base64 is needed") from error
        if not 1 <= len(raw) <= _EVIDENCE_BYTES_MAX:
            raise self.wrong(name, f"1 to {_EVIDENCE_BYTES_MAX} bytes are needed")
        return raw

    def finish(self) -> None:
        unknown = sorted(set(self.values) - self.read)
        if unknown:
            raise _unnamed(self.room, unknown[0], "no field of this name is known here")

    def wrong(self, name: str, need: str) -> BadField:
        return BadField(f"{self.room}{name}: {need}", field=self.room + name)

    def _get(self, name: str, default: object) -> Any:  # whatever JSON holds
        self.read.add(name)
        if name in self.values:
            return self.values[name]
        if default is None:
            raise self.wrong(name, "is missing")
        return default

    def _inside(self, values: dict[str, Any], name: str) -> "_Reader":
        return _Reader(values, self.now, self.by, self.pan_rule, f"{self.room}{name}.")


def read_line(line: str, *, pan_rule: PanRule, now: Ms, by: str) -> Loadable:
    """Return what a line says.

    Args:
        line: A JSON object.
        pan_rule: What a PAN looks like.
        now: When it is read.
        by: Who loads it.

    Raises:
        BadField, DatesReversed: names the field.
    """
    if len(line) > LINE_CHARACTERS_MAX:
        raise line_too_long()
    reader = _Reader(_values(line), now, by, pan_rule)
    record = _KINDS[reader.one_of("type", _KINDS)](reader)
    reader.finish()
    return record


def line_too_long() -> BadField:
    """Return the refusal of a line that is longer than any honest one."""
    return BadField(f"line: longer than {LINE_CHARACTERS_MAX} characters", field="line")


def _values(line: str) -> dict[str, Any]:
    """Return the object that a line is, each field told once and every text fit to be kept."""
    try:
        values = json.loads(line, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise BadField(f"line: not JSON at column {error.colno}", field="line") from error
    except (ValueError, RecursionError) as error:
        # A number of thousands of digits, or lists in lists in lists.
        raise BadField("line: not JSON that can be read here", field="line") from error
    if not isinstance(values, dict):
        raise BadField("line: a JSON object is needed", field="line")
    if "\\u" in line or not line.isascii():
        for name, value in values.items():
            if not _storable(name, value):
                raise _unnamed("", name, "half a surrogate pair is no character")
    return values


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        told = Counter(name for name, _ in pairs)
        raise _unnamed("", told.most_common(1)[0][0], "told twice")
    return values


def _storable(*values: object) -> bool:
    """Return whether every text in `values` is one: JSON can spell halves of surrogate pairs, which no UTF-8 has."""
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        return False
    return True


def _unnamed(room: str, name: str, problem: str) -> BadField:
    """Return the refusal of a field by a name that this program does not have."""
    if not _NAME.fullmatch(name):
        return BadField(f"line: {problem}: a field whose name is not of letters, digits and _", field="line")
    return BadField(f"{room}{name}: {problem}", field=room + name)


def _participant(reader: _Reader) -> NewParticipant:
    role = Role[reader.one_of("role", {choice.name.lower() for choice in Role}).upper()]
    supplier = role is Role.SUPPLIER
    profile = reader.part("profile") if supplier else None
    return NewParticipant(
        participant_id=parse_participant_id(reader.text("participant_id"), field="participant_id"),
        role=role,
        name=reader.short("name", least=1, most=200),
        identities=parse_uris(reader.texts("identities"), "identities"),
        supplier_key=_supplier_key(reader) if supplier else None,
        profile=None if profile is None else _profile(profile),
        ceiling_pence=parse_ceiling(reader.number("ceiling_pence", most=_NUMBER_MAX), field="ceiling_pence"),
    )


def _supplier_key(reader: _Reader) -> SupplierKey:
    return SupplierKey(
        originator_id=parse_eui64(reader.text("originator_id"), field="originator_id"),
        key_id=parse_key_id(reader.text("key_id"), "key_id"),
        public_point=reader.point("prepayment_public_point"),
    )


def _profile(reader: _Reader) -> Profile:
    limits = []
    for part in reader.parts("limits"):
        limits.append(
            Limit(
                channel=part.number("channel", most=_NUMBER_MAX),
                min_pence=part.number("min_pence", most=_NUMBER_MAX),
                max_pence=part.number("max_pence", most=_NUMBER_MAX),
                whole_pounds=part.flag("whole_pounds"),
                closed=part.flag("closed"),
            )
        )
        part.finish()
    profile = Profile(
        option=SellingModel[
            reader.one_of("option", {choice.name.lower() for choice in SellingModel}, default="supplier_only").upper()
        ],
        limits=tuple(limits),
        credit=CreditRule(
            each_max_pence=reader.number("credit_each_max_pence", most=_NUMBER_MAX),
            day_max_pence=reader.number("credit_day_max_pence", most=_NUMBER_MAX),
            approvers=parse_approvers(reader.texts("credit_approvers"), "profile.credit_approvers"),
        ),
    )
    reader.finish()
    return check_profile(profile, "profile")


def _meter(reader: _Reader) -> Meter:
    enrolled = reader.flag("enrolled", default=True)
    settings = Settings(
        payment_mode=PaymentMode[reader.one_of("payment_mode", {"prepayment", "credit"}, default="prepayment").upper()],
        enrolled=enrolled,
        head_end=parse_participant_id(reader.text("head_end"), field="head_end"),
        zone=reader.short("zone"),
        firmware=reader.short("firmware"),
        cohort=reader.short("cohort"),
        max_credit_pence=reader.number("max_credit_pence", most=THRESHOLD_PENCE_MAX),
        max_balance_pence=reader.number("max_balance_pence", most=THRESHOLD_PENCE_MAX),
    )
    supplier_id = parse_participant_id(reader.text("supplier_id"), field="supplier_id")
    since = reader.instant("since")
    registration = Registration(supplier_id=supplier_id)
    return Meter(
        meter_id=parse_meter_id(reader.text("meter_id")),
        kind=MeterKind[reader.one_of("kind", MeterKind.__members__)],
        generation=Generation[reader.one_of("generation", Generation.__members__, default="SMETS2")],
        make=reader.short("make"),
        model=reader.short("model"),
        scheme=reader.one_of("scheme", SCHEMES),
        public_point=reader.point("public_point"),
        registrations=begin(registration, since=since, now=reader.now, by=reader.by),
        settings=begin(settings, since=since, now=reader.now, by=reader.by),
    )


def _card(reader: _Reader) -> NewPan:
    return NewPan(
        pan=parse_pan(reader.text("pan"), reader.pan_rule),
        form=PanForm[reader.one_of("form", {"plastic", "virtual", "app"}, default="plastic").upper()],
        meter_id=parse_meter_id(reader.text("meter_id")),
        blocked=reader.flag("blocked"),
        since=reader.instant("since"),
    )


def _model(reader: _Reader) -> NewModel:
    abilities = MeterCapabilities(
        schemes=parse_schemes(reader.texts("schemes"), "schemes"),
        over_the_air=reader.flag("over_the_air", default=True),
        central_issue=reader.flag("central_issue", default=True),
    )
    return NewModel(
        make=reader.short("make", least=1),
        model=reader.short("model", least=1),
        abilities=abilities,
    )


def _appointment(reader: _Reader) -> SignedAppointment:
    evidence = Evidence(
        terms=reader.raw("terms"),
        signature=reader.raw("signature"),
        certificate=parse_certificate(reader.raw("certificate"), "certificate"),
        intermediates=parse_intermediates(reader.raws("intermediates"), "intermediates"),
    )
    try:
        terms = appointment_pb.AppointmentTerms.FromString(evidence.terms)
    except DecodeError as error:
        raise BadField("terms: a serialized AppointmentTerms is needed", field="terms") from error
    return SignedAppointment(terms=terms_of(terms, "terms", now=reader.now), evidence=evidence)


_KINDS: dict[str, Callable[[_Reader], Loadable]] = {
    "participant": _participant,
    "model": _model,
    "appointment": _appointment,
    "meter": _meter,
    "pan": _card,
}
