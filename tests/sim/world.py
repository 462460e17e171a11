"""The simulated cluster: real flows and real adapters in one loop, over a fake etcd, with faults drawn from a seed.

What is real: CommitLine, IssueVend, EtcdLedger, EtcdOutbox, EtcdOwnership, DeliveryWorker. What is simulated: etcd,
HSM, head end, meters, the network between them, callers, and time.
"""

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, cast

from app.drills.checker import Finding, GiveUp, Run, check_run
from app.drills.history import IF_FIRST, History
from cluster.client import EtcdClient
from cluster.config import EtcdConfig
from cluster.history import LedgerEvent, event_of
from cluster.keys import Keys
from cluster.ledger import EtcdLedger
from cluster.outbox import EtcdOutbox
from cluster.ownership import EtcdOwnership, Fitness
from cluster.registry import EtcdRegistry
from cluster.registry_records import name_of, value_of
from cluster.registry_store import EtcdRegistryStore
from cluster.time import ClusterClock, LedgerTime
from core.domain.cluster_time import Sight, TimeKeeper, TimeRule
from core.domain.errors import Refused, UtrnError
from core.domain.meter import MeterId, Pan
from core.domain.money import Pence
from core.domain.party import Principal
from core.domain.timeline import Ms
from core.domain.transaction_id import TransactionId, make_transaction_id
from core.domain.vend import Channel, Operation, Sale
from core.flows.authorise import Authorise
from core.flows.commit import CommitLine
from core.flows.config import DeliveryConfig, FlowConfig
from core.flows.counters import Counters
from core.flows.deliver import DeliveryWorker
from core.flows.delivery_attempt import AttemptDelivery
from core.flows.idempotency import Answers
from core.flows.issue import IssueVend
from core.flows.keep_changes import ChangeKeeper
from core.flows.keep_meters import KeepMeters
from core.flows.lapse import Lapse
from core.flows.turn import TurnMeter
from core.observe import StageTimes
from core.ports.ledger import Ledger
from core.ports.registry import StoredRecord
from tests.fakes.etcd import FakeEtcd
from tests.sim.meters import SimHeadEnd, SimMeters, SimSigner, SimWan, meter_ids
from tests.sim.network import Link, SimClient
from tests.support.market import KeptTrail, refusing
from tests.support.vends import APPOINTMENTS, HEAD_END, NOW, PSP, PSP_ID, SUPPLIER, card, meter

NODES = ("node-a", "node-b", "node-c")
_LOAD_S = 8.0
_HEAL_S = 120.0
_ATTEMPT_S = 1.5
_CONFIG = EtcdConfig(endpoints=("sim:1",), shards=6, prefix="sim/", resolve_timeout_ms=3000)
_FLOW = FlowConfig(hot_window_days=1, counter_cache_max=1000, recent_answers_max=50)
_DELIVERY = DeliveryConfig(
    attempts_max=1000, answer_wait_ms=1500, explain_wait_ms=200, back_off_first_ms=100, back_off_most_ms=1000
)
_TIME = TimeRule(quiet_s=0.2)


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

    def now(self) -> datetime:
        return self.wall()

    def wall(self) -> datetime:
        return NOW.astimezone(UTC) + timedelta(seconds=self.monotonic()) + self.skew

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()


def pan_of(meter_id: MeterId) -> Pan:
    return Pan(f"9826{int(meter_id[6:], 16):015d}")


