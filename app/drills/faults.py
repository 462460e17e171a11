"""The faults: each breaks one thing in a running world, mends it if that is part of the drill, and says what it did."""

import asyncio
import math
import os
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.devstack.files import NODES
from app.drills.environment import World
from cluster.audit.change_feed import OwnerSeen

# etcd grants what is asked for here: its floor is 1.5 elections of 0.5 s.
LEASE_TTL_S = 2.0
# Who is silent for less is not suspected: three beats.
NOTICED_S = 0.45
WAIT_S = 30.0


FaultMaker = Callable[[World], Coroutine[Any, Any, "Fault"]]


@dataclass(slots=True, kw_only=True)
class Fault:
    """What was done.

    Attributes:
        at: When it began, monotonic seconds.
        shards: Those whose owner was hit; the delivery gap is theirs.
        takeover_ms: Until each of them had a new owner; None if none was to change hands.
        healed_at: When everything was whole again; None if it stays broken.
        facts: Further figures.
        late: Sentences on what came back later than it should.
        hit: The nodes that it takes away for longer than three beats: their leases may be revoked. Any other that is
            revoked is a false takeover.
    """

    at: float
    shards: set[int] = field(default_factory=set)
    takeover_ms: float | None = None
    healed_at: float | None = None
    facts: dict[str, float] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)
    hit: set[str] = field(default_factory=set)


