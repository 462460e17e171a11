"""Proto <-> domain for the registry, appointments and credit. Bounds of requests are checked here."""

import re
from collections.abc import Sequence
from typing import Any

from google.protobuf import timestamp_pb2
from utrn.v1 import appointment_service_pb2 as appointment_pb
from utrn.v1 import credit_service_pb2 as credit_pb
from utrn.v1 import registry_service_pb2 as pb

from core.api.validation import (
    THRESHOLD_PENCE_MAX,
    check_amounts,
    check_pence,
    check_profile,
    instant,
    number_in,
    parse_approvers,
    parse_key_id,
    parse_meter_id,
    parse_point,
    parse_scheme,
    parse_schemes,
    parse_text,
    parse_uris,
)
from core.domain.appointment import Appointment, Terms
from core.domain.ceiling import parse_ceiling
from core.domain.effective_dated import Ms, Period, begin, check_dates
from core.domain.errors import BadField
from core.domain.goodwill_credit import CreditReason, CreditRequest
from core.domain.meter import (
    Generation,
    Meter,
    MeterCapabilities,
    MeterKind,
    Model,
    PanRecord,
    PanRule,
    PaymentMode,
    Registration,
    Settings,
    parse_eui64,
    parse_pan,
)
from core.domain.money import Pence
from core.domain.participant import (
    CreditRule,
    Limit,
    Participant,
    Principal,
    Profile,
    PspPermission,
    Role,
    SellingModel,
    SupplierKey,
    parse_participant_id,
)
from core.domain.registration_change import OwedVend, RegistrationChange
from core.domain.transaction_id import parse_transaction_id
from core.domain.utrn_value import code_value
from core.domain.vend import SOLD_THROUGH
from core.registry.participants import NewParticipant
from core.registry.transaction import Written

_APPOINTMENT_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}", re.ASCII)
_AFTER = re.compile(r"[a-z0-9/-]{0,200}", re.ASCII)


# Small things.


def stamp(ms: int | None) -> timestamp_pb2.Timestamp | None:
    """Return milliseconds as a timestamp."""
    if ms is None:
        return None
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromMilliseconds(ms)
    return timestamp


def since_of(request: object, name: str = "since", *, now: Ms | None = None) -> Ms | None:
    """Return a request's instant, at most 10 years ahead of `now`; None for at once."""
    has = request.HasField(name)  # type: ignore[attr-defined]
    return instant(getattr(request, name), name, now=now) if has else None


def page_limit(limit: int) -> int:
    """Return the length of a page; raise BadField if it is out of bounds."""
    if not 0 <= limit <= 1000:
        raise BadField("limit: 0 to 1000 is needed", field="limit")
    return limit or 100


def page_after(text: str) -> str:
    """Return where a page goes on, as the page before told it; raise BadField if it cannot have."""
    if not _AFTER.fullmatch(text):
        raise BadField("after: what the page before answered is needed", field="after")
    return text


def written(one: Written) -> pb.Written:
    """Return what became of a change."""
    return pb.Written(revision=one.revision, changed=one.changed)


def _dates(period: Period[Any]) -> pb.Dates:
    return pb.Dates(
        since=stamp(period.since), until=stamp(period.until), recorded_at=stamp(period.recorded_at),
        recorded_by=period.recorded_by,
    )  # fmt: skip


# Participants.


def new_participant(request: pb.AddParticipantRequest) -> NewParticipant:
    """Return who is to be brought on board."""
    one = request.participant
    role = Role(number_in(one.role, "participant.role", Role))
    if request.HasField("profile") and role is not Role.SUPPLIER:
        raise BadField("profile: suppliers may have one, others have none", field="profile")
    return NewParticipant(
        participant_id=parse_participant_id(one.participant_id, field="participant.participant_id"),
        role=role,
        name=parse_text(one.name, "participant.name", least=1, most=200),
        identities=parse_uris(one.identities, "participant.identities"),
        supplier_key=supplier_key_of(one.supplier_key) if one.HasField("supplier_key") else None,
        profile=profile_of(request.profile) if request.HasField("profile") else None,
        ceiling_pence=parse_ceiling(one.ceiling_pence, field="participant.ceiling_pence"),
    )