class SimNode:
    """One life of one node: from its start to its crash."""

    def __init__(self, sim: "Simulation", name: str) -> None:
        self.name = name
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
            fitness=lambda: Fitness(hsm_ready=not self.signer.broken, mirror_ready=outbox.mirrored),
        )
        self.time = LedgerTime(
            client, _CONFIG, clock, node_id=name, sight=partial(sim.sight, name),
            may_write=lambda: self.ownership.lease_good,
        )  # fmt: skip
        ledger = sim.sabotage.around(EtcdLedger(client, _CONFIG, clock))
        answers = Answers(recent_max=_FLOW.recent_answers_max)
        times = StageTimes()
        counters = Counters(clock, trust_s=60, sequences_max=1000, alarm=256, refuse=500)
        self.line = CommitLine(
            ledger=ledger, signer=self.signer, counters=counters, answers=answers, clock=clock, times=times,
            batch_max=_FLOW.batch_max, in_flight_max=_FLOW.in_flight_max, attempts_max=_FLOW.commit_attempts_max,
        )  # fmt: skip
        self.registry = EtcdRegistry(client, _CONFIG)
        store = EtcdRegistryStore(client, _CONFIG, clock)
        turn = TurnMeter(store=store, clock=clock)
        self.meters = KeepMeters(store=store, turn=turn, clock=clock)
        self._changes = ChangeKeeper(due_by=self.registry.due_by, turn=turn, clock=clock, random=sim.chance)
        self.issue = IssueVend(
            authorise=Authorise(
                registry=self.registry, store=store, turn=turn, clock=clock, trail=KeptTrail()
            ), answers=answers, line=self.line, clock=clock,
            config=_FLOW, refuse=refusing(ledger, answers, clock, _FLOW),
        )  # fmt: skip
        attempt = AttemptDelivery(
            outbox=outbox, head_ends={HEAD_END: self.head_end}, clock=clock, times=times, random=sim.chance,
            config=_DELIVERY, lapsed=Lapse(registry=self.registry),
        )  # fmt: skip
        self.delivery = DeliveryWorker(
            outbox=outbox, ownership=self.ownership, head_ends={HEAD_END: self.head_end}, answers=answers,
            attempt=attempt, config=_DELIVERY,
        )  # fmt: skip
        self._outbox = outbox

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            parts = (
                self.time.run(), self.registry.run(), self._changes.run(), self.ownership.run(), self._outbox.run(),
                self.line.run(), self.delivery.run(),
            )  # fmt: skip
            for part in parts:
                tasks.create_task(part)


