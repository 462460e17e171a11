"""Appointments: proposed by a supplier with its signature, accepted by the PSP, suspended and ended at once."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from core.access.certificates import Authority
from core.access.roles import KEEPERS, PSPS, READERS, SUPPLIERS, require_role
from core.domain.appointment import Appointment, Appointments, AppointmentState, Evidence, Terms
from core.domain.effective_dated import begin, check_dates, ms_of
from core.domain.errors import HistoryFull, NotYours, ParticipantNotFound, RecordChanged, RecordExists, RecordNotFound
from core.domain.participant import Participant, ParticipantId, ParticipantStatus, Principal, Role
from core.ports.clock import Clock
from core.ports.registry import RegistryStore, RegistryWrite
from core.registry.appointment_signature import verify
from core.transaction import Reads, Written, transact

# Each has its evidence, some kilobytes; suspending one must always fit.
_APPOINTMENTS_MAX = 100
_S = AppointmentState


@dataclass(frozen=True, slots=True, kw_only=True)
class Appoint:
    """Changes appointments. `authority` returns who vouches for participants' certificates now."""

    store: RegistryStore
    clock: Clock
    authority: Callable[[], Authority]

    async def propose(self, principal: Principal, terms: Terms, evidence: Evidence) -> Written:
        """Keep a supplier's signed terms; the PSP must accept them before it may act on them.

        Raises:
            SignatureWrong: the signature is not the supplier's, or not over these terms.
            DatesReversed: the terms end before they begin.
            ParticipantNotFound: the supplier or the PSP is not registered, or has left.
            RecordExists: an appointment of this id has other terms.
            ChangePending: an appointment of the pair that has not ended covers a part of these dates.
            HistoryFull: no more appointments of the pair can be kept.
        """
        require_role(principal, SUPPLIERS)
        if terms.supplier_id != principal.participant_id:
            raise NotYours("a supplier appoints for itself only")
        return await self._keep(terms, evidence, by=principal.participant_id, state=_S.PROPOSED)

    async def take_over(self, principal: Principal, terms: Terms, evidence: Evidence) -> Written:
        """Keep signed terms that the PSP has accepted elsewhere: how an operator loads what was agreed before."""
        require_role(principal, frozenset({Role.OPERATOR}))
        return await self._keep(terms, evidence, by=principal.participant_id, state=_S.ACCEPTED)

    async def accept(
        self, principal: Principal, supplier_id: ParticipantId, psp_id: ParticipantId, appointment_id: str
    ) -> Written:
        """Accept the terms, as the PSP they name."""
        require_role(principal, PSPS)
        _party(principal, psp_id)
        return await self._move(principal, (supplier_id, psp_id, appointment_id), _S.ACCEPTED, {_S.PROPOSED})

    async def suspend(
        self, principal: Principal, supplier_id: ParticipantId, psp_id: ParticipantId, appointment_id: str,
        *, suspended: bool,
    ) -> Written:  # fmt: skip
        """Suspend an appointment at once, or lift the suspension."""
        require_role(principal, KEEPERS)
        _party(principal, supplier_id)
        which = (supplier_id, psp_id, appointment_id)
        if suspended:
            return await self._move(principal, which, _S.SUSPENDED, {_S.ACCEPTED})
        return await self._move(principal, which, _S.ACCEPTED, {_S.SUSPENDED})

    async def end(
        self, principal: Principal, supplier_id: ParticipantId, psp_id: ParticipantId, appointment_id: str
    ) -> Written:
        """End an appointment at once and for good, as either party or as an operator."""
        require_role(principal, KEEPERS | PSPS)
        _party(principal, psp_id if principal.role is Role.PSP else supplier_id)
        which = (supplier_id, psp_id, appointment_id)
        return await self._move(principal, which, _S.ENDED, {_S.PROPOSED, _S.ACCEPTED, _S.SUSPENDED})

    async def find(self, principal: Principal, supplier_id: ParticipantId, psp_id: ParticipantId) -> Appointments:
        """Return every appointment of a PSP by a supplier, with their evidence and history."""
        require_role(principal, READERS | PSPS)
        _party(principal, psp_id if principal.role is Role.PSP else supplier_id)
        known = await self.store.read(Appointments, supplier_id, psp_id)
        if known is None:
            raise RecordNotFound("there is no appointment between these two", kind="appointment")
        return known.record

    async def _keep(self, terms: Terms, evidence: Evidence, *, by: str, state: AppointmentState) -> Written:
        check_dates(terms.since, terms.until)
        now = ms_of(self.clock.now())
        states = begin(state, since=None, now=now, by=by)
        new = Appointment(terms=terms, evidence=evidence, states=states)

        async def attempt(reads: Reads) -> RegistryWrite | Written:
            supplier = await self._participant(reads, terms.supplier_id, Role.SUPPLIER)
            await self._participant(reads, terms.psp_id, Role.PSP)
            verify(evidence, supplier, self.authority(), self.clock.now())
            known = await reads.read(Appointments, terms.supplier_id, terms.psp_id)
            every = Appointments(supplier_id=terms.supplier_id, psp_id=terms.psp_id) if known is None else known.record
            there = every.find(terms.appointment_id)
            if known is not None and there is not None:
                if there.evidence.terms != evidence.terms:
                    raise RecordExists("an appointment of this id has other terms", kind="appointment")
                return Written(revision=known.revision, changed=False)
            if len(every.all) >= _APPOINTMENTS_MAX:
                raise HistoryFull("no more appointments of this pair can be kept", periods_max=_APPOINTMENTS_MAX)
            return RegistryWrite(put=[every.add(new)])

        return await transact(self.store, attempt, overtaken=_overtaken())

    async def _move(
        self, principal: Principal, which: tuple[ParticipantId, ParticipantId, str], to: AppointmentState,
        allowed: set[AppointmentState],
    ) -> Written:  # fmt: skip
        supplier_id, psp_id, appointment_id = which
        now, by = ms_of(self.clock.now()), principal.identity or principal.participant_id

        def change(every: Appointments) -> Appointments:
            one = every.find(appointment_id)
            if one is None:
                raise RecordNotFound("there is no appointment of this id", kind="appointment")
            if one.state is to:
                return every
            if one.state not in allowed:
                raise RecordChanged(f"the appointment is {one.state.name.lower()}", kind="appointment")
            return every.replace(replace(one, states=one.states.change(to, since=None, now=now, by=by)))

        return await self._update(supplier_id, psp_id, change)

    async def _update(
        self, supplier_id: ParticipantId, psp_id: ParticipantId, change: Callable[[Appointments], Appointments]
    ) -> Written:
        async def attempt(reads: Reads) -> RegistryWrite | Written:
            known = await reads.read(Appointments, supplier_id, psp_id)
            if known is None:
                raise RecordNotFound("there is no appointment between these two", kind="appointment")
            after = change(known.record)
            if after == known.record:
                return Written(revision=known.revision, changed=False)
            return RegistryWrite(put=[after])

        return await transact(self.store, attempt, overtaken=_overtaken())

    async def _participant(self, reads: Reads, participant_id: ParticipantId, role: Role) -> Participant:
        known = await reads.read(Participant, participant_id)
        if known is None or known.record.role is not role or known.record.status is ParticipantStatus.LEFT:
            raise ParticipantNotFound(f"no {role.name.lower()} of this name", participant_id=participant_id)
        return known.record


def _party(principal: Principal, participant_id: ParticipantId) -> None:
    if principal.role in (Role.SUPPLIER, Role.PSP) and principal.participant_id != participant_id:
        raise NotYours("an appointment is its two parties' alone")


def _overtaken() -> RecordChanged:
    return RecordChanged("others keep changing this; look at it, and repeat if it is still right", kind="appointment")