def supplier_key_of(key: pb.SupplierKey) -> SupplierKey:
    """Return a supplier's key; raise BadField if one of its parts is none."""
    return SupplierKey(
        originator_id=parse_eui64(key.originator_id, field="supplier_key.originator_id"),
        key_id=parse_key_id(key.key_id, "supplier_key.key_id"),
        public_point=parse_point(key.public_point, "supplier_key.public_point"),
    )


def profile_of(profile: pb.Profile) -> Profile:
    """Return what a supplier chooses."""
    limits = tuple(
        Limit(
            channel=one.channel, min_pence=one.min_pence, max_pence=one.max_pence, whole_pounds=one.whole_pounds,
            closed=one.closed,
        )
        for one in profile.limits
    )  # fmt: skip
    credit = CreditRule(
        each_max_pence=profile.credit_each_max_pence,
        day_max_pence=profile.credit_day_max_pence,
        approvers=parse_approvers(profile.credit_approvers, "profile.credit_approvers"),
    )
    option = SellingModel(number_in(profile.option, "profile.option", SellingModel))
    return check_profile(Profile(option=option, limits=limits, credit=credit), "profile")


def participant_message(one: Participant) -> pb.Participant:
    """Return a participant and its history."""
    key = one.supplier_key
    return pb.Participant(
        participant_id=one.participant_id,
        role=pb.Role.ValueType(one.role),
        name=one.name,
        identities=one.identities,
        supplier_key=None
        if key is None
        else pb.SupplierKey(originator_id=key.originator_id, key_id=key.key_id, public_point=key.public_point),
        known_as=[
            pb.KnownAsPeriod(
                dates=_dates(period),
                name=period.value.name,
                identities=period.value.identities,
                revoked_fingerprints=period.value.revoked.fingerprints,
                revoked_before=stamp(period.value.revoked.issued_before or None),
            )
            for period in one.known_as.periods
        ],
        standings=[
            pb.StandingPeriod(dates=_dates(period), standing=pb.Standing.ValueType(period.value))
            for period in one.standings.periods
        ],
        profiles=[
            pb.ProfilePeriod(dates=_dates(period), profile=_profile_message(period.value))
            for period in one.profiles.periods
        ],
        ceiling_pence=one.ceiling_pence,
        ceilings=[
            pb.CeilingPeriod(dates=_dates(period), ceiling_pence=period.value) for period in one.ceilings.periods
        ],
    )


