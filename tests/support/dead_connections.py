"""One connection whose packets vanish: `unshare --net python -m tests.support.dead_connections KIND`.

Both ends of it are in this process, in a network namespace of its own. The kernel drops what it carries and nothing
else: a new connection works at once. Prints as JSON after how many seconds the end that was cut off works again; null
if it did not within `--limit`. `--without` takes away what ends a dead connection: the control.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from headend.v1 import head_end_service_pb2 as head_end_pb
from headend.v1 import head_end_service_pb2_grpc as head_end_rpc
from utrn.peer.v1 import peer_service_pb2 as peer_pb
from utrn.peer.v1 import peer_service_pb2_grpc as peer_rpc
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc
from utrn_client import channel as kit

import cluster.etcd.connections
import cluster.membership.failure_detector
import core.gateways.head_end_client as gateway
from app.devstack.ca import CertPaths, DevCa
from cluster.config import PeersConfig
from cluster.etcd.client import EtcdClient, EtcdReadDenied, EtcdUnreachable
from cluster.membership.failure_detector import FailureDetector
from cluster.membership.shard_ownership import Member
from core.api.config import ApiConfig
from core.gateways.config import HeadEndConfig
from core.gateways.system_clock import SystemClock
from core.net.channels import server_options
from core.ports.head_end import StreamRestored
from tests.support.etcd import RealEtcd

_LOOK_S = 0.1
_QUIET_LOOKS = 5
_BEAT_S = 0.1
_ESTABLISHED = "01"
# What is left where nothing ends a dead connection: gRPC's defaults, but for the pool that each channel has.
_BARE = (("grpc.use_local_subchannel_pool", 1),)
Works = Callable[[], Awaitable[bool]]


def _connections(port: int) -> set[int]:
    """Return the ports of those who are connected to `port`, by the kernel."""
    found = set()
    for file in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
        for line in Path(file).read_text().splitlines()[1:]:
            _, local, remote, state, *_ = line.split()
            if state == _ESTABLISHED and int(remote.rpartition(":")[2], 16) == port:
                found.add(int(local.rpartition(":")[2], 16))
    return found


def _rows(port: int, column: int) -> list[list[str]]:
    """Return the kernel's rows of the connections whose local (1) or remote (2) port is this one."""
    lines = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
    lines += Path("/proc/self/net/tcp6").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return [row for row in rows if row[3] == _ESTABLISHED and int(row[column].rpartition(":")[2], 16) == port]


def _held_by_server(port: int) -> bool:
    return bool(_rows(port, 1))


def _nothing_under_way(port: int) -> bool:
    """Return whether every byte of the connections to `port` has been read and acknowledged, by the kernel's queues."""
    return all(row[4] == "00000000:00000000" for row in (*_rows(port, 1), *_rows(port, 2)))


def _cut(port: int) -> None:
    """Let every packet of the connections that there are to `port` vanish, in both directions."""
    callers = _connections(port)
    if not callers:
        raise RuntimeError(f"nobody is connected to {port}")
    for caller in callers:
        for source, to in ((caller, port), (port, caller)):
            rule = ["iptables", "-A", "INPUT", "-p", "tcp", "--sport", str(source), "--dport", str(to), "-j", "DROP"]
            subprocess.run(rule, check=True, capture_output=True)


