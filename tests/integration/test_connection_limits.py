"""What a server grants a connection: pings, idleness, age, a handshake; and that honest callers notice none of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc
from utrn_client.channel import Tls, open_channel

from app.devstack.ca import CertPaths, DevCa
from core.gateways.system_clock import SystemClock
from core.net.channels import Options, ServerLimits, server_options
from tests.support.patience import PATIENCE_S

LONG_S = 600.0
LIMITS = ServerLimits(handshake_s=10, idle_s=LONG_S, age_s=LONG_S, age_grace_s=60, ping_min_s=0.15)
# Twice what is allowed, as the 10 s of callers are twice the 5 s of api.ping_min_s; nothing here waits for seconds.
PING_MS = 300
# gRPC throws out at the third ping that comes too early; this is time for many more.
PINGING_S = 4.0
SERVICE = "utrn.v1.TopUpService"


class Service(rpc.TopUpServiceServicer):  # its other methods are not called
    """Answers a sale after a while, and remembers over which connection it came."""

    def __init__(self, takes_s: float = 0.0) -> None:
        self._takes_s = takes_s
        self.peers: set[str] = set()

    async def TopUp(self, request: Any, context: Any) -> pb.TopUpResponse:  # noqa: N802
        self.peers.add(context.peer())
        await asyncio.sleep(self._takes_s)
        return pb.TopUpResponse()


@pytest.fixture
def tls(tmp_path: Path) -> CertPaths:
    return DevCa.load_or_create(tmp_path, now=SystemClock().now()).issue("node-a", server=True)


@asynccontextmanager
async def serving(tls: CertPaths, options: Options, service: Service | None = None) -> AsyncIterator[int]:
    server, healthy = grpc.aio.server(options=options), health.aio.HealthServicer()
    rpc.add_TopUpServiceServicer_to_server(service or Service(), server)  # type: ignore[abstract]  # what it lacks is not called
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    await healthy.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    pair = [(tls.key.read_bytes(), tls.cert.read_bytes())]
    credentials = grpc.ssl_server_credentials(pair, tls.ca.read_bytes(), require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace=None)


async def _thrown_out(tls: CertPaths, options: Options, *, watch: bool, ping_ms: int = PING_MS) -> bool:
    """Ping a server for a while, with or without a call under way; return whether it ended the connection."""
    chosen = (
        ("grpc.ssl_target_name_override", "localhost"), ("grpc.keepalive_time_ms", ping_ms),
        ("grpc.keepalive_timeout_ms", 30_000), ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0), ("grpc.use_local_subchannel_pool", 1),
    )  # fmt: skip
    credentials = grpc.ssl_channel_credentials(tls.ca.read_bytes(), tls.key.read_bytes(), tls.cert.read_bytes())
    async with (
        serving(tls, options) as port,
        grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=chosen) as channel,
    ):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        if watch:
            call = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            await call.read()
        else:
            await channel.channel_ready()
        try:
            async with asyncio.timeout(PINGING_S):
                await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        except TimeoutError:
            return False
        return True


@pytest.mark.parametrize("watch", [True, False], ids=["with a watch", "without calls"])
async def test_a_caller_that_pings_as_load_balancers_ask_is_not_thrown_out(tls: CertPaths, *, watch: bool) -> None:
    assert not await _thrown_out(tls, server_options(LIMITS), watch=watch)


@pytest.mark.parametrize("watch", [True, False], ids=["with a watch", "without calls"])
async def test_without_the_options_grpc_throws_that_caller_out(tls: CertPaths, *, watch: bool) -> None:
    assert await _thrown_out(tls, (), watch=watch)


async def test_a_caller_that_pings_without_end_is_thrown_out(tls: CertPaths) -> None:
    assert await _thrown_out(tls, server_options(replace(LIMITS, ping_min_s=5)), watch=True, ping_ms=50)


async def _sell(tls: CertPaths, limits: ServerLimits, *, takes_s: float, seconds: float) -> tuple[int, list[str], int]:
    """Sell one after the other from six tills on one channel: the count of answers, what failed, the count of peers."""
    service, failed, answered = Service(takes_s), list[str](), 0  # type: ignore[abstract]
    async with (
        serving(tls, server_options(limits), service) as port,
        open_channel([f"127.0.0.1:{port}"], Tls(cert=tls.cert, key=tls.key, ca=tls.ca)) as channel,
    ):
        stub: Any = rpc.TopUpServiceStub(channel)
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds

        async def till() -> None:
            nonlocal answered
            while loop.time() < until or len(service.peers) < 3:
                try:
                    await stub.TopUp(pb.TopUpRequest(), timeout=30.0)
                    answered += 1
                except grpc.aio.AioRpcError as error:
                    failed.append(f"{error.code().name}: {error.details()}")

        async with asyncio.TaskGroup() as tasks:
            for _ in range(6):
                tasks.create_task(till())
    return answered, failed, len(service.peers)


async def test_no_sale_and_no_watch_fails_because_connections_grow_old(tls: CertPaths) -> None:
    answered, failed, connections = await _sell(tls, replace(LIMITS, age_s=0.7), takes_s=0.3, seconds=5)
    assert (failed, connections >= 3, answered > 6) == ([], True, True)


async def test_without_grace_the_sales_under_way_break_off(tls: CertPaths) -> None:
    _, failed, _ = await _sell(tls, replace(LIMITS, age_s=0.7, age_grace_s=0.01), takes_s=0.3, seconds=3)
    assert failed


async def test_an_idle_connection_is_ended_and_the_next_call_works(tls: CertPaths) -> None:
    service = Service()  # type: ignore[abstract]
    async with (
        serving(tls, server_options(replace(LIMITS, idle_s=0.3)), service) as port,
        open_channel([f"127.0.0.1:{port}"], Tls(cert=tls.cert, key=tls.key, ca=tls.ca), by_health=False) as channel,
    ):
        stub: Any = rpc.TopUpServiceStub(channel)
        for _ in range(3):
            await stub.TopUp(pb.TopUpRequest(), timeout=30.0)
            async with asyncio.timeout(PATIENCE_S):
                await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
    assert len(service.peers) == 3


async def test_a_connection_that_says_nothing_is_ended_before_any_handshake(tls: CertPaths) -> None:
    async with serving(tls, server_options(replace(LIMITS, handshake_s=1))) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.timeout(PATIENCE_S):
                assert await reader.read() == b""
        finally:
            writer.close()
