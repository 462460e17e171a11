"""Hearing a peer over a connection whose packets vanish: it is noticed, and the peer is heard again once they pass."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from utrn.peer.v1 import peer_service_pb2 as pb
from utrn.peer.v1 import peer_service_pb2_grpc as rpc

from app.clock import SystemClock
from app.pki import CertPaths, DevCa
from cluster.config import PeersConfig
from cluster.ownership import Member
from cluster.peers import PeerWatch
from tests.contract.test_ownership import until
from tests.fakes.etcd import FakeEtcd

pytestmark = [pytest.mark.real, pytest.mark.timeout(60)]


class Heart(rpc.PeerServiceServicer):
    """A peer that beats."""

    async def Heartbeat(self, request: Any, context: Any) -> AsyncIterator[pb.HeartbeatResponse]:  # noqa: N802
        while True:
            yield pb.HeartbeatResponse(node_id="node-b", lease_id=7)
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
async def peer(tls: CertPaths) -> AsyncIterator[int]:
    server = grpc.aio.server()
    rpc.add_PeerServiceServicer_to_server(Heart(), server)
    credentials = grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.cert.read_bytes())], tls.ca.read_bytes(), require_client_auth=True
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace=None)


async def test_a_half_open_stream_is_silence_and_is_dialled_again_until_it_is_heard(tmp_path: Path) -> None:
    tls = DevCa.load_or_create(tmp_path, now=SystemClock().now()).issue("node-b", server=True)
    config = PeersConfig(ca=tls.ca, cert=tls.cert, key=tls.key, redial_ms=300)
    async with peer(tls) as port, Cable().laid(port) as cable:
        member = Member(
            node_id="node-b", address=f"127.0.0.1:{cable.port}", zone="", version="", hsm_ready=True,
            mirror_ready=True, lease_id=7,
        )  # fmt: skip
        other = Member(
            node_id="node-c", address=f"127.0.0.1:{port}", zone="", version="", hsm_ready=True, mirror_ready=True,
            lease_id=8,
        )  # fmt: skip
        etcd: Any = FakeEtcd()
        watch = PeerWatch(etcd, config, SystemClock(), node_id="node-a", members=lambda: [member, other])
        running = asyncio.get_running_loop().create_task(watch.run())
        await until(lambda: watch.heard.keys() == {"node-b", "node-c"})
        assert watch.silent() == {}
        cable.cut()
        await until(lambda: watch.silent() == {"node-b": 7})
        await until(lambda: cable.connections >= 3)
        await until(lambda: watch.heard_of_late().keys() == {"node-c"})
        cable.heal()
        await until(lambda: watch.heard_of_late().keys() == {"node-b", "node-c"})
        await until(lambda: watch.silent() == {})
        running.cancel()