def send_signal(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process."""
    os.kill(pid, number)


async def _taken_over(world: World, before: dict[int, tuple[str, int]], since: float) -> float:
    """Return the milliseconds until every shard in `before` has another epoch than it had."""

    def moved() -> bool:
        return all(world.watch.owners.get(shard, was)[1] > was[1] for shard, was in before.items())

    await world.watch.until(moved, WAIT_S)
    return _takeover_ms(world, before, since)


def _takeover_ms(world: World, before: dict[int, tuple[str, int]], since: float) -> float:
    """Return the milliseconds, as the watch heard it, from `since` to the last new owner; no end if one is missing."""
    first: dict[int, float] = {}
    for event in world.watch.events:
        change = event.change
        if isinstance(change, OwnerSeen) and change.shard in before and change.epoch > before[change.shard][1]:
            first.setdefault(change.shard, event.heard_at)
    if first.keys() != before.keys():
        return math.inf
    return (max(first.values(), default=since) - since) * 1000


def _owned(world: World, node: str) -> dict[int, tuple[str, int]]:
    return {shard: world.watch.owners[shard] for shard in world.watch.shards_of(node)}


async def crash(world: World) -> Fault:
    """Kill the owner of the most shards."""
    node = world.watch.busiest()
    before = _owned(world, node)
    fault = Fault(at=time.monotonic(), shards=set(before), hit={node})
    world.stack.kill(node, signal.SIGKILL)
    fault.takeover_ms = await _taken_over(world, before, fault.at)
    return fault


def pause(seconds: float) -> FaultMaker:
    """Stop an owner in its tracks for a while: it wakes believing what was true before."""

    async def make(world: World) -> Fault:
        node = world.watch.busiest()
        before = _owned(world, node)
        fault = Fault(at=time.monotonic(), shards=set(before), hit={node} if seconds > NOTICED_S else set())
        send_signal(world.stack.pid(node), signal.SIGSTOP)
        await asyncio.sleep(seconds)
        if seconds > LEASE_TTL_S + 1:
            fault.takeover_ms = await _taken_over(world, before, fault.at)
        send_signal(world.stack.pid(node), signal.SIGCONT)
        fault.healed_at = time.monotonic()
        return fault

    return make


async def stop(world: World) -> Fault:
    """Stop the owner of the most shards in good order."""
    node = world.watch.busiest()
    fault = Fault(at=time.monotonic(), hit={node})
    fault.takeover_ms = await _stop(world, node, fault)
    return fault


async def rolling_restart(world: World) -> Fault:
    """Stop and start every node, one after the other."""
    fault = Fault(at=time.monotonic(), takeover_ms=0.0, hit=set(NODES))
    for node in NODES:
        fault.takeover_ms = max(fault.takeover_ms or 0.0, await _stop(world, node, fault))
        await asyncio.to_thread(world.stack.start_node, node)
        # The next one goes only when this one owns its share again.
        await world.watch.until(lambda node=node: world.watch.shards_of(node), WAIT_S)
    fault.healed_at = time.monotonic()
    return fault


async def _stop(world: World, node: str, fault: Fault) -> float:
    """Send SIGTERM and wait for the end; return the milliseconds until its shards had new owners."""
    before = _owned(world, node)
    fault.shards |= set(before)
    since = time.monotonic()
    ending = asyncio.create_task(asyncio.to_thread(world.stack.kill, node, signal.SIGTERM))  # noqa: TID251
    took_ms = await _taken_over(world, before, since)
    await ending
    if world.stack.exit_code(node) != 0:
        fault.late.append(f"{node} left with exit code {world.stack.exit_code(node)}")
    return took_ms


def cut(*, etcd: bool = False, peers: bool = False, callers: bool = False, both: bool = True) -> FaultMaker:
    """Drop packets of the busiest owner: to and from etcd, other nodes, callers; or one way only."""

    async def make(world: World) -> Fault:
        net = world.stack.net
        if net is None:
            raise RuntimeError("this drill needs network namespaces")
        node = world.watch.busiest()
        before = _owned(world, node)
        fault = Fault(at=time.monotonic(), shards=set(before), hit={node} if etcd else set())
        if etcd:
            net.drop(node, to=[net.host], ports=world.stack.etcd_ports, both=both)
        others = [net.address(other) for other in NODES if other != node]
        if peers:
            net.drop(node, to=others)
        if callers:
            net.drop_callers(node, world.stack.node_ports[node], but=others)
        if etcd:
            fault.takeover_ms = await _taken_over(world, before, fault.at)
        await asyncio.sleep(2.0)
        net.heal(node)
        fault.healed_at = time.monotonic()
        await world.watch.until(lambda: world.watch.shards_of(node), WAIT_S)
        fault.facts["back_ms"] = round((time.monotonic() - fault.healed_at) * 1000)
        return fault

    return make


async def node_loss(world: World) -> Fault:
    """Cut the busiest owner off from everything, without a reset: a dead machine or a dead cable."""
    net = world.stack.net
    if net is None:
        raise RuntimeError("this drill needs network namespaces")
    node = world.watch.busiest()
    before = _owned(world, node)
    fault = Fault(at=time.monotonic(), shards=set(before), hit={node})
    net.drop(node)
    fault.takeover_ms = await _taken_over(world, before, fault.at)
    await asyncio.sleep(1.0)
    net.heal(node)
    fault.healed_at = time.monotonic()
    return fault


async def etcd_leader_kill(world: World) -> Fault:
    """Kill the leader of etcd, and start it again after five seconds."""
    index = await world.etcd_leader()
    fault = Fault(at=time.monotonic())
    world.stack.kill(f"etcd-{index}", signal.SIGKILL)
    await asyncio.sleep(5.0)
    await asyncio.to_thread(world.stack.start_etcd_member, index)
    fault.healed_at = time.monotonic()
    return fault


async def etcd_leader_pause(world: World) -> Fault:
    """Stop the leader of etcd in its tracks for five seconds."""
    index = await world.etcd_leader()
    fault = Fault(at=time.monotonic())
    send_signal(world.stack.pid(f"etcd-{index}"), signal.SIGSTOP)
    await asyncio.sleep(5.0)
    send_signal(world.stack.pid(f"etcd-{index}"), signal.SIGCONT)
    fault.healed_at = time.monotonic()
    return fault


async def double(world: World) -> Fault:
    """Kill the busiest owner and the leader of etcd at the same moment."""
    index, node = await world.etcd_leader(), world.watch.busiest()
    before = _owned(world, node)
    fault = Fault(at=time.monotonic(), shards=set(before), hit={node})
    send_signal(world.stack.pid(f"etcd-{index}"), signal.SIGKILL)
    send_signal(world.stack.pid(node), signal.SIGKILL)
    fault.takeover_ms = await _taken_over(world, before, fault.at)
    await asyncio.to_thread(world.stack.start_etcd_member, index)
    fault.healed_at = time.monotonic()
    return fault


async def quorum(world: World) -> Fault:
    """Stop two of three etcd members for ten seconds: nothing may be issued, and all must come back by itself."""
    fault = Fault(at=time.monotonic())
    for index in (0, 1):
        world.stack.kill(f"etcd-{index}", signal.SIGKILL)
    settled = time.monotonic()
    # What was on its way when the quorum went may still be answered: its commit was acknowledged before.
    await asyncio.sleep(1.0)
    before = len(world.watch.vends)
    await asyncio.sleep(9.0)
    fault.facts["issued_meanwhile"] = len(world.watch.vends) - before
    for index in (0, 1):
        await asyncio.to_thread(world.stack.start_etcd_member, index, wait=False)
    fault.healed_at = time.monotonic()
    answered = len(world.watch.vends)
    await world.watch.until(lambda: len(world.watch.vends) > answered, WAIT_S)
    fault.facts["recovery_ms"] = round((time.monotonic() - fault.healed_at) * 1000)
    fault.facts["outage_ms"] = round((fault.healed_at - settled) * 1000)
    return fault


def hsm_lost(nodes: tuple[str, ...], seconds: float) -> FaultMaker:
    """Remove the tokens of nodes and kill the sessions that were open; put them back after a while."""

    async def make(world: World) -> Fault:
        fault = Fault(at=time.monotonic())
        for node in nodes:
            if len(nodes) < len(NODES):
                fault.shards |= world.watch.shards_of(node)
            hide_token(world, node)
        if fault.shards:
            gone = {shard: world.watch.owners[shard] for shard in fault.shards}
            fault.takeover_ms = await _taken_over(world, gone, fault.at)
        await asyncio.sleep(seconds)
        for node in nodes:
            show_token(world, node)
        fault.healed_at = time.monotonic()
        if fault.shards:
            await world.watch.until(lambda: world.watch.shards_of(nodes[0]), WAIT_S)
            fault.facts["back_ms"] = round((time.monotonic() - fault.healed_at) * 1000)
        return fault

    return make


async def hsm_shuffled(world: World) -> Fault:
    """Reset a node's token so that other keys lie under the same ids, and kill the open sessions."""
    node = NODES[0]
    fault = Fault(at=time.monotonic())
    folder = world.stack.token_folder(node)
    hide_token(world, node)
    await asyncio.to_thread(world.stack.make_other_keys, folder)
    await asyncio.sleep(3.0)
    shutil.rmtree(folder / "tokens")
    kill_workers(world.stack.pid(node))
    show_token(world, node)
    fault.healed_at = time.monotonic()
    return fault


async def hsm_error(world: World) -> Fault:
    """Freeze the HSM of one node under way: a session that does not answer is dropped with every handle it had."""
    node = NODES[0]
    fault = Fault(at=time.monotonic())
    for worker in _workers(world.stack.pid(node)):
        send_signal(worker, signal.SIGSTOP)
    await asyncio.sleep(3.0)
    fault.healed_at = time.monotonic()
    return fault


def clock_jump(seconds: int) -> FaultMaker:
    """Set the clock of one node forward or back; its monotonic clock goes on."""

    async def make(world: World) -> Fault:
        before = dict(world.watch.owners)
        fault = Fault(at=time.monotonic())
        world.stack.set_clock(NODES[0], seconds)
        await asyncio.sleep(5.0)
        world.stack.set_clock(NODES[0], 0)
        fault.healed_at = time.monotonic()
        fault.facts["shards_moved"] = sum(world.watch.owners.get(shard) != was for shard, was in before.items())
        return fault

    return make


def head_end_outage(seconds: float) -> FaultMaker:
    """Stop the head end from carrying anything for a while; issuing goes on, and the queue drains afterwards."""

    async def make(world: World) -> Fault:
        fault = Fault(at=time.monotonic())
        await world.knobs(outage=True)
        await asyncio.sleep(seconds)
        fault.facts["owed_at_most"] = world.watch.owed
        await world.knobs(outage=False)
        fault.healed_at = time.monotonic()
        await world.watch.until(lambda: world.watch.owed < fault.facts["owed_at_most"] / 10, 60.0)
        fault.facts["drained_ms"] = round((time.monotonic() - fault.healed_at) * 1000)
        return fault

    return make


# What the head end is to have told at least once for the drill to have shown anything: sandbox/lies.py.
_LIES_MIN_KINDS = 9


def head_end_lies(seconds: float) -> FaultMaker:
    """Have the head end tell lies of every kind beside its answers for a while, and see what nodes make of them."""

    async def make(world: World) -> Fault:
        fault = Fault(at=time.monotonic())
        await world.knobs(lies=0.5)
        await asyncio.sleep(seconds)
        await world.knobs(lies=0.0)
        fault.healed_at = time.monotonic()
        told = {name for name in await world.head_end_counts() if name.startswith("lies: ")}
        fault.facts["lie_kinds"] = len(told)
        fault.facts["kinds_not_told"] = max(0, _LIES_MIN_KINDS - len(told - {"lies: status", "lies: capabilities"}))
        alive = [node for node in NODES if world.stack.exit_code(node) is None]
        fault.facts["nodes_ended"] = len(NODES) - len(alive)
        set_aside = [await asyncio.to_thread(_set_aside, world, node) for node in alive]
        fault.facts["set_aside"] = sum(set_aside)
        fault.facts["not_alarmed"] = sum(not count for count in set_aside)
        return fault

    return make


def _set_aside(world: World, node: str) -> float:
    """Return how much of what the head end said a node has set aside: its alarm is made of this figure."""
    with urllib.request.urlopen(world.stack.metrics_url(node), timeout=5.0) as page:  # noqa: S310  # our own page
        lines = page.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("utrn_head_end_set_aside_total{"))


def hide_token(world: World, node: str) -> None:
    """Remove a node's token and kill the sessions that were open."""
    tokens = world.stack.token_folder(node) / "tokens"
    tokens.rename(tokens.with_name("taken-away"))
    kill_workers(world.stack.pid(node))


def show_token(world: World, node: str) -> None:
    """Put a node's token back."""
    tokens = world.stack.token_folder(node) / "tokens"
    tokens.with_name("taken-away").rename(tokens)


def _workers(pid: int) -> list[int]:
    """Return the HSM workers of a node."""
    found: list[int] = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if "hsm.worker" in Path(f"/proc/{child}/cmdline").read_text():
            found.append(int(child))
    return found


def kill_workers(pid: int) -> None:
    """Kill the HSM workers of a node, and with them the sessions that were open."""
    for worker in _workers(pid):
        with suppress(ProcessLookupError):
            send_signal(worker, signal.SIGKILL)
