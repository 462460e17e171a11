"""A stranger that opens connections and says nothing: more than a shell's thousand descriptors shut nobody out."""

import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
import pytest

from app.devstack import DevStack
from app.serve import DESCRIPTORS_NEEDED
from app.stackfiles import OPERATOR
from core.net.address import parse_address
from tests.support.raw import raw_call, raw_channel

pytestmark = [pytest.mark.real]
IDLE = 1_100
LIST = "/utrn.v1.RegistryService/ListParticipants"


@contextmanager
def idle(stack: DevStack) -> Iterator[None]:
    """Hold idle TCP connections to a node, more than 1,024; this process needs as many descriptors itself."""
    at = parse_address(stack.node_target("node-a"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with ExitStack() as held:
            for _ in range(IDLE):
                held.enter_context(socket.create_connection((at.host, at.port), timeout=10.0))
            yield
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