class Simulation:
    """One seed."""

    def __init__(self, seed: int, sabotage: Sabotage) -> None:
        self.seed = seed
        self.sabotage = sabotage
        self.chance = random.Random(seed)
        self.loss = self.chance.choice((0.0, 0.01, 0.03, 0.08))
        self.etcd = FakeEtcd()
        self.times: dict[int, float] = {}
        self.etcd.published = lambda revision: self.times.__setitem__(revision, _now())
        self.meters = SimMeters()
        self.wan = SimWan(self.chance, self.meters, loss=self.chance.choice((0.0, 0.05, 0.15)))
        self.meter_ids = meter_ids(self.chance.choice((2, 4, 8)))
        self._seed_registry()
        self.history = History()
        self.clocks = {name: SimClock() for name in NODES}
        self.nodes: dict[str, SimNode] = {}
        self.running: dict[str, asyncio.Task[None]] = {}
        self.tasks: asyncio.TaskGroup | None = None
        self.faults: list[str] = []
        self.acts: list[asyncio.Task[None]] = []
        self.ages: dict[str, float] = {}

    def _seed_registry(self) -> None:
        keys = Keys(_CONFIG.prefix)
        cards = [card(pan_of(one), one) for one in self.meter_ids]
        records: list[StoredRecord] = [SUPPLIER, PSP, APPOINTMENTS, *map(meter, self.meter_ids), *cards]
        for record in records:
            self.etcd.put(keys.record(*name_of(record)), value_of(record))

    async def run(self) -> SimResult:
        """Sell through faults, heal, wait until all is quiet, and check."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as tasks:
            self.tasks = self.wan.tasks = tasks
            for name in NODES:
                self.start(name)
            nemesis = [tasks.create_task(self._nemesis())]
            if self.sabotage.nemesis is not None:
                nemesis.append(tasks.create_task(_awaited(self.sabotage.nemesis(self))))
            callers = [tasks.create_task(self._caller(number)) for number in range(self.chance.randint(2, 6))]
            await asyncio.wait(callers)
            for one in (*nemesis, *self.acts):
                one.cancel()
            self._heal()
            until = loop.time() + _HEAL_S
            while loop.time() < until and not self._quiet():  # noqa: ASYNC110  # virtual time
                await asyncio.sleep(0.1)
            result = self._result()
            for task in self.running.values():
                task.cancel()
            for node in self.nodes.values():
                node.head_end.close()
        return result

    def start(self, name: str) -> None:
        """Start a node anew."""
        assert self.tasks is not None
        self.nodes[name] = SimNode(self, name)
        self.running[name] = self.tasks.create_task(self.nodes[name].run())

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

    def sight(self, name: str, wall: Ms, at: float) -> Sight | None:
        """Return what a node sees of the others: the beats of those that are neither dead, cut off nor frozen."""
        me = self.nodes[name]
        if not me.ownership.seen:
            return None
        near = [one for one in self.nodes.values() if one is not me and not me.link.silent and not one.link.silent]
        return Sight(
            walls={name: wall, **{one.name: one.time.wall() for one in near}},
            times={one.name: one.time.estimate() for one in near},
            alive=me.ownership.members(),
            known={name, *me.ownership.roster()},
        )

    # Callers.

    async def _caller(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < _LOAD_S:
            await asyncio.sleep(self.chance.expovariate(2.0))
            sale = self._sale()
            if self.chance.random() < 0.1 and self.history.calls:
                # A till that restarts, or a bug: an id that is in use, sometimes with another amount.
                earlier = self.chance.choice(self.history.calls)
                more = self.chance.choice((0, 0, 100))
                sale = _with(sale, earlier.transaction_id, earlier.content, earlier.amount_pence + more)
            if self.chance.random() < 0.2:
                async with asyncio.TaskGroup() as twins:
                    twins.create_task(self._ask(f"till-{number}", sale))
                    twins.create_task(self._ask(f"twin-{number}", sale))
            else:
                await self._ask(f"till-{number}", sale)

    def _sale(self) -> Sale:
        # Now and then an id that was made too long ago: it must never be executed, whatever the ledger still knows.
        age_s = _FLOW.hot_window.total_seconds() + 600 if self.chance.random() < 0.05 else 0.0
        made_ms = int((NOW.timestamp() + _now() - age_s) * 1000)
        transaction_id = make_transaction_id(made_ms, self.chance.getrandbits(74))
        if age_s:
            self.ages[transaction_id] = age_s
        return Sale(
            participant_id=PSP_ID,
            transaction_id=transaction_id,
            operation=self.chance.choice((Operation.TOP_UP, Operation.TOP_UP, Operation.ISSUE)),
            pan=pan_of(self.chance.choice(self.meter_ids)),
            amount=Pence(self.chance.randint(1, 80) * 100),
            channel=Channel.APP,
        )

    async def _ask(self, caller: str, sale: Sale) -> None:
        """Ask for a sale's code at one node after the other until there is a final answer, or patience ends."""
        key = str(sale.participant_id), str(sale.transaction_id)
        for attempt in range(self.chance.randint(1, 30)):
            node = self.nodes[self.chance.choice(NODES)]
            call = self.history.begin(caller, key, _content(sale), sale.amount, repeat=attempt > 0, at=_now())
            try:
                async with asyncio.timeout(_ATTEMPT_S):
                    issued = await self._at(node, sale)
            except Refused as refused:
                self.history.refused(call, refused.reason, final=IF_FIRST, at=_now())
                return
            except UtrnError as error:
                self.history.unknown(call, error.reason, at=_now())
            except TimeoutError:
                self.history.unknown(call, "DEADLINE_EXCEEDED", at=_now())
            else:
                vend = issued.stored.vend
                content = f"{vend.utrn} {vend.sale.amount} {vend.issued_at.isoformat()}".encode()
                self.history.answered(call, utrn=vend.utrn, content=content, replayed=issued.replayed, at=_now())
                return
            await asyncio.sleep(self.chance.uniform(0.02, 0.3))

    async def _at(self, node: SimNode, sale: Sale) -> Any:
        await asyncio.sleep(self.chance.uniform(0.0003, 0.003))
        if node.link.dead:
            await asyncio.sleep(_ATTEMPT_S)
        issued = await node.issue(Principal(PSP), sale, time_left_s=_ATTEMPT_S)
        await asyncio.sleep(self.chance.uniform(0.0003, 0.003))
        if node.link.dead or self.chance.random() < self.loss:
            # The answer is lost on its way.
            await asyncio.sleep(_ATTEMPT_S)
        return issued

    # Faults.

    async def _nemesis(self) -> None:
        acts = (
            self._crash, self._crash, self._freeze, self._cut, self._etcd_away, self._slow, self._revoke,
            self._compact, self._head_end_away, self._hsm_away, self._clock,
        )  # fmt: skip
        assert self.tasks is not None
        while True:
            await asyncio.sleep(self.chance.expovariate(0.8))
            act = self.chance.choice(acts)
            self.faults.append(f"{_now():.3f} {act.__name__}")
            if self.chance.random() < 0.3:
                self.acts.append(self.tasks.create_task(act()))
            else:
                await act()

    async def _crash(self) -> None:
        name = self.chance.choice(NODES)
        if self.nodes[name].link.dead:
            return
        lease_id = self.crash(name)
        if self.chance.random() < 0.7:
            # Its peers have noticed.
            await asyncio.sleep(self.chance.uniform(0.001, 0.1))
            await self._end_lease(lease_id)
        await asyncio.sleep(self.chance.uniform(0.0, 3.0))
        self.start(name)

    async def _freeze(self) -> None:
        self._any().link.freeze(self.chance.choice((0.3, 1.0, 6.0)))
        await asyncio.sleep(1.0)

    async def _cut(self) -> None:
        node = self._any()
        node.link.cut = True
        await asyncio.sleep(self.chance.uniform(0.2, 6.0))
        node.link.cut = False

    async def _etcd_away(self) -> None:
        for node in self.nodes.values():
            node.link.cut = True
        await asyncio.sleep(self.chance.uniform(0.2, 4.0))
        for node in self.nodes.values():
            node.link.cut = False

    async def _slow(self) -> None:
        node = self._any()
        node.link.slow = self.chance.choice((20.0, 200.0))
        await asyncio.sleep(self.chance.uniform(0.2, 3.0))
        node.link.slow = 1.0

    async def _revoke(self) -> None:
        await self._end_lease(self._any().ownership.lease_id)

    async def _compact(self) -> None:
        if self.etcd.compacted < self.etcd.revision:
            await self.etcd.compact(self.etcd.revision)

    async def _head_end_away(self) -> None:
        self.wan.outage = True
        await asyncio.sleep(self.chance.uniform(0.2, 4.0))
        self.wan.outage = False

    async def _hsm_away(self) -> None:
        for name in self.chance.sample(NODES, self.chance.choice((1, 1, 3))):
            self.nodes[name].signer.broken = True
        await asyncio.sleep(self.chance.uniform(0.2, 4.0))
        for node in self.nodes.values():
            node.signer.broken = False

    async def _clock(self) -> None:
        names = NODES if self.chance.random() < 0.3 else (self.chance.choice(NODES),)
        self.step_wall(self.chance.choice((-200.0, 200.0, -3600.0, 3600.0, -172_800.0, 172_800.0)), *names)
        await asyncio.sleep(self.chance.uniform(0.2, 4.0))
        self.step_wall(0.0)

    async def _end_lease(self, lease_id: int) -> None:
        if lease_id in self.etcd.leases:
            await self.etcd.revoke_lease(lease_id)

    def _any(self) -> SimNode:
        return self.nodes[self.chance.choice(NODES)]

    def _heal(self) -> None:
        self.wan.outage, self.wan.loss, self.loss = False, 0.0, 0.0
        for name, node in self.nodes.items():
            if node.link.dead:
                self.start(name)
        for node in self.nodes.values():
            node.link.cut, node.link.slow, node.link.loss = False, 1.0, 0.0
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
        findings = check_run(
            Run(
                shards=_CONFIG.shards,
                give_up=GiveUp(attempts_max=_DELIVERY.attempts_max, after_s=_DELIVERY.give_up_after_s),
                began=NOW,
                said=self.meters.said,
                calls=self.history.calls,
                ledger=ledger,
                credits=self.meters.credits,
                not_authentic=self.meters.not_authentic,
                window_s=_FLOW.hot_window.total_seconds(),
                id_age_s=self.ages,
                free_shards=self._free_shards(),
                leases=len(self.etcd.leases.keys() - {node.ownership.lease_id for node in self.nodes.values()})
                if self._settled_leases()
                else 0,
            )
        )
        told = "\n".join([*map(repr, ledger), *map(repr, self.history.calls), *map(repr, self.meters.credits)])
        return SimResult(
            seed=self.seed,
            findings=findings,
            digest=hashlib.sha256(told.encode()).hexdigest(),
            vends=sum(getattr(event.change, "created", False) for event in ledger),
            virtual_s=_now(),
            faults=self.faults,
        )

    def _settled_leases(self) -> bool:
        """Return whether every lease of a dead life has had time to run out."""
        return _now() > _LOAD_S + 10


async def _awaited(work: Awaitable[None]) -> None:
    await work


def _now() -> float:
    return asyncio.get_running_loop().time()


def _content(sale: Sale) -> str:
    """Return what else must be the same for two sales to be one, besides the amount."""
    return f"{sale.pan}/{sale.operation.name}"


def _with(sale: Sale, transaction_id: str, content: str, pence: int) -> Sale:
    pan, _, operation = content.partition("/")
    return Sale(
        participant_id=sale.participant_id,
        transaction_id=TransactionId(transaction_id),
        operation=Operation[operation],
        pan=Pan(pan),
        amount=Pence(pence),
        channel=sale.channel,
    )


def simulate(seed: int, sabotage: Sabotage | None = None) -> SimResult:
    """Run one seed, in no time."""
    from tests.sim.loop import run_virtual

    async def run() -> SimResult:
        return await Simulation(seed, sabotage or Sabotage()).run()

    with suppress(asyncio.CancelledError):
        return run_virtual(run())
    raise AssertionError(f"seed {seed} was cancelled")
