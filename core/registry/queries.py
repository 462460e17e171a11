"""What may be read of the market, by whom: records with their history, and who could sell to a meter at an instant."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from core.access.roles import PSPS, READERS, require_owner, require_role
from core.domain.appointment import Appointment, Appointments
from core.domain.effective_dated import NEVER, EffectiveDated, Ms, ms_of
from core.domain.errors import NotYours, RecordNotFound
from core.domain.meter import (
    Custody,
    Meter,
    MeterCapabilities,
    MeterId,
    Model,
    Pan,
    PanAssignment,
    PanRecord,
    PanStatus,
    PaymentMode,
)
from core.domain.participant import (
    Participant,
    ParticipantId,
    ParticipantStatus,
    Principal,
    PspPermission,
    Role,
    SellingModel,
)
from core.domain.registration_change import RegistrationChange
from core.ports.clock import Clock
from core.ports.registry import RegistryStore

_MANY = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Seller:
    """Who could sell, and what allowed it."""

    participant_id: ParticipantId
    may_issue: bool
    may_deliver: bool
    rule: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sellers:
    """Whose meter it was, and who could sell to it."""

    meter_id: MeterId | None
    supplier_id: ParticipantId | None
    sellers: tuple[Seller, ...] = ()


def key_of(change: RegistrationChange) -> str:
    """Return after what the list of a supplier's changes goes on when it has come to this one."""
    return f"{change.at:013d}/{change.meter_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryQueries:
    """Reads. `cards_of` finds the PANs of a meter in the copy in memory."""

    store: RegistryStore
    cards_of: Callable[[MeterId], list[PanRecord]]
    clock: Clock

    async def participant(self, principal: Principal, participant_id: ParticipantId) -> Participant:
        """Return a participant; suppliers and PSPs see themselves."""
        if participant_id != principal.participant_id and principal.role in (Role.SUPPLIER, Role.PSP):
            raise NotYours("a participant sees only itself")
        known = await self.store.read(Participant, participant_id)
        if known is None:
            raise RecordNotFound("no participant of this name", kind="participant")
        return known.record

    async def participants(self, principal: Principal, after: str, limit: int) -> tuple[list[Participant], str]:
        """Return participants in the order of their ids, and where to go on: "" at the end."""
        require_role(principal, READERS - {Role.SUPPLIER})
        found = [stored.record for stored in await self.store.list_records(Participant, after=after, limit=limit)]
        return found, found[-1].participant_id if len(found) == limit else ""

    async def models(self, principal: Principal) -> list[Model]:
        """Return the capability matrix."""
        require_role(principal, READERS)
        return [stored.record for stored in await self.store.list_records(Model, limit=_MANY)]

    async def meter(self, principal: Principal, meter_id: MeterId) -> Meter:
        """Return a meter; suppliers see those that are, were or will be theirs."""
        require_role(principal, READERS)
        known = await self.store.read(Meter, meter_id)
        if known is None:
            raise RecordNotFound("the meter is not registered", kind="meter")
        if principal.role is not Role.SUPPLIER:
            return known.record
        seen = self._own_part(known.record, principal.participant_id)
        if seen is None:
            raise NotYours("this belongs to another supplier")
        return seen

    async def meters(self, principal: Principal, after: str, limit: int) -> tuple[list[Meter], str]:
        """Return meters in the order of their ids, and where to go on; suppliers see their own.

        For a supplier 1000 meters of everybody are looked through, whatever `limit` is, and more than `limit` may be
        its own: where a page ends must not tell of others' meters one by one.
        """
        require_role(principal, READERS)
        limit = _MANY if principal.role is Role.SUPPLIER else limit
        found = [stored.record for stored in await self.store.list_records(Meter, after=after, limit=limit)]
        seen: list[Meter] = found
        if principal.role is Role.SUPPLIER:
            parts = (self._own_part(record, principal.participant_id) for record in found)
            seen = [part for part in parts if part is not None]
        return seen, found[-1].meter_id if len(found) == limit else ""

    def _own_part(self, meter: Meter, supplier_id: ParticipantId) -> Meter | None:
        """Return what a supplier may see of a meter; None if it never was, is, nor will be its own.

        Who supplied it before may see its own time, and nothing of what came after.
        """
        require_owner = [period for period in meter.registrations.periods if period.value.supplier_id == supplier_id]
        if not require_owner:
            return None
        until = require_owner[-1].until
        if until is None or until > max(ms_of(self.clock.now()), meter.effective_through):
            return meter
        settings = EffectiveDated(tuple(period for period in meter.settings.periods if period.since < until))
        return replace(
            meter,
            registrations=EffectiveDated(tuple(require_owner)),
            settings=settings,
            effective_through=min(meter.effective_through, until),
        )

    async def pan(self, principal: Principal, pan: Pan) -> PanRecord:
        """Return a PAN; suppliers see those that are or were theirs."""
        require_role(principal, READERS)
        known = await self.store.read(PanRecord, pan)
        if known is None:
            raise RecordNotFound("the PAN is not registered", kind="pan")
        if principal.role is Role.SUPPLIER and not any(
            period.value.supplier_id == principal.participant_id for period in known.record.uses.periods
        ):
            raise NotYours("this belongs to another supplier")
        return known.record

    async def pans_of(self, principal: Principal, meter_id: MeterId) -> list[PanRecord]:
        """Return every PAN of a meter; suppliers see those they gave."""
        await self.meter(principal, meter_id)
        found = self.cards_of(meter_id)
        if principal.role is not Role.SUPPLIER:
            return found
        mine = principal.participant_id
        return [one for one in found if any(period.value.supplier_id == mine for period in one.uses.periods)]

    async def changes(
        self,
        principal: Principal,
        supplier_id: ParticipantId,
        *,
        since: Ms = NEVER,
        after: str = "",
        limit: int = _MANY,
    ) -> tuple[list[RegistrationChange], str]:
        """Return the changes for which a supplier answers, oldest first, and where to go on: "" at the end."""
        require_role(principal, READERS)
        require_owner(principal, supplier_id)
        start = f"{supplier_id}/{after or f'{since:013d}'}"
        page = await self.store.list_records(RegistrationChange, supplier_id, after=start, limit=limit)
        found = [stored.record for stored in page]
        return found, key_of(found[-1]) if len(found) == limit else ""

    async def appointments(
        self, principal: Principal, supplier_id: ParticipantId | None, after: str = "", limit: int = _MANY
    ) -> tuple[list[Appointment], str]:
        """Return the appointments the caller may see, and where to go on: "" at the end."""
        require_role(principal, READERS | PSPS)
        if principal.role is Role.SUPPLIER:
            supplier_id = principal.participant_id
        ids = () if supplier_id is None else (supplier_id,)
        found: Sequence[Appointments] = [
            stored.record for stored in await self.store.list_records(Appointments, *ids, after=after, limit=limit)
        ]
        seen = [
            one
            for every in found
            if principal.role is not Role.PSP or every.psp_id == principal.participant_id
            for one in every.all
        ]
        return seen, f"{found[-1].supplier_id}/{found[-1].psp_id}" if len(found) == limit else ""

    async def sellers(self, principal: Principal, meter_id: MeterId | None, pan: Pan | None, at: Ms | None) -> Sellers:
        """Return who could sell to a meter, or by a PAN, at an instant, as the registry stood then; None: now."""
        require_role(principal, READERS)
        instant = at if at is not None else ms_of(self.clock.now())
        given: PanAssignment | None = None
        if pan is not None:
            card = await self.pan(principal, pan)
            use = card.uses.as_recorded_at(instant)
            if use is None or use.value.status is not PanStatus.ACTIVE:
                return Sellers(meter_id=None, supplier_id=None)
            given, meter_id = use.value, use.value.meter_id
        if meter_id is None:
            raise RecordNotFound("a meter or a PAN is needed", kind="meter")
        meter = await self.meter(principal, meter_id)
        # Of a supplier's own time only: what `meter` shows ends with it.
        whose, settings = meter.registrations.as_recorded_at(instant), meter.settings.as_recorded_at(instant)
        if whose is None or settings is None:
            return Sellers(meter_id=meter_id, supplier_id=None)
        supplier_id = whose.value.supplier_id
        supplier = await self.store.read(Participant, supplier_id)
        standing = None if supplier is None else supplier.record.standings.as_recorded_at(instant)
        current = given is None or (given.supplier_id, given.tenancy) == (supplier_id, settings.value.tenancy)
        sellable = current and settings.value.enrolled and settings.value.payment_mode is PaymentMode.PREPAYMENT
        if supplier is None or standing is None or standing.value is not ParticipantStatus.ACTIVE or not sellable:
            return Sellers(meter_id=meter_id, supplier_id=supplier_id)
        can = await self._abilities(meter, instant)
        if can is None or meter.scheme not in can.schemes:
            return Sellers(meter_id=meter_id, supplier_id=supplier_id)
        found = await self._sellers(supplier.record, whose.value.custody, instant)
        sellers = tuple(
            replace(
                seller,
                may_issue=seller.may_issue and can.central_issue,
                may_deliver=seller.may_deliver and can.over_the_air,
            )
            for seller in found
        )
        return Sellers(meter_id=meter_id, supplier_id=supplier_id, sellers=sellers)

    async def _abilities(self, meter: Meter, at: Ms) -> MeterCapabilities | None:
        """Return what a meter could do at an instant; None if its model was not in the capability matrix."""
        if not meter.make:
            return MeterCapabilities(schemes=frozenset({meter.scheme}))
        known = await self.store.read(Model, meter.make, meter.model)
        period = None if known is None else known.record.abilities.as_recorded_at(at)
        return None if period is None else period.value

    async def _sellers(self, supplier: Participant, custody: Custody, at: Ms) -> tuple[Seller, ...]:
        period = supplier.profiles.as_recorded_at(at)
        option = SellingModel.SUPPLIER_ONLY if period is None else period.value.option
        level = supplier.profile_at(at).psp_level if period is not None else PspPermission.NONE
        central = custody is Custody.CENTRAL and option is not SellingModel.SUPPLIER_GENERATES
        sellers = [
            Seller(
                participant_id=supplier.participant_id,
                may_issue=central,
                may_deliver=custody is not Custody.SMSO,
                rule="own meter",
            )
        ]
        for known in await self.store.list_records(Appointments, supplier.participant_id, limit=_MANY):
            one = known.record.in_force_at(at)
            psp = await self.store.read(Participant, known.record.psp_id)
            standing = None if psp is None else psp.record.standings.as_recorded_at(at)
            if (
                one is None
                or standing is None
                or standing.value is not ParticipantStatus.ACTIVE
                or level is PspPermission.NONE
            ):
                continue
            may = min(level, one.terms.level)
            sellers.append(
                Seller(
                    participant_id=known.record.psp_id,
                    may_issue=central,
                    # Also once the counters are elsewhere: what it sold before.
                    may_deliver=custody is not Custody.SMSO and may is PspPermission.ISSUE_AND_DELIVER,
                    rule=f"appointment {one.terms.appointment_id}",
                )
            )
        return tuple(sellers)
