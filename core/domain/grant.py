"""find_grant: by what right a caller may do one act for one supplier: for its own meter, or by an appointment; pure.

A grant does not depend on the meter or the amount, so that sale after sale of a seller uses the same one.
"""

from typing import NamedTuple, Protocol

from core.domain import errors
from core.domain.appointment import Appointment, Appointments, AppointmentState, Terms
from core.domain.effective_dated import FAR_FUTURE, AsOf, Ms
from core.domain.errors import Refused
from core.domain.participant import (
    DEFAULT_PROFILE,
    Participant,
    ParticipantId,
    ParticipantStatus,
    Profile,
    PspPermission,
    Role,
    SupplierKey,
)
from core.domain.record import Kind, ReadSet, Ref, Versioned
from core.domain.vend import Operation

_NEEDED = {
    Operation.ISSUE: PspPermission.ISSUE,
    Operation.TOP_UP: PspPermission.ISSUE_AND_DELIVER,
    Operation.DELIVER: PspPermission.ISSUE_AND_DELIVER,
}


class Grant(NamedTuple):
    """By what right a caller may do one act for one supplier: until `until`, while no record of `read_set` changes."""

    key: SupplierKey
    profile: Profile
    terms: Terms | None
    read_set: ReadSet
    rule: str
    since: Ms
    until: Ms


# By caller, supplier and act. The registry's replica empties it when a participant or an appointment changes.
Grants = dict[tuple[ParticipantId, ParticipantId, Operation], Grant]


class GrantRecords(Protocol):
    """Where the records that a grant depends on are looked up."""

    @property
    def grants(self) -> Grants:
        """The grants found lately: the same for sale after sale."""
        ...

    def participant(self, participant_id: ParticipantId, /) -> Versioned[Participant] | None:
        """A participant."""
        ...

    def appointments(self, supplier_id: ParticipantId, psp_id: ParticipantId, /) -> Versioned[Appointments] | None:
        """Appointments."""
        ...


def find_grant(
    records: GrantRecords, caller: Participant, operation: Operation, supplier_id: ParticipantId, now: Ms
) -> Grant | Refused:
    """Return by what right `caller` may do this for the meter's supplier at `now`, or why the caller may not."""
    supplier = records.participant(supplier_id)
    mine = caller.role is Role.SUPPLIER and caller.participant_id == supplier_id
    if supplier is None or supplier.record.supplier_key is None:
        return _not_appointed() if not mine else errors.SupplierInactive("the meter's supplier has no key here")
    at = AsOf(now)
    profile = at.value(supplier.record.profiles) or DEFAULT_PROFILE
    read_set: list[tuple[Ref, int]] = [(Ref(Kind.PARTICIPANT, supplier_id), supplier.revision)]
    terms = None
    if not mine:
        appointed = _terms(records, caller, operation, supplier_id, profile, at, read_set)
        if isinstance(appointed, Refused):
            return appointed
        terms = appointed
    if at.value(supplier.record.statuses) is not ParticipantStatus.ACTIVE:
        return errors.SupplierInactive("the meter's supplier is not active")
    return Grant(
        key=supplier.record.supplier_key,
        profile=profile,
        terms=terms,
        read_set=tuple(read_set),
        rule="own meter" if terms is None else f"appointment {terms.appointment_id}",
        since=now,
        until=at.until,
    )


def _terms(
    records: GrantRecords,
    caller: Participant,
    operation: Operation,
    supplier_id: ParticipantId,
    profile: Profile,
    at: AsOf,
    read_set: list[tuple[Ref, int]],
) -> Terms | Refused:
    """Return the terms under which a PSP may do this for the meter's supplier, or why the PSP may not."""
    if caller.role is not Role.PSP:
        return _not_appointed()
    known = records.appointments(supplier_id, caller.participant_id)
    appointment = None if known is None else _in_force(known.record, at)
    if known is None or appointment is None:
        return _not_appointed()
    read_set.append((Ref(Kind.APPOINTMENT, f"{known.record.supplier_id}/{known.record.psp_id}"), known.revision))
    myself = records.participant(caller.participant_id)
    if myself is None or at.value(myself.record.statuses) is not ParticipantStatus.ACTIVE:
        return errors.CallerSuspended("this participant is suspended")
    read_set.append((Ref(Kind.PARTICIPANT, caller.participant_id), myself.revision))
    at.hold_until(appointment.terms.until)
    level = min(appointment.terms.level, profile.psp_level)
    needed = _NEEDED.get(operation)
    if needed is None or level < needed:
        return errors.NotAppointed(
            "the meter's supplier has not appointed the caller to do this",
            may=level.name,
            needed="SUPPLIER" if needed is None else needed.name,
        )
    return appointment.terms


def _in_force(known: Appointments, at: AsOf) -> Appointment | None:
    """Return the appointment that the caller may act on now."""
    for appointment in reversed(known.all):
        accepted, terms = at.value(appointment.states) is AppointmentState.ACCEPTED, appointment.terms
        if accepted and terms.since <= at.now < (terms.until or FAR_FUTURE):
            return appointment
    return None


def _not_appointed() -> Refused:
    return errors.NotAppointed("this caller may not top up this meter; its supplier must appoint the caller first")
