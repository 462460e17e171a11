"""A server of gRPC on a real port: its connections are found in the kernel's table, and ended beyond a cap."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc
from utrn_client.channel import Tls, open_channel

from app.devstack.ca import CertPaths, DevCa
from app.node.connection_caps import Connection, ConnectionCaps, established, shut_down
from core.gateways.system_clock import SystemClock
from tests.support.patience import PATIENCE_S


class Service(rpc.TopUpServiceServicer):  # its other methods are not called
    """Answers every sale, and remembers over which connection it came."""

    def __init__(self) -> None:
        self.called: dict[str, str] = {}

    async def TopUp(self, request: Any, context: Any) -> pb.TopUpResponse:  # noqa: N802
        self.called[context.peer()] = "one certificate"
        return pb.TopUpResponse()


@pytest.fixture
def tls(tmp_path: Path) -> CertPaths:
    return DevCa.load_or_create(tmp_path, now=SystemClock().now()).issue("node-a", server=True)


@asynccontextmanager
async def serving(tls: CertPaths, service: Service, listen: str) -> AsyncIterator[int]:
    server = grpc.aio.server()
    rpc.add_TopUpServiceServicer_to_server(service, server)
    pair = [(tls.key.read_bytes(), tls.cert.read_bytes())]
    credentials = grpc.ssl_server_credentials(pair, tls.ca.read_bytes(), require_client_auth=True)
    port = server.add_secure_port(listen, credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(grace=None)


async def _sell(channel: grpc.aio.Channel) -> None:
    stub: Any = rpc.TopUpServiceStub(channel)
    await stub.TopUp(pb.TopUpRequest(), timeout=PATIENCE_S, wait_for_ready=True)


async def _sell_again(channel: grpc.aio.Channel) -> None:
    """Sell as a till does whose attempt may have been written to the ended connection: ask until there is an answer."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await _sell(channel)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_the_kernel_and_grpc_name_a_peer_alike(tls: CertPaths, host: str) -> None:
    service = Service()  # type: ignore[abstract]
    async with (
        serving(tls, service, "[::]:0") as port,
        open_channel([f"{host}:{port}"], Tls(cert=tls.cert, key=tls.key, ca=tls.ca), by_health=False) as channel,
    ):
        await _sell(channel)
        assert {one.peer for one in established(port)} == set(service.called)


async def _accepted(port: int, many: int) -> list[Connection]:
    """Return the connections to a port when there are so many of them and the server has taken each."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            there = [one for one in established(port) if one.inode]
            if len(there) == many:
                return there
            await asyncio.sleep(0.01)


async def test_silent_connections_beyond_the_cap_are_ended_and_a_till_of_that_address_goes_on(tls: CertPaths) -> None:
    service = Service()  # type: ignore[abstract]
    caps = ConnectionCaps(service.called, per_address=5, per_certificate=0)
    async with (
        serving(tls, service, "127.0.0.1:0") as port,
        open_channel([f"127.0.0.1:{port}"], Tls(cert=tls.cert, key=tls.key, ca=tls.ca), by_health=False) as channel,
    ):
        await _sell(channel)
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        try:
            beyond = caps.look(await _accepted(port, 21), frozenset(service.called))["address"]
            assert shut_down(beyond) == len(beyond) == 16
            ended = {one.peer for one in beyond}
            for reader, writer in silent:
                host, at = writer.get_extra_info("sockname")
                if f"ipv4:{host}:{at}" in ended:
                    async with asyncio.timeout(PATIENCE_S):
                        assert await reader.read() == b""
            await _sell(channel)
            assert len(service.called) == 1, "over the connection that it had"
        finally:
            for _, writer in silent:
                writer.close()


async def test_a_till_whose_connection_is_ended_sells_over_the_next_one(tls: CertPaths) -> None:
    service = Service()  # type: ignore[abstract]
    async with (
        serving(tls, service, "127.0.0.1:0") as port,
        open_channel([f"127.0.0.1:{port}"], Tls(cert=tls.cert, key=tls.key, ca=tls.ca), by_health=False) as channel,
    ):
        await _sell(channel)
        assert shut_down(established(port)) == 1
        await _sell_again(channel)
        assert len(service.called) == 2


async def test_no_other_socket_of_the_process_is_touched(tls: CertPaths) -> None:
    service = Service()  # type: ignore[abstract]
    named = Tls(cert=tls.cert, key=tls.key, ca=tls.ca)
    async with (
        serving(tls, service, "127.0.0.1:0") as port,
        serving(tls, service, "127.0.0.1:0") as other,
        open_channel([f"127.0.0.1:{other}"], named, by_health=False) as channel,
    ):
        await _sell(channel)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        assert shut_down(await _accepted(port, 1)) == 1
        assert len(established(other)) == 1
        writer.close()
