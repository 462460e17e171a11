"""Meters, PANs and models as they are stored."""

from functools import lru_cache

from utrn.store.v1 import records_pb2 as pb

from cluster.codec.effective_dated import dates_of, timeline_of
from cluster.codec.vend import SCHEMA, read
from core.domain.effective_dated import Period
from core.domain.meter import (
    Custody,
    Generation,
    Meter,
    MeterCapabilities,
    MeterKind,
    Model,
    PanAssignment,
    PanForm,
    PanRecord,
    PanStatus,
    PaymentMode,
    Registration,
    Settings,
)
from core.domain.participant import (
    ParticipantId,
)

# Of a million meters most have settings that others have too; one object stands for all of them.
_ALIKE_MAX = 10_000
# Looked up, not called: every request decodes a meter and a PAN.
_KINDS = {int(one): one for one in MeterKind}
_GENERATIONS = {int(one): one for one in Generation}
_FORMS_OF_PAN = {int(one): one for one in PanForm}
_STATUSES = {int(one): one for one in PanStatus}


def meter_record(meter: Meter) -> pb.MeterRecord:
    """Return a meter as it is stored."""
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
            pb.RegistrationPeriod(supplier_id=one.value.supplier_id, custody=one.value.custody, **dates_of(one))  # type: ignore[arg-type]
            for one in meter.registrations.periods
        ],
        settings=[_settings_record(one) for one in meter.settings.periods],
        effective_through=meter.effective_through,
        balance_pence=meter.balance_pence,
        balance_at=meter.balance_at,
        balance_outstanding_pence=meter.balance_outstanding_pence,
        balance_originator_id=meter.balance_originator_id or "",
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
        **dates_of(period),  # type: ignore[arg-type]
    )


def meter_of(value: bytes) -> Meter:
    """Return a meter from its stored form."""
    return _meter(read(pb.MeterRecord(), value))


def mirrored_meter(value: bytes) -> Meter:
    """Return a meter from its stored form, whose schema was checked when the copy took it in."""
    return _meter(pb.MeterRecord.FromString(value))


def _meter(record: pb.MeterRecord) -> Meter:
    # NewTypes are not called: each call would cost as much as reading the field. So in all of these.
    return Meter(
        meter_id=record.meter_id,  # type: ignore[arg-type]
        kind=_KINDS[record.kind],
        generation=_GENERATIONS[record.generation],
        make=record.make,
        model=record.model,
        scheme=record.scheme,
        public_point=record.public_point,
        registrations=timeline_of(record.registrations, _registration_of),
        settings=timeline_of(record.settings, _settings_of),
        effective_through=record.effective_through,  # type: ignore[arg-type]
        balance_pence=record.balance_pence,
        balance_at=record.balance_at,  # type: ignore[arg-type]
        balance_outstanding_pence=record.balance_outstanding_pence,
        balance_originator_id=record.balance_originator_id or None,  # type: ignore[arg-type]
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


def card_record(card: PanRecord) -> pb.PanRecord:
    """Return a PAN as it is stored."""
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
                **dates_of(one),  # type: ignore[arg-type]
            )
            for one in card.uses.periods
        ],
        replaced_by=card.replaced_by or "",
    )


def card_of(value: bytes) -> PanRecord:
    """Return a PAN from its stored form."""
    return _card(read(pb.PanRecord(), value))


def mirrored_card(value: bytes) -> PanRecord:
    """Return a PAN from its stored form, whose schema was checked when the copy took it in."""
    return _card(pb.PanRecord.FromString(value))


def _card(record: pb.PanRecord) -> PanRecord:
    return PanRecord(
        pan=record.pan,  # type: ignore[arg-type]
        form=_FORMS_OF_PAN[record.form],
        uses=timeline_of(record.uses, _use_of),
        replaced_by=record.replaced_by or None,  # type: ignore[arg-type]
    )


def _use_of(record: pb.PanPeriod) -> PanAssignment:
    return PanAssignment(
        meter_id=record.meter_id,  # type: ignore[arg-type]
        supplier_id=record.supplier_id,  # type: ignore[arg-type]
        tenancy=record.tenancy,
        status=_STATUSES[record.status],
    )


def model_record(one: Model) -> pb.ModelRecord:
    """Return a model as it is stored."""
    return pb.ModelRecord(
        schema=SCHEMA,
        make=one.make,
        model=one.model,
        abilities=[
            pb.AbilitiesPeriod(
                schemes=sorted(period.value.schemes),
                over_the_air=period.value.over_the_air,
                central_issue=period.value.central_issue,
                **dates_of(period),  # type: ignore[arg-type]
            )
            for period in one.abilities.periods
        ],
    )


def model_of(value: bytes) -> Model:
    """Return a model from its stored form."""
    record = read(pb.ModelRecord(), value)
    return Model(
        make=record.make,
        model=record.model,
        abilities=timeline_of(
            record.abilities,
            lambda one: MeterCapabilities(
                schemes=frozenset(one.schemes), over_the_air=one.over_the_air, central_issue=one.central_issue
            ),
        ),
    )
