"""Meters: registered, changed, handed from supplier to supplier, from tenant to tenant, from one generator to another.

Every change is one write that compares the meter's revision. What takes effect at once is carried out by that write,
with its note of what was under way; what takes effect later leaves a reminder (`due/`), and whichever node comes first
carries it out at its instant: every node looks for what is due.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from core.access.roles import KEEPERS, OPERATORS, require_owner, require_role
from core.domain.effective_dated import FAR_FUTURE, EffectiveDated, Ms, Period, ms_of
from core.domain.errors import BadField, ParticipantNotFound, RecordChanged, RecordExists, RecordNotFound
from core.domain.meter import Custody, Meter, MeterId, Registration, Settings
from core.domain.participant import Participant, ParticipantId, ParticipantStatus, Principal, Role, SellingModel
from core.domain.record import Kind, Versioned
from core.domain.registration_change import RegistrationChange
from core.ports.clock import Clock
from core.ports.head_ends import HeadEndNames
from core.ports.registry import RegistryStore, RegistryWrite
from core.registry.due_changes import ApplyDueChange, Sequence
from core.registry.head_end_names import check_head_ends
from core.registry.registrations import UNLIMITED, Registrations
from core.transaction import Reads, Written, transact


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """A change is done. `note` tells what was under way, if the change took effect with it."""

    written: Written
    note: RegistrationChange | None


# Adds to the write of a change what must be written with it, for the meter as it will be.
Extend = Callable[[Reads, RegistryWrite, Meter], Awaitable[RegistryWrite]]
# Reads what a change needs beside the meter, before it.
Prepare = Callable[[Reads], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterAdmin:
    """Changes meters. `registrations` says who may register a new one, and how many."""

    store: RegistryStore
    turn: ApplyDueChange
    clock: Clock
    head_ends: HeadEndNames
    registrations: Registrations = UNLIMITED

    async def add(self, principal: Principal, meter: Meter) -> Written:
        """Register a meter; registering it again as it is changes nothing.

        Raises:
            RecordExists: it is there with other content.
            ParticipantNotFound: its supplier is not.
            HeadEndUnknown: its head end is not there.
            OperatorOnly: suppliers register no meters here.
            Overloaded: this supplier has registered so much lately.
        """
        require_role(principal, KEEPERS)
        first = meter.registrations.periods[0].value
        require_owner(principal, first.supplier_id)
        check_head_ends(self.head_ends, meter)
        counted = False

        async def attempt(reads: Reads) -> RegistryWrite | Written:
            nonlocal counted
            new = new_meter(meter, await self.supplier(reads, first.supplier_id), ms_of(self.clock.now()))
            known = await reads.read(Meter, new.meter_id)
            if known is not None:
                if not same_meter(known.record, new):
                    raise RecordExists("the meter is registered already, with other content", kind="meter")
                return Written(revision=known.revision, changed=False)
            if not counted:
                self.registrations.refuse(principal, Kind.METER)
                self.registrations.count(principal, 1)
                counted = True
            return RegistryWrite(put=[new], due=due_of(new, new.effective_through))

        return await transact(self.store, attempt, overtaken=overtaken())

    async def change(
        self, principal: Principal, meter_id: MeterId, change: Callable[[Settings], Settings], since: Ms | None
    ) -> Written:
        """Change what can change of a meter: payment mode, head end, thresholds, tenant.

        At once (`since` None) it reaches what is recorded for later too, whose date stays.
        """

        def changed(meter: Meter, now: Ms) -> Meter:
            by, last = principal.participant_id, meter.settings.last
            if since is None or last is None:
                # What another supplier has recorded for its own time is not touched.
                holds = meter.registrations.at(now)
                before = FAR_FUTURE if holds is None or holds.until is None else holds.until
                return replace(meter, settings=meter.settings.adjust(change, now=now, by=by, before=before))
            value = change(last.value)
            if (last.value, last.since) == (value, since):
                return meter
            return replace(meter, settings=meter.settings.change(value, since=since, now=now, by=by))

        return (await self.update(principal, meter_id, changed, at=lambda _: since)).written

    async def change_tenant(
        self, principal: Principal, meter_id: MeterId, since: Ms | None, tenancy_before: int
    ) -> Written:
        """Change of Tenancy: from `since` on, every PAN given to the tenants before is refused.

        Raises:
            RecordChanged: `tenancy_before` is not the latest: the change was recorded already, or another one.
        """

        def next_tenancy(settings: Settings) -> Settings:
            if settings.tenancy == tenancy_before + 1:
                return settings
            if settings.tenancy != tenancy_before:
                raise RecordChanged("the meter is at another tenancy", kind="meter", tenancy=settings.tenancy)
            return replace(settings, tenancy=tenancy_before + 1)

        return await self.change(principal, meter_id, next_tenancy, since)

    async def change_supplier(
        self, principal: Principal, meter_id: MeterId, losing: ParticipantId, gaining: ParticipantId, since: Ms | None
    ) -> Written:
        """Change of Supplier: from `since` on the meter is the gaining supplier's, with its originator and counters.

        Raises:
            RecordChanged: `losing` is not the meter's latest supplier.
        """
        require_role(principal, OPERATORS)
        if gaining == losing:
            told = "gaining_supplier_id: another supplier than the losing one is needed"
            raise BadField(told, field="gaining_supplier_id")
        supplier: Participant

        async def prepare(reads: Reads) -> None:
            nonlocal supplier
            supplier = await self.supplier(reads, gaining)

        def changed(meter: Meter, now: Ms) -> Meter:
            last, by = meter.registrations.last, principal.participant_id
            if last is not None and last.value.supplier_id == gaining and since in (None, last.since):
                # It is so already, or is going to be: the same date changes nothing, at once brings it forward.
                return replace(meter, registrations=meter.registrations.put(last.value, since=since, now=now, by=by))
            if last is None or last.value.supplier_id != losing:
                raise RecordChanged("the meter is not the losing supplier's", kind="meter")
            custody = custody_after(meter, supplier, now if since is None else since)
            value = Registration(supplier_id=gaining, custody=custody)
            return replace(meter, registrations=meter.registrations.change(value, since=since, now=now, by=by))

        return (await self.update(principal, meter_id, changed, prepare=prepare)).written

    async def end(self, principal: Principal, meter_id: MeterId, at: Ms | None) -> Written:
        """End a meter's registration at `at`: from then on the meter has no supplier."""

        def changed(meter: Meter, now: Ms) -> Meter:
            last = meter.registrations.last
            if last is not None and last.until is not None and (at is None or last.until == at):
                return meter
            if last is not None and (at or now) >= last.since:
                # A supplier ends its own time, not that of who comes after.
                require_owner(principal, last.value.supplier_id)
            return replace(meter, registrations=meter.registrations.end(at=at, now=now))

        return (await self.update(principal, meter_id, changed)).written

    async def cancel(self, principal: Principal, meter_id: MeterId, *, registration: bool) -> Written:
        """Cancel the change that waits for its instant: of the supplier, or of the settings."""

        def changed(meter: Meter, now: Ms) -> Meter:
            if registration:
                return replace(meter, registrations=meter.registrations.cancel(now=now))
            return replace(meter, settings=meter.settings.cancel(now=now))

        def whose(meter: Meter) -> Ms | None:
            last = meter.registrations.last if registration else meter.settings.last
            if last is None:
                return None
            if registration and last.until is None:
                # A change of supplier is the operator's; an end is whose time it ends.
                require_role(principal, OPERATORS)
            return last.since

        return (await self.update(principal, meter_id, changed, at=whose)).written

    async def record_balance(self, principal: Principal, meter_id: MeterId, pence: int, at: Ms) -> Written:
        """Keep the last balance of a meter that its supplier knows; an older one changes nothing.

        With it is kept what was sold and not known at the meter when it was read: from there on the counter sequence
        counts what is sold, and the write compares that none was sold meanwhile.
        """

        def changed(meter: Meter, _: Ms) -> Meter:
            return meter if meter.balance_at >= at else replace(meter, balance_pence=pence, balance_at=at)

        async def extend(reads: Reads, write: RegistryWrite, meter: Meter) -> RegistryWrite:
            originator_id, state = await self.turn.sequence(reads, meter)
            if originator_id is None:
                return write
            outstanding = await self.store.uncredited(originator_id, meter_id, state, at=at)
            meter = replace(meter, balance_outstanding_pence=outstanding, balance_originator_id=originator_id)
            unmoved = [*write.unmoved, (originator_id, meter_id, state)]
            return replace(write, put=[meter, *write.put[1:]], unmoved=unmoved)

        return (await self.update(principal, meter_id, changed, extend=extend)).written

    async def update(
        self,
        principal: Principal,
        meter_id: MeterId,
        change: Callable[[Meter, Ms], Meter],
        *,
        at: Callable[[Meter], Ms | None] = lambda _: None,
        prepare: Prepare | None = None,
        extend: Extend | None = None,
    ) -> Changed:
        """Change a meter by `change`, in one write with what `extend` adds to it; `prepare` comes before `change`.

        A supplier may change what is its own at the instant that `at` returns; None for now.

        Raises:
            RecordNotFound, RecordChanged, and whatever `prepare`, `change` and `extend` raise.
        """
        require_role(principal, KEEPERS)
        changed: RegistrationChange | None = None

        async def attempt(reads: Reads) -> RegistryWrite | Written:
            nonlocal changed
            known = await self.known(reads, principal, meter_id, at)
            if known.record.due(ms_of(self.clock.now())) is not None:
                # What is due comes first, so that every note tells of one change.
                await self.turn(meter_id)
                known = await self.known(reads.anew(Meter, meter_id), principal, meter_id, at)
            sequence = await self.turn.sequence(reads, known.record)
            if prepare is not None:
                await prepare(reads)
            now = self.moment(known.record, sequence)
            after = change(known.record, now)
            if after == known.record:
                changed = await self._last(after)
                return Written(revision=known.revision, changed=False)
            check_head_ends(self.head_ends, after, known.record)
            note = await self.turn.note(known, after, now, sequence)
            changed = note.notes[0] if note.notes else None
            write = RegistryWrite(
                put=[note.meter, *note.notes],
                unmoved=note.unmoved,
                due=due_of(note.meter, note.meter.effective_through),
                done=[(instant, meter_id) for instant in _served(known.record, note.meter)],
                not_before=ms_of(self.clock.now()),
            )
            return write if extend is None else await extend(reads, write, note.meter)

        written = await transact(self.store, attempt, overtaken=overtaken())
        return Changed(written=written, note=changed)

    async def _last(self, meter: Meter) -> RegistrationChange | None:
        """Return the note of the change that was carried out last, for whoever asks again after a lost answer."""
        was = meter.registrations.at(Ms(meter.effective_through - 1))
        if was is None:
            return None
        found = await self.store.read(
            RegistrationChange, was.value.supplier_id, f"{meter.effective_through:013d}", meter.meter_id
        )
        return None if found is None else found.record

    def moment(self, meter: Meter, sequence: Sequence) -> Ms:
        """Return the instant of a change made at once.

        After all that was carried out and after every code of the side before, even if a node dated them whose clock is
        ahead: every change has an instant of its own, and no code lies on the wrong side of it.
        """
        return max(ms_of(self.clock.now()), Ms(meter.effective_through + 1), Ms(sequence[1].last_issued_at + 1))

    async def known(
        self, reads: Reads, principal: Principal, meter_id: MeterId, at: Callable[[Meter], Ms | None] = lambda _: None
    ) -> Versioned[Meter]:
        """Return a meter that is the caller's at the instant that `at` returns, None for now.

        Raises:
            RecordNotFound, NotYours: do not repeat.
        """
        known = await reads.read(Meter, meter_id)
        last = None if known is None else known.record.registrations.last
        if known is None or last is None:
            raise RecordNotFound("the meter is not registered", kind="meter")
        now = max(ms_of(self.clock.now()), known.record.effective_through)
        holds = known.record.registrations.at(max(now, at(known.record) or now)) or last
        require_owner(principal, holds.value.supplier_id)
        return known

    async def supplier(self, reads: Reads, supplier_id: ParticipantId) -> Participant:
        """Return a supplier that has not left; raise ParticipantNotFound if there is none of this name."""
        known = await reads.read(Participant, supplier_id)
        if known is None or known.record.role is not Role.SUPPLIER or known.record.status is ParticipantStatus.LEFT:
            raise ParticipantNotFound("no supplier of this name", participant_id=supplier_id)
        return known.record


