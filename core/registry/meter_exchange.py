"""Meter exchange: the old meter ends, the new one begins, and the tenant's PANs stand for the new one; at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from core.access.roles import KEEPERS, require_role
from core.domain.effective_dated import EffectiveDated, Ms, ms_of
from core.domain.errors import RecordChanged, RecordExists
from core.domain.meter import Meter, MeterId, Pan, PanAssignment, PanRecord, Registration, Settings
from core.domain.participant import Principal
from core.domain.record import Versioned
from core.ports.registry import RegistryStore, RegistryWrite, StoredRecord
from core.registry.head_end_names import check_head_ends
from core.registry.meters import MeterAdmin, due_of, new_meter, overtaken, same_meter
from core.transaction import Reads, Written, transact


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeMeter:
    """Exchanges meters."""

    meters: MeterAdmin
    store: RegistryStore

    async def __call__(self, principal: Principal, old_id: MeterId, new: Meter, pans: Sequence[Pan]) -> Written:
        """Exchange a meter; the tenancy goes on, and so does what waits of tenancy and payment mode.

        Raises:
            RecordChanged: the old meter is another supplier's, or a PAN is not its tenant's.
            ChangePending: a change of supplier, or an end, waits; cancel it first.
            RecordExists: the new meter is registered already.
            HeadEndUnknown: the new meter's head end is not there.
            Overloaded: this supplier has registered so much lately.
        """
        require_role(principal, KEEPERS)
        check_head_ends(self.meters.head_ends, new)
        counted = False

        async def attempt(reads: Reads) -> RegistryWrite | Written:
            nonlocal counted
            await self.meters.turn(old_id)
            known = await self.meters.known(reads, principal, old_id)
            done = await self._done(reads, known, new)
            if done is not None:
                return done
            if not counted:
                # The new meter's id is new too: an exchange is no way round the quota.
                self.meters.registrations.count(principal, 1)
                counted = True
            return await self._write(reads, principal, known, new, pans)

        return await transact(self.store, attempt, overtaken=overtaken())

    async def _done(self, reads: Reads, known: Versioned[Meter], new: Meter) -> Written | None:
        """Return what was written, if the exchange was carried out before; None if the new meter is not there yet."""
        there, last = await reads.read(Meter, new.meter_id), known.record.registrations.last
        if there is None:
            return None
        began = replace(there.record, settings=EffectiveDated(there.record.settings.periods[:1]))
        if last is None or last.until is None or not same_meter(began, new):
            raise RecordExists("the new meter is registered already", kind="meter")
        return Written(revision=there.revision, changed=False)

    async def _write(
        self, reads: Reads, principal: Principal, known: Versioned[Meter], new: Meter, pans: Sequence[Pan]
    ) -> RegistryWrite:
        sequence, by = await self.meters.turn.sequence(reads, known.record), principal.participant_id
        now = self.meters.moment(known.record, sequence)
        supplier_id = new.registrations.periods[0].value.supplier_id
        stands = known.record.stands_at(now, None)
        if stands is None or stands[0].supplier_id != supplier_id:
            raise RecordChanged("the old meter is another supplier's, or nobody's", kind="meter")
        supplier = await self.meters.supplier(reads, supplier_id)
        fresh = new_meter(_in_place_of(known.record, stands[1], new, now), supplier, now)
        old = replace(known.record, registrations=known.record.registrations.end(at=None, now=now))
        at = old.registrations.periods[-1].until or now
        note = await self.meters.turn.note(known, old, max(now, at), sequence)
        put: list[StoredRecord] = [note.meter, fresh, *note.notes]
        for pan in pans:
            card = await reads.read(PanRecord, pan)
            use = None if card is None else card.record.uses.at(card.record.uses.effective_now(now))
            if card is None or use is None or not _is_tenants(use.value, known.record.meter_id, *stands):
                # An earlier tenant's card, or an earlier supplier's, must not come to life again.
                raise RecordChanged("one of the PANs does not stand for the old meter and its tenant", kind="pan")
            moved = card.record.uses.adjust(_moved(known.record.meter_id, fresh.meter_id), now=now, by=by)
            put.append(replace(card.record, uses=moved))
        today = ms_of(self.meters.clock.now())
        return RegistryWrite(put=put, unmoved=note.unmoved, due=due_of(fresh, now), not_before=today)


def _in_place_of(old: Meter, was: Settings, new: Meter, now: Ms) -> Meter:
    """Return the new meter with the tenancy of the old one, and what waits of tenancy and payment mode.

    What is set of a meter itself (head end, firmware, thresholds) is the new one's own.
    """
    first = new.settings.periods[0]
    first = first._replace(value=replace(first.value, tenancy=was.tenancy), since=now, recorded_at=now)
    settings = EffectiveDated((first,))
    for later in [period for period in old.settings.periods if period.since > now]:
        value = replace(settings.periods[-1].value, tenancy=later.value.tenancy)
        if later.value.payment_mode is not was.payment_mode:
            value = replace(value, payment_mode=later.value.payment_mode)
        if value != settings.periods[-1].value:
            settings = settings.change(value, since=later.since, now=now, by=later.recorded_by)
    registrations = new.registrations.periods[0]._replace(since=now, recorded_at=now)
    return replace(new, registrations=EffectiveDated((registrations,)), settings=settings)


def _is_tenants(use: PanAssignment, meter_id: MeterId, registration: Registration, settings: Settings) -> bool:
    """Return whether a PAN is that of a meter's present tenant, blocked or not."""
    return (use.meter_id, use.supplier_id, use.tenancy) == (meter_id, registration.supplier_id, settings.tenancy)


def _moved(old_id: MeterId, new_id: MeterId) -> Callable[[PanAssignment], PanAssignment]:
    """Return what a meter exchange does to a PAN of the old meter; its tenancy and its block stay."""
    return lambda use: replace(use, meter_id=new_id) if use.meter_id == old_id else use