class Everything(head_end_rpc.HeadEndServiceServicer, peer_rpc.PeerServiceServicer, rpc.TopUpServiceServicer):
    """A head end that says something now and then, a node that beats, a service that finds a vend."""

    async def GetCapabilities(self, request: Any, context: Any) -> Any:  # noqa: N802
        return head_end_pb.GetCapabilitiesResponse()

    async def StreamEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        while True:
            yield head_end_pb.StreamEventsResponse(sequence=1)
            await asyncio.sleep(_BEAT_S)

    async def Heartbeat(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        while True:
            yield peer_pb.HeartbeatResponse(node_id="node-b", lease_id=7)
            await asyncio.sleep(_BEAT_S)

    async def GetVend(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.GetVendResponse()


@asynccontextmanager
async def _serving(tls: CertPaths, *, bare: bool = False) -> AsyncIterator[int]:
    config = ApiConfig(listen="127.0.0.1:0", cert=tls.cert, key=tls.key, client_ca=tls.ca)
    server = grpc.aio.server(options=_BARE if bare else server_options(config.connections))
    every, healthy = Everything(), health.aio.HealthServicer()  # type: ignore[abstract]  # what it lacks is not called
    head_end_rpc.add_HeadEndServiceServicer_to_server(every, server)
    peer_rpc.add_PeerServiceServicer_to_server(every, server)
    rpc.add_TopUpServiceServicer_to_server(every, server)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    await healthy.set("utrn.v1.TopUpService", health_pb2.HealthCheckResponse.SERVING)
    pair = [(tls.key.read_bytes(), tls.cert.read_bytes())]
    port = server.add_secure_port(
        "127.0.0.1:0", grpc.ssl_server_credentials(pair, tls.ca.read_bytes(), require_client_auth=True)
    )
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace=None)


async def _head_end(tls: CertPaths, stack: AsyncExitStack) -> tuple[int, Works]:
    port = await stack.enter_async_context(_serving(tls))
    config = HeadEndConfig(
        name="h", target=f"127.0.0.1:{port}", ca=tls.ca, cert=tls.cert, key=tls.key, server_name="localhost",
        call_timeout_ms=1_000, silence_max_ms=1_000,
    )  # fmt: skip
    head_end = gateway.GrpcHeadEnd(config)
    restored = 0

    async def read() -> None:
        nonlocal restored
        async for event in head_end.events():
            restored += isinstance(event, StreamRestored)

    await stack.enter_async_context(_running(read()))
    seen = 0

    async def works() -> bool:
        nonlocal seen
        before, seen = seen, restored
        return restored > before

    return port, works


async def _peer(tls: CertPaths, stack: AsyncExitStack, *, redial_ms: int) -> tuple[int, Works]:
    port = await stack.enter_async_context(_serving(tls))
    member = Member(
        node_id="node-b", address=f"127.0.0.1:{port}", zone="", version="", hsm_ready=True, mirror_ready=True,
        lease_id=7,
    )  # fmt: skip
    config = PeersConfig(ca=tls.ca, cert=tls.cert, key=tls.key, redial_ms=redial_ms)
    etcd: Any = None
    watch = FailureDetector(etcd, config, SystemClock(), node_id="node-a", members=lambda: [member])
    await stack.enter_async_context(_running(watch.run()))
    last = -1.0

    async def works() -> bool:
        # A beat that came after the one before: what was on its way when the packets began to vanish is not one.
        nonlocal last
        heard = watch.heard.get("node-b")
        before, last = last, heard.at if heard else -1.0
        return last > before and watch.unheard() == []

    return port, works


async def _etcd(folder: Path, stack: AsyncExitStack) -> tuple[int, Works]:
    real = await asyncio.to_thread(RealEtcd, folder)
    stack.callback(real.stop)
    client = EtcdClient(real.config())
    stack.push_async_callback(client.close)

    async def works() -> bool:
        try:
            await client.list_prefix(b"k")
        except (EtcdUnreachable, EtcdReadDenied):
            return False
        return True

    return real.clients[0], works


async def _kit(tls: CertPaths, stack: AsyncExitStack) -> tuple[int, Works]:
    port = await stack.enter_async_context(_serving(tls))
    paths = kit.Tls(cert=tls.cert, key=tls.key, ca=tls.ca)
    channel = await stack.enter_async_context(kit.open_channel([f"127.0.0.1:{port}"], paths))
    stub: Any = rpc.TopUpServiceStub(channel)

    async def works() -> bool:
        try:
            await stub.GetVend(pb.GetVendRequest(), timeout=1.0)
        except grpc.aio.AioRpcError:
            return False
        return True

    return port, works


async def _caller(tls: CertPaths, stack: AsyncExitStack, *, bare: bool) -> tuple[int, Works]:
    """A caller that has gone away without a word: the server is done with it when it holds its connection no more."""
    port = await stack.enter_async_context(_serving(tls, bare=bare))
    credentials = grpc.ssl_channel_credentials(tls.ca.read_bytes(), tls.key.read_bytes(), tls.cert.read_bytes())
    named = (*_BARE, ("grpc.ssl_target_name_override", "localhost"))
    channel = await stack.enter_async_context(grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options=named))
    await channel.channel_ready()
    # TCP itself gives up what was under way when the packets began to vanish: the connection is to be idle.
    quiet = 0
    while quiet < _QUIET_LOOKS:
        quiet = quiet + 1 if _nothing_under_way(port) else 0
        await asyncio.sleep(_LOOK_S)

    async def works() -> bool:
        return not _connections(port) or not _held_by_server(port)

    return port, works


