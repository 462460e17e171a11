"""Bulk load: a part of a registry file at a time. Lines stand alone; loading one again changes nothing."""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from core.access.roles import KEEPERS, require_owner, require_role
from core.domain.appointment import Evidence, Terms
from core.domain.effective_dated import Ms, begin, ms_of
from core.domain.errors import (
    BadField,
    NotYours,
    ParticipantNotFound,
    RecordExists,
    RecordNotFound,
    Refused,
    RoleNotAllowed,
)
from core.domain.meter import Meter, MeterCapabilities, MeterId, Pan, PanAssignment, PanForm, PanRecord, PanStatus
from core.domain.participant import Participant, ParticipantId, ParticipantStatus, Principal, Role
from core.domain.record import Kind, Ref, Versioned
from core.ports.audit_log import AuditLog, AuditRecord
from core.ports.clock import Clock
from core.ports.head_ends import HeadEndNames
from core.ports.registry import RegistryStore, RegistryWrite
from core.registry.appointments import Appoint
from core.registry.head_end_names import check_head_ends
from core.registry.meters import due_of, new_meter, same_meter
from core.registry.pans import same_card
from core.registry.participants import NewParticipant, ParticipantAdmin
from core.registry.registrations import UNLIMITED, Registrations

# One Txn of etcd takes 128 operations; a meter with a change to come needs a reminder beside its record.
_AT_ONCE = 60

_L = TypeVar("_L")
_R = TypeVar("_R", Meter, PanRecord)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPan:
    """A PAN to load; to whom it belongs follows from its meter."""

    pan: Pan
    form: PanForm
    meter_id: MeterId
    blocked: bool = False
    since: Ms | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedAppointment:
    """An appointment to load, accepted before."""

    terms: Terms
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class NewModel:
    """What the meters of a model can do from `since` on; None for at once."""

    make: str
    model: str
    abilities: MeterCapabilities
    since: Ms | None = None


Loadable = NewParticipant | NewModel | SignedAppointment | Meter | NewPan


