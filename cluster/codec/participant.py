"""Participants and appointments as they are stored."""

from utrn.store.v1 import records_pb2 as pb

from cluster.codec.effective_dated import dates_of, states_of, timeline_of
from cluster.codec.vend import SCHEMA, read
from core.domain.appointment import Appointment, Appointments, AppointmentState, Evidence, Terms
from core.domain.effective_dated import Ms, Period
from core.domain.money import Pence
from core.domain.participant import (
    CreditRule,
    Limit,
    Participant,
    ParticipantId,
    ParticipantIdentity,
    ParticipantStatus,
    Profile,
    PspPermission,
    Revocations,
    Role,
    SellingModel,
    SupplierKey,
)


def participant_record(participant: Participant) -> pb.ParticipantRecord:
    """Return a participant as it is stored."""
    key = participant.supplier_key
    return pb.ParticipantRecord(
        schema=SCHEMA,
        participant_id=participant.participant_id,
        role=participant.role,
        known_as=[
            pb.KnownAsPeriod(
                name=period.value.name,
                identities=period.value.identities,
                revoked_before=period.value.revoked.issued_before,
                revoked=period.value.revoked.fingerprints,
                **dates_of(period),  # type: ignore[arg-type]
            )
            for period in participant.identity_history.periods
        ],
        originator_id="" if key is None else key.originator_id,
        key_id="" if key is None else key.key_id,
        prepayment_public_point=b"" if key is None else key.public_point,
        standings=states_of(participant.statuses),
        profiles=[_profile_record(period) for period in participant.profiles.periods],
        ceilings=[
            pb.CeilingPeriod(pence=period.value, **dates_of(period))  # type: ignore[arg-type]
            for period in participant.ceilings.periods
        ],
    )


def _profile_record(period: Period[Profile]) -> pb.ProfilePeriod:
    profile = period.value
    return pb.ProfilePeriod(
        option=profile.selling_model,
        limits=[
            pb.LimitRecord(
                channel=limit.channel,
                min_pence=limit.min_pence,
                max_pence=limit.max_pence,
                whole_pounds=limit.whole_pounds,
                closed=limit.closed,
            )
            for limit in profile.limits
        ],
        credit_each_max_pence=profile.credit.each_max_pence,
        credit_day_max_pence=profile.credit.day_max_pence,
        credit_approvers=sorted(profile.credit.approvers),
        **dates_of(period),  # type: ignore[arg-type]
    )


def participant_of(value: bytes) -> Participant:
    """Return a participant from its stored form."""
    record = read(pb.ParticipantRecord(), value)
    key = None
    if record.originator_id:
        key = SupplierKey(
            originator_id=record.originator_id, key_id=record.key_id, public_point=record.prepayment_public_point
        )
    return Participant(
        participant_id=ParticipantId(record.participant_id),
        role=Role(record.role),
        identity_history=timeline_of(record.known_as, _identity_of),
        statuses=timeline_of(record.standings, lambda one: ParticipantStatus(one.state)),
        supplier_key=key,
        profiles=timeline_of(record.profiles, _profile_of),
        ceilings=timeline_of(record.ceilings, lambda one: Pence(one.pence)),
    )


def _identity_of(record: pb.KnownAsPeriod) -> ParticipantIdentity:
    revoked = Revocations(issued_before=Ms(record.revoked_before), fingerprints=tuple(record.revoked))
    return ParticipantIdentity(name=record.name, identities=tuple(record.identities), revoked=revoked)


def _profile_of(record: pb.ProfilePeriod) -> Profile:
    return Profile(
        selling_model=SellingModel(record.option),
        limits=tuple(
            Limit(
                channel=limit.channel,
                min_pence=limit.min_pence,
                max_pence=limit.max_pence,
                whole_pounds=limit.whole_pounds,
                closed=limit.closed,
            )
            for limit in record.limits
        ),
        credit=CreditRule(
            each_max_pence=record.credit_each_max_pence,
            day_max_pence=record.credit_day_max_pence,
            approvers=frozenset(record.credit_approvers),
        ),
    )


def appointments_record(every: Appointments) -> pb.AppointmentsRecord:
    """Return the appointments of a pair as it is stored."""
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
                intermediates=one.evidence.intermediates,
                states=states_of(one.states),
            )
            for one in every.all
        ],
    )


def appointments_of(value: bytes) -> Appointments:
    """Return the appointments of a pair from its stored form."""
    record = read(pb.AppointmentsRecord(), value)
    supplier_id, psp_id = ParticipantId(record.supplier_id), ParticipantId(record.psp_id)
    return Appointments(
        supplier_id=supplier_id,
        psp_id=psp_id,
        all=tuple(_appointment_of(appointment, supplier_id, psp_id) for appointment in record.appointments),
    )


def _appointment_of(
    appointment_record: pb.AppointmentRecord, supplier_id: ParticipantId, psp_id: ParticipantId
) -> Appointment:
    return Appointment(
        terms=Terms(
            appointment_id=appointment_record.appointment_id,
            supplier_id=supplier_id,
            psp_id=psp_id,
            level=PspPermission(appointment_record.level),
            channels=frozenset(appointment_record.channels),
            min_pence=appointment_record.min_pence,
            max_pence=appointment_record.max_pence,
            since=Ms(appointment_record.since),
            until=Ms(appointment_record.until) if appointment_record.until else None,
        ),
        evidence=Evidence(
            terms=appointment_record.terms,
            signature=appointment_record.signature,
            certificate=appointment_record.certificate,
            intermediates=tuple(appointment_record.intermediates),
        ),
        states=timeline_of(appointment_record.states, lambda state: AppointmentState(state.state)),
    )
