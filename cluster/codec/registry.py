"""Domain <-> utrn.store.v1 for the registry: how each kind of record is named, written and read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cluster.codec.approval import approval_of, approval_record
from cluster.codec.meter import card_of, card_record, meter_of, meter_record, model_of, model_record
from cluster.codec.participant import appointments_of, appointments_record, participant_of, participant_record
from cluster.codec.registration_change import change_of, change_record, credit_of, credit_record, day_of, day_record
from core.domain.appointment import Appointments
from core.domain.approval import Approval
from core.domain.goodwill_credit import CreditDay, CreditRequest
from core.domain.meter import (
    Meter,
    Model,
    PanRecord,
)
from core.domain.participant import (
    Participant,
)
from core.domain.record import Kind
from core.domain.registration_change import RegistrationChange
from core.ports.registry import StoredRecord


class _Serializable(Protocol):
    def SerializeToString(self, *, deterministic: bool = ...) -> bytes: ...  # noqa: N802  # protobuf's name


@dataclass(frozen=True, slots=True)
class _Form:
    """How one kind of record is named, written and read."""

    kind: Kind
    id_of: Callable[..., str]
    record: Callable[..., _Serializable]
    of: Callable[[bytes], StoredRecord]


_FORMS: dict[type[StoredRecord], _Form] = {
    Participant: _Form(Kind.PARTICIPANT, lambda one: one.participant_id, participant_record, participant_of),
    Meter: _Form(Kind.METER, lambda one: one.meter_id, meter_record, meter_of),
    PanRecord: _Form(Kind.PAN, lambda one: one.pan, card_record, card_of),
    Appointments: _Form(
        Kind.APPOINTMENT, lambda one: f"{one.supplier_id}/{one.psp_id}", appointments_record, appointments_of
    ),
    Model: _Form(Kind.MODEL, lambda one: f"{one.make}/{one.model}", model_record, model_of),
    RegistrationChange: _Form(
        Kind.CHANGE, lambda one: f"{one.responsible}/{one.at:013d}/{one.meter_id}", change_record, change_of
    ),
    CreditRequest: _Form(Kind.CREDIT, lambda one: f"{one.supplier_id}/{one.transaction_id}", credit_record, credit_of),
    Approval: _Form(Kind.APPROVAL, lambda one: one.approval_id, approval_record, approval_of),
    CreditDay: _Form(Kind.CREDIT_DAY, lambda one: f"{one.supplier_id}/{one.day}", day_record, day_of),
}
_READERS: dict[Kind, Callable[[bytes], StoredRecord]] = {form.kind: form.of for form in _FORMS.values()}


def kind_of(record: type[StoredRecord]) -> Kind:
    """Return the kind of a class of records."""
    return _FORMS[record].kind


def name_of(record: StoredRecord) -> tuple[Kind, str]:
    """Return kind and id of a record."""
    form = _FORMS[type(record)]
    return form.kind, form.id_of(record)


def value_of(record: StoredRecord) -> bytes:
    """Return the stored form of a record."""
    return _FORMS[type(record)].record(record).SerializeToString(deterministic=True)


def record_of(kind: Kind, value: bytes) -> StoredRecord:
    """Return the record of a stored form."""
    return _READERS[kind](value)
