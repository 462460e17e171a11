"""PANs: given to a tenant of a meter, replaced when lost, blocked, and pointed to another meter. History is kept."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

from core.access.roles import KEEPERS, require_owner, require_role
from core.domain.effective_dated import EffectiveDated, Ms, Period, begin, ms_of
from core.domain.errors import RecordChanged, RecordExists, RecordNotFound
from core.domain.invariant import check
from core.domain.meter import Meter, MeterId, Pan, PanAssignment, PanForm, PanRecord, PanStatus
from core.domain.participant import ParticipantId, Principal
from core.domain.record import Kind, Ref, Versioned
from core.ports.clock import Clock
from core.ports.registry import RegistryStore, RegistryWrite
from core.registry.registrations import UNLIMITED, Registrations
from core.transaction import Reads, Written, transact


@dataclass(frozen=True, slots=True, kw_only=True)
class PanAdmin:
    """Changes PANs. Every change is one write, based on what was read. `registrations` says who may give a new one."""

    store: RegistryStore
    clock: Clock
    registrations: Registrations = UNLIMITED

    async def give(self, principal: Principal, pan: Pan, form: PanForm, meter_id: MeterId, since: Ms | None) -> Written:
        """Give a new PAN to the tenant that a meter has at `since`; giving it again as it is changes nothing.

        Raises:
            RecordExists: the PAN is there and stands for something else.
            RecordNotFound: no such meter.
            OperatorOnly: suppliers give no new PANs here.
            Overloaded: this supplier has registered so much lately.
        """
        counted = False

        async def attempt(reads: Reads) -> RegistryWrite | Written:
            nonlocal counted
            use = await self._use(reads, principal, meter_id, since)
            now, by = ms_of(self.clock.now()), principal.participant_id
            card = PanRecord(pan=pan, form=form, uses=begin(use, since=since, now=now, by=by))
            known = await reads.read(PanRecord, pan)
            if known is not None:
                if not same_card(known.record, card):
                    raise RecordExists("the PAN is registered already, for something else", kind="pan")
                return Written(revision=known.revision, changed=False)
            self.registrations.refuse(principal, Kind.PAN)
            if not counted:
                self.registrations.count(principal, 1)
                counted = True
            return RegistryWrite(put=[card])

        return await transact(self.store, attempt, overtaken=_overtaken())

    async def replace_lost(self, principal: Principal, lost: Pan, new: Pan, form: PanForm) -> Written:
        """Replace a lost PAN by a new one for the same meter and tenant, at once, in one write.

        The new one also stands for what the lost one was going to stand for.

        Raises:
            RecordChanged: the lost one has been replaced already, by another.
            RecordExists: the new one is taken.
            Overloaded: this supplier has registered so much lately.
        """
        known = await self._known(self.store, principal, lost)
        if known.record.replaced_by == new:
            return Written(revision=known.revision, changed=False)
        uses, by = known.record.uses, principal.participant_id
        now = uses.effective_now(ms_of(self.clock.now()))
        use = uses.at(now)
        if known.record.replaced_by is not None or use is None:
            raise RecordChanged("the PAN has been replaced already, or stands for nothing", kind="pan")
        dead = uses.adjust(_with(PanStatus.REPLACED), now=now, by=by)
        live = begin(replace(use.value, status=PanStatus.ACTIVE), since=None, now=now, by=by)
        for later in [period for period in uses.periods if period.since > now]:
            live = live.change(replace(later.value, status=PanStatus.ACTIVE), since=later.since, now=now, by=by)
        self.registrations.count(principal, 1)
        write = RegistryWrite(
            expect=[(_ref(lost), known.revision), (_ref(new), 0)],
            put=[PanRecord(pan=new, form=form, uses=live), replace(known.record, uses=dead, replaced_by=new)],
        )
        revision = await self.store.write(write)
        if revision is None:
            raise RecordExists("the new PAN is taken, or the lost one changed in this moment", kind="pan")
        return Written(revision=revision)

    async def block(self, principal: Principal, pan: Pan, *, blocked: bool) -> Written:
        """Block a PAN, or lift its block, at once; also for what it is going to stand for."""
        status = PanStatus.BLOCKED if blocked else PanStatus.ACTIVE

        async def attempt(reads: Reads) -> RegistryWrite | Written:
            known = await self._known(reads, principal, pan)
            if known.record.replaced_by is not None:
                raise RecordChanged("the PAN has been replaced for good", kind="pan")
            now, by = ms_of(self.clock.now()), principal.participant_id
            return _changed(known, known.record.uses.adjust(_with(status), now=now, by=by))

        return await transact(self.store, attempt, overtaken=_overtaken())

    async def repoint(
        self, principal: Principal, pan: Pan, meter_from: MeterId, meter_to: MeterId, since: Ms | None
    ) -> Written:
        """Point a PAN to the tenant that another meter has at `since`, or anew to the same one after a change of hands.

        A blocked PAN stays blocked.

        Raises:
            RecordChanged: it does not stand for `meter_from` (any more).
        """

        async def attempt(reads: Reads) -> RegistryWrite | Written:
            use = await self._use(reads, principal, meter_to, since)
            known = await self._known(reads, principal, pan, taken_over=True)
            last = _last(known.record)
            use = replace(use, status=last.value.status)
            if last.value.meter_id != meter_from and last.value != use:
                raise RecordChanged("the PAN stands for another meter: it was moved before", kind="pan")
            if known.record.replaced_by is not None:
                raise RecordChanged("the PAN has been replaced for good", kind="pan")
            now, by = ms_of(self.clock.now()), principal.participant_id
            return _changed(known, known.record.uses.put(use, since=since, now=now, by=by))

        return await transact(self.store, attempt, overtaken=_overtaken())

    async def cancel(self, principal: Principal, pan: Pan) -> Written:
        """Cancel what a PAN was going to stand for; as the supplier that recorded it, or as an operator.

        Raises:
            NothingToEnd: nothing waits for its instant.
        """

        async def attempt(reads: Reads) -> RegistryWrite | Written:
            known = await self._known(reads, principal, pan, recorded=True)
            return _changed(known, known.record.uses.cancel(now=ms_of(self.clock.now())))

        return await transact(self.store, attempt, overtaken=_overtaken())

    async def _known(
        self,
        reads: Reads | RegistryStore,
        principal: Principal,
        pan: Pan,
        *,
        taken_over: bool = False,
        recorded: bool = False,
    ) -> Versioned[PanRecord]:
        """Return a PAN that is the caller's now, or of whom it will be the first; nobody acts before its time.

        With `taken_over`, one whose meter is the caller's now; with `recorded`, one whose last period is the caller's.
        """
        require_role(principal, KEEPERS)
        known = await reads.read(PanRecord, pan)
        if known is None:
            raise RecordNotFound("the PAN is not registered", kind="pan")
        last = _last(known.record)
        if taken_over:
            # The card of an earlier supplier: who may adopt it is whose the meter behind it is now.
            require_owner(principal, await self._whose(reads, last.value.meter_id))
            return known
        holds = known.record.uses.at(known.record.uses.effective_now(ms_of(self.clock.now())))
        require_owner(principal, (last if recorded or holds is None else holds).value.supplier_id)
        return known

    async def _whose(self, reads: Reads | RegistryStore, meter_id: MeterId) -> ParticipantId:
        """Return whose a meter is now, or was last: the cards of a meter that is gone are still somebody's."""
        known = await reads.read(Meter, meter_id)
        last = None if known is None else known.record.registrations.last
        if known is None or last is None:
            raise RecordNotFound("the meter is not registered", kind="meter")
        stands = known.record.stands_at(ms_of(self.clock.now()), None)
        return last.value.supplier_id if stands is None else stands[0].supplier_id

    async def _use(self, reads: Reads, principal: Principal, meter_id: MeterId, since: Ms | None) -> PanAssignment:
        """Return what a PAN of a meter's tenant stands for at `since`."""
        require_role(principal, KEEPERS)
        known = await reads.read(Meter, meter_id)
        if known is None:
            raise RecordNotFound("the meter is not registered", kind="meter")
        found = known.record.stands_at(ms_of(self.clock.now()), since)
        if found is None:
            raise RecordNotFound("nobody supplies the meter at this time", kind="meter")
        registration, settings = found
        require_owner(principal, registration.supplier_id)
        return PanAssignment(meter_id=meter_id, supplier_id=registration.supplier_id, tenancy=settings.tenancy)


def same_card(known: PanRecord, asked: PanRecord) -> bool:
    """Return whether a PAN is registered as asked for."""
    has, wants = known.uses.last, asked.uses.last
    return has is not None and wants is not None and has.value == wants.value and known.form is asked.form


def _changed(known: Versioned[PanRecord], uses: EffectiveDated[PanAssignment]) -> RegistryWrite | Written:
    """Return the write of a PAN that stands for other things than it did, if it does."""
    after = replace(known.record, uses=uses)
    return Written(revision=known.revision, changed=False) if after == known.record else RegistryWrite(put=[after])


def _last(card: PanRecord) -> Period[PanAssignment]:
    last = card.uses.last
    check(last is not None, "a registered PAN stands, stood or will stand for a meter")
    return cast("Period[PanAssignment]", last)


def _with(status: PanStatus) -> Callable[[PanAssignment], PanAssignment]:
    return lambda use: replace(use, status=status)


def _ref(pan: Pan) -> Ref:
    return Ref(Kind.PAN, pan)


def _overtaken() -> RecordChanged:
    return RecordChanged("others keep changing this PAN; look at it, and repeat if it is still right", kind="pan")
