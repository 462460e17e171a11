"""Proto <-> domain for meters and their models. Bounds of requests are checked here."""

from dataclasses import replace

from utrn.v1 import meter_model_service_pb2 as meter_model_pb
from utrn.v1 import meter_service_pb2 as meter_pb

from core.api.change_messages import period_message, since_of, stamp
from core.api.validation import (
    THRESHOLD_PENCE_MAX,
    check_pence,
    number_in,
    parse_meter_id,
    parse_point,
    parse_scheme,
    parse_schemes,
    parse_text,
)
from core.domain.effective_dated import Ms, begin
from core.domain.meter import (
    Generation,
    Meter,
    MeterCapabilities,
    MeterKind,
    Model,
    PaymentMode,
    Registration,
    Settings,
)
from core.domain.participant import (
    parse_participant_id,
)
from core.domain.registration_change import RegistrationChange, VendRef
from core.registry.bulk_load import NewModel


def new_model(request: meter_model_pb.SetMeterModelRequest, *, now: Ms) -> NewModel:
    """Return a row of the capability matrix to be set; raise BadField."""
    model = request.model
    schemes = parse_schemes(model.schemes, "model.schemes")
    return NewModel(
        make=parse_text(model.make, "model.make", least=1),
        model=parse_text(model.model, "model.model", least=1),
        abilities=MeterCapabilities(
            schemes=schemes, over_the_air=model.over_the_air, central_issue=model.central_issue
        ),
        since=since_of(request, now=now),
    )


def model_message(model: Model) -> meter_model_pb.MeterModel:
    """Return a row of the capability matrix."""
    last = model.abilities.periods[-1].value
    return meter_model_pb.MeterModel(
        make=model.make,
        model=model.model,
        schemes=sorted(last.schemes),
        over_the_air=last.over_the_air,
        central_issue=last.central_issue,
        history=[
            meter_model_pb.MeterCapabilitiesPeriod(
                period=period_message(period),
                schemes=sorted(period.value.schemes),
                over_the_air=period.value.over_the_air,
                central_issue=period.value.central_issue,
            )
            for period in model.abilities.periods
        ],
    )


def added_meter(request: meter_pb.AddMeterRequest, *, now: Ms, by: str) -> Meter:
    """Return a meter to be registered; raise BadField."""
    return new_meter_of(
        request.meter, request.supplier_id, request.settings, enrolled=not request.not_enrolled,
        since=since_of(request, now=now), now=now, by=by,
    )  # fmt: skip


def new_meter_of(
    meter: meter_pb.Meter,
    supplier_id: str,
    settings: meter_pb.MeterSettings,
    *,
    enrolled: bool,
    since: Ms | None,
    now: Ms,
    by: str,
) -> Meter:
    """Return a meter to be registered."""
    registration = Registration(supplier_id=parse_participant_id(supplier_id, field="supplier_id"))
    start = merged(Settings(head_end=""), settings)
    parse_participant_id(start.head_end, field="settings.head_end")
    first = replace(start, enrolled=enrolled)
    return Meter(
        meter_id=parse_meter_id(meter.meter_id, "meter.meter_id"),
        kind=MeterKind(number_in(meter.kind, "meter.kind", MeterKind)),
        generation=Generation(number_in(meter.generation or Generation.SMETS2, "meter.generation", Generation)),
        make=parse_text(meter.make, "meter.make"),
        model=parse_text(meter.model, "meter.model"),
        scheme=parse_scheme(meter.scheme, "meter.scheme"),
        public_point=parse_point(meter.public_point, "meter.public_point"),
        registrations=begin(registration, since=since, now=now, by=by),
        settings=begin(first, since=since, now=now, by=by),
    )


def merged(settings: Settings, asked: meter_pb.MeterSettings) -> Settings:
    """Return `settings` with what is asked for; what is left out stays."""
    for name in ("max_credit_pence", "max_balance_pence"):
        check_pence(getattr(asked, name), f"settings.{name}", most=THRESHOLD_PENCE_MAX)
    if asked.payment_mode:
        number_in(asked.payment_mode, "settings.payment_mode", PaymentMode)
    if asked.head_end:
        parse_participant_id(asked.head_end, field="settings.head_end")
    return Settings(
        payment_mode=PaymentMode(asked.payment_mode or settings.payment_mode),
        enrolled=settings.enrolled,
        head_end=asked.head_end or settings.head_end,
        zone=parse_text(asked.zone, "settings.zone") or settings.zone,
        firmware=parse_text(asked.firmware, "settings.firmware") or settings.firmware,
        cohort=parse_text(asked.cohort, "settings.cohort") or settings.cohort,
        max_credit_pence=asked.max_credit_pence or settings.max_credit_pence,
        max_balance_pence=asked.max_balance_pence or settings.max_balance_pence,
        tenancy=settings.tenancy,
    )


def meter_message(meter: Meter) -> meter_pb.Meter:
    """Return a meter and its history."""
    return meter_pb.Meter(
        meter_id=meter.meter_id,
        kind=meter_pb.MeterKind.ValueType(meter.kind),
        generation=meter_pb.MeterGeneration.ValueType(meter.generation),
        make=meter.make,
        model=meter.model,
        scheme=meter.scheme,
        public_point=meter.public_point,
        registrations=[
            meter_pb.RegistrationPeriod(
                period=period_message(period),
                supplier_id=period.value.supplier_id,
                custody=meter_pb.Custody.ValueType(period.value.custody),
            )
            for period in meter.registrations.periods
        ],
        settings=[
            meter_pb.SettingsPeriod(period=period_message(period), settings=_settings_message(period.value))
            for period in meter.settings.periods
        ],
        carried_out_to=stamp(meter.effective_through),
        balance_pence=meter.balance_pence,
        balance_at=stamp(meter.balance_at or None),
    )


def _settings_message(settings: Settings) -> meter_pb.MeterSettings:
    return meter_pb.MeterSettings(
        payment_mode=meter_pb.PaymentMode.ValueType(settings.payment_mode),
        head_end=settings.head_end,
        zone=settings.zone,
        firmware=settings.firmware,
        cohort=settings.cohort,
        max_credit_pence=settings.max_credit_pence,
        max_balance_pence=settings.max_balance_pence,
        tenancy=settings.tenancy,
        enrolled=settings.enrolled,
    )


def change_message(change: RegistrationChange) -> meter_pb.RegistrationChange:
    """Return a change that was carried out."""
    return meter_pb.RegistrationChange(
        meter_id=change.meter_id,
        at=stamp(change.at),
        carried_out_at=stamp(change.carried_out_at),
        kinds=[meter_pb.RegistrationChangeKind.ValueType(kind) for kind in change.kinds],
        responsible_supplier_id=change.responsible,
        supplier_id_after=change.supplier_after or "",
        originator_id=change.originator_id or "",
        last_issued=change.last_issued,
        highest_applied=change.highest_applied,
        in_flight=[_owed_message(vend) for vend in change.in_flight],
        uncredited=[_owed_message(vend) for vend in change.uncredited],
        uncredited_more=change.uncredited_more,
    )


def _owed_message(vend: VendRef) -> meter_pb.VendRef:
    return meter_pb.VendRef(
        participant_id=vend.participant_id, transaction_id=vend.transaction_id, utrn_counter=vend.counter
    )
