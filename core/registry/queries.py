"""What may be read of the market, by whom: records with their history, and who could sell to a meter at an instant."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from core.access.roles import PSPS, READERS, require_owner, require_role
from core.domain.appointment import Appointment, Appointments
from core.domain.effective_dated import NEVER, EffectiveDated, Ms, Period, ms_of
from core.domain.errors import NotYours, RecordNotFound
from core.domain.meter import (
    Meter,
    MeterId,
    Model,
    Pan,
    PanAssignment,
    PanRecord,
    PanStatus,
    Settings,
)
from core.domain.participant import Participant, ParticipantId, Principal, Role
from core.domain.record import Kind, Ref
from core.domain.registration_change import RegistrationChange
from core.domain.vend import Operation
from core.ports.clock import Clock
from core.ports.registry import RegistryStore
from core.registry.as_recorded import AsRecorded

_MANY = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Seller:
    """A participant that could sell, and the rule that allowed it."""

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
        return [card for card in found if any(period.value.supplier_id == mine for period in card.uses.periods)]

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
        """Return who could sell to a meter, or by a PAN, at an instant, as the registry stood then; None: now.

        The rule itself is asked, for each who might: without an amount, a channel, a balance or a head end.
        """
        require_role(principal, READERS)
        instant = at if at is not None else ms_of(self.clock.now())
        card = None if pan is None else await self.pan(principal, pan)
        if card is not None:
            use = card.uses.as_recorded_at(instant)
            if use is None or use.value.status is not PanStatus.ACTIVE:
                return Sellers(meter_id=None, supplier_id=None)
            meter_id = use.value.meter_id
        if meter_id is None:
            raise RecordNotFound("a meter or a PAN is needed", kind="meter")
        meter = await self.meter(principal, meter_id)
        # Of a supplier's own time only: what `meter` shows ends with it.
        whose, settings = meter.registrations.as_recorded_at(instant), meter.settings.as_recorded_at(instant)
        if whose is None or settings is None:
            return Sellers(meter_id=meter_id, supplier_id=None)
        supplier_id = whose.value.supplier_id
        records = await self._as_recorded(instant, meter, card or _any_pan(meter_id, supplier_id, settings))
        found = (_seller(records, participant) for participant in records.participants.values())
        sellers = tuple(seller for seller in found if seller is not None)
        return Sellers(meter_id=meter_id, supplier_id=supplier_id, sellers=sellers)

    async def _as_recorded(self, at: Ms, meter: Meter, card: PanRecord) -> AsRecorded:
        """Return what decided about a meter at an instant: of its supplier first, then of every PSP appointed by it."""
        whose = meter.registrations.as_recorded_at(at)
        supplier_ids = () if whose is None else (whose.value.supplier_id,)
        appointed = {
            stored.record.psp_id: stored.record
            for supplier_id in supplier_ids
            for stored in await self.store.list_records(Appointments, supplier_id, limit=_MANY)
        }
        refs = [Ref(Kind.PARTICIPANT, participant_id) for participant_id in (*supplier_ids, *appointed)]
        people = [stored.record for stored in await self.store.read_many(refs) if stored is not None]
        model = await self.store.read(Model, meter.make, meter.model) if meter.make else None
        return AsRecorded(
            at=at,
            pan=card,
            of_meter=meter,
            of_model=None if model is None else model.record,
            participants={
                participant.participant_id: participant
                for participant in people
                if isinstance(participant, Participant)
            },
            appointed=appointed,
        )


def _seller(records: AsRecorded, participant: Participant) -> Seller | None:
    issue = records.rule_of(participant, Operation.ISSUE)
    deliver = records.rule_of(participant, Operation.DELIVER)
    if not issue and not deliver:
        return None
    return Seller(
        participant_id=participant.participant_id,
        may_issue=bool(issue),
        may_deliver=bool(deliver),
        rule=issue or deliver,
    )


def _any_pan(meter_id: MeterId, supplier_id: ParticipantId, settings: Period[Settings]) -> PanRecord:
    """Return a PAN as a meter's supplier might have given it to the tenant of that time."""
    use = PanAssignment(meter_id=meter_id, supplier_id=supplier_id, tenancy=settings.value.tenancy)
    period = Period(use, settings.since, None, settings.recorded_at, settings.recorded_by)
    return PanRecord(pan=Pan(""), uses=EffectiveDated((period,)))
