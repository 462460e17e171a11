"""What a node sees of the others' clocks: beats of late only, carried on to now, and who should be there."""

from typing import cast

from utrn.peer.v1 import peer_service_pb2 as pb

from cluster.membership.clock_sight import sight_of
from cluster.membership.failure_detector import FailureDetector, PeerHeartbeat
from cluster.membership.shard_ownership import EtcdOwnership
from core.domain.effective_dated import Ms

T = 1_795_000_000_000


class Seen:
    """What etcd says of the nodes."""

    node_id = "a"
    seen = True

    def roster(self) -> dict[str, object]:
        return {"b": None, "c": None}

    def members(self) -> dict[str, object]:
        return {"a": None, "b": None}


class Beats:
    """What was heard of late."""

    def heard_of_late(self) -> dict[str, PeerHeartbeat]:
        old = pb.HeartbeatResponse(node_id="b", clock_ms=T, time_ms=T - 60_000)
        return {
            "b": PeerHeartbeat(old, 100.0),
            "c": PeerHeartbeat(pb.HeartbeatResponse(node_id="c", clock_ms=T + 5), 100.5),
        }


def test_what_a_clock_said_is_carried_on_to_now() -> None:
    sight = sight_of(cast("EtcdOwnership", Seen()), cast("FailureDetector", Beats()), Ms(T + 900), 101.0)
    assert sight is not None
    assert sight.walls == {"a": T + 900, "b": T + 1000, "c": T + 505}
    assert sight.times == {"b": T - 59_000, "c": None}
    assert set(sight.known) == {"a", "b", "c"}
    assert set(sight.alive) == {"a", "b"}


def test_before_it_is_known_who_should_be_there_nobody_is_a_majority() -> None:
    unread = Seen()
    unread.seen = False
    assert sight_of(cast("EtcdOwnership", unread), cast("FailureDetector", Beats()), Ms(T), 101.0) is None
