"""The nemesis: what breaks, when, and for how long, drawn from the seed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from tests.sim.clock import now_s
from tests.sim.market import MarketActs
from tests.sim.town import SUPPLIERS

if TYPE_CHECKING:
    from tests.sim.world import Simulation

_Act = Callable[[], Awaitable[None]]
_PER_S = 1.5
_TOGETHER = 0.5
_KINDS_LEAST = 3
_STEPS_S = (-3600.0, 3600.0, 46_800.0, -172_800.0, 172_800.0)


class Nemesis:
    """Breaks things while sales go on; `told` is what it did, in order."""

    def __init__(self, sim: "Simulation") -> None:
        self._sim = sim
        self._chance = sim.chance
        self._market = MarketActs(sim)
        self.told: list[str] = []
        self.under_way: list[asyncio.Task[None]] = []

    def acts(self) -> list[_Act]:
        """Return what may happen; what is there twice is twice as likely."""
        on, market = self._sim.switches, self._market
        found: list[_Act] = [
            self.crash, self.crash, self.crash_all, self.freeze, self.cut, self.cut_through_a_compaction,
            self.etcd_away, self.slow, self.revoke, self.compact, self.head_end_away, self.hsm_away,
        ]  # fmt: skip
        if on.market:
            found += [
                market.change_supplier, market.change_supplier, market.change_tenant, market.block_card,
                market.suspend_appointment, market.end_appointment, market.suspend_participant, market.change_profile,
                market.take_away,
            ]  # fmt: skip
        if on.stalls:
            found += [self.stall, self.stall]
        if on.lag:
            found += [self.lag]
        if on.lost_events:
            found += [self.lose_events, self.lose_events]
        if on.clocks:
            found += [self.clock]
        if on.clock_steps:
            found += [self.clock_step, self.clock_step_all]
        if on.leaps:
            found += [self.leap, self.leap]
        if on.keypad:
            found += [self.key_in, self.key_in]
        if on.lies:
            found += [self.lie, self.lie]
        return found

    async def run(self) -> None:
        """Go on for ever, with some of what may happen: what is rare beside all the rest is frequent in some runs."""
        acts = self.acts()
        acts = self._chance.sample(acts, self._chance.randint(_KINDS_LEAST, len(acts)))
        assert self._sim.tasks is not None
        while True:
            await asyncio.sleep(self._chance.expovariate(_PER_S))
            act = self._chance.choice(acts)
            self.told.append(f"{now_s():.3f} {act.__name__}")
            if self._chance.random() < _TOGETHER:
                self.under_way.append(self._sim.tasks.create_task(_awaited(act())))
            else:
                await act()

    async def crash(self) -> None:
        """Kill a node and start it again."""
        name = self._sim.any_name()
        if self._sim.nodes[name].link.dead:
            return
        lease_id = self._sim.crash(name)
        if self._chance.random() < 0.7:
            # Its peers have noticed.
            await asyncio.sleep(self._chance.uniform(0.001, 0.1))
            await self._end_lease(lease_id)
        await asyncio.sleep(self._chance.uniform(0.0, 3.0))
        self._sim.start(name)

    async def crash_all(self) -> None:
        """Kill every node that lives, and start them again one by one.

        Not while wall clocks are wrong: they are all there is to begin by.
        """
        if self._sim.walls_stepped:
            return
        names = [name for name, node in self._sim.nodes.items() if not node.link.dead]
        leases = [self._sim.crash(name) for name in names]
        if self._chance.random() < 0.5:
            for lease_id in leases:
                await self._end_lease(lease_id)
        await asyncio.sleep(self._chance.uniform(0.0, 4.0))
        for name in names:
            self._sim.start(name)
            await asyncio.sleep(self._chance.choice((0.0, 0.5)))

    async def freeze(self) -> None:
        """Let nothing in or out of a node for a while."""
        self._sim.any_node().link.freeze(self._chance.choice((0.3, 1.0, 6.0)))
        await asyncio.sleep(1.0)

    async def stall(self) -> None:
        """Let a node's processor stand still: nothing of it runs, not even what only looks at the clock."""
        self._sim.any_node().stall(self._chance.choice((0.2, 1.0, 4.0, 8.0)))
        await asyncio.sleep(0.5)

    async def cut(self) -> None:
        """Cut a node off from etcd."""
        node = self._sim.any_node()
        node.link.cut = True
        await asyncio.sleep(self._chance.uniform(0.2, 6.0))
        node.link.cut = False

    async def cut_through_a_compaction(self) -> None:
        """Cut a node off until what it has not heard is compacted away: it must read everything anew."""
        node = self._sim.any_node()
        node.link.cut = True
        await asyncio.sleep(self._chance.uniform(0.5, 3.0))
        await self.compact()
        await asyncio.sleep(self._chance.uniform(0.1, 1.0))
        node.link.cut = False

    async def lag(self) -> None:
        """Let a node hear late of what others write."""
        node = self._sim.any_node()
        node.link.lag_s = self._chance.choice((0.2, 1.0, 3.0))
        await asyncio.sleep(self._chance.uniform(0.5, 5.0))
        node.link.lag_s = 0.0

    async def lose_events(self) -> None:
        """Let a node's watches lose what they should have told."""
        node = self._sim.any_node()
        node.link.deaf = self._chance.choice((0.1, 0.5, 1.0))
        await asyncio.sleep(self._chance.uniform(0.2, 3.0))
        node.link.deaf = 0.0

    async def etcd_away(self) -> None:
        """Take etcd from every node."""
        for node in self._sim.nodes.values():
            node.link.cut = True
        await asyncio.sleep(self._chance.uniform(0.2, 4.0))
        for node in self._sim.nodes.values():
            node.link.cut = False

    async def slow(self) -> None:
        """Let a node's way to etcd be slow."""
        node = self._sim.any_node()
        node.link.slow = self._chance.choice((20.0, 200.0))
        await asyncio.sleep(self._chance.uniform(0.2, 3.0))
        node.link.slow = 1.0

    async def revoke(self) -> None:
        """End a living node's lease, as peers do that suspect it wrongly."""
        await self._end_lease(self._sim.any_node().ownership.lease_id)

    async def compact(self) -> None:
        """Compact the ledger's history."""
        if self._sim.etcd.compacted < self._sim.etcd.revision:
            await self._sim.etcd.compact(self._sim.etcd.revision)

    async def head_end_away(self) -> None:
        """Take the head end away."""
        self._sim.wan.outage = True
        await asyncio.sleep(self._chance.uniform(0.2, 4.0))
        self._sim.wan.restore()

    async def hsm_away(self) -> None:
        """Break one node's HSM, or every one's."""
        for name in self._chance.sample(list(self._sim.nodes), self._chance.choice((1, 1, 3))):
            self._sim.nodes[name].signer.broken = True
        await asyncio.sleep(self._chance.uniform(0.2, 4.0))
        for node in self._sim.nodes.values():
            node.signer.broken = False

    async def clock(self) -> None:
        """Let a node's wall clock be wrong by minutes for a while."""
        await self._skew([self._sim.any_name()], self._chance.choice((-200.0, 200.0)))

    async def clock_step(self) -> None:
        """Let a node's wall clock step by hours or days."""
        await self._skew([self._sim.any_name()], self._chance.choice(_STEPS_S))

    async def clock_step_all(self) -> None:
        """Let every wall clock step together."""
        await self._skew(list(self._sim.nodes), self._chance.choice((-3600.0, 3600.0, 172_800.0)))

    async def leap(self) -> None:
        """Let a node's monotonic clock leap: by more than what is a draw of the wall clocks, and no two at once."""
        if any(clock.leapt_of_late for clock in self._sim.clocks.values()):
            return
        self._sim.clocks[self._sim.any_name()].leap(self._chance.choice((3.0, 6.0, 9.0)))
        await asyncio.sleep(0.2)

    async def _skew(self, names: list[str], seconds: float) -> None:
        if not any(node.knows_time for node in self._sim.nodes.values()):
            # The first time of all is taken from the wall clocks: there is nothing else to hold them against.
            return
        self._sim.step_wall(seconds, *names)
        await asyncio.sleep(self._chance.uniform(0.2, 4.0))
        self._sim.step_wall(0.0, *names)

    async def key_in(self) -> None:
        """Let a consumer enter a code by hand."""
        self._sim.tills.key_in()
        await asyncio.sleep(0.05)

    async def lie(self) -> None:
        """Let the head end tell what is not so."""
        supplier = self._chance.choice(SUPPLIERS)
        assert supplier.supplier_key is not None
        meter_id = self._chance.choice(self._sim.town.meter_ids)
        originator_id = supplier.supplier_key.originator_id
        self._sim.wan.lie(originator_id, meter_id, self._sim.last_issued(originator_id, meter_id))
        await asyncio.sleep(0.1)

    async def _end_lease(self, lease_id: int) -> None:
        if lease_id in self._sim.etcd.leases:
            await self._sim.etcd.revoke_lease(lease_id)


async def _awaited(work: Awaitable[None]) -> None:
    await work
