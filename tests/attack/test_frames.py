"""A caller with a certificate and HTTP/2 of its own: windows of nothing, resets, half messages, headers without an end.

Beside each an honest till sells; `make attack` holds its p99 to what it was.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from utrn.v1 import participant_service_pb2 as participant_pb
from utrn.v1 import types_pb2

from app.devstack.files import OPERATOR, OUTSIDER, PSP, StackPlan
from app.devstack.stack import DevStack
from tests.support.frames import Frames, framed, frames
from tests.support.honest_till import beside
from tests.support.raw import raw_call, raw_channel

pytestmark = [pytest.mark.real]

NODES = ("node-a", "node-b")
PLAN = StackPlan(meters=40, etcd_fsync=False, nodes=NODES, own_tokens=True)
WATCH, GET_VEND = "/grpc.health.v1.Health/Watch", "/utrn.v1.TopUpService/GetVend"
SET_PROFILE, CHECK = "/utrn.v1.ParticipantService/SetProfile", "/grpc.health.v1.Health/Check"
MESSAGE_BYTES = 2_097_152
HALF_MESSAGES = 150
RESETS = 3_000
MEMORY_MB = 180


def _memory_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


async def _serves(stack: DevStack, node: str) -> grpc.StatusCode:
    async with raw_channel(stack, OPERATOR, node=node) as channel:
        return (await raw_call(channel, CHECK, b"")).code


async def _watch_without_a_window(stack: DevStack, held: AsyncExitStack, each: int) -> list[Frames]:
    """Watch health at every node over connections that take no byte of an answer, one of them of nobody we know."""
    watching = []
    for node in NODES:
        for number in range(each):
            who = OUTSIDER if number == 0 else PSP
            one = await held.enter_async_context(frames(stack, who, window=0, node=node))
            for _ in range(20):
                one.call(WATCH, framed(b""))
            await one.flush()
            watching.append(one)
    return watching


async def test_watches_that_take_nothing_hold_no_new_till_and_not_the_end_of_a_node(attacked: DevStack) -> None:
    async with AsyncExitStack() as held:
        watching = await _watch_without_a_window(attacked, held, 5)
        assert not any(one.replied for one in watching), "the window is what it is said to be"
        for node in NODES:
            assert await _serves(attacked, node) is grpc.StatusCode.OK
        # The end of a node: SIGTERM, and the exit code of a clean leave although nobody takes what it says.
        await asyncio.to_thread(attacked.kill, "node-b", signal.SIGTERM)
        assert attacked.exit_code("node-b") == 0
        assert await _serves(attacked, "node-a") is grpc.StatusCode.OK
        await asyncio.to_thread(attacked.start_node, "node-b")
        assert await _serves(attacked, "node-b") is grpc.StatusCode.OK


async def _half_messages(stack: DevStack, for_s: float) -> int:
    """Send requests of 2 MB but for their end on many calls at once; return how many bytes the node took."""
    body, took = bytes(MESSAGE_BYTES - 1), 0
    async with frames(stack, OUTSIDER) as one:
        sent = {one.call(GET_VEND, framed(b"", says=MESSAGE_BYTES), end=False): 0 for _ in range(HALF_MESSAGES)}
        await one.flush()
        async with asyncio.timeout(for_s * 4):
            until = asyncio.get_running_loop().time() + for_s
            while asyncio.get_running_loop().time() < until and not one.over:
                moved = 0
                for stream in sent.keys() - one.ended:
                    now = await one.more(stream, body[sent[stream] :])
                    sent[stream] += now
                    moved += now
                took += moved
                await one.drain(0.001 if moved else 0.05)
    return took


async def test_messages_without_an_end_fill_no_memory(attacked: DevStack) -> None:
    pid = attacked.pid("node-a")
    before = _memory_mb(pid)
    took = await _half_messages(attacked, 4.0)
    assert _memory_mb(pid) - before < MEMORY_MB, f"the node took {took / 2**20:.0f} MB"


async def _resets(stack: DevStack) -> None:
    """Open calls and take them back at once, over new connections if the node ends the old ones."""
    left = RESETS
    while left > 0:
        async with frames(stack, OUTSIDER) as one:
            while left > 0 and not one.over:
                for _ in range(100):
                    one.reset(one.call(GET_VEND, framed(b"")))
                left -= 100
                await one.flush()
                await one.drain(0.02)


async def _large_requests(stack: DevStack) -> None:
    """Ask for what a PSP may not, with a profile of almost 2 MB."""
    limits = [participant_pb.ChannelLimit(channel=types_pb2.CHANNEL_COUNTER_CASH, min_pence=1, max_pence=2)] * 190_000
    profile = participant_pb.Profile(limits=limits)
    body = participant_pb.SetProfileRequest(supplier_id="supplier-north", profile=profile).SerializeToString()
    async with raw_channel(stack, OUTSIDER) as channel:
        for _ in range(15):
            assert (await raw_call(channel, SET_PROFILE, body)).code is grpc.StatusCode.PERMISSION_DENIED


async def _no_windows(stack: DevStack) -> None:
    async with AsyncExitStack() as held:
        await _watch_without_a_window(stack, held, 5)
        await asyncio.sleep(1.0)


ATTACKS: dict[str, Callable[[DevStack], Awaitable[object]]] = {
    "calls taken back at once": _resets,
    "2 MB of a profile from who may not": _large_requests,
    "watches without a window": _no_windows,
    "messages without an end": lambda stack: _half_messages(stack, 4.0),
}


@pytest.mark.parametrize("what", ATTACKS)
async def test_an_honest_till_sells_beside_it(attacked: DevStack, what: str) -> None:
    during = await beside(attacked, what, ATTACKS[what](attacked))
    assert (during.failed, during.sold > 0) == (0, True)
