"""What a node's heart says: the figures by which other nodes, and through them operators, know how it is."""

from utrn.peer.v1 import peer_service_pb2 as peer

from app.node.head_end_states import HeadEndStates
from cluster.ledger.outbox import EtcdOutbox
from cluster.ledger.watch import LedgerParts
from cluster.membership.shard_ownership import EtcdOwnership
from cluster.timekeeping.ledger_time import LedgerTime
from core.api.health import Health
from core.delivery.worker import DeliveryWorker
from core.issuing.group_commit import GroupCommitter
from core.metrics import LoopDelay
from core.operations.key_monitor import KeyMonitor

# A beat is small, however many keys a wrong token lacks.
_MISSING_KEYS_MAX = 20


def beat_of(
    time: LedgerTime,
    ownership: EtcdOwnership,
    health: Health,
    outbox: EtcdOutbox,
    line: GroupCommitter,
    delivery: DeliveryWorker,
    loop_delay: LoopDelay,
    keys: KeyMonitor,
    states: HeadEndStates,
    ledger: LedgerParts,
) -> peer.HeartbeatResponse:
    """Return what this node's heart says now."""
    return peer.HeartbeatResponse(
        node_id=ownership.node_id,
        lease_id=ownership.lease_id,
        leaving=ownership.leaving,
        serving=health.serving,
        mirror_revision=outbox.mirror_revision,
        issues_in_flight=line.in_flight,
        deliveries_in_flight=delivery.under_way,
        loop_delay_ms=round(loop_delay.seconds * 1000),
        ledger_ready=ownership.lease_good,
        clock_ms=time.wall(),
        time_ms=time.estimate() or 0,
        failing=health.failing,
        keys_complete=keys.complete,
        missing_keys=[str(one) for one in keys.missing[:_MISSING_KEYS_MAX]],
        head_ends=states.latest,
        incarnation=ledger.watch.incarnation,
        ledger_revision=ledger.guard.revision,
    )
