"""Meters: registered, changed, handed from supplier to supplier, from tenant to tenant, from one generator to another.

Every change is one write that compares the meter's revision. What takes effect at once is carried out by that write,
with its note of what was under way; what takes effect later leaves a reminder, and the owner of the meter's shard, or
whoever needs the meter first, carries it out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from core.domain.delivery import NOT_REQUESTED
from core.domain.errors import BadField, ParticipantUnknown, RecordChanged, RecordExists, RecordUnknown
from core.domain.invariant import InvariantBroken
from core.domain.market_change import MarketChange
from core.domain.meter import Card, Custody, Meter, MeterId, OriginatorId, Pan, Registration, Settings
from core.domain.party import Option, Participant, ParticipantId, Principal, Role, Standing
from core.domain.registry import Kind, Known, Ref
from core.domain.timeline import Ms, Timeline, instant_of, ms_of
from core.domain.vend import Sale, Vend
from core.flows.keep_parties import Written
from core.flows.roles import KEEPERS, OPERATORS, own, require
from core.flows.turn import TurnMeter
from core.ports.clock import Clock
from core.ports.registry import CounterPut, RegistryStore, RegistryWrite, StoredRecord

_RACES_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SoldElsewhere:
    """A code sold elsewhere and not known to be used; `deliver` if it is still to be sent to the meter."""

    sale: Sale
    issued_at: datetime
    deliver: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """Who spends a meter's counters from now on, and what the one before says of them.

    `codes` are codes sold by the one before; `settings` and `public_point`
    are what becomes of the meter's, None for as they are.
    """

    meter_id: MeterId
    custody_before: Custody
    custody: Custody
    last_issued: int = 0
    highest_applied: int = 0
    codes: tuple[SoldElsewhere, ...] = ()
    settings: Callable[[Settings], Settings] | None = None
    public_point: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOver:
    """The hand-over is done. `change` says what the next one must know: the counters, and what is still on its way."""

    written: Written
    change: MarketChange | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepMeters:
    """Changes meters."""

    store: RegistryStore
    turn: TurnMeter
    clock: Clock

    async def add(self, principal: Principal, meter: Meter) -> Written:
        """Register a meter; registering it again as it is changes nothing.

        Raises:
            RecordExists: it is there with other content.
            ParticipantUnknown: its supplier is not.
        """
        require(principal, KEEPERS)
        first = meter.registrations.periods[0].value
        own(principal, first.supplier_id)
        meter = new_meter(meter, await self._supplier(first.supplier_id), ms_of(self.clock.now()))
        known = await self.store.read(Meter, meter.meter_id)
        if known is not None:
            if not same_meter(known.record, meter):
                raise RecordExists("the meter is registered already, with other content", kind="meter")
            return Written(revision=known.revision, changed=False)
        write = RegistryWrite(expect=[(_ref(meter.meter_id), 0)], put=[meter], due=due_of(meter, meter.turned_at))
        revision = await self.store.write(write)
        if revision is None:
            raise RecordExists("the meter was registered in this moment by another", kind="meter")
        return Written(revision=revision)

    async def change(
        self, principal: Principal, meter_id: MeterId, change: Callable[[Settings], Settings], since: Ms | None
    ) -> Written:
        """Change what can change of a meter: payment mode, head end, thresholds, tenant."""

        def changed(meter: Meter, now: Ms) -> Meter:
            last = meter.settings.last
            value = change(last.value if last is not None else Settings(head_end=""))
            if last is not None and last.value == value and (since is None or last.since == since):
                return meter
            by = principal.participant_id
            return replace(meter, settings=meter.settings.change(value, since=since, now=now, by=by))

        return (await self._update(principal, meter_id, changed)).written

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
        require(principal, OPERATORS)
        supplier = await self._supplier(gaining)

        def changed(meter: Meter, now: Ms) -> Meter:
            last = meter.registrations.last
            if last is not None and last.value.supplier_id == gaining and (since is None or last.since == since):
                return meter
            if last is None or last.value.supplier_id != losing:
                raise RecordChanged("the meter is not the losing supplier's", kind="meter")
            begin = now if since is None else since
            value = Registration(supplier_id=gaining, custody=custody_for(supplier, begin))
            by = principal.participant_id
            return replace(meter, registrations=meter.registrations.change(value, since=since, now=now, by=by))

        return (await self._update(principal, meter_id, changed)).written

    async def end(self, principal: Principal, meter_id: MeterId, at: Ms | None) -> Written:
        """Take a meter out of service at `at`: from then on nobody supplies it."""

        def changed(meter: Meter, now: Ms) -> Meter:
            last = meter.registrations.last
            if last is not None and last.until is not None and (at is None or last.until == at):
                return meter
            return replace(meter, registrations=meter.registrations.end(at=at, now=now))

        return (await self._update(principal, meter_id, changed)).written

    async def cancel(self, principal: Principal, meter_id: MeterId, *, registration: bool) -> Written:
        """Cancel the change that waits for its instant: of the supplier, or of the settings."""

        def changed(meter: Meter, now: Ms) -> Meter:
            if registration:
                return replace(meter, registrations=meter.registrations.cancel(now=now))
            return replace(meter, settings=meter.settings.cancel(now=now))

        if registration:
            require(principal, OPERATORS)
        return (await self._update(principal, meter_id, changed)).written

    async def exchange(self, principal: Principal, old_id: MeterId, new: Meter, pans: Sequence[Pan]) -> Written:
        """Meter exchange, at once: the old meter ends, the new one begins, the named PANs stand for the new one."""
        require(principal, KEEPERS)
        await self.turn(old_id)
        known = await self._known(principal, old_id)
        now, by = ms_of(self.clock.now()), principal.participant_id
        supplier_id = new.registrations.periods[0].value.supplier_id
        own(principal, supplier_id)
        new = new_meter(new, await self._supplier(supplier_id), now)
        there, last = await self.store.read(Meter, new.meter_id), known.record.registrations.last
        if there is not None and same_meter(there.record, new) and last is not None and last.until is not None:
            return Written(revision=there.revision, changed=False)
        old = replace(known.record, registrations=known.record.registrations.end(at=None, now=now))
        at = old.registrations.periods[-1].until
        note = await self.turn.note(known, old, max(now, at or now))
        put: list[StoredRecord] = [note.meter, new, *note.notes]
        expect = [(_ref(old_id), known.revision), (_ref(new.meter_id), 0)]
        for pan in pans:
            card = await self.store.read(Card, pan)
            use = None if card is None else card.record.uses.last
            if card is None or use is None or use.value.meter_id != old_id:
                raise RecordChanged("one of the PANs does not stand for the old meter", kind="pan")
            value = replace(use.value, meter_id=new.meter_id, tenancy=new.settings.periods[0].value.tenancy)
            uses = card.record.uses.change(value, since=None, now=now, by=by)
            put.append(replace(card.record, uses=uses))
            expect.append((Ref(Kind.PAN, pan), card.revision))
        revision = await self.store.write(RegistryWrite(expect=expect, put=put, unmoved=note.unmoved))
        if revision is None:
            raise _overtaken()
        return Written(revision=revision)

    async def hand_over(self, principal: Principal, hand_over: HandOver) -> HandedOver:
        """Hand a meter's counters to another generator, with everything that goes with them, in one write.

        Raises:
            RecordChanged: the counters are not with whom the request says.
            BadField: the counters told are behind what this service has spent.
        """
        require(principal, KEEPERS)
        if Custody.SMSO in (hand_over.custody, hand_over.custody_before):
            require(principal, OPERATORS)
        seen = await self._sequence(hand_over.meter_id)

        def changed(meter: Meter, now: Ms) -> Meter:
            last = meter.registrations.last
            if last is None or last.until is not None or last.since > now:
                raise RecordChanged("nobody supplies this meter now, or a change waits", kind="meter")
            if last.value.custody is hand_over.custody:
                return meter
            if last.value.custody is not hand_over.custody_before:
                raise RecordChanged("the counters are in other hands", kind="meter", custody=last.value.custody.name)
            value, by = replace(last.value, custody=hand_over.custody), principal.participant_id
            meter = replace(meter, registrations=meter.registrations.change(value, since=None, now=now, by=by))
            latest = _latest(meter)
            if hand_over.settings is not None and latest is not None and hand_over.settings(latest) != latest:
                settings = meter.settings.change(hand_over.settings(latest), since=None, now=now, by=by)
                meter = replace(meter, settings=settings)
            return meter if hand_over.public_point is None else replace(meter, public_point=hand_over.public_point)

        counter = self._counter(hand_over, seen) if hand_over.custody is Custody.CENTRAL else None
        return await self._update(principal, hand_over.meter_id, changed, counter=counter, codes=hand_over.codes)

    async def record_balance(self, principal: Principal, meter_id: MeterId, pence: int, at: Ms) -> Written:
        """Keep the last balance of a meter that its supplier knows; an older one changes nothing."""

        def changed(meter: Meter, _: Ms) -> Meter:
            return meter if meter.balance_at >= at else replace(meter, balance_pence=pence, balance_at=at)

        return (await self._update(principal, meter_id, changed)).written

    def _counter(self, hand_over: HandOver, seen: CounterPut) -> CounterPut:
        if hand_over.last_issued < seen.seen.last_issued:
            raise BadField(
                f"last_issued: this service has spent counters up to {seen.seen.last_issued}", field="last_issued"
            )
        if not 0 <= hand_over.highest_applied <= hand_over.last_issued:
            raise BadField("highest_applied: 0 to last_issued is needed", field="highest_applied")
        applied = max(hand_over.highest_applied, seen.seen.highest_applied)
        return replace(seen, last_issued=hand_over.last_issued, highest_applied=applied)

    async def _sequence(self, meter_id: MeterId) -> CounterPut:
        known = await self.store.read(Meter, meter_id)
        last = None if known is None else known.record.registrations.last
        if last is None:
            raise RecordUnknown("the meter is not registered", kind="meter")
        key = (await self._supplier(last.value.supplier_id)).supplier_key
        if key is None:
            raise ParticipantUnknown("the supplier has no key here", participant_id=last.value.supplier_id)
        originator_id = OriginatorId(key.originator_id)
        seen = await self.store.sequence(originator_id, meter_id)
        return CounterPut(originator_id=originator_id, meter_id=meter_id, seen=seen, last_issued=0, highest_applied=0)

    async def _update(
        self,
        principal: Principal,
        meter_id: MeterId,
        change: Callable[[Meter, Ms], Meter],
        *,
        counter: CounterPut | None = None,
        codes: Sequence[SoldElsewhere] = (),
    ) -> HandedOver:
        require(principal, KEEPERS)
        for _ in range(_RACES_MAX):
            # What is due comes first, so that every note tells of one change.
            await self.turn(meter_id)
            known = await self._known(principal, meter_id)
            now = max(ms_of(self.clock.now()), known.record.turned_at)
            after = change(known.record, now)
            if after == known.record:
                return HandedOver(
                    written=Written(revision=known.revision, changed=False), change=await self._last(after)
                )
            done = [(at, meter_id) for at in known.record.instants() if at > now and at not in after.instants()]
            note = await self.turn.note(known, after, now)
            unmoved = () if counter is not None else note.unmoved
            write = RegistryWrite(
                expect=[(_ref(meter_id), known.revision)],
                put=[note.meter, *note.notes],
                unmoved=unmoved,
                counter=counter,
                vends=[_vend_of(one, note.meter, counter, now) for one in codes] if counter is not None else (),
                due=due_of(note.meter, note.meter.turned_at),
                done=done,
            )
            revision = await self.store.write(write)
            if revision is not None:
                written = Written(revision=revision)
                return HandedOver(written=written, change=note.notes[0] if note.notes else None)
        raise _overtaken()

    async def _last(self, meter: Meter) -> MarketChange | None:
        """Return the note of the change that was carried out last, for whoever asks again after a lost answer."""
        was = meter.registrations.at(Ms(meter.turned_at - 1))
        if was is None:
            return None
        found = await self.store.read(MarketChange, was.value.supplier_id, f"{meter.turned_at:013d}", meter.meter_id)
        return None if found is None else found.record

    async def _known(self, principal: Principal, meter_id: MeterId) -> Known[Meter]:
        known = await self.store.read(Meter, meter_id)
        last = None if known is None else known.record.registrations.last
        if known is None or last is None:
            raise RecordUnknown("the meter is not registered", kind="meter")
        now = ms_of(self.clock.now())
        holds = known.record.registrations.at(max(now, known.record.turned_at)) or last
        own(principal, holds.value.supplier_id)
        return known

    async def _supplier(self, supplier_id: ParticipantId) -> Participant:
        known = await self.store.read(Participant, supplier_id)
        if known is None or known.record.role is not Role.SUPPLIER or known.record.standing is Standing.LEFT:
            raise ParticipantUnknown("no supplier of this name", participant_id=supplier_id)
        return known.record


def new_meter(meter: Meter, supplier: Participant, now: Ms) -> Meter:
    """Return a meter as it is first written: nothing of it is due before `now`, and its counters are where they belong.

    Whose they are follows from the supplier's profile, unless the meter is not enrolled: then its SMSO's.
    """
    first, settings = meter.registrations.periods[0], meter.settings.periods[0]
    custody = custody_for(supplier, now) if settings.value.enrolled else Custody.SMSO
    registration = first._replace(value=replace(first.value, custody=custody))
    return replace(meter, registrations=Timeline((registration,)), turned_at=now)


def custody_for(supplier: Participant, at: Ms) -> Custody:
    """Return who spends the counters of a meter that becomes the supplier's at `at`."""
    generates = supplier.profile_at(at).option is Option.SUPPLIER_GENERATES
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


