"""The simulated cluster: real flows and real adapters in one loop, over a fake etcd, with faults drawn from a seed.

What is real: GroupCommitter, IssueVend, EtcdLedger, EtcdOutbox, EtcdOwnership, DeliveryWorker. What is simulated: etcd,
HSM, head end, meters, the network between them, callers, and time.
"""

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar, cast

from app.verification.call_log import History
from app.verification.checker import Finding, GiveUp, Run, check_run
from app.verification.observed_run import TimeOff
from cluster.audit.change_feed import LedgerEvent, VendKey, VendSeen, event_of
from cluster.codec.registry import name_of, value_of
from cluster.config import EtcdConfig
from cluster.etcd.client import EtcdClient
from cluster.etcd.keys import Keys
from cluster.ledger.ceilings import EtcdCeilings
from cluster.ledger.outbox import EtcdOutbox
from cluster.ledger.vends import EtcdLedger, counter_of
from cluster.membership.shard_ownership import EtcdOwnership, Readiness
from cluster.registry.replica import EtcdRegistryReplica
from cluster.registry.store import EtcdRegistryStore
from cluster.timekeeping.ledger_time import ClusterClock, LedgerTime
from core.access.approvals import ConsentOfLedger
from core.assembly.administration import Administration
from core.assembly.duties import Duties
from core.assembly.issuing import Issuing
from core.assembly.ports import Ports
from core.domain.cluster_time import Doubt, Sight, TimeKeeper, TimeRule
from core.domain.delivery import DeliveryReason
from core.domain.effective_dated import Ms, ms_of
from core.domain.errors import UtrnError
from core.issuing.config import DeliveryConfig, FlowConfig
from core.ports.ledger import Ledger
from tests.fakes.etcd import FakeEtcd
from tests.sim.clock import now_s
from tests.sim.faults import Nemesis
from tests.sim.loop import LIFE, VirtualLoop, run_virtual
from tests.sim.meters import SimHeadEnd, SimMeters, SimSigner, SimWan, meter_ids
from tests.sim.network import Link, SimClient
from tests.sim.switches import SWITCHES, Switches
from tests.sim.tills import Tills
from tests.sim.town import Town
from tests.support.answers import memory
from tests.support.head_ends import known_head_ends
from tests.support.market import KeptAuditLog
from tests.support.market_node import no_authority
from tests.support.vends import HEAD_END, NOW

_T = TypeVar("_T")
NODES = ("node-a", "node-b", "node-c")
_LOAD_S = 8.0
_HEAL_S = 120.0
# When nothing is broken, what a meter says is with its vend within this time, and what can be delivered is delivered.
_RECORDED_WITHIN_S = 10.0
_DELIVERED_WITHIN_S = 20.0
_EACH_S = 0.5
# How many runs have a meter that gets more codes than it remembers.
_BUSY = 0.08
_CONFIG = EtcdConfig(endpoints=("sim:1",), shards=6, prefix="sim/", resolve_timeout_ms=3000, compare_registry_s=5.0)
_FLOW = FlowConfig(hot_window_days=1, counter_cache_max=1000, recent_answers_max=50)
_DELIVERY = DeliveryConfig(
    attempts_max=1000, give_up_after_s=60, send_within_ms=2000, answer_wait_ms=1500, explain_wait_ms=200,
    back_off_first_ms=100, back_off_most_ms=1000,
)  # fmt: skip
_TIME = TimeRule(quiet_s=0.2)
# What the draw of the wall clocks may come to.
_OFF_S = 1.0
# After so long a node whose monotonic clock has leapt has heard the ledger's time again.
_LEAP_HEALS_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sabotage:
    """What a positive control takes away or adds. `around` wraps a node's ledger; `nemesis` runs beside the others."""

    around: Callable[[Ledger], Ledger] = lambda ledger: ledger
    nemesis: Callable[["Simulation"], Awaitable[None]] | None = None


@dataclass(slots=True, kw_only=True)
class SimResult:
    """What came of a seed. `digest` is of the whole history: the same seed gives the same one."""

    seed: int
    findings: list[Finding]
    digest: str
    vends: int
    virtual_s: float
    faults: list[str] = field(default_factory=list)


