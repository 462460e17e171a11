"""Machines with clocks driven by hand, whose nodes keep cluster time over one etcd, fake or real."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

from etcdpb import rpc_pb2 as pb

from cluster.etcd.keys import Keys
from cluster.timekeeping.ledger_time import ClusterClock, LedgerTime
from core.domain.cluster_time import Sight, TimeKeeper, TimeRule
from core.domain.effective_dated import Ms
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.patience import PATIENCE_S
from tests.support.vends import NOW


class Machine(HandClock):
    """One machine: its wall clock may step, and its monotonic clock may jump, each by itself."""

    def __init__(self, name: str, monotonic: float) -> None:
        super().__init__(NOW)
        self.name = name
        self._monotonic = monotonic
        self.lease_good = True
        # How fast the monotonic clock runs.
        self.rate = 1.0

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        super().advance(seconds)
        self._monotonic += seconds * (self.rate - 1)

    def step(self, seconds: float) -> None:
        """Set the wall clock so far from the truth."""
        self.wall_off = timedelta(seconds=seconds)

    def jump(self, seconds: float) -> None:
        """Let the monotonic clock leap: the machine has slept, or its clock is broken."""
        self._monotonic += seconds


def idle_time(store: Store) -> LedgerTime:
    """Return a node's part in keeping the time that has not been heard of."""
    clock = ClusterClock(TimeKeeper(TimeRule()), HandClock())
    return LedgerTime(store.client, store.config, clock, node_id="a", sight=lambda *_: None, may_write=lambda: False)


class Machines:
    """All of them; `pass_s` lets time pass for all, and each node that is up look at the clocks."""

    def __init__(self, store: Store, names: str = "abc") -> None:
        self.store = store
        self.keys = Keys(store.config.prefix)
        self.names = names
        self.machines = {name: Machine(name, 1000.0 * number) for number, name in enumerate(names, start=1)}
        self.times: dict[str, LedgerTime] = {}
        self.clocks: dict[str, ClusterClock] = {}
        self.apart: set[str] = set()
        # Nodes that hear no beat, and see by etcd alone who lives.
        self.deaf: set[str] = set()
        # What a node heard last of each other's clocks, and when; since then it has heard nothing.
        self._unheard: dict[str, tuple[float, Sight]] = {}
        self._hearing: dict[str, asyncio.Task[None]] = {}
        self._tasks: asyncio.TaskGroup | None = None

    @asynccontextmanager
    async def running(self, *names: str) -> AsyncIterator[None]:
        """Have nodes up, until left."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for name in names or self.names:
                await self.start(name)
            try:
                yield
            finally:
                for name in list(self.times):
                    self.stop(name)

    async def start(self, name: str) -> None:
        """Start a node, and let it read what there is."""
        assert self._tasks is not None
        machine = self.machines[name]
        self.clocks[name] = ClusterClock(TimeKeeper(TimeRule()), machine)
        self.times[name] = LedgerTime(
            self.store.client, self.store.config, self.clocks[name], node_id=name,
            sight=lambda wall, at: self._sight(name, wall, at), may_write=lambda: machine.lease_good,
        )  # fmt: skip
        self._hearing[name] = self._tasks.create_task(self.times[name].follow())
        async with asyncio.timeout(PATIENCE_S):
            await self.times[name].watching()
        await self.settle()

    def stop(self, name: str) -> None:
        """End a node's life."""
        self.times.pop(name)
        self._hearing.pop(name).cancel()

    def hear_no_more(self, name: str) -> None:
        """Let a node go by what it has heard of the others until now, as it does between two beats."""
        machine = self.machines[name]
        at = machine.monotonic()
        self._unheard[name] = (at, self._sight(name, self.times[name].wall(), at))

    def hear_again(self, name: str) -> None:
        """Let a node hear the others' beats."""
        del self._unheard[name]

    def _sight(self, name: str, wall: Ms, at: float) -> Sight:
        if name in self._unheard:
            since, seen = self._unheard[name]
            on_ms = round((at - since) * 1000)
            return replace(
                seen,
                walls={**{node: Ms(then + on_ms) for node, then in seen.walls.items()}, name: wall},
                times={node: None if then is None else Ms(then + on_ms) for node, then in seen.times.items()},
            )
        near = [one for one in self.times if one != name and name not in self.deaf and not {one, name} & self.apart]
        return Sight(
            walls={name: wall, **{one: self.times[one].wall() for one in near}},
            times={one: self.times[one].estimate() for one in near},
            heard=dict.fromkeys(near, at),
            alive=[one for one in self.times if self.machines[one].lease_good],
            known=list(self.names),
        )

    async def pass_s(self, seconds: float, step_s: float = 0.25) -> None:
        """Let time pass on every machine, and every node look, in turn."""
        for _ in range(round(seconds / step_s)):
            for machine in self.machines.values():
                machine.advance(step_s)
            for time in list(self.times.values()):
                await time.look()
            await self.settle()

    async def settle(self) -> None:
        """Return when every node that is up has heard what the ledger says."""
        instant, revision = await self.ledger()
        if instant is None:
            return
        async with asyncio.timeout(PATIENCE_S):
            for time in self.times.values():
                while time.keeper.last is None or time.keeper.last.revision < revision:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)

    async def ledger(self) -> tuple[Ms | None, int]:
        """Return the ledger's time and its revision."""
        reply = await self.store.client.range(pb.RangeRequest(key=self.keys.time_now()))
        return (Ms(int(reply.kvs[0].value)), reply.kvs[0].mod_revision) if reply.kvs else (None, 0)

    async def doubt(self) -> str:
        """Return what the ledger says is in doubt."""
        reply = await self.store.client.range(pb.RangeRequest(key=self.keys.time_doubt()))
        return reply.kvs[0].value.decode() if reply.kvs else ""

    def truth(self) -> Ms:
        """Return what a right clock says."""
        return Ms(round(self.machines[self.names[0]].now().timestamp() * 1000))

    def off_s(self, name: str) -> float:
        """Return how far a node's cluster time is from the truth, in seconds."""
        return round(self.clocks[name].now().timestamp() - self.truth() / 1000, 3)
