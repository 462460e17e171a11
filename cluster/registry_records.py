"""Domain <-> utrn.store.v1 for the registry: participants, meters, PANs, appointments, models, changes, credit."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Protocol, TypeVar

from utrn.store.v1 import records_pb2 as pb

from cluster.records import SCHEMA, read
from core.domain.appointment import Appointment, Appointments, AppointmentState, Evidence, Terms
from core.domain.credit import CreditDay, CreditReason, CreditRequest, CreditState
from core.domain.market_change import ChangeKind, MarketChange, OwedVend
from core.domain.meter import (
    Abilities,
    Card,
    Custody,
    Generation,
    Meter,
    MeterId,
    MeterKind,
    Model,
    OriginatorId,
    Pan,
    PanForm,
    PanStatus,
    PanUse,
    PaymentMode,
    Registration,
    Settings,
)
from core.domain.money import Pence
from core.domain.party import (
    CreditRule,
    KnownAs,
    Level,
    Limit,
    Option,
    Participant,
    ParticipantId,
    Profile,
    Role,
    Standing,
    SupplierKey,
)
from core.domain.registry import Kind
from core.domain.timeline import Ms, Period, Timeline
from core.domain.token import Counter
from core.domain.transaction_id import TransactionId
from core.ports.registry import StoredRecord

# Of a million meters most have settings that others have too; one object stands for all of them.
_ALIKE_MAX = 10_000
# Looked up, not called: every request decodes a meter and a PAN.
_KINDS = {int(one): one for one in MeterKind}
_GENERATIONS = {int(one): one for one in Generation}
_FORMS_OF_PAN = {int(one): one for one in PanForm}
_STATUSES = {int(one): one for one in PanStatus}

_T = TypeVar("_T")
_S = TypeVar("_S", bound=IntEnum)


class _Dated(Protocol):
    since: int
    until: int
    recorded_at: int
    recorded_by: str


_D = TypeVar("_D", bound=_Dated)


def _dates(period: Period[object]) -> dict[str, object]:
    return {
        "since": period.since,
        "until": period.until or 0,
        "recorded_at": period.recorded_at,
        "recorded_by": period.recorded_by,
    }


def _timeline(records: Iterable[_D], value: Callable[[_D], _T]) -> Timeline[_T]:
    return Timeline(
        tuple(
            [
                # Instants are plain numbers in both worlds; NewType's call would cost as much as reading one.
                Period(value(one), one.since, one.until or None, one.recorded_at, one.recorded_by)  # type: ignore[arg-type]
                for one in records
            ]
        )
    )


def _states(timeline: Timeline[_S]) -> list[pb.StatePeriod]:
    return [pb.StatePeriod(state=one.value, **_dates(one)) for one in timeline.periods]  # type: ignore[arg-type]


# Participants.


def _participant_record(one: Participant) -> pb.ParticipantRecord:
    key = one.supplier_key
    return pb.ParticipantRecord(
        schema=SCHEMA,
        participant_id=one.participant_id,
        role=one.role,
        known_as=[
            pb.KnownAsPeriod(name=period.value.name, identities=period.value.identities, **_dates(period))  # type: ignore[arg-type]
            for period in one.known_as.periods
        ],
        originator_id="" if key is None else key.originator_id,
        key_id="" if key is None else key.key_id,
        prepayment_public_point=b"" if key is None else key.public_point,
        standings=_states(one.standings),
        profiles=[_profile_record(period) for period in one.profiles.periods],
    )


def _profile_record(period: Period[Profile]) -> pb.ProfilePeriod:
    profile = period.value
    return pb.ProfilePeriod(
        option=profile.option,
        limits=[
            pb.LimitRecord(
                channel=one.channel,
                min_pence=one.min_pence,
                max_pence=one.max_pence,
                whole_pounds=one.whole_pounds,
                closed=one.closed,
            )
            for one in profile.limits
        ],
        credit_each_max_pence=profile.credit.each_max_pence,
        credit_day_max_pence=profile.credit.day_max_pence,
        credit_approvers=sorted(profile.credit.approvers),
        **_dates(period),  # type: ignore[arg-type]
    )


def _participant_of(value: bytes) -> Participant:
    record = read(pb.ParticipantRecord(), value)
    key = None
    if record.originator_id:
        key = SupplierKey(
            originator_id=record.originator_id, key_id=record.key_id, public_point=record.prepayment_public_point
        )
    return Participant(
        participant_id=ParticipantId(record.participant_id),
        role=Role(record.role),
        known_as=_timeline(record.known_as, lambda one: KnownAs(name=one.name, identities=tuple(one.identities))),
        standings=_timeline(record.standings, lambda one: Standing(one.state)),
        supplier_key=key,
        profiles=_timeline(record.profiles, _profile_of),
    )


def _profile_of(record: pb.ProfilePeriod) -> Profile:
    return Profile(
        option=Option(record.option),
        limits=tuple(
            Limit(
                channel=one.channel,
                min_pence=one.min_pence,
                max_pence=one.max_pence,
                whole_pounds=one.whole_pounds,
                closed=one.closed,
            )
            for one in record.limits
        ),
        credit=CreditRule(
            each_max_pence=record.credit_each_max_pence,
            day_max_pence=record.credit_day_max_pence,
            approvers=frozenset(record.credit_approvers),
        ),
    )


# Meters.


def _meter_record(meter: Meter) -> pb.MeterRecord:
    return pb.MeterRecord(
        schema=SCHEMA,
        meter_id=meter.meter_id,
        kind=meter.kind,
        generation=meter.generation,
        make=meter.make,
        model=meter.model,
        scheme=meter.scheme,
        public_point=meter.public_point,
        registrations=[
            pb.RegistrationPeriod(supplier_id=one.value.supplier_id, custody=one.value.custody, **_dates(one))  # type: ignore[arg-type]
            for one in meter.registrations.periods
        ],
        settings=[_settings_record(one) for one in meter.settings.periods],
        turned_at=meter.turned_at,
        balance_pence=meter.balance_pence,
        balance_at=meter.balance_at,
    )


def _settings_record(period: Period[Settings]) -> pb.SettingsPeriod:
    one = period.value
    return pb.SettingsPeriod(
        payment_mode=one.payment_mode,
        enrolled=one.enrolled,
        head_end=one.head_end,
        zone=one.zone,
        firmware=one.firmware,
        cohort=one.cohort,
        max_credit_pence=one.max_credit_pence,
        max_balance_pence=one.max_balance_pence,
        tenancy=one.tenancy,
        **_dates(period),  # type: ignore[arg-type]
    )


def _meter_of(value: bytes) -> Meter:
    record = read(pb.MeterRecord(), value)
    return Meter(
        meter_id=MeterId(record.meter_id),
        kind=_KINDS[record.kind],
        generation=_GENERATIONS[record.generation],
        make=record.make,
        model=record.model,
        scheme=record.scheme,
        public_point=record.public_point,
        registrations=_timeline(record.registrations, _registration_of),
        settings=_timeline(record.settings, _settings_of),
        turned_at=Ms(record.turned_at),
        balance_pence=record.balance_pence,
        balance_at=Ms(record.balance_at),
    )


def _registration_of(record: pb.RegistrationPeriod) -> Registration:
    return _registration(record.supplier_id, record.custody)


@lru_cache(maxsize=_ALIKE_MAX)
def _registration(supplier_id: str, custody: int) -> Registration:
    return Registration(supplier_id=ParticipantId(supplier_id), custody=Custody(custody))


def _settings_of(record: pb.SettingsPeriod) -> Settings:
    return _settings(
        record.payment_mode,
        record.enrolled,
        record.head_end,
        record.zone,
        record.firmware,
        record.cohort,
        record.max_credit_pence,
        record.max_balance_pence,
        record.tenancy,
    )


@lru_cache(maxsize=_ALIKE_MAX)
def _settings(
    mode: int,
    enrolled: bool,
    head_end: str,
    zone: str,
    firmware: str,
    cohort: str,
    credit: int,
    balance: int,
    tenancy: int,
) -> Settings:
    return Settings(
        payment_mode=PaymentMode(mode),
        enrolled=enrolled,
        head_end=head_end,
        zone=zone,
        firmware=firmware,
        cohort=cohort,
        max_credit_pence=credit,
        max_balance_pence=balance,
        tenancy=tenancy,
    )


# PANs.


def _card_record(card: Card) -> pb.PanRecord:
    return pb.PanRecord(
        schema=SCHEMA,
        pan=card.pan,
        form=card.form,
        uses=[
            pb.PanPeriod(
                meter_id=one.value.meter_id,
                supplier_id=one.value.supplier_id,
                tenancy=one.value.tenancy,
                status=one.value.status,
                **_dates(one),  # type: ignore[arg-type]
            )
            for one in card.uses.periods
        ],
        replaced_by=card.replaced_by or "",
    )


def _card_of(value: bytes) -> Card:
    record = read(pb.PanRecord(), value)
    return Card(
        pan=Pan(record.pan),
        form=_FORMS_OF_PAN[record.form],
        uses=_timeline(record.uses, _use_of),
        replaced_by=Pan(record.replaced_by) if record.replaced_by else None,
    )


def _use_of(record: pb.PanPeriod) -> PanUse:
    return PanUse(
        meter_id=MeterId(record.meter_id),
        supplier_id=ParticipantId(record.supplier_id),
        tenancy=record.tenancy,
        status=_STATUSES[record.status],
    )


# Appointments.


def _appointments_record(every: Appointments) -> pb.AppointmentsRecord:
    return pb.AppointmentsRecord(
        schema=SCHEMA,
        supplier_id=every.supplier_id,
        psp_id=every.psp_id,
        appointments=[
            pb.AppointmentRecord(
                appointment_id=one.terms.appointment_id,
                level=one.terms.level,
                channels=sorted(one.terms.channels),
                min_pence=one.terms.min_pence,
                max_pence=one.terms.max_pence,
                since=one.terms.since,
                until=one.terms.until or 0,
                terms=one.evidence.terms,
                signature=one.evidence.signature,
                certificate=one.evidence.certificate,
                states=_states(one.states),
            )
            for one in every.all
        ],
    )


def _appointments_of(value: bytes) -> Appointments:
    record = read(pb.AppointmentsRecord(), value)
    supplier_id, psp_id = ParticipantId(record.supplier_id), ParticipantId(record.psp_id)
    return Appointments(
        supplier_id=supplier_id,
        psp_id=psp_id,
        all=tuple(_appointment_of(one, supplier_id, psp_id) for one in record.appointments),
    )


def _appointment_of(one: pb.AppointmentRecord, supplier_id: ParticipantId, psp_id: ParticipantId) -> Appointment:
    return Appointment(
        terms=Terms(
            appointment_id=one.appointment_id,
            supplier_id=supplier_id,
            psp_id=psp_id,
            level=Level(one.level),
            channels=frozenset(one.channels),
            min_pence=one.min_pence,
            max_pence=one.max_pence,
            since=Ms(one.since),
            until=Ms(one.until) if one.until else None,
        ),
        evidence=Evidence(terms=one.terms, signature=one.signature, certificate=one.certificate),
        states=_timeline(one.states, lambda state: AppointmentState(state.state)),
    )


# Models, changes, credit.


def _model_record(one: Model) -> pb.ModelRecord:
    return pb.ModelRecord(
        schema=SCHEMA,
        make=one.make,
        model=one.model,
        abilities=[
            pb.AbilitiesPeriod(
                schemes=sorted(period.value.schemes),
                over_the_air=period.value.over_the_air,
                central_issue=period.value.central_issue,
                **_dates(period),  # type: ignore[arg-type]
            )
            for period in one.abilities.periods
        ],
    )


def _model_of(value: bytes) -> Model:
    record = read(pb.ModelRecord(), value)
    return Model(
        make=record.make,
        model=record.model,
        abilities=_timeline(
            record.abilities,
            lambda one: Abilities(
                schemes=frozenset(one.schemes), over_the_air=one.over_the_air, central_issue=one.central_issue
            ),
        ),
    )


def _change_record(one: MarketChange) -> pb.MarketChangeRecord:
    return pb.MarketChangeRecord(
        schema=SCHEMA,
        meter_id=one.meter_id,
        at=one.at,
        carried_out_at=one.carried_out_at,
        kinds=one.kinds,
        responsible=one.responsible,
        supplier_after=one.supplier_after or "",
        originator_id=one.originator_id or "",
        last_issued=one.last_issued,
        highest_applied=one.highest_applied,
        in_flight=[
            pb.OwedVendRecord(
                participant_id=vend.participant_id, transaction_id=vend.transaction_id, utrn_counter=vend.counter
            )
            for vend in one.in_flight
        ],
    )


def _change_of(value: bytes) -> MarketChange:
    record = read(pb.MarketChangeRecord(), value)
    return MarketChange(
        meter_id=MeterId(record.meter_id),
        at=Ms(record.at),
        carried_out_at=Ms(record.carried_out_at),
        kinds=tuple(ChangeKind(kind) for kind in record.kinds),
        responsible=ParticipantId(record.responsible),
        supplier_after=ParticipantId(record.supplier_after) if record.supplier_after else None,
        originator_id=OriginatorId(record.originator_id) if record.originator_id else None,
        last_issued=record.last_issued,
        highest_applied=record.highest_applied,
        in_flight=tuple(
            OwedVend(
                participant_id=ParticipantId(one.participant_id),
                transaction_id=TransactionId(one.transaction_id),
                counter=Counter(one.utrn_counter),
            )
            for one in record.in_flight
        ),
    )


def _credit_record(one: CreditRequest) -> pb.CreditRequestRecord:
    return pb.CreditRequestRecord(
        schema=SCHEMA,
        supplier_id=one.supplier_id,
        transaction_id=one.transaction_id,
        pan=one.pan,
        amount_pence=one.amount,
        reason=one.reason,
        note=one.note,
        asked_by=one.asked_by,
        asked_at=one.asked_at,
        state=one.state,
        decided_by=one.decided_by,
        decided_at=one.decided_at or 0,
        day=one.day,
    )


def _credit_of(value: bytes) -> CreditRequest:
    record = read(pb.CreditRequestRecord(), value)
    return CreditRequest(
        supplier_id=ParticipantId(record.supplier_id),
        transaction_id=TransactionId(record.transaction_id),
        pan=Pan(record.pan),
        amount=Pence(record.amount_pence),
        reason=CreditReason(record.reason),
        note=record.note,
        asked_by=record.asked_by,
        asked_at=Ms(record.asked_at),
        state=CreditState(record.state),
        decided_by=record.decided_by,
        decided_at=Ms(record.decided_at) if record.decided_at else None,
        day=record.day,
    )


def _day_record(one: CreditDay) -> pb.CreditDayRecord:
    return pb.CreditDayRecord(
        schema=SCHEMA, supplier_id=one.supplier_id, day=one.day, count=one.count, total_pence=one.total_pence
    )


def _day_of(value: bytes) -> CreditDay:
    record = read(pb.CreditDayRecord(), value)
    return CreditDay(
        supplier_id=ParticipantId(record.supplier_id),
        day=record.day,
        count=record.count,
        total_pence=record.total_pence,
    )


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
    Participant: _Form(Kind.PARTICIPANT, lambda one: one.participant_id, _participant_record, _participant_of),
    Meter: _Form(Kind.METER, lambda one: one.meter_id, _meter_record, _meter_of),
    Card: _Form(Kind.PAN, lambda one: one.pan, _card_record, _card_of),
    Appointments: _Form(
        Kind.APPOINTMENT, lambda one: f"{one.supplier_id}/{one.psp_id}", _appointments_record, _appointments_of
    ),
    Model: _Form(Kind.MODEL, lambda one: f"{one.make}/{one.model}", _model_record, _model_of),
    MarketChange: _Form(
        Kind.CHANGE, lambda one: f"{one.responsible}/{one.at:013d}/{one.meter_id}", _change_record, _change_of
    ),
    CreditRequest: _Form(
        Kind.CREDIT, lambda one: f"{one.supplier_id}/{one.transaction_id}", _credit_record, _credit_of
    ),
    CreditDay: _Form(Kind.CREDIT_DAY, lambda one: f"{one.supplier_id}/{one.day}", _day_record, _day_of),
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