@asynccontextmanager
async def _running(part: Any) -> AsyncIterator[None]:
    task = asyncio.get_running_loop().create_task(part)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def _take_away() -> None:
    """Give channels what gRPC gives them by itself, and have no reader dial anew."""

    def bare(_: Any, *, server_name: str = "") -> Any:
        return (*_BARE, ("grpc.ssl_target_name_override", server_name)) if server_name else _BARE

    for module in (cluster.etcd.connections, cluster.membership.failure_detector, gateway):
        assert hasattr(module, "channel_options"), f"{module.__name__}: the control would take nothing away"
        module.channel_options = bare  # type: ignore[attr-defined]
    gateway.GrpcHeadEnd._leave = lambda *_: None  # type: ignore[method-assign]
    options = kit.options

    def without(server_name: str, **rest: Any) -> list[tuple[str, Any]]:
        return [option for option in options(server_name, **rest) if "keepalive" not in option[0]]

    kit.options = without


async def _until(works: Works, limit_s: float) -> bool:
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        if await works():
            return True
        await asyncio.sleep(_LOOK_S)
    return False


async def run(kind: str, folder: Path, given: argparse.Namespace) -> float | None:
    """Return after how many seconds the end that was cut off works again; None if it does not."""
    without: bool = given.without
    tls = DevCa.load_or_create(folder, now=SystemClock().now()).issue("node-b", server=True)
    async with AsyncExitStack() as stack:
        if kind == "etcd":
            port, works = await _etcd(folder, stack)
        elif kind == "peer":
            port, works = await _peer(tls, stack, redial_ms=60_000 if without else 1_000)
        elif kind == "caller":
            port, works = await _caller(tls, stack, bare=without)
        else:
            port, works = await (_head_end if kind == "head-end" else _kit)(tls, stack)
        if kind != "caller" and not await _until(works, given.starts):
            raise RuntimeError("it did not work before it was cut")
        if given.only_reach:
            return 0.0
        _cut(port)
        began = time.monotonic()
        # What had already arrived when the packets began to vanish is taken in first.
        await asyncio.sleep(2 * _LOOK_S)
        await works()
        return round(time.monotonic() - began, 1) if await _until(works, given.limit) else None


def main() -> None:
    """Run one kind."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("head-end", "peer", "etcd", "kit", "caller"))
    parser.add_argument("--without", action="store_true")
    parser.add_argument("--limit", type=float, default=15.0)
    parser.add_argument("--starts", type=float, default=60.0, help="seconds until it must work for the first time")
    parser.add_argument("--only-reach", action="store_true", help="cut nothing; needs no namespace")
    parser.add_argument("--through-proxy", action="store_true", help="have the kit take the environment's proxy")
    given = parser.parse_args()
    if not given.only_reach:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    if given.through_proxy:
        kit.open_channel = partial(kit.open_channel, through_proxy=True)
    if given.without:
        _take_away()
    with tempfile.TemporaryDirectory() as folder:
        recovered = asyncio.run(run(given.kind, Path(folder), given))
    sys.stdout.write(json.dumps({"kind": given.kind, "recovered_s": recovered}) + "\n")


if __name__ == "__main__":
    main()