def new_meter(meter: Meter, supplier: Participant, now: Ms) -> Meter:
    """Return a meter as it is first written: nothing of it is due before `now`, and its counters are where they belong.

    Whose they are follows from the supplier's profile, unless the meter is not enrolled: then its SMSO's.
    """
    first, settings = meter.registrations.periods[0], meter.settings.periods[0]
    custody = custody_for(supplier, settings, now)
    registration = first._replace(value=replace(first.value, custody=custody))
    return replace(meter, registrations=EffectiveDated((registration,)), effective_through=now)


def custody_after(meter: Meter, supplier: Participant, at: Ms) -> Custody:
    """Return who spends the counters of a meter that changes to `supplier` at `at`.

    A supplier that had the meter before finds its sequence in the hands it left it in: another generator may have gone
    on with it, and only a hand-over tells how far.
    """
    before = [
        period.value for period in meter.registrations.periods if period.value.supplier_id == supplier.participant_id
    ]
    settings = meter.settings.at(at)
    enrolled = settings is None or settings.value.enrolled
    return before[-1].custody if before and enrolled else custody_for(supplier, settings, at)


def custody_for(supplier: Participant, settings: Period[Settings] | None, at: Ms) -> Custody:
    """Return who spends the counters of a meter that becomes the supplier's at `at`."""
    if settings is not None and not settings.value.enrolled:
        return Custody.SMSO
    generates = supplier.profile_at(at).selling_model is SellingModel.SUPPLIER_GENERATES
    return Custody.SUPPLIER if generates else Custody.CENTRAL


