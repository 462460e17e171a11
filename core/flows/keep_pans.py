"""PANs: given to a tenant of a meter, replaced when lost, blocked, and pointed to another meter. History is kept."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from core.domain.errors import RecordChanged, RecordExists, RecordUnknown
from core.domain.meter import Card, Meter, MeterId, Pan, PanForm, PanStatus, PanUse, Registration
from core.domain.party import Principal
from core.domain.registry import Kind, Known, Ref
from core.domain.timeline import Ms, begin, ms_of
from core.flows.keep_parties import Written
from core.flows.roles import KEEPERS, own, require
from core.ports.clock import Clock
from core.ports.registry import RegistryStore, RegistryWrite

_RACES_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepPans:
    """Changes PANs. Every change is one write, based on what was read."""

    store: RegistryStore
    clock: Clock

    async def give(self, principal: Principal, pan: Pan, form: PanForm, meter_id: MeterId, since: Ms | None) -> Written:
        """Give a new PAN to the present tenant of a meter; giving it again as it is changes nothing.

        Raises:
            RecordExists: the PAN is there and stands for something else.
            RecordUnknown: no such meter.
        """
        use = await self._use(principal, meter_id, since)
        now, by = ms_of(self.clock.now()), principal.participant_id
        card = Card(pan=pan, form=form, uses=begin(use, since=since, now=now, by=by))
        known = await self.store.read(Card, pan)
        if known is None:
            revision = await self.store.write(RegistryWrite(expect=[(_ref(pan), 0)], put=[card]))
            if revision is not None:
                return Written(revision=revision)
            known = await self.store.read(Card, pan)
        if known is None or not same_card(known.record, card):
            raise RecordExists("the PAN is registered already, for something else", kind="pan")
        return Written(revision=known.revision, changed=False)

    async def replace_lost(self, principal: Principal, lost: Pan, new: Pan, form: PanForm) -> Written:
        """Replace a lost PAN by a new one for the same meter and tenant, at once, in one write.

        Raises:
            RecordChanged: the lost one has been replaced already, by another.
            RecordExists: the new one is taken.
        """
        known = await self._known(principal, lost)
        now, by = ms_of(self.clock.now()), principal.participant_id
        if known.record.replaced_by == new:
            return Written(revision=known.revision, changed=False)
        use = known.record.uses.at(now)
        if known.record.replaced_by is not None or use is None:
            raise RecordChanged("the PAN has been replaced already, or stands for nothing", kind="pan")
        dead = replace(use.value, status=PanStatus.REPLACED)
        old = replace(known.record, uses=known.record.uses.change(dead, since=None, now=now, by=by), replaced_by=new)
        live = replace(use.value, status=PanStatus.ACTIVE)
        card = Card(pan=new, form=form, uses=begin(live, since=None, now=now, by=by))
        write = RegistryWrite(expect=[(_ref(lost), known.revision), (_ref(new), 0)], put=[card, old])
        revision = await self.store.write(write)
        if revision is None:
            raise RecordExists("the new PAN is taken, or the lost one changed in this moment", kind="pan")
        return Written(revision=revision)

    async def block(self, principal: Principal, pan: Pan, *, blocked: bool) -> Written:
        """Block a PAN, or lift its block, at once."""
        status = PanStatus.BLOCKED if blocked else PanStatus.ACTIVE

        def change(card: Card, now: Ms) -> Card:
            last = card.uses.last
            if last is None or last.value.status is status:
                return card
            if last.value.status is PanStatus.REPLACED:
                raise RecordChanged("the PAN has been replaced for good", kind="pan")
            value = replace(last.value, status=status)
            return replace(card, uses=card.uses.change(value, since=None, now=now, by=principal.participant_id))

        return await self._update(principal, pan, change)

    async def repoint(
        self, principal: Principal, pan: Pan, meter_from: MeterId, meter_to: MeterId, since: Ms | None
    ) -> Written:
        """Point a PAN to the present tenant of another meter, or anew to the same one after a change of hands.

        Raises:
            RecordChanged: it does not stand for `meter_from` (any more).
        """
        use = await self._use(principal, meter_to, since)

        def change(card: Card, now: Ms) -> Card:
            last = card.uses.last
            if last is not None and last.value == use and (since is None or last.since == since):
                return card
            if last is None or last.value.meter_id != meter_from:
                raise RecordChanged("the PAN stands for another meter: it was moved before", kind="pan")
            if last.value.status is PanStatus.REPLACED:
                raise RecordChanged("the PAN has been replaced for good", kind="pan")
            return replace(card, uses=card.uses.change(use, since=since, now=now, by=principal.participant_id))

        return await self._update(principal, pan, change, taken_over=True)

    async def _update(
        self, principal: Principal, pan: Pan, change: Callable[[Card, Ms], Card], *, taken_over: bool = False
    ) -> Written:
        """Change a PAN. `taken_over`: it may be another supplier's, if the meter is the caller's now."""
        for _ in range(_RACES_MAX):
            known = await self._known(principal, pan, taken_over=taken_over)
            after = change(known.record, ms_of(self.clock.now()))
            if after == known.record:
                return Written(revision=known.revision, changed=False)
            revision = await self.store.write(RegistryWrite(expect=[(_ref(pan), known.revision)], put=[after]))
            if revision is not None:
                return Written(revision=revision)
        raise RecordChanged("others keep changing this PAN; look at it, and repeat if it is still right", kind="pan")

    async def _known(self, principal: Principal, pan: Pan, *, taken_over: bool = False) -> Known[Card]:
        require(principal, KEEPERS)
        known = await self.store.read(Card, pan)
        last = None if known is None else known.record.uses.last
        if known is None or last is None:
            raise RecordUnknown("the PAN is not registered", kind="pan")
        if not taken_over:
            own(principal, last.value.supplier_id)
        else:
            # The card of an earlier supplier: who may adopt it is whose the meter behind it is, now or then.
            own_meter = await self._registration(last.value.meter_id, None)
            own(principal, own_meter.supplier_id)
        return known

    async def _use(self, principal: Principal, meter_id: MeterId, since: Ms | None) -> PanUse:
        require(principal, KEEPERS)
        known = await self.store.read(Meter, meter_id)
        settings = None if known is None else known.record.settings.last
        if settings is None:
            raise RecordUnknown("the meter is not registered", kind="meter")
        registration = await self._registration(meter_id, since)
        own(principal, registration.supplier_id)
        return PanUse(meter_id=meter_id, supplier_id=registration.supplier_id, tenancy=settings.value.tenancy)

    async def _registration(self, meter_id: MeterId, since: Ms | None) -> Registration:
        """Return whose the meter is at `since`, or now."""
        known = await self.store.read(Meter, meter_id)
        now = ms_of(self.clock.now())
        at = max(now, known.record.turned_at) if known is not None and since is None else (since or now)
        found = None if known is None else known.record.registrations.at(Ms(at))
        if found is None:
            raise RecordUnknown("nobody supplies the meter at this time", kind="meter")
        return found.value


def same_card(known: Card, asked: Card) -> bool:
    """Return whether a PAN is registered as asked for."""
    has, wants = known.uses.last, asked.uses.last
    return has is not None and wants is not None and has.value == wants.value and known.form is asked.form


def _ref(pan: Pan) -> Ref:
    return Ref(Kind.PAN, pan)