@dataclass(slots=True, kw_only=True)
class Loaded:
    """What became of a part: how many lines were loaded or changed nothing, and what is wrong with the others."""

    loaded: int = 0
    unchanged: int = 0
    problems: dict[int, Refused] = field(default_factory=dict)

    def add(self, *, changed: bool) -> None:
        """Count one line."""
        if changed:
            self.loaded += 1
        else:
            self.unchanged += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRecords:
    """Loads records in the order that references need: participants, models, appointments, meters, PANs."""

    store: RegistryStore
    parties: ParticipantAdmin
    appoint: Appoint
    clock: Clock
    audit_log: AuditLog
    head_ends: HeadEndNames
    registrations: Registrations = UNLIMITED

    async def __call__(self, principal: Principal, lines: Sequence[tuple[int, Loadable | Refused]]) -> Loaded:
        """Load lines, each with its number; those that could not be read come as what is wrong with them.

        Raises:
            RoleNotAllowed: the caller may load nothing.
            LedgerUnavailable, OutcomeUnknown: some may have been loaded; load the part again.
            Overloaded: likewise; this supplier has registered so much lately.
        """
        require_role(principal, KEEPERS)
        loaded = await self._load(principal, lines)
        said = f"{loaded.loaded} loaded, {loaded.unchanged} unchanged, {len(loaded.problems)} wrong"
        numbers = [number for number, _ in lines]
        if numbers:
            self._note(principal, f"lines {min(numbers)} to {max(numbers)}", "allowed", said)
        for number, problem in loaded.problems.items():
            # What is wrong in a file is its owner's; what somebody may not do is everybody's.
            if isinstance(problem, NotYours | RoleNotAllowed):
                self._note(principal, f"line {number}", problem.reason, "")
        return loaded

    def _note(self, principal: Principal, subject: str, outcome: str, rule: str) -> None:
        self.audit_log.note(
            AuditRecord(
                at=self.clock.now(),
                caller=principal.participant_id,
                identity=principal.identity,
                act="LoadRecords",
                ask="",
                subject=subject,
                amount=0,
                outcome=outcome,
                rule=rule,
                read_set=(),
            )
        )

    async def _load(self, principal: Principal, lines: Sequence[tuple[int, Loadable | Refused]]) -> Loaded:
        loaded = Loaded(problems={number: one for number, one in lines if isinstance(one, Refused)})
        unique = _unique(lines, loaded)
        for number, one in unique:
            if isinstance(one, NewParticipant | NewModel | SignedAppointment):
                await self._one(principal, number, one, loaded)
        meters = [(number, one) for number, one in unique if isinstance(one, Meter)]
        cards = [(number, one) for number, one in unique if isinstance(one, NewPan)]
        suppliers = await self._suppliers(meters)
        await _all(self._meters(principal, some, suppliers, loaded) for some in _chunks(meters))
        await _all(self._cards(principal, some, loaded) for some in _chunks(cards))
        return loaded

    async def _one(
        self, principal: Principal, number: int, one: NewParticipant | NewModel | SignedAppointment, loaded: Loaded
    ) -> None:
        try:
            match one:
                case NewParticipant():
                    written = await self.parties.add(principal, one)
                case NewModel():
                    written = await self.parties.set_model(principal, one.make, one.model, one.abilities, one.since)
                case SignedAppointment():
                    written = await self.appoint.take_over(principal, one.terms, one.evidence)
        except Refused as refusal:
            loaded.problems[number] = refusal
        else:
            loaded.add(changed=written.changed)

    async def _suppliers(self, meters: Sequence[tuple[int, Meter]]) -> dict[ParticipantId, Participant]:
        names = sorted({one.registrations.periods[0].value.supplier_id for _, one in meters})
        found = await self.store.read_many([Ref(Kind.PARTICIPANT, name) for name in names])
        known = [stored.record for stored in found if stored is not None and isinstance(stored.record, Participant)]
        return {
            record.participant_id: record
            for record in known
            if record.role is Role.SUPPLIER and record.status is not ParticipantStatus.LEFT
        }

    async def _meters(
        self, principal: Principal, lines: Sequence[tuple[int, Meter]], suppliers: dict[ParticipantId, Participant],
        loaded: Loaded,
    ) -> None:  # fmt: skip
        now = ms_of(self.clock.now())
        wanted: list[tuple[int, Meter]] = []
        for number, meter in lines:
            supplier_id = meter.registrations.periods[0].value.supplier_id
            try:
                require_owner(principal, supplier_id)
                if supplier_id not in suppliers:
                    raise ParticipantNotFound(
                        f"supplier_id: {supplier_id} is no registered supplier", participant_id=supplier_id
                    )
                check_head_ends(self.head_ends, meter)
                wanted.append((number, new_meter(meter, suppliers[supplier_id], now)))
            except Refused as refusal:
                loaded.problems[number] = refusal
        due = [instant for _, meter in wanted for instant in due_of(meter, now)]
        refs = [Ref(Kind.METER, meter.meter_id) for _, meter in wanted]
        if await self._none_may_be_new(principal, refs, wanted, loaded):
            return
        write = RegistryWrite(
            expect=[(ref, 0) for ref in refs],
            put=[meter for _, meter in wanted],
            due=due,
        )
        if not wanted or await self.store.write(write) is not None:
            loaded.loaded += len(wanted)
            self.registrations.count(principal, len(wanted))
            return
        found = await self.store.read_many(refs)
        missing = _sort_out(wanted, found, loaded)
        if missing:
            await self._meters(principal, missing, suppliers, loaded)

    async def _cards(self, principal: Principal, lines: Sequence[tuple[int, NewPan]], loaded: Loaded) -> None:
        refs = [Ref(Kind.METER, one.meter_id) for _, one in lines]
        meters = await self.store.read_many(refs)
        wanted: list[tuple[int, PanRecord]] = []
        for (number, one), meter in zip(lines, meters, strict=True):
            try:
                wanted.append((number, self._card(principal, one, cast("Versioned[Meter] | None", meter))))
            except Refused as refusal:
                loaded.problems[number] = refusal
        while wanted:
            refs = [Ref(Kind.PAN, card.pan) for _, card in wanted]
            if await self._none_may_be_new(principal, refs, wanted, loaded):
                return
            write = RegistryWrite(expect=[(ref, 0) for ref in refs], put=[card for _, card in wanted])
            if await self.store.write(write) is not None:
                loaded.loaded += len(wanted)
                self.registrations.count(principal, len(wanted))
                return
            found = await self.store.read_many(refs)
            wanted = _sort_out(wanted, found, loaded)

    async def _none_may_be_new(
        self, principal: Principal, refs: Sequence[Ref], wanted: Sequence[tuple[int, _R]], loaded: Loaded
    ) -> bool:
        """Return whether new records are refused here; if so, those that are there are counted and the others named."""
        if not refs:
            return False
        try:
            self.registrations.refuse(principal, refs[0].kind)
        except Refused as refusal:
            for number, _ in _sort_out(wanted, await self.store.read_many(refs), loaded):
                loaded.problems[number] = refusal
            return True
        return False

    def _card(self, principal: Principal, pan: NewPan, meter: Versioned[Meter] | None) -> PanRecord:
        if meter is None:
            raise RecordNotFound(f"meter_id: {pan.meter_id} is not registered", kind="meter")
        now = ms_of(self.clock.now())
        # A card used elsewhere before belongs to whoever has the meter now.
        found = meter.record.stands_at(now, pan.since if pan.since is not None and pan.since > now else None)
        if found is None:
            raise RecordNotFound(f"meter_id: nobody supplies {pan.meter_id} at this time", kind="meter")
        registration, settings = found
        require_owner(principal, registration.supplier_id)
        use = PanAssignment(
            meter_id=pan.meter_id,
            supplier_id=registration.supplier_id,
            tenancy=settings.tenancy,
            status=PanStatus.BLOCKED if pan.blocked else PanStatus.ACTIVE,
        )
        uses = begin(use, since=pan.since, now=now, by=principal.participant_id)
        return PanRecord(pan=pan.pan, form=pan.form, uses=uses)


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do everything side by side; of several failures one is told."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for work in works:
                tasks.create_task(work)
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def _chunks(lines: Sequence[tuple[int, _L]]) -> list[Sequence[tuple[int, _L]]]:
    return [lines[at : at + _AT_ONCE] for at in range(0, len(lines), _AT_ONCE)]


