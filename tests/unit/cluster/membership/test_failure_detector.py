"""What counts as a peer's death, and how many deaths are believed."""

import socket
from pathlib import Path
from typing import cast

import pytest
from pydantic import TypeAdapter
from utrn.peer.v1 import peer_service_pb2 as pb

from app.devstack.ports import free_ports
from cluster.config import PeersConfig
from cluster.etcd.client import EtcdClient
from cluster.membership.failure_detector import FailureDetector, PeerHeartbeat
from tests.fakes.clock import HandClock
from tests.fakes.etcd import FakeEtcd


def _watch(etcd: FakeEtcd, clock: HandClock, **settings: int | Path) -> FailureDetector:
    config = PeersConfig(**settings)  # type: ignore[arg-type]
    return FailureDetector(cast("EtcdClient", etcd), config, clock, node_id="node-a", members=list)


async def test_refused_is_dead_and_listening_is_not() -> None:
    watch = _watch(FakeEtcd(), HandClock(), dial_timeout_ms=200)
    (port,) = free_ports(1)
    assert await watch._refused(f"127.0.0.1:{port}")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        # It never says a word, as a stopped process does not: the kernel takes the connection.
        assert not await watch._refused(f"127.0.0.1:{listening.getsockname()[1]}")


async def test_a_dead_peers_lease_is_revoked_once_and_a_gone_one_is_no_error() -> None:
    etcd = FakeEtcd()
    lease, _ = await etcd.grant_lease(60)
    watch = _watch(etcd, HandClock())
    for _ in range(2):
        await watch.revoke("node-b", lease, "test")
    assert lease not in etcd.leases


async def test_a_network_that_resets_everything_cannot_take_every_lease() -> None:
    etcd, clock = FakeEtcd(), HandClock()
    leases = [(await etcd.grant_lease(60))[0] for _ in range(10)]
    watch = _watch(etcd, clock, revokes_per_minute=3)
    for gone in range(1000, 1010):
        await watch.revoke("node-b", gone, "a lease that ran out costs nothing")
    for lease in leases:
        await watch.revoke("node-b", lease, "test")
    assert len(etcd.leases) == 7
    clock.advance(61)
    await watch.revoke("node-b", leases[-1], "test")
    assert len(etcd.leases) == 6


def test_only_peers_heard_of_late_count() -> None:
    clock = HandClock()
    watch = _watch(FakeEtcd(), clock)
    beat = pb.HeartbeatResponse(node_id="node-b", ledger_ready=True)
    watch.heard["node-b"] = PeerHeartbeat(beat, clock.monotonic())
    assert (list(watch.heard_of_late()), watch.reach_ledger()) == (["node-b"], True)
    clock.advance(3)
    assert (list(watch.heard_of_late()), watch.reach_ledger()) == ([], False)


@pytest.mark.parametrize(
    ("beat", "fresh", "counts"),
    [
        (pb.HeartbeatResponse(serving=True, keys_complete=True), True, True),
        (pb.HeartbeatResponse(serving=True, keys_complete=True), False, False),
        (pb.HeartbeatResponse(serving=False, keys_complete=True), True, False),
        (pb.HeartbeatResponse(serving=True), True, False),
        (pb.HeartbeatResponse(serving=True, missing_keys=["supplier-north/01"]), True, False),
    ],
    ids=["serves with all keys", "not heard of late", "serves nobody", "of an older version", "lacks one itself"],
)
def test_a_node_stands_aside_only_for_a_peer_that_serves_with_all_keys(
    beat: pb.HeartbeatResponse, *, fresh: bool, counts: bool
) -> None:
    clock = HandClock()
    watch = _watch(FakeEtcd(), clock)
    watch.heard["node-b"] = PeerHeartbeat(beat, clock.monotonic())
    clock.advance(0 if fresh else 3)
    assert watch.serve_with_all_keys() is counts


@pytest.mark.parametrize("settings", [{"heartbeat_ms": 10}, {"revokes_per_minute": 0}, {"ca": Path("x")}])
def test_settings_out_of_range_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        TypeAdapter(PeersConfig).validate_python(settings)


async def test_a_certificate_that_cannot_be_read_now_ends_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is being replaced, or a stranger's connections have taken every descriptor: the next dial may read it."""
    watch = _watch(FakeEtcd(), HandClock(), ca=tmp_path / "ca", cert=tmp_path / "cert", key=tmp_path / "key")
    for _ in range(100):
        await watch._hear_once("node-b", "127.0.0.1:1")
    assert watch.heard == {}
    told = [record for record in caplog.records if record.message == "a peer cannot be dialled"]
    assert 1 <= len(told) <= 7
