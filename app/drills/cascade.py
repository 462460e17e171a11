"""The cascade: break and mend at random, from a seed, one thing after the other, sometimes while another is broken."""

import asyncio
import random
import signal
import time

from app.devstack.files import NODES
from app.drills.environment import World
from app.drills.faults import Fault, FaultMaker, hide_token, send_signal, show_token


def cascade(seconds: float) -> FaultMaker:
    """Break and mend at random, from the run's seed, one thing after the other, sometimes two at once."""

    async def make(world: World) -> Fault:
        chance = random.Random(world.seed)  # noqa: S311  # play, not protection
        fault = Fault(at=time.monotonic(), hit=set(NODES))
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            await chance.choice(_BRIEF)(world, chance)
            fault.facts["faults"] = fault.facts.get("faults", 0) + 1
            await asyncio.sleep(chance.uniform(0.2, 2.0))
        fault.healed_at = time.monotonic()
        return fault

    return make


async def _brief_kill(world: World, chance: random.Random) -> None:
    node = chance.choice(NODES)
    world.stack.kill(node, signal.SIGKILL)
    await asyncio.sleep(chance.uniform(0.0, 2.0))
    await asyncio.to_thread(world.stack.start_node, node)


async def _brief_stop(world: World, chance: random.Random) -> None:
    node = chance.choice(NODES)
    await asyncio.to_thread(world.stack.kill, node, signal.SIGTERM)
    await asyncio.to_thread(world.stack.start_node, node)


async def _brief_pause(world: World, chance: random.Random) -> None:
    pid = world.stack.pid(chance.choice((*NODES, *world.stack.etcd_names)))
    send_signal(pid, signal.SIGSTOP)
    await asyncio.sleep(chance.uniform(0.1, 4.0))
    send_signal(pid, signal.SIGCONT)


async def _brief_etcd(world: World, chance: random.Random) -> None:
    index = chance.randrange(3)
    world.stack.kill(f"etcd-{index}", signal.SIGKILL)
    await asyncio.sleep(chance.uniform(0.0, 3.0))
    await asyncio.to_thread(world.stack.start_etcd_member, index)


async def _brief_hsm(world: World, chance: random.Random) -> None:
    node = chance.choice(NODES)
    hide_token(world, node)
    await asyncio.sleep(chance.uniform(0.5, 3.0))
    show_token(world, node)
    await asyncio.to_thread(world.stack.wait_serving, node)


async def _brief_head_end(world: World, chance: random.Random) -> None:
    world.stack.kill("head-end", signal.SIGKILL)
    await asyncio.sleep(chance.uniform(0.0, 2.0))
    await asyncio.to_thread(world.stack.start_head_end)


_BRIEF = (_brief_kill, _brief_stop, _brief_pause, _brief_etcd, _brief_hsm, _brief_head_end)