def _vend_of(sold: SoldElsewhere, meter: Meter, counter: CounterPut, now: Ms) -> Vend:
    """Return the vend of a code that is taken over with its meter."""
    code = sold.sale.code
    registration, settings = meter.registrations.at(meter.turned_at), _latest(meter)
    if code is None or registration is None or settings is None:
        raise InvariantBroken("a code taken over has its digits, and its meter a supplier")
    if code[1] > counter.last_issued:
        raise BadField("codes.utrn_counter: above last_issued", field="codes.utrn_counter")
    return Vend(
        sale=sold.sale,
        meter_id=meter.meter_id,
        meter_kind=meter.kind,
        head_end=settings.head_end,
        supplier_id=registration.value.supplier_id,
        originator_id=counter.originator_id,
        utrn=code[0],
        counter=code[1],
        issued_at=sold.issued_at,
        tenancy=settings.tenancy,
        rule="handed over",
        delivery=NOT_REQUESTED.queue(instant_of(now)) if sold.deliver else NOT_REQUESTED,
    )


def _latest(meter: Meter) -> Settings | None:
    return None if meter.settings.last is None else meter.settings.last.value


def _ref(meter_id: MeterId) -> Ref:
    return Ref(Kind.METER, meter_id)


def _overtaken() -> RecordChanged:
    return RecordChanged("others keep changing this meter; look at it, and repeat if it is still right", kind="meter")