class SimClock:
    """A machine's clocks: a wall clock that may be wrong, and stays so over restarts, and a steady one."""

    def __init__(self) -> None:
        self.skew = timedelta()
        self._leapt_s = 0.0
        self._leapt_at = -_LEAP_HEALS_S

    def now(self) -> datetime:
        return self.wall()

    def wall(self) -> datetime:
        return NOW.astimezone(UTC) + timedelta(seconds=now_s()) + self.skew

    def monotonic(self) -> float:
        return now_s() + self._leapt_s

    def leap(self, seconds: float) -> None:
        """Let the monotonic clock go forward at once."""
        self._leapt_s += seconds
        self._leapt_at = now_s()

    @property
    def leapt_of_late(self) -> bool:
        """Whether what this machine makes of the time may rest on a leap."""
        return now_s() - self._leapt_at < _LEAP_HEALS_S

    def leapt_since(self, at: float) -> bool:
        """Whether it may, `at` being when the ledger's time was last written: it has had nothing else to go by."""
        return self.leapt_of_late or self._leapt_at >= at


class SimNode:
    """One life of one node: from its start to its crash."""

    def __init__(self, sim: "Simulation", name: str) -> None:
        self.name = name
        self.context = copy_context()
        self.context.run(LIFE.set, self)
        self.link = Link(sim.chance, loss=sim.loss)
        # The machine's; what decides goes by cluster time.
        self.clock = sim.clocks[name]
        clock = ClusterClock(TimeKeeper(_TIME), self.clock)
        self.signer = SimSigner()
        self.head_end = SimHeadEnd(sim.wan, sim.chance)
        client = cast("EtcdClient", SimClient(sim.etcd, self.link))
        outbox = EtcdOutbox(client, _CONFIG, clock)
        self.ownership = EtcdOwnership(
            client,
            _CONFIG,
            self.clock,
            node_id=name,
            fitness=lambda: Readiness(hsm_ready=not self.signer.broken, mirror_ready=outbox.mirrored),
        )
        self.time = LedgerTime(
            client, _CONFIG, clock, node_id=name, sight=partial(sim.sight, name),
            may_write=lambda: self.ownership.lease_good,
        )  # fmt: skip
        self.registry = EtcdRegistryReplica(client, _CONFIG)
        ports = Ports(
            clock=clock,
            signer=self.signer,
            ledger=sim.sabotage.around(EtcdLedger(client, _CONFIG, clock)),
            outbox=outbox,
            ownership=self.ownership,
            registry=self.registry,
            store=EtcdRegistryStore(client, _CONFIG, clock),
            audit_log=KeptAuditLog(),
            ceilings=EtcdCeilings(client, _CONFIG, clock, default_pence=sim.ceiling_pence, node_id=name),
            head_ends={HEAD_END: self.head_end},
            head_end_names=known_head_ends,
        )
        issuing = Issuing(ports=ports, config=_FLOW, node_id="n", answers=memory(_FLOW.recent_answers_max))
        duties = Duties(
            issuing=issuing, config=_DELIVERY, random=sim.chance, utc_ahead=self.time.utc_ahead,
            random_part=lambda: f"{sim.chance.getrandbits(128):032x}",
        )  # fmt: skip
        administration = Administration(issuing=issuing, consents=ConsentOfLedger(), authority=no_authority)
        self.line, self.ceilings, self.issue, self.send = issuing.line, issuing.ceilings, issuing.issue, issuing.send
        self.meters, self.pans, self.parties = administration.meters, administration.pans, administration.parties
        self.appoint = administration.appoint
        self.delivery, self._changes = duties.delivery, duties.changes
        self._outbox = outbox

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            parts = (
                self.time.run(), self.registry.run(), self._changes.run(), self.ownership.run(), self._outbox.run(),
                self.line.run(), self.delivery.run(), self.ceilings.run(),
            )  # fmt: skip
            for part in parts:
                tasks.create_task(part)

    async def serve(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Do what a caller asks for on this node's machine; who goes away cancels it, as gRPC does."""
        return await asyncio.get_running_loop().create_task(work, context=self.context.copy())

    @property
    def knows_time(self) -> bool:
        """Whether this node knows cluster time without a doubt, and whoever does not can ask it."""
        keeper = self.time.keeper
        return keeper.established and keeper.doubt is not Doubt.GAP and not self.link.silent

    def stall(self, seconds: float) -> None:
        """Let this node's machine stand still, so that its peers hear nothing of it either."""
        loop = asyncio.get_running_loop()
        self.link.stall(seconds)
        assert isinstance(loop, VirtualLoop)
        loop.stall(self, seconds)


class Simulation:
    """One seed."""

    flow, prefix = _FLOW, _CONFIG.prefix

    def __init__(self, seed: int, sabotage: Sabotage, switches: Switches = SWITCHES) -> None:
        self.seed = seed
        self.switches = switches
        self.sabotage = sabotage
        self.chance = random.Random(seed)
        self.loss = self.chance.choice((0.0, 0.01, 0.03, 0.08))
        # By a chance of its own: what else happens in a seed does not hang on it. The least is reached in most runs.
        self.ceiling_pence = random.Random(f"ceiling {seed}").choice((10_000_000, 10_000_000, 150_000, 50_000))
        self.etcd = FakeEtcd()
        self.times: dict[int, float] = {}
        self.etcd.published = self._note
        self.times_off: list[TimeOff] = []
        self._time_written_at = 0.0
        self.meters = SimMeters(self.chance, refuse=self.chance.choice((0.0, 0.03)) if switches.refusals else 0.0)
        self.wan = SimWan(self.chance, self.meters, loss=self.chance.choice((0.0, 0.05, 0.15)))
        self.town = self._settle()
        self.history = History()
        self.clocks = {name: SimClock() for name in NODES}
        self.nodes: dict[str, SimNode] = {}
        self.running: dict[str, asyncio.Task[None]] = {}
        self.tasks: asyncio.TaskGroup | None = None
        self.tills = Tills(self, sell_s=_LOAD_S)
        self.nemesis = Nemesis(self)
        self.healed_at = 0.0
        self.late: list[str] = []

    def _settle(self) -> Town:
        """Write the registry as the run begins."""
        ids, keys = meter_ids(self.chance.choice((2, 4, 8)) + 1), Keys(_CONFIG.prefix)
        town = Town(self.chance, ids[:-1], ids[-1] if self.switches.foreign else None)
        for record in town.records():
            self.etcd.put(keys.record(*name_of(record)), value_of(record))
        return town

    async def run(self) -> SimResult:
        """Sell through faults, heal, wait until all is quiet, and check."""
        async with asyncio.TaskGroup() as tasks:
            self.tasks = self.wan.tasks = tasks
            for name in NODES:
                self.start(name)
            await self._know_the_time()
            nemesis = [tasks.create_task(self.nemesis.run())]
            if self.sabotage.nemesis is not None:
                nemesis.append(tasks.create_task(_awaited(self.sabotage.nemesis(self))))
            callers = [tasks.create_task(self.tills.run(number)) for number in range(self.chance.randint(2, 6))]
            if self.town.foreign is not None:
                callers.append(tasks.create_task(self.tills.run_foreign()))
            if self.switches.late_codes and self.chance.random() < _BUSY:
                callers.append(tasks.create_task(self.tills.run_busy()))
            await asyncio.wait(callers)
            for one in (*nemesis, *self.nemesis.under_way):
                one.cancel()
            await self._nobody_stands_still()
            self._heal()
            await self._judge_time()
            await self._nobody_stands_aside()
            await self._until_quiet()
            unanswered = await self.tills.sell_everywhere()
            if self.switches.keypad:
                self.tills.key_in_what_is_left()
                await asyncio.sleep(_RECORDED_WITHIN_S)
            await self._until_quiet()
            self.late += [f"a sale at {one} has no answer, though nothing is broken" for one in unanswered]
            result = self._result()
            for task in self.running.values():
                task.cancel()
            for node in self.nodes.values():
                node.head_end.close()
        return result

    async def _know_the_time(self) -> None:
        """Return when cluster time has begun: where it begins with wrong clocks, nobody can know any better."""
        while not all(node.time.known for node in self.nodes.values()):  # noqa: ASYNC110  # virtual time
            await asyncio.sleep(0.05)

    async def _until_quiet(self) -> None:
        until = now_s() + _HEAL_S
        while now_s() < until and not self._quiet():  # noqa: ASYNC110  # virtual time
            await asyncio.sleep(0.1)

    async def _nobody_stands_still(self) -> None:
        """Return when the last freeze is over, and what a leap has told: until then no bound counts."""
        while any(  # noqa: ASYNC110  # virtual time
            node.link.still or node.clock.leapt_of_late for node in self.nodes.values()
        ):
            await asyncio.sleep(0.1)

    async def _nobody_stands_aside(self) -> None:
        """Return when every node tells the time again: after a leap, what it told before must have come."""
        until = now_s() + 2 * _LEAP_HEALS_S
        while now_s() < until and not all(node.time.known for node in self.nodes.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    def start(self, name: str) -> None:
        """Start a node anew."""
        assert self.tasks is not None
        self.nodes[name] = SimNode(self, name)
        node = self.nodes[name]
        self.running[name] = self.tasks.create_task(node.run(), context=node.context)

    def crash(self, name: str) -> int:
        """Kill a node: what it was about to do never happens; return the lease that dies with it."""
        node = self.nodes[name]
        node.link.dead = True
        node.head_end.close()
        self.running[name].cancel()
        return node.ownership.lease_id

    def step_wall(self, seconds: float, *names: str) -> None:
        """Set wall clocks so many seconds from the truth; every node's if none is named."""
        for name in names or NODES:
            self.clocks[name].skew = timedelta(seconds=seconds)

    @property
    def walls_stepped(self) -> bool:
        """Whether any wall clock is wrong by more than is drawn."""
        return any(abs(clock.skew.total_seconds()) * 1000 > _TIME.off_ms for clock in self.clocks.values())

    def sight(self, name: str, wall: Ms, at: float) -> Sight | None:
        """Return what a node sees of the others: the beats of those that are neither dead, cut off nor frozen."""
        me = self.nodes[name]
        if not me.ownership.seen:
            return None
        near = [node for node in self.nodes.values() if node is not me and not me.link.silent and not node.link.silent]
        return Sight(
            walls={name: wall, **{one.name: one.time.wall() for one in near}},
            times={one.name: one.time.estimate() for one in near},
            heard={one.name: at for one in near},
            alive=me.ownership.members(),
            known={name, *me.ownership.roster()},
        )

    def last_issued(self, originator_id: str, meter_id: str) -> int:
        """Return the last counter of a sequence, as the ledger has it."""
        kv = self.etcd.keys.get(Keys(_CONFIG.prefix).counter(originator_id, meter_id))
        return 0 if kv is None else counter_of(kv, None).last_issued

    def any_name(self) -> str:
        """Return a node's name."""
        return self.chance.choice(NODES)

    def any_node(self) -> SimNode:
        """Return a node, alive or dead."""
        return self.nodes[self.any_name()]

    def _note(self, revision: int) -> None:
        """Note when something was written, and whether it brought cluster time ahead of the truth."""
        self.times[revision] = now_s()
        kv = self.etcd.keys.get(Keys(_CONFIG.prefix).time_now())
        if kv is None or kv.mod_revision != revision:
            return
        ahead_s = (int(kv.value) - ms_of(NOW)) / 1000 - now_s()
        further = ahead_s > max((0.0, *(one.ahead_s for one in self.times_off))) + _OFF_S
        if further or (kv.version == 1 and ahead_s < -_OFF_S):
            known_to = [
                node.name
                for node in self.nodes.values()
                if node.knows_time and not self.clocks[node.name].leapt_since(self._time_written_at)
            ]
            self.times_off.append(TimeOff(revision=revision, ahead_s=ahead_s, known_to=known_to))
        self._time_written_at = now_s()

    async def _judge_time(self) -> None:
        """Do as the runbook says: have cluster time set to the wall clocks, which are right by now, if it is off."""
        until = now_s() + _HEAL_S
        while now_s() < until:
            await asyncio.sleep(1.0)
            for node in self.nodes.values():
                state = node.time.state()
                if not state.known or state.off_ms is None:
                    continue
                if abs(state.off_ms) <= _TIME.off_ms or state.doubt is Doubt.AHEAD:
                    return
                with suppress(UtrnError):
                    await node.serve(node.time.accept("operator"))
                break

    def _heal(self) -> None:
        self.healed_at = now_s()
        self.wan.loss, self.loss, self.meters.refuse = 0.0, 0.0, 0.0
        self.wan.restore()
        for name, node in self.nodes.items():
            if node.link.dead:
                self.start(name)
        for node in self.nodes.values():
            node.link.cut, node.link.slow, node.link.loss = False, 1.0, 0.0
            node.link.lag_s, node.link.deaf = 0.0, 0.0
            node.signer.broken = False
        self.step_wall(0.0)

    # The end.

    def _quiet(self) -> bool:
        prefix = Keys(_CONFIG.prefix).outboxes()
        owed = any(key.startswith(prefix) for key in self.etcd.keys)
        return not owed and self._free_shards() == 0 and all(call.ended is not None for call in self.history.calls)

    def _free_shards(self) -> int:
        prefix = Keys(_CONFIG.prefix).shards()
        return _CONFIG.shards - sum(key.startswith(prefix) for key in self.etcd.keys)

    def ledger(self) -> Iterator[LedgerEvent]:
        """Return everything that happened in the ledger."""
        for event in self.etcd.history:
            found = event_of(Keys(_CONFIG.prefix), event)
            if found is not None:
                yield replace(found, heard_at=self.times[found.revision])

    def _result(self) -> SimResult:
        ledger = list(self.ledger())
        self.late += list(self._late_deliveries(ledger))
        findings = check_run(
            Run(
                shards=_CONFIG.shards,
                give_up=GiveUp(attempts_max=_DELIVERY.attempts_max, after_s=_DELIVERY.give_up_after_s),
                began=NOW,
                times_off=self.times_off,
                said=self.meters.said,
                taken=self.wan.taken,
                send_within_s=_DELIVERY.send_within_ms / 1000,
                calls=self.history.calls,
                ledger=ledger,
                credits=self.meters.credits,
                not_authentic=self.meters.not_authentic,
                window_s=_FLOW.hot_window.total_seconds(),
                ceiling_pence=self.ceiling_pence,
                id_age_s=self.tills.ages,
                free_shards=self._free_shards(),
                late=self.late,
                leases=len(self.etcd.leases.keys() - {node.ownership.lease_id for node in self.nodes.values()})
                if self._settled_leases()
                else 0,
            )
        )
        told = "\n".join([*map(repr, ledger), *map(repr, self.history.calls), *map(repr, self.meters.credits)])
        return SimResult(
            seed=self.seed,
            findings=[
                finding for finding in findings if not any(known in finding.text for known in self.switches.known)
            ],
            digest=hashlib.sha256(told.encode()).hexdigest(),
            vends=sum(getattr(event.change, "created", False) for event in ledger),
            virtual_s=now_s(),
            faults=self.nemesis.told,
        )

    def _late_deliveries(self, ledger: Sequence[LedgerEvent]) -> Iterator[str]:
        """Return what was delivered in the end, and long after everything was healed."""
        asked: dict[VendKey, float] = {}
        owed_to: Counter[str] = Counter()
        for event in ledger:
            if not isinstance(event.change, VendSeen):
                continue
            delivery, key = event.change.vend.delivery, event.change.key
            if delivery.owed:
                asked.setdefault(key, event.heard_at)
            since = max(self.healed_at, asked.get(key, 0.0))
            meter_id = event.change.vend.meter_id
            owed_to[meter_id] += event.change.created
            # A meter takes one code after the other.
            within_s = _DELIVERED_WITHIN_S + _EACH_S * owed_to[meter_id]
            if delivery.reason is DeliveryReason.CREDITED and event.heard_at > since + within_s:
                yield f"{key[1]} was delivered {event.heard_at - since:.0f} s after nothing stood in its way"

    def _settled_leases(self) -> bool:
        """Return whether every lease of a dead life has had time to run out."""
        return now_s() > self.healed_at + 10


async def _awaited(work: Awaitable[None]) -> None:
    await work


def simulate(seed: int, sabotage: Sabotage | None = None, switches: Switches = SWITCHES) -> SimResult:
    """Run one seed, in no time."""

    async def run() -> SimResult:
        return await Simulation(seed, sabotage or Sabotage(), switches).run()

    with suppress(asyncio.CancelledError):
        return run_virtual(run())
    raise AssertionError(f"seed {seed} was cancelled")
