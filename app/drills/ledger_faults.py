"""Faults of the ledger itself: a watch that loses events, a ledger put back from an earlier copy."""

import asyncio
import re
import shutil
import signal
import time
import urllib.request
from pathlib import Path

from app.devstack.files import NODES
from app.devstack.stack import DevStack, etcd_config
from app.drills.deaf_node import deaf_file
from app.drills.environment import World
from app.drills.faults import WAIT_S, Fault, FaultMaker
from cluster.etcd.client import EtcdClient
from cluster.etcd.keys import Keys

_SELL_S = 3.0
_LOOK_S = 0.05


def stale_copy(seconds: float) -> FaultMaker:
    """Drop every event of the busiest owner's watches for a while; what is owed meanwhile must be delivered still."""

    async def make(world: World) -> Fault:
        victim = world.watch.busiest()
        before = dict(world.watch.owners)
        flag = deaf_file(world.stack.node_config(victim))
        fault = Fault(at=time.monotonic())
        flag.touch()
        await asyncio.sleep(seconds)
        flag.unlink()
        fault.healed_at = time.monotonic()
        fault.facts["owed_at_most"] = world.watch.owed
        await world.watch.until(lambda: world.watch.owed < fault.facts["owed_at_most"] / 10, WAIT_S)
        fault.facts["drained_ms"] = round((time.monotonic() - fault.healed_at) * 1000)
        fault.facts["healed"] = await _figure(world, victim, 'utrn_copy_healed_total{copy="outbox"}')
        fault.facts["unhealed"] = float(not fault.facts["healed"])
        fault.facts["shards_moved"] = sum(world.watch.owners.get(shard) != was for shard, was in before.items())
        return fault

    return make


async def restore_noticed(world: World) -> Fault:
    """Put a ledger back from a copy made some sales ago, under running nodes; then put the newest one back again.

    Nothing may be issued on the older one, and every node must say so at once. The newest is what they knew: they start
    on it without anybody's word.
    """
    stack, older, newest = world.stack, world.stack.folder / "older", world.stack.folder / "newest"
    await asyncio.to_thread(_stop_etcd, stack, signal.SIGTERM)
    _move(stack, older, keep=True)
    await asyncio.to_thread(stack.start_etcd)
    await asyncio.sleep(_SELL_S)
    fault = Fault(at=time.monotonic())
    await asyncio.to_thread(_stop_etcd, stack, signal.SIGKILL)
    _move(stack, newest, keep=False)
    _move_back(stack, older)
    await asyncio.to_thread(stack.start_etcd)
    started, before = time.monotonic(), await _vends(world)
    noticed = await _all_say(world, "utrn_ledger_lost", WAIT_S)
    fault.facts["noticed_ms"] = round((time.monotonic() - started) * 1000)
    fault.facts["unnoticed"] = len(NODES) - noticed
    await asyncio.sleep(_SELL_S)
    fault.facts["issued_meanwhile"] = await _vends(world) - before
    for node in NODES:
        await asyncio.to_thread(stack.kill, node, signal.SIGTERM)
    await asyncio.to_thread(_stop_etcd, stack, signal.SIGKILL)
    shutil.rmtree(older, ignore_errors=True)
    _move(stack, older, keep=False)
    _move_back(stack, newest)
    await asyncio.to_thread(stack.start_etcd)
    for node in NODES:
        await asyncio.to_thread(stack.start_node, node)
    fault.healed_at = time.monotonic()
    return fault


def _stop_etcd(stack: DevStack, number: signal.Signals) -> None:
    for name in stack.etcd_names:
        stack.kill(name, number)


def _move(stack: DevStack, to: Path, *, keep: bool) -> None:
    for name in stack.etcd_names:
        if keep:
            shutil.copytree(stack.folder / name, to / name)
        else:
            to.mkdir(exist_ok=True)
            (stack.folder / name).rename(to / name)


def _move_back(stack: DevStack, source: Path) -> None:
    for name in stack.etcd_names:
        (source / name).rename(stack.folder / name)


async def _vends(world: World) -> int:
    """Return how many ids are decided in the ledger as it is now."""
    config = etcd_config(world.stack)
    client = EtcdClient(config)
    try:
        found, _ = await client.list_prefix(Keys(config.prefix).vends())
        return len(found)
    finally:
        await client.close()


async def _all_say(world: World, name: str, seconds: float) -> int:
    """Return how many nodes' pages have 1 for a figure, once all have or time is up."""
    until, saying = time.monotonic() + seconds, 0
    while saying < len(NODES) and time.monotonic() < until:
        saying = sum([await _figure(world, node, name) == 1.0 for node in NODES])
        await asyncio.sleep(_LOOK_S)
    return saying


async def _figure(world: World, node: str, name: str) -> float:
    page = await asyncio.to_thread(_page, world.stack.metrics_url(node))
    found = re.search(rf"^{re.escape(name)} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else 0.0


def _page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as reply:  # noqa: S310  # the stack's own page
        text: str = reply.read().decode()
    return text
