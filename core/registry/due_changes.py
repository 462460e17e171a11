"""Carry a meter's change out: the write after which nothing that was allowed before it can commit, and its note.

A change recorded for a later instant takes place when the ledger says so: whoever needs it first writes it, at the
instant or after. Vends compare the meter's revision, so all those of the old supplier come before that write, and all
those of the new one after it, whatever the nodes' clocks say.
"""

from dataclasses import dataclass

from core.domain.effective_dated import Ms, ms_of
from core.domain.errors import RegistryMoved
from core.domain.meter import Meter, MeterId, OriginatorId
from core.domain.participant import Participant
from core.domain.record import Versioned
from core.domain.registration_change import RegistrationChange, kinds_between, turned
from core.ports.clock import Clock
from core.ports.ledger import CounterState
from core.ports.registry import RegistryStore, RegistryWrite
from core.transaction import Reads, Written, transact

# Every node that needs the change carries it out, all at its instant.
_ATTEMPTS_MAX = 10

# Whose it is, None if nobody's; and where it is.
Sequence = tuple[OriginatorId | None, CounterState]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeNote:
    """The note of a change, the meter after it, and the counter sequence that must not have moved since it was read."""

    meter: Meter
    notes: tuple[RegistrationChange, ...]
    unmoved: tuple[tuple[OriginatorId, MeterId, CounterState], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyDueChange:
    """Carries out what is due."""

    store: RegistryStore
    clock: Clock

    async def __call__(self, meter_id: MeterId) -> RegistrationChange | None:
        """Carry out everything of a meter that is due now; return its note, or None if nothing was due.

        Raises:
            LedgerUnavailable, OutcomeUnknown, RegistryMoved: repeat.
        """
        carried_out: tuple[RegistrationChange, ...] = ()

        async def attempt(reads: Reads) -> RegistryWrite | Written:
            nonlocal carried_out
            carried_out = ()
            known = await reads.read(Meter, meter_id)
            if known is None:
                return Written(revision=0, changed=False)
            now, before = ms_of(self.clock.now()), known.record
            if before.due(now) is None:
                return Written(revision=known.revision, changed=False)
            note = await self.note(known, before, now, await self.sequence(reads, before))
            carried_out = note.notes
            instants = {instant for instant in before.instants() if before.effective_through < instant <= now}
            return RegistryWrite(
                put=[note.meter, *note.notes],
                unmoved=note.unmoved,
                done=[(at, meter_id) for at in sorted(instants)],
                not_before=note.meter.effective_through,
            )

        overtaken = RegistryMoved("others keep changing this meter; repeat")
        await transact(self.store, attempt, overtaken=overtaken, attempts_max=_ATTEMPTS_MAX)
        return carried_out[0] if carried_out else None

    async def forget(self, at: Ms, meter_id: MeterId) -> None:
        """Take a reminder away that has been served, or was left behind; looked at in vain, it would be for ever.

        Raises:
            LedgerUnavailable, OutcomeUnknown: repeat.
        """
        known = await self.store.read(Meter, meter_id)
        if known is None or known.record.effective_through >= at or at not in known.record.instants():
            await self.store.write(RegistryWrite(expect=[], put=[], done=[(at, meter_id)]))

    async def sequence(self, reads: Reads, meter: Meter) -> Sequence:
        """Return the counter sequence of the meter's supplier, as of what has been carried out.

        The supplier's record, which names the originator, is among what the write compares.

        Raises:
            LedgerUnavailable: repeat.
        """
        holds = meter.registrations.at(meter.effective_through)
        found = None if holds is None else await reads.read(Participant, holds.value.supplier_id)
        key = None if found is None else found.record.supplier_key
        if key is None:
            return None, CounterState()
        originator_id = OriginatorId(key.originator_id)
        return originator_id, await self.store.sequence(originator_id, meter.meter_id)

    async def note(self, before: Versioned[Meter], changed: Meter, now: Ms, sequence: Sequence) -> ChangeNote:
        """Return `changed` carried out up to `now`, and the note of what is different from `before`.

        `sequence` is that of the side before; the write compares that it has not moved since it was read.

        Raises:
            LedgerUnavailable: repeat.
        """
        was_at = before.record.effective_through
        meter = turned(changed, changed.due(now) or was_at)
        kinds = kinds_between(meter, was_at, meter.effective_through)
        was = meter.registrations.at(was_at)
        if not kinds or was is None:
            return ChangeNote(meter=meter, notes=(), unmoved=())
        originator_id, state = sequence
        after = meter.registrations.at(meter.effective_through)
        uncredited, more = (
            ((), 0)
            if originator_id is None
            else await self.store.codes_uncredited(originator_id, before.record.meter_id)
        )
        note = RegistrationChange(
            meter_id=before.record.meter_id,
            at=meter.effective_through,
            carried_out_at=now,
            kinds=kinds,
            responsible=was.value.supplier_id,
            supplier_after=None if after is None else after.value.supplier_id,
            originator_id=originator_id,
            last_issued=state.last_issued,
            highest_applied=state.highest_applied,
            in_flight=tuple(await self.store.owed(before.record.meter_id)),
            uncredited=tuple(uncredited),
            uncredited_more=more,
        )
        unmoved = () if originator_id is None else ((originator_id, before.record.meter_id, state),)
        return ChangeNote(meter=meter, notes=(note,), unmoved=unmoved)
