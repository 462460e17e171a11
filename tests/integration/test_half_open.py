"""Hearing a peer over a connection whose packets vanish: it is noticed, and the peer is heard again once they pass."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from utrn.peer.v1 import peer_service_pb2 as pb
from utrn.peer.v1 import peer_service_pb2_grpc as rpc

from app.devstack.ca import CertPaths, DevCa
from cluster.config import PeersConfig
from cluster.etcd.ledger_guard import LedgerGuard
from cluster.membership.failure_detector import FailureDetector
from cluster.membership.shard_ownership import Member
from core.gateways.system_clock import SystemClock
from tests.contract.membership.test_shard_ownership import until
from tests.fakes.etcd import FakeEtcd

pytestmark = [pytest.mark.real]


class Heart(rpc.PeerServiceServicer):
    """A node that beats."""

    def __init__(self, node_id: str, incarnation: str = "") -> None:
        self._beat = pb.HeartbeatResponse(node_id=node_id, lease_id=7, incarnation=incarnation)

    async def Heartbeat(self, request: Any, context: Any) -> AsyncIterator[pb.HeartbeatResponse]:  # noqa: N802
        while True:
            yield self._beat
            await asyncio.sleep(0.05)


class Cable:
    """Carries TCP to a port, until it is cut: then connections stay open and nothing passes, in neither direction.

    A connection that was cut never carries anything again: after a long cut TCP would wait minutes to send again.
    """

    def __init__(self) -> None:
        self.port = 0
        self.connections = 0
        self._to = 0
        self._passing = asyncio.Event()
        self._pumps: set[asyncio.Task[None]] = set()
        self._ends: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def laid(self, to: int) -> AsyncIterator["Cable"]:
        self._to = to
        self._passing.set()
        async with await asyncio.start_server(self._carry, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            yield self
            self.cut()
            for end in self._ends:
                end.transport.abort()
            await asyncio.sleep(0)

    def cut(self) -> None:
        self._passing.clear()
        for pump in self._pumps:
            pump.cancel()

    def heal(self) -> None:
        self._passing.set()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._ends.append(writer)
        if not self._passing.is_set():
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self._ends.append(far_writer)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            pump = asyncio.get_running_loop().create_task(_pump(source, sink))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.close()


@asynccontextmanager
async def peer(tls: CertPaths, node_id: str = "node-b", incarnation: str = "") -> AsyncIterator[int]:
    server = grpc.aio.server()
    rpc.add_PeerServiceServicer_to_server(Heart(node_id, incarnation), server)
    credentials = grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.cert.read_bytes())], tls.ca.read_bytes(), require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace=None)


def _member(node_id: str, port: int, lease_id: int) -> Member:
    return Member(
        node_id=node_id, address=f"127.0.0.1:{port}", zone="", version="", hsm_ready=True, mirror_ready=True,
        lease_id=lease_id,
    )  # fmt: skip


@asynccontextmanager
async def watching(
    tls: CertPaths, *members: Member, guard: LedgerGuard | None = None
) -> AsyncIterator[FailureDetector]:
    """Node A's watch on its peers, running."""
    config = PeersConfig(ca=tls.ca, cert=tls.cert, key=tls.key, redial_ms=300)
    etcd: Any = FakeEtcd()
    watch = FailureDetector(etcd, config, SystemClock(), node_id="node-a", members=lambda: members, guard=guard)
    running = asyncio.get_running_loop().create_task(watch.run())
    try:
        yield watch
    finally:
        running.cancel()
        await asyncio.wait([running])


def _certificate(folder: Path) -> CertPaths:
    return DevCa.load_or_create(folder, now=SystemClock().now()).issue("node-b", server=True)


async def test_a_half_open_stream_is_silence_and_is_dialled_again_until_it_is_heard(tmp_path: Path) -> None:
    tls = _certificate(tmp_path)
    async with (
        peer(tls) as port,
        peer(tls, "node-c") as other,
        Cable().laid(port) as cable,
        watching(tls, _member("node-b", cable.port, 7), _member("node-c", other, 7)) as watch,
    ):
        await until(lambda: watch.heard.keys() == {"node-b", "node-c"})
        assert (watch.silent(), watch.unheard()) == ({}, [])
        cable.cut()
        await until(lambda: watch.silent() == {"node-b": 7})
        await until(lambda: cable.connections >= 3)
        # What is, not what was: the figure of the alert follows, and follows back.
        await until(lambda: (list(watch.heard_of_late()), watch.unheard()) == (["node-c"], ["node-b"]))
        cable.heal()
        await until(lambda: watch.heard_of_late().keys() == {"node-b", "node-c"})
        await until(lambda: (watch.silent(), watch.unheard()) == ({}, []))


async def _heard_in_its_peers_place(tls: CertPaths, beats_as: str, incarnation: str, told: Callable[[], bool]) -> bool:
    """Let something answer at node B's address, hear node C, and return whether node B was heard as well."""
    guard = LedgerGuard()
    guard.know("ours", (b"key", b"value"), 1, 1)
    async with (
        peer(tls, beats_as, incarnation) as port,
        peer(tls, "node-c", "ours") as other,
        watching(tls, _member("node-b", port, 7), _member("node-c", other, 7), guard=guard) as watch,
    ):
        await until(lambda: "node-c" in watch.heard and told())
        return "node-b" in watch.heard


IMPOSTORS = [("node-a", "ours"), ("node-c", "ours"), ("node-b", "another cluster's"), ("", "ours")]


@pytest.mark.parametrize(("beats_as", "incarnation"), IMPOSTORS)
async def test_a_beat_counts_only_from_the_node_that_it_names(
    tmp_path: Path, beats_as: str, incarnation: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A node announced as 0.0.0.0 is dialled by each node at itself: it must not hear its own heart as its peers'."""
    told = lambda: "another node answers at a peer's address" in caplog.text  # noqa: E731
    assert not await _heard_in_its_peers_place(_certificate(tmp_path), beats_as, incarnation, told)


@pytest.mark.parametrize(("beats_as", "incarnation"), IMPOSTORS)
async def test_without_the_name_in_the_beat_a_node_hears_whatever_answers(
    tmp_path: Path, beats_as: str, incarnation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FailureDetector, "_is_of", lambda *_: True)
    heard: list[str] = []
    take = FailureDetector._take

    async def noted(self: FailureDetector, node_id: str, beat: pb.HeartbeatResponse) -> None:
        await take(self, node_id, beat)
        heard.append(node_id)

    monkeypatch.setattr(FailureDetector, "_take", noted)
    tls = _certificate(tmp_path)
    assert await _heard_in_its_peers_place(tls, beats_as, incarnation, lambda: "node-b" in heard)


@pytest.mark.parametrize("incarnation", ["", "ours"])
async def test_a_peer_that_has_not_looked_at_its_ledger_yet_is_heard(tmp_path: Path, incarnation: str) -> None:
    tls, guard = _certificate(tmp_path), LedgerGuard()
    guard.know("ours", (b"key", b"value"), 1, 1)
    async with (
        peer(tls, "node-b", incarnation) as port,
        watching(tls, _member("node-b", port, 7), guard=guard) as watch,
    ):
        await until(lambda: watch.heard.keys() == {"node-b"})