def same_meter(known: Meter, asked: Meter) -> bool:
    """Return whether a meter is registered as asked for: what it is, whose it is, and its latest settings."""
    if (known.kind, known.generation, known.make, known.model, known.scheme, known.public_point) != (
        asked.kind, asked.generation, asked.make, asked.model, asked.scheme, asked.public_point,
    ):  # fmt: skip
        return False
    whose, wanted = known.registrations.last, asked.registrations.last
    settings, settled = known.settings.last, asked.settings.last
    return (
        whose is not None
        and wanted is not None
        and whose.value.supplier_id == wanted.value.supplier_id
        and settings is not None
        and settled is not None
        and replace(settings.value, tenancy=settled.value.tenancy) == settled.value
    )


def due_of(meter: Meter, after: Ms) -> list[tuple[Ms, MeterId]]:
    """Return the reminders of a meter: every instant after `after` at which something changes."""
    return [(at, meter.meter_id) for at in sorted(set(meter.instants())) if at > after]


def _served(before: Meter, after: Meter) -> list[Ms]:
    """Return the instants whose reminders a change has served: they are carried out, or are no more."""
    kept = set(after.instants())
    return [
        instant
        for instant in sorted(set(before.instants()))
        if instant > before.effective_through and (instant <= after.effective_through or instant not in kept)
    ]


def overtaken() -> RecordChanged:
    """Return the error of a change that others came before, more often than it was tried again."""
    return RecordChanged("others keep changing this meter; look at it, and repeat if it is still right", kind="meter")
