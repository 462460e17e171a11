"""A peer whose certificate is right and whose words are not: nothing it sends ends a node, or another's lease."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from utrn.peer.v1 import peer_service_pb2 as pb

from app.devstack.ca import CertPaths, DevPki
from cluster.config import PeersConfig
from cluster.membership import failure_detector
from cluster.membership.failure_detector import FailureDetector
from cluster.membership.shard_ownership import Member
from core.gateways.system_clock import SystemClock
from tests.fakes.etcd import FakeEtcd
from tests.support.nasty import broken_bytes, mutated, nasty_message
from tests.support.patience import PATIENCE_S

CONNECTIONS = 40
Says = Callable[[], bytes]


@pytest.fixture(autouse=True)
def dials_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_DIAL_AGAIN_S", "_MISTAKEN_AGAIN_S"):
        monkeypatch.setattr(failure_detector, name, 0.01)


@pytest.fixture
def tls(tmp_path: Path) -> CertPaths:
    return DevPki.load_or_create(tmp_path, now=SystemClock().now()).node("node-b")


@asynccontextmanager
async def saying(tls: CertPaths, says: Says) -> AsyncIterator[tuple[int, list[int]]]:
    """Serve heartbeats of any bytes, ten on a connection; give the port, and a list with an entry for each of those."""
    came = list[int]()

    async def stream(_: bytes, __: Any) -> AsyncIterator[bytes]:
        came.append(len(came))
        for _beat in range(10):
            yield says()
            await asyncio.sleep(0.002)

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Heartbeat": grpc.unary_stream_rpc_method_handler(stream)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("utrn.peer.v1.PeerService", handlers),))
    pair = (tls.key.read_bytes(), tls.cert.read_bytes())
    credentials = grpc.ssl_server_credentials([pair], tls.ca.read_bytes(), require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield port, came
    finally:
        await server.stop(grace=None)


@asynccontextmanager
async def watching(tls: CertPaths, etcd: FakeEtcd, members: list[Member]) -> AsyncIterator[FailureDetector]:
    """Node A's watch on its failure_detector, running; it must not end by itself."""
    config = PeersConfig(ca=tls.ca, cert=tls.cert, key=tls.key, redial_ms=300)
    client: Any = etcd
    watch = FailureDetector(client, config, SystemClock(), node_id="node-a", members=lambda: members)
    running = asyncio.get_running_loop().create_task(watch.run())
    try:
        yield watch
        assert not running.done(), "the watch has ended"
    finally:
        running.cancel()
        await asyncio.wait([running])


def _member(node_id: str, port: int, lease_id: int) -> Member:
    return Member(
        node_id=node_id, address=f"127.0.0.1:{port}", zone="", version="", hsm_ready=True, mirror_ready=True,
        lease_id=lease_id,
    )  # fmt: skip


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110  # a watch without an event for this
            await asyncio.sleep(0.01)


async def test_no_bytes_of_a_peer_end_the_watch_or_anybodys_lease(tls: CertPaths) -> None:
    """Undecodable, cut, mutated, and with values at and beyond the edges: seeded, and bounded."""
    chance, etcd = random.Random(20261126), FakeEtcd()
    lease, _ = await etcd.grant_lease(60)
    beat = pb.HeartbeatResponse(node_id="node-b", lease_id=7, serving=True)

    def says() -> bytes:
        kind = chance.randrange(4)
        if kind == 0:
            return broken_bytes(chance)
        if kind == 1:
            return mutated(beat.SerializeToString(), chance)
        nasty: Any = nasty_message(pb.HeartbeatResponse, chance)
        # By another name it would be heard once, and left alone for a while.
        nasty.node_id, nasty.incarnation = "node-b", ""
        if kind == 2:
            nasty.lease_id = chance.choice((7, 8, lease))
        return bytes(nasty.SerializeToString())

    async with saying(tls, says) as (port, came):
        members = [_member("node-b", port, 7), _member("node-c", 1, lease)]
        async with watching(tls, etcd, members):
            await _until(lambda: len(came) > CONNECTIONS)
    assert lease in etcd.leases


@pytest.mark.parametrize("held", [True, False], ids=["the ledger knows whose it is", "the control: it does not"])
async def test_a_peer_cannot_have_anothers_lease_revoked_by_naming_it(tls: CertPaths, held: bool) -> None:
    """Its beats name one lease, then another: as if a new process answered in the old one's place."""
    etcd, turn = FakeEtcd(), [0]
    lease, _ = await etcd.grant_lease(60)

    def says() -> bytes:
        turn[0] += 1
        return pb.HeartbeatResponse(node_id="node-b", lease_id=lease if turn[0] % 2 else 8).SerializeToString()

    async with saying(tls, says) as (port, came):
        members = [_member("node-b", port, 8), _member("node-c", 1, lease if held else 0)]
        async with watching(tls, etcd, members):
            await _until(lambda: len(came) > 5 if held else lease not in etcd.leases)
    assert (lease in etcd.leases) is held
