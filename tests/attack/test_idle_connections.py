"""A stranger that opens connections and says nothing, or so many with one certificate: nobody else is shut out."""

import asyncio
import resource
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager

import grpc
import pytest

from app.devstack.files import OPERATOR, PSP, StackPlan
from app.devstack.stack import DevStack
from app.node.run import DESCRIPTORS_NEEDED
from core.net.address import parse_address
from tests.support.patience import PATIENCE_S
from tests.support.raw import raw_call, raw_channel

pytestmark = [pytest.mark.real]
# Fewer than any honest caller would meet, and more than a shell's thousand descriptors.
PER_ADDRESS = 1_500
PER_CERTIFICATE = 20
PLAN = StackPlan(
    meters=40,
    etcd_fsync=False,
    api=(f"connections_per_address = {PER_ADDRESS}", f"connections_per_certificate = {PER_CERTIFICATE}"),
)
IDLE = 1_100
HEALTH = "/grpc.health.v1.Health/Check"
LIST = "/utrn.v1.ParticipantService/ListParticipants"


@contextmanager
def idle(stack: DevStack, many: int = IDLE) -> Iterator[list[socket.socket]]:
    """Hold idle TCP connections to a node, more than 1,024; this process needs as many descriptors itself."""
    at = parse_address(stack.node_target("node-a"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with ExitStack() as held:
            yield [held.enter_context(socket.create_connection((at.host, at.port), timeout=10.0)) for _ in range(many)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def listed(stack: DevStack, within_s: float) -> grpc.StatusCode:
    """Return how a new connection's first call ends."""
    async with raw_channel(stack, OPERATOR) as channel:
        return (await raw_call(channel, LIST, b"", timeout_s=within_s)).code


async def test_idle_connections_shut_nobody_out_and_do_with_a_shells_descriptors(attacked: DevStack) -> None:
    pid = attacked.pid("node-a")
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    assert soft == hard >= min(hard, DESCRIPTORS_NEEDED), "a node takes what the machine allows"
    with idle(attacked):
        assert await listed(attacked, 30.0) is grpc.StatusCode.OK
    # The control: with what a shell gives.
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (1_024, hard))
    try:
        with idle(attacked):
            assert await listed(attacked, 2.0) is not grpc.StatusCode.OK
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
    assert await listed(attacked, 30.0) is grpc.StatusCode.OK


def _figure(stack: DevStack, name: str) -> float:
    """Return one figure of the node's metrics."""
    with urllib.request.urlopen(stack.metrics_url("node-a"), timeout=30) as page:  # noqa: S310  # loopback
        lines = page.read().decode().splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


async def _until(stack: DevStack, name: str, least: float) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if await asyncio.to_thread(_figure, stack, name) >= least:
                return
            await asyncio.sleep(0.1)


async def test_an_address_that_holds_too_many_has_the_silent_ones_ended_and_its_tills_are_served(
    attacked: DevStack,
) -> None:
    ended = 'utrn_connections_ended_total{cap="address"}'
    before, beyond = _figure(attacked, ended), 50
    async with raw_channel(attacked, OPERATOR) as till:
        assert (await raw_call(till, LIST, b"")).code is grpc.StatusCode.OK
        with idle(attacked, PER_ADDRESS + beyond):
            # Long before their handshakes' time is over, which would end them all.
            await _until(attacked, ended, before + beyond)
            assert (await raw_call(till, LIST, b"")).code is grpc.StatusCode.OK
            assert till.get_state() is grpc.ChannelConnectivity.READY
            assert await listed(attacked, 30.0) is grpc.StatusCode.OK


async def test_a_certificate_holds_so_many_connections_and_anothers_tills_keep_theirs(attacked: DevStack) -> None:
    ended = 'utrn_connections_ended_total{cap="certificate"}'
    before, beyond = _figure(attacked, ended), 10
    async with raw_channel(attacked, OPERATOR) as till, AsyncExitStack() as held:
        assert (await raw_call(till, LIST, b"")).code is grpc.StatusCode.OK
        for _ in range(PER_CERTIFICATE + beyond):
            channel = await held.enter_async_context(raw_channel(attacked, PSP))
            assert (await raw_call(channel, HEALTH, b"")).code is grpc.StatusCode.OK
        await _until(attacked, ended, before + beyond)
        assert till.get_state() is grpc.ChannelConnectivity.READY
        assert (await raw_call(till, LIST, b"")).code is grpc.StatusCode.OK
