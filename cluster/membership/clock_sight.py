"""What a node sees of the others' clocks: by their beats, and by who etcd says is there and should be."""

from cluster.membership.failure_detector import FailureDetector
from cluster.membership.shard_ownership import EtcdOwnership
from core.domain.cluster_time import Sight
from core.domain.effective_dated import Ms


def sight_of(ownership: EtcdOwnership, peers: FailureDetector, wall: Ms, at: float) -> Sight | None:
    """Return what this node sees, its own clocks being at `wall` and `at`; None until it knows who should be there."""
    if not ownership.seen:
        return None
    walls, times = {ownership.node_id: wall}, dict[str, Ms | None]()
    of_late = peers.heard_of_late()
    for node_id, heard in of_late.items():
        since_ms, beat = round((at - heard.at) * 1000), heard.beat
        if beat.clock_ms:
            walls[node_id] = Ms(beat.clock_ms + since_ms)
        times[node_id] = Ms(beat.time_ms + since_ms) if beat.time_ms else None
    known = {ownership.node_id, *ownership.roster()}
    heard_at = {node_id: heard.at for node_id, heard in of_late.items()}
    return Sight(walls=walls, times=times, heard=heard_at, alive=ownership.members(), known=known)
