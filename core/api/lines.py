"""A line of a registry file -> what it says. Errors name the field and quote no PAN. See docs/registry-file.md."""

import base64
import binascii
import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from google.protobuf.message import DecodeError
from utrn.v1 import appointment_service_pb2 as appointment_pb

from core.api.checks import parse_point, parse_text
from core.api.registry_convert import terms_of
from core.domain.appointment import Evidence
from core.domain.errors import BadField
from core.domain.meter import (
    Abilities,
    Generation,
    Meter,
    MeterId,
    MeterKind,
    PanForm,
    PanRule,
    PaymentMode,
    Registration,
    Settings,
    parse_eui64,
    parse_pan,
)
from core.domain.party import (
    CreditRule,
    Limit,
    Option,
    Profile,
    Role,
    SupplierKey,
    parse_identities,
    parse_participant_id,
)
from core.domain.timeline import Ms, begin, ms_of
from core.flows.keep_parties import NewParticipant
from core.flows.load_records import Loadable, NewCard, NewModel, SignedAppointment

LINE_CHARACTERS_MAX: Final = 20_000
_KEY_ID = re.compile(r"(?:[0-9a-f]{2}){1,32}", re.ASCII)
_SCHEMES = frozenset({"gbcs"})
_PENCE_MAX = 819_100


