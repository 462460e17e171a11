"""A registry in memory, and an audit log that keeps what it is told."""

from dataclasses import dataclass, field
from typing import cast

from core.domain.appointment import Appointments
from core.domain.grant import Grants
from core.domain.meter import Meter, MeterId, Model, Pan, PanRecord
from core.domain.participant import Participant, ParticipantId, ParticipantStatus
from core.domain.record import Versioned
from core.domain.vend import Vend
from core.issuing.authorize import Authorize
from core.issuing.config import FlowConfig
from core.issuing.recent_vends import RecentVends
from core.issuing.refuse_sale import RefuseSale, closing_quota
from core.ports.audit_log import AuditRecord
from core.ports.clock import Clock
from core.ports.ledger import Ledger
from core.ports.registry import Registry, RegistryStore
from core.registry.due_changes import ApplyDueChange
from tests.support.head_ends import known_head_ends


@dataclass
class MemoryRegistry:
    """Records that are nowhere else: their revision is that of an absent key."""

    ready: bool = True
    participants: dict[str, Participant] = field(default_factory=dict)
    cards: dict[str, PanRecord] = field(default_factory=dict)
    meters: dict[str, Meter] = field(default_factory=dict)
    appointed: dict[tuple[str, str], Appointments] = field(default_factory=dict)
    models: dict[tuple[str, str], Model] = field(default_factory=dict)

    @property
    def grants(self) -> Grants:
        return {}

    def caller(self, identity: str) -> Participant | None:
        return next(
            (participant for participant in self.participants.values() if identity in participant.identities), None
        )

    def departed(self, identity: str) -> Participant | None:
        left = (
            participant
            for participant in self.participants.values()
            if participant.status is ParticipantStatus.LEFT and participant.identity_history.last
        )
        return next(
            (
                one
                for one in left
                if one.identity_history.last and identity in one.identity_history.last.value.identities
            ),
            None,
        )

    def participant(self, participant_id: ParticipantId) -> Versioned[Participant] | None:
        found = self.participants.get(participant_id)
        return None if found is None else Versioned(found, 0)

    def card(self, pan: Pan) -> Versioned[PanRecord] | None:
        found = self.cards.get(pan)
        return None if found is None else Versioned(found, 0)

    def meter(self, meter_id: MeterId) -> Versioned[Meter] | None:
        found = self.meters.get(meter_id)
        return None if found is None else Versioned(found, 0)

    def appointments(self, supplier_id: ParticipantId, psp_id: ParticipantId) -> Versioned[Appointments] | None:
        found = self.appointed.get((supplier_id, psp_id))
        return None if found is None else Versioned(found, 0)

    def model(self, make: str, model: str) -> Versioned[Model] | None:
        found = self.models.get((make, model))
        return None if found is None else Versioned(found, 0)


class KeptAuditLog:
    """Keeps every decision."""

    def __init__(self) -> None:
        self.decisions: list[AuditRecord] = []
        self.sales: list[tuple[Vend, int]] = []

    def note(self, decision: AuditRecord) -> None:
        self.decisions.append(decision)

    def note_sale(self, vend: Vend, revision: int) -> None:
        self.sales.append((vend, revision))


class NoStore:
    """A store of which only `snapshot` is asked, and answers with what is in memory."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    async def snapshot(self, pan: Pan, caller_id: ParticipantId) -> Registry:
        return self.registry


def authorize(registry: Registry, clock: Clock, audit_log: KeptAuditLog | None = None) -> Authorize:
    """The authorization by a registry in memory, where no change is ever due."""
    store = cast("RegistryStore", NoStore(registry))
    turn = ApplyDueChange(store=store, clock=clock)
    return Authorize(
        registry=registry,
        store=store,
        turn=turn,
        clock=clock,
        audit_log=audit_log or KeptAuditLog(),
        head_ends=known_head_ends,
    )


def refusing(ledger: Ledger, answers: RecentVends, clock: Clock, config: FlowConfig | None = None) -> RefuseSale:
    """What answers refused sales, as the composition root makes it."""
    flow = config or FlowConfig()
    quota = closing_quota(clock, burst=flow.closings_burst, per_minute=flow.closings_per_minute)
    return RefuseSale(ledger=ledger, answers=answers, clock=clock, quota=quota, id_window=flow.hot_window, node_id="n")
