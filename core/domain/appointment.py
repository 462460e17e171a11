"""Appointment: a supplier lets a PSP act for its meters, within limits, with the supplier's signature as evidence."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from core.domain.effective_dated import FAR_FUTURE, EffectiveDated, Ms
from core.domain.errors import ChangePending
from core.domain.participant import ParticipantId, PspPermission

INTERMEDIATES_MAX: Final = 4


class AppointmentState(IntEnum):
    """Where an appointment stands. Stored by number, and the same numbers as in utrn.v1."""

    PROPOSED = 1
    ACCEPTED = 2
    SUSPENDED = 3
    ENDED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms a supplier signs. `channels`: numbers of utrn.v1.Channel; none means all. Amounts are of one sale."""

    appointment_id: str
    supplier_id: ParticipantId
    psp_id: ParticipantId
    level: PspPermission
    channels: frozenset[int]
    min_pence: int
    max_pence: int
    since: Ms
    until: Ms | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The terms as bytes, the supplier's signature over them, the certificate that made it, and what vouches for that.

    `intermediates` are those between the certificate and a root, 0 to INTERMEDIATES_MAX; certificates are in DER.
    """

    terms: bytes
    signature: bytes
    certificate: bytes
    intermediates: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Appointment:
    """Terms, their evidence, and every state they have been in."""

    terms: Terms
    evidence: Evidence
    states: EffectiveDated[AppointmentState]

    @property
    def state(self) -> AppointmentState:
        """Where it stands; every change of state takes place at once."""
        last = self.states.last
        return AppointmentState.ENDED if last is None else last.value

    def in_force_at(self, at: Ms) -> bool:
        """Return whether the PSP may act on it at that instant."""
        terms, period = self.terms, self.states.at(at)
        return (
            period is not None
            and period.value is AppointmentState.ACCEPTED
            and terms.since <= at
            and (terms.until is None or at < terms.until)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Appointments:
    """All appointments of one PSP by one supplier, oldest first. Those that have not ended never overlap."""

    supplier_id: ParticipantId
    psp_id: ParticipantId
    all: tuple[Appointment, ...] = ()

    def in_force_at(self, at: Ms) -> Appointment | None:
        """Return the appointment the PSP may act on at that instant."""
        return next((appointment for appointment in reversed(self.all) if appointment.in_force_at(at)), None)

    def find(self, appointment_id: str) -> Appointment | None:
        """Return one by its id."""
        return next(
            (appointment for appointment in self.all if appointment.terms.appointment_id == appointment_id), None
        )

    def add(self, new: Appointment) -> "Appointments":
        """Return these and `new`.

        Raises:
            ChangePending: an appointment that has not ended covers a part of its dates.
        """
        for appointment in self.all:
            if appointment.state is not AppointmentState.ENDED and _overlap(appointment.terms, new.terms):
                raise ChangePending(
                    "an appointment of this PSP covers these dates; end it first",
                    appointment_id=appointment.terms.appointment_id,
                )
        return Appointments(supplier_id=self.supplier_id, psp_id=self.psp_id, all=(*self.all, new))

    def replace(self, changed: Appointment) -> "Appointments":
        """Return these with one in its next state."""
        every = tuple(changed if appointment.terms == changed.terms else appointment for appointment in self.all)
        return Appointments(supplier_id=self.supplier_id, psp_id=self.psp_id, all=every)


def _overlap(terms: Terms, other: Terms) -> bool:
    return terms.since < (other.until or FAR_FUTURE) and other.since < (terms.until or FAR_FUTURE)