def _sort_out(wanted: Sequence[tuple[int, _R]], found: Sequence[object], loaded: Loaded) -> list[tuple[int, _R]]:
    """Return the lines that are not there yet; count those that are there as asked for, and name the others."""
    missing: list[tuple[int, _R]] = []
    for (number, one), known in zip(wanted, found, strict=True):
        there = known.record if isinstance(known, Versioned) else None
        if there is None:
            missing.append((number, one))
        elif _same(there, one):
            loaded.add(changed=False)
        else:
            kind = "meter" if isinstance(one, Meter) else "pan"
            loaded.problems[number] = RecordExists(f"{kind}: registered already, with other content", kind=kind)
    return missing


def _same(there: object, asked: object) -> bool:
    if isinstance(there, Meter) and isinstance(asked, Meter):
        return same_meter(there, asked)
    return isinstance(there, PanRecord) and isinstance(asked, PanRecord) and same_card(there, asked)


def _unique(lines: Sequence[tuple[int, Loadable | Refused]], loaded: Loaded) -> list[tuple[int, Loadable]]:
    """Return the lines without those that say again, or otherwise, what an earlier one of the part says."""
    first: dict[tuple[str, str], tuple[int, Loadable]] = {}
    for number, one in lines:
        if isinstance(one, Refused):
            continue
        kind, name = _name(one)
        before = first.setdefault((kind, name), (number, one))
        if before[0] == number:
            continue
        if before[1] == one:
            loaded.add(changed=False)
        else:
            # By its field only: a PAN is the consumer's, and this text may end up in a ticket.
            loaded.problems[number] = BadField(
                f"{kind}: the same as on line {before[0]}, with other content", field=kind
            )
    return list(first.values())


def _name(loadable: Loadable) -> tuple[str, str]:
    match loadable:
        case NewParticipant():
            return "participant_id", loadable.participant_id
        case NewModel():
            return "model", f"{loadable.make}/{loadable.model}"
        case SignedAppointment():
            return (
                "appointment_id",
                f"{loadable.terms.supplier_id}/{loadable.terms.psp_id}/{loadable.terms.appointment_id}",
            )
        case Meter():
            return "meter_id", loadable.meter_id
        case NewPan():
            return "pan", loadable.pan
