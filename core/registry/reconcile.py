"""Reconciliation of PANs, meters and suppliers: what does not fit together here, and what a list says otherwise.

Looks through a node's copy of the registry, which may be a moment old; it changes nothing.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from core.access.roles import READERS, require_owner, require_role
from core.domain.effective_dated import Ms, ms_of
from core.domain.errors import BadField, NotReady
from core.domain.meter import (
    MeterId,
    Pan,
    PanAssignment,
    PanForm,
    PanRecord,
    PanStatus,
    PaymentMode,
    Registration,
    Settings,
)
from core.domain.participant import ParticipantId, Principal
from core.ports.clock import Clock
from core.ports.registry import Registry, RegistryBook

_PART = 1000
_CLAIMS_MAX = 2_000_000


class FindingKind(IntEnum):
    """The kind of a contradiction. The same numbers as in utrn.v1."""

    NOT_REGISTERED = 1
    STANDS_FOR_ANOTHER = 2
    NOT_USABLE = 3
    NOT_TOLD = 4
    WITHOUT_METER = 5
    OF_EARLIER_SUPPLIER = 6
    OF_EARLIER_TENANT = 7
    SEVERAL_CARDS = 8
    METER_WITHOUT_PAN = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A line of a list: this PAN is in use, for this meter."""

    pan: Pan
    meter_id: MeterId


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that does not fit: about a PAN, a meter, or both."""

    kind: FindingKind
    pan: Pan | None = None
    meter_id: MeterId | None = None


@dataclass(slots=True, kw_only=True)
class Findings:
    """What a part of the work came to, and how many PANs and meters it has looked at."""

    found: list[Finding] = field(default_factory=list)
    pans: int = 0
    meters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconcilePans:
    """Reconciles."""

    registry: Registry
    book: RegistryBook
    clock: Clock

    async def __call__(
        self, principal: Principal, supplier_id: ParticipantId | None, lists: AsyncIterator[Sequence[Claim]]
    ) -> AsyncIterator[Findings]:
        """Yield what does not fit: of each part of a list first, then of everything that is a supplier's, or anybody's.

        Args:
            principal: Who asks; a supplier about itself.
            supplier_id: Whose; None for everybody's.
            lists: What a list says, part by part; may be empty.

        Raises:
            RoleNotAllowed, NotYours: do not repeat.
            BadField: the list is too long.
        """
        require_role(principal, READERS)
        require_owner(principal, supplier_id or ParticipantId(""))
        told: set[Pan] = set()
        async for claims in lists:
            if len(told) + len(claims) > _CLAIMS_MAX:
                raise BadField(f"claims: at most {_CLAIMS_MAX} in all; reconcile in parts", field="claims")
            told.update(claim.pan for claim in claims)
            found = (self._compare(claim, supplier_id, self._now()) for claim in claims)
            yield Findings(found=[finding for finding in found if finding is not None], pans=len(claims))
        usable: dict[tuple[MeterId, int], bool] = {}
        async for part in self._cards(supplier_id, told, usable):
            yield part
        async for part in self._meters(supplier_id, {meter_id for meter_id, _ in usable}):
            yield part

    def _compare(self, claim: Claim, supplier_id: ParticipantId | None, now: Ms) -> Finding | None:
        """Return what is otherwise here than a list says. Of cards a supplier never gave it learns nothing."""
        try:
            known = self.registry.card(claim.pan)
        except NotReady:
            # It is there, and this node cannot say what it stands for.
            return None
        if known is None or supplier_id not in (
            None,
            *(period.value.supplier_id for period in known.record.uses.periods),
        ):
            return Finding(kind=FindingKind.NOT_REGISTERED, pan=claim.pan, meter_id=claim.meter_id)
        use = _use(known.record, now)
        if use is None or use.meter_id != claim.meter_id:
            return Finding(kind=FindingKind.STANDS_FOR_ANOTHER, pan=claim.pan, meter_id=claim.meter_id)
        if use.status is not PanStatus.ACTIVE:
            return Finding(kind=FindingKind.NOT_USABLE, pan=claim.pan, meter_id=claim.meter_id)
        return None

    async def _cards(
        self, supplier_id: ParticipantId | None, told: set[Pan], usable: dict[tuple[MeterId, int], bool]
    ) -> AsyncIterator[Findings]:
        """Yield what does not fit of PANs. `usable` gets who has one: meter and tenancy, and whether it is plastic."""
        part = Findings()
        async for card in self.book.cards(supplier_id or ""):
            use = _use(card, self._now())
            if use is None or use.status is not PanStatus.ACTIVE or supplier_id not in (None, use.supplier_id):
                continue
            part.pans += 1
            kind = self._of_card(card, use, usable)
            if kind is None and told and card.pan not in told:
                kind = FindingKind.NOT_TOLD
            if kind is not None:
                part.found.append(Finding(kind=kind, pan=card.pan, meter_id=use.meter_id))
            if part.pans == _PART:
                yield part
                part = Findings()
        yield part

    def _of_card(
        self, card: PanRecord, use: PanAssignment, usable: dict[tuple[MeterId, int], bool]
    ) -> FindingKind | None:
        try:
            stands = self._stands(use.meter_id)
        except NotReady:
            return None
        if stands is None:
            return FindingKind.WITHOUT_METER
        registration, settings = stands
        if use.supplier_id != registration.supplier_id:
            return FindingKind.OF_EARLIER_SUPPLIER
        if use.tenancy != settings.tenancy:
            return FindingKind.OF_EARLIER_TENANT
        key, plastic = (use.meter_id, use.tenancy), card.form is PanForm.PLASTIC
        several = plastic and usable.get(key, False)
        usable[key] = usable.get(key, False) or plastic
        return FindingKind.SEVERAL_CARDS if several else None

    async def _meters(self, supplier_id: ParticipantId | None, served: set[MeterId]) -> AsyncIterator[Findings]:
        """Yield the meters in prepayment mode that no PAN stands for."""
        part = Findings()
        async for meter in self.book.meters(supplier_id or ""):
            stands = meter.stands_at(self._now(), None)
            if stands is None or supplier_id not in (None, stands[0].supplier_id):
                continue
            part.meters += 1
            prepayment = stands[1].enrolled and stands[1].payment_mode is PaymentMode.PREPAYMENT
            if prepayment and meter.meter_id not in served:
                part.found.append(Finding(kind=FindingKind.METER_WITHOUT_PAN, meter_id=meter.meter_id))
            if part.meters == _PART:
                yield part
                part = Findings()
        yield part

    def _stands(self, meter_id: MeterId) -> tuple[Registration, Settings] | None:
        known = self.registry.meter(meter_id)
        return None if known is None else known.record.stands_at(self._now(), None)

    def _now(self) -> Ms:
        return ms_of(self.clock.now())


def _use(card: PanRecord, now: Ms) -> PanAssignment | None:
    period = card.uses.at(card.uses.effective_now(now))
    return None if period is None else period.value