def _profile_message(profile: Profile) -> pb.Profile:
    return pb.Profile(
        option=pb.Option.ValueType(profile.option),
        limits=[
            pb.ChannelLimit(
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
    )


# Models.


def model_of(one: pb.Model) -> tuple[str, str, MeterCapabilities]:
    """Return make, model, and what its meters can do."""
    schemes = parse_schemes(one.schemes, "model.schemes")
    can = MeterCapabilities(schemes=schemes, over_the_air=one.over_the_air, central_issue=one.central_issue)
    return parse_text(one.make, "model.make", least=1), parse_text(one.model, "model.model", least=1), can


def model_message(one: Model) -> pb.Model:
    """Return a row of the capability matrix."""
    last = one.abilities.periods[-1].value
    return pb.Model(
        make=one.make,
        model=one.model,
        schemes=sorted(last.schemes),
        over_the_air=last.over_the_air,
        central_issue=last.central_issue,
        history=[
            pb.AbilitiesPeriod(
                dates=_dates(period),
                schemes=sorted(period.value.schemes),
                over_the_air=period.value.over_the_air,
                central_issue=period.value.central_issue,
            )
            for period in one.abilities.periods
        ],
    )


# Meters.


def new_meter_of(
    one: pb.Meter, supplier_id: str, settings: pb.MeterSettings, *, enrolled: bool, since: Ms | None, now: Ms, by: str
) -> Meter:
    """Return a meter to be registered."""
    registration = Registration(supplier_id=parse_participant_id(supplier_id, field="supplier_id"))
    start = merged(Settings(head_end=""), settings)
    parse_participant_id(start.head_end, field="settings.head_end")
    first = Settings(**{**{name: getattr(start, name) for name in Settings.__slots__}, "enrolled": enrolled})
    return Meter(
        meter_id=parse_meter_id(one.meter_id, "meter.meter_id"),
        kind=MeterKind(number_in(one.kind, "meter.kind", MeterKind)),
        generation=Generation(number_in(one.generation or Generation.SMETS2, "meter.generation", Generation)),
        make=parse_text(one.make, "meter.make"),
        model=parse_text(one.model, "meter.model"),
        scheme=parse_scheme(one.scheme, "meter.scheme"),
        public_point=parse_point(one.public_point, "meter.public_point"),
        registrations=begin(registration, since=since, now=now, by=by),
        settings=begin(first, since=since, now=now, by=by),
    )


def merged(settings: Settings, asked: pb.MeterSettings) -> Settings:
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


def meter_message(meter: Meter) -> pb.Meter:
    """Return a meter and its history."""
    return pb.Meter(
        meter_id=meter.meter_id,
        kind=pb.MeterKind.ValueType(meter.kind),
        generation=pb.MeterGeneration.ValueType(meter.generation),
        make=meter.make,
        model=meter.model,
        scheme=meter.scheme,
        public_point=meter.public_point,
        registrations=[
            pb.RegistrationPeriod(
                dates=_dates(one), supplier_id=one.value.supplier_id, custody=pb.Custody.ValueType(one.value.custody)
            )
            for one in meter.registrations.periods
        ],
        settings=[
            pb.SettingsPeriod(dates=_dates(one), settings=_settings_message(one.value))
            for one in meter.settings.periods
        ],
        carried_out_to=stamp(meter.effective_through),
        balance_pence=meter.balance_pence,
        balance_at=stamp(meter.balance_at or None),
    )


def _settings_message(one: Settings) -> pb.MeterSettings:
    return pb.MeterSettings(
        payment_mode=pb.PaymentMode.ValueType(one.payment_mode),
        head_end=one.head_end,
        zone=one.zone,
        firmware=one.firmware,
        cohort=one.cohort,
        max_credit_pence=one.max_credit_pence,
        max_balance_pence=one.max_balance_pence,
        tenancy=one.tenancy,
        enrolled=one.enrolled,
    )


def change_message(one: RegistrationChange) -> pb.MarketChange:
    """Return a change that was carried out."""
    return pb.MarketChange(
        meter_id=one.meter_id,
        at=stamp(one.at),
        carried_out_at=stamp(one.carried_out_at),
        kinds=[pb.MarketChangeKind.ValueType(kind) for kind in one.kinds],
        responsible_supplier_id=one.responsible,
        supplier_id_after=one.supplier_after or "",
        originator_id=one.originator_id or "",
        last_issued=one.last_issued,
        highest_applied=one.highest_applied,
        in_flight=[_owed_message(vend) for vend in one.in_flight],
        uncredited=[_owed_message(vend) for vend in one.uncredited],
        uncredited_more=one.uncredited_more,
    )


def _owed_message(vend: OwedVend) -> pb.OwedVend:
    return pb.OwedVend(
        participant_id=vend.participant_id, transaction_id=vend.transaction_id, utrn_counter=vend.counter
    )


def pan_message(card: PanRecord) -> pb.Pan:
    """Return a PAN and its history."""
    return pb.Pan(
        pan=card.pan,
        form=pb.PanForm.ValueType(card.form),
        uses=[
            pb.PanPeriod(
                dates=_dates(one),
                meter_id=one.value.meter_id,
                supplier_id=one.value.supplier_id,
                tenancy=one.value.tenancy,
                status=pb.PanStatus.ValueType(one.value.status),
            )
            for one in card.uses.periods
        ],
        replaced_by=card.replaced_by or "",
    )


# Appointments.


def terms_of(terms: appointment_pb.AppointmentTerms, name: str, *, now: Ms | None = None) -> Terms:
    """Return terms, which begin at most 10 years after `now`; raise BadField or DatesReversed if they are none."""
    if not _APPOINTMENT_ID.fullmatch(terms.appointment_id):
        raise BadField(f"{name}.appointment_id: 1 to 64 of a-z, 0-9 and - are needed", field=f"{name}.appointment_id")
    check_amounts(terms.min_pence, terms.max_pence, name)
    for channel in terms.channels:
        number_in(channel, f"{name}.channels", SOLD_THROUGH)
    if not terms.HasField("since"):
        raise BadField(f"{name}.since: is missing", field=f"{name}.since")
    since = instant(terms.since, f"{name}.since", now=now)
    until = instant(terms.until, f"{name}.until") if terms.HasField("until") else None
    check_dates(since, until)
    return Terms(
        appointment_id=terms.appointment_id,
        supplier_id=parse_participant_id(terms.supplier_id, field=f"{name}.supplier_id"),
        psp_id=parse_participant_id(terms.psp_id, field=f"{name}.psp_id"),
        level=PspPermission(
            number_in(terms.level, f"{name}.level", (PspPermission.ISSUE, PspPermission.ISSUE_AND_DELIVER))
        ),
        channels=frozenset(terms.channels),
        min_pence=terms.min_pence,
        max_pence=terms.max_pence,
        since=since,
        until=until,
    )


def appointment_messages(every: Sequence[Appointment]) -> list[appointment_pb.Appointment]:
    """Return appointments with evidence and history."""
    return [
        appointment_pb.Appointment(
            terms=appointment_pb.AppointmentTerms.FromString(one.evidence.terms),
            evidence=appointment_pb.SignedTerms(
                terms=one.evidence.terms,
                signature=one.evidence.signature,
                certificate=one.evidence.certificate,
                intermediates=one.evidence.intermediates,
            ),
            states=[
                appointment_pb.AppointmentStatePeriod(
                    state=appointment_pb.AppointmentState.ValueType(period.value),
                    since=stamp(period.since),
                    by=period.recorded_by,
                )
                for period in one.states.periods
            ],
        )
        for one in every
    ]


# Credit.


def credit_of(one: credit_pb.Credit, principal: Principal, pan_rule: PanRule, now: Ms) -> CreditRequest:
    """Return a request for credit."""
    return CreditRequest(
        supplier_id=principal.participant_id,
        transaction_id=parse_transaction_id(one.transaction_id),
        pan=parse_pan(one.pan, pan_rule),
        amount=code_value(Pence(one.amount_pence)).amount,
        reason=CreditReason(number_in(one.reason, "credit.reason", CreditReason)),
        note=parse_text(one.note, "credit.note", most=200),
        asked_by=principal.identity,
        asked_at=now,
    )


def credit_message(one: CreditRequest) -> credit_pb.Credit:
    """Return a request for credit as it stands."""
    return credit_pb.Credit(
        transaction_id=one.transaction_id,
        pan=one.pan,
        amount_pence=one.amount,
        reason=credit_pb.CreditReason.ValueType(one.reason),
        note=one.note,
        state=credit_pb.CreditState.ValueType(one.state),
        asked_by=one.asked_by,
        asked_at=stamp(one.asked_at),
        decided_by=one.decided_by,
        decided_at=stamp(one.decided_at),
    )