@dataclass(slots=True)
class _Reader:
    """Reads the fields of one line, and remembers which were read."""

    values: dict[str, Any]
    now: Ms
    by: str
    pan_rule: PanRule
    read: set[str] = field(default_factory=lambda: {"type"})

    def text(self, name: str, *, optional: bool = False) -> str:
        value = self._get(name, "" if optional else None)
        if not isinstance(value, str):
            raise BadField(f"{name}: a text is needed", field=name)
        return value

    def short(self, name: str, *, most: int = 40) -> str:
        return parse_text(self.text(name, optional=True), name, most=most)

    def flag(self, name: str, *, default: bool = False) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise BadField(f"{name}: true or false is needed", field=name)
        return value

    def pence(self, name: str) -> int:
        value = self._get(name, 0)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 100 * _PENCE_MAX:
            raise BadField(f"{name}: whole pence are needed", field=name)
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._get(name, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise BadField(f"{name}: a list of texts is needed", field=name)
        return tuple(value)

    def point(self, name: str) -> bytes:
        try:
            return parse_point(bytes.fromhex(self.text(name)), name)
        except ValueError as error:
            raise BadField(f"{name}: hex is needed", field=name) from error

    def one_of(self, name: str, choices: Collection[str], *, default: str | None = None) -> str:
        value = self._get(name, default)
        if value not in choices:
            raise BadField(f"{name}: one of {', '.join(sorted(choices))} is needed", field=name)
        return str(value)

    def instant(self, name: str) -> Ms | None:
        text = self.text(name, optional=True)
        if not text:
            return None
        try:
            instant = datetime.fromisoformat(text)
        except ValueError as error:
            raise BadField(f"{name}: an instant as 2026-11-24T12:00:00Z is needed", field=name) from error
        if instant.tzinfo is None:
            raise BadField(f"{name}: an instant with its offset, such as Z, is needed", field=name)
        return ms_of(instant)

    def part(self, name: str) -> "_Reader | None":
        value = self._get(name, {})
        if not isinstance(value, dict):
            raise BadField(f"{name}: an object is needed", field=name)
        return _Reader(value, self.now, self.by, self.pan_rule) if value else None

    def parts(self, name: str) -> "list[_Reader]":
        value = self._get(name, [])
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise BadField(f"{name}: a list of objects is needed", field=name)
        return [_Reader(one, self.now, self.by, self.pan_rule) for one in value]

    def raw(self, name: str) -> bytes:
        try:
            return base64.b64decode(self.text(name), validate=True)
        except binascii.Error as error:
            raise BadField(f"{name}: base64 is needed", field=name) from error

    def finish(self) -> None:
        unknown = sorted(set(self.values) - self.read)
        if unknown:
            raise BadField(f"{unknown[0]}: no field of this name is known here", field=unknown[0])

    def _get(self, name: str, default: object) -> Any:  # whatever JSON holds
        self.read.add(name)
        if name in self.values:
            return self.values[name]
        if default is None:
            raise BadField(f"{name}: is missing", field=name)
        return default


def read_line(line: str, *, pan_rule: PanRule, now: Ms, by: str) -> Loadable:
    """Return what a line says.

    Args:
        line: A JSON object.
        pan_rule: What a PAN looks like.
        now: When it is read.
        by: Who loads it.

    Raises:
        BadField: names the field.
    """
    if len(line) > LINE_CHARACTERS_MAX:
        raise BadField(f"line: longer than {LINE_CHARACTERS_MAX} characters", field="line")
    try:
        values = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        at = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise BadField(f"line: not JSON{at}", field="line") from error
    if not isinstance(values, dict):
        raise BadField("line: a JSON object is needed", field="line")
    reader = _Reader(values, now, by, pan_rule)
    record = _KINDS[reader.one_of("type", _KINDS)](reader)
    reader.finish()
    return record


def _participant(reader: _Reader) -> NewParticipant:
    role = Role[reader.one_of("role", {one.name.lower() for one in Role}).upper()]
    supplier = role is Role.SUPPLIER
    profile = reader.part("profile") if supplier else None
    return NewParticipant(
        participant_id=parse_participant_id(reader.text("participant_id"), field="participant_id"),
        role=role,
        name=parse_text(reader.text("name"), "name", most=200),
        identities=parse_identities(reader.texts("identities"), field="identities"),
        supplier_key=_supplier_key(reader) if supplier else None,
        profile=None if profile is None else _profile(profile),
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


def _profile(reader: _Reader) -> Profile:
    limits = []
    for part in reader.parts("limits"):
        limits.append(
            Limit(
                channel=part.pence("channel"),
                min_pence=part.pence("min_pence"),
                max_pence=part.pence("max_pence"),
                whole_pounds=part.flag("whole_pounds"),
                closed=part.flag("closed"),
            )
        )
        part.finish()
    profile = Profile(
        option=Option[reader.one_of("option", {one.name.lower() for one in Option}, default="supplier_only").upper()],
        limits=tuple(limits),
        credit=CreditRule(
            each_max_pence=reader.pence("credit_each_max_pence"),
            day_max_pence=reader.pence("credit_day_max_pence"),
            approvers=frozenset(reader.texts("credit_approvers")),
        ),
    )
    reader.finish()
    return profile


def _meter(reader: _Reader) -> Meter:
    enrolled = reader.flag("enrolled", default=True)
    settings = Settings(
        payment_mode=PaymentMode[reader.one_of("payment_mode", {"prepayment", "credit"}, default="prepayment").upper()],
        enrolled=enrolled,
        head_end=parse_participant_id(reader.text("head_end"), field="head_end"),
        zone=reader.short("zone"),
        firmware=reader.short("firmware"),
        cohort=reader.short("cohort"),
        max_credit_pence=reader.pence("max_credit_pence"),
        max_balance_pence=reader.pence("max_balance_pence"),
    )
    supplier_id = parse_participant_id(reader.text("supplier_id"), field="supplier_id")
    since = reader.instant("since")
    registration = Registration(supplier_id=supplier_id)
    return Meter(
        meter_id=MeterId(parse_eui64(reader.text("meter_id"), field="meter_id")),
        kind=MeterKind[reader.one_of("kind", MeterKind.__members__)],
        generation=Generation[reader.one_of("generation", Generation.__members__, default="SMETS2")],
        make=reader.short("make"),
        model=reader.short("model"),
        scheme=reader.one_of("scheme", _SCHEMES),
        public_point=reader.point("public_point"),
        registrations=begin(registration, since=since, now=reader.now, by=reader.by),
        settings=begin(settings, since=since, now=reader.now, by=reader.by),
    )


def _card(reader: _Reader) -> NewCard:
    return NewCard(
        pan=parse_pan(reader.text("pan"), reader.pan_rule),
        form=PanForm[reader.one_of("form", {"plastic", "virtual", "app"}, default="plastic").upper()],
        meter_id=MeterId(parse_eui64(reader.text("meter_id"), field="meter_id")),
        blocked=reader.flag("blocked"),
        since=reader.instant("since"),
    )


def _model(reader: _Reader) -> NewModel:
    abilities = Abilities(
        schemes=frozenset(reader.texts("schemes")),
        over_the_air=reader.flag("over_the_air", default=True),
        central_issue=reader.flag("central_issue", default=True),
    )
    return NewModel(
        make=parse_text(reader.text("make"), "make", least=1),
        model=parse_text(reader.text("model"), "model", least=1),
        abilities=abilities,
    )


def _appointment(reader: _Reader) -> SignedAppointment:
    evidence = Evidence(
        terms=reader.raw("terms"), signature=reader.raw("signature"), certificate=reader.raw("certificate")
    )
    try:
        terms = appointment_pb.AppointmentTerms.FromString(evidence.terms)
    except DecodeError as error:
        raise BadField("terms: a serialized AppointmentTerms is needed", field="terms") from error
    return SignedAppointment(terms=terms_of(terms, "terms"), evidence=evidence)


_KINDS: dict[str, Callable[[_Reader], Loadable]] = {
    "participant": _participant,
    "model": _model,
    "appointment": _appointment,
    "meter": _meter,
    "pan": _card,
}
