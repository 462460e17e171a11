"""The delivery worker, where no process drill can look: what it does while its lease is in doubt."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import cast

import pytest
from etcdpb import rpc_pb2 as pb

from cluster.config import EtcdConfig
from cluster.etcd import ops
from cluster.etcd.client import EtcdClient
from cluster.etcd.keys import Keys
from cluster.ledger.outbox import EtcdOutbox
from cluster.ledger.vends import EtcdLedger
from cluster.membership.placement import shard_of
from core.delivery import worker as worker_module
from core.delivery.attempt import Aside, AttemptDelivery, AttemptEnd, Done, Later
from core.delivery.outcomes import CREDIT_ADDED_LOCALLY, DUPLICATE_UTRN
from core.delivery.recorder import Hand
from core.delivery.waiting import Parked
from core.delivery.worker import DeliveryWorker
from core.domain.delivery import DeliveryReason, DeliveryState
from core.domain.errors import NotReady
from core.domain.message_id import message_id
from core.domain.meter import MeterId, OriginatorId
from core.domain.utrn import COUNTER_CACHE, Counter
from core.domain.vend import Vend
from core.gateways.system_clock import SystemClock
from core.issuing.config import DeliveryConfig
from core.metrics import StageTimes
from core.ports.head_end import Alert, Answer, AnswerKind
from core.ports.ledger import CounterState, Entry, StoredVend
from core.ports.outbox import Owed
from core.ports.ownership import Gained, OwnershipChange
from tests.fakes.etcd import FakeEtcd
from tests.sim.meters import SimHeadEnd, SimMeters, SimWan, code_of
from tests.support.answers import memory
from tests.support.origins import RANDOM_PART, at_head_end, told
from tests.support.owed import deaf_recorder
from tests.support.patience import PATIENCE_S
from tests.support.vends import HEAD_END, NOW, ORIGINATOR, PSP_ID, new_id, new_meter_id, vend, with_authorization

CONFIG = EtcdConfig(endpoints=("fake:1",))


class FlickeringOwnership:
    """Owns one shard; its lease is in doubt the first times it is asked, and nobody is told when that is over."""

    def __init__(self, shard: int, epoch: int, doubts: int) -> None:
        self._shard, self._epoch, self._doubts = shard, epoch, doubts

    def shard_of(self, meter_id: MeterId) -> int:
        return shard_of(meter_id, CONFIG.shards)

    def epoch(self, shard: int) -> int | None:
        self._doubts -= 1
        return self._epoch if shard == self._shard and self._doubts < 0 else None

    async def changes(self) -> AsyncIterator[OwnershipChange]:
        yield Gained(self._shard, self._epoch)
        await asyncio.Event().wait()


@pytest.mark.parametrize("doubts", [0, 1, 2, 3])
async def test_a_delivery_that_met_a_doubtful_lease_is_looked_at_again(
    doubts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_READ_AGAIN_AFTER_S", 0.01)
    etcd, clock, chance = FakeEtcd(), SystemClock(), random.Random(1)
    meters = SimMeters(chance, refuse=0.0)
    client, keys, meter_id = cast("EtcdClient", etcd), Keys(CONFIG.prefix), new_meter_id()
    shard = shard_of(meter_id, CONFIG.shards)
    owed = replace(vend(1, meter_id), utrn=code_of(ORIGINATOR, meter_id, 1, 1000))
    await EtcdLedger(client, CONFIG, clock).commit([Entry(vend=owed, seen=CounterState())])
    lease, _ = await etcd.grant_lease(60)
    epoch = (await etcd.txn(_claim(keys.shard(shard), lease))).header.revision
    wan = SimWan(chance, meters, loss=0.0)
    outbox, head_end = EtcdOutbox(client, CONFIG, clock), SimHeadEnd(wan, chance)
    worker = DeliveryWorker(
        outbox=outbox,
        ownership=FlickeringOwnership(shard, epoch, doubts),
        head_ends={HEAD_END: head_end},
        answers=memory(),
        attempt=AttemptDelivery(
            outbox=outbox, head_ends={HEAD_END: head_end}, clock=clock, times=StageTimes(), random=chance,
            config=DeliveryConfig(), utc_ahead=timedelta, origins=at_head_end(),
        ),
        recorder=deaf_recorder(outbox, FlickeringOwnership(shard, epoch, 0)),
        config=DeliveryConfig(),
    )  # fmt: skip
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        wan.tasks = tasks
        running = [tasks.create_task(outbox.run()), tasks.create_task(worker.run())]
        async for reply in etcd.watch(keys.outboxes(), etcd.revision):
            if reply.events[-1].type:
                break
        for task in running:
            task.cancel()


def _claim(key: bytes, lease: int) -> pb.TxnRequest:
    return pb.TxnRequest(success=[ops.put(key, b"node-a", lease=lease)])


async def test_after_an_outage_those_who_have_waited_longest_come_first() -> None:
    meters = [new_meter_id() for _ in range(6)]
    waited = dict(zip(meters, (50, 10, 60, 30, 20, 40), strict=True))
    worker = _idle_worker()
    worker._take_listing(tuple(_owed(meter_id, since) for meter_id, since in waited.items()))
    in_order = [(meter_id, ORIGINATOR) for meter_id in sorted(meters, key=waited.__getitem__)]
    assert list(worker._ready) == in_order


async def test_codes_of_two_suppliers_for_one_meter_do_not_hold_each_other_up() -> None:
    """After a change of supplier: what became of the old one's code 1 is asked about, and the new one's is sent."""
    meter_id, gaining = new_meter_id(), OriginatorId("90b3d51f30010009")
    worker = _idle_worker()
    old = _owed(meter_id, 1)
    new = replace(old, originator_id=gaining, transaction_id=new_id(), since=2)
    worker._take_listing((old, new))
    assert list(worker._ready) == [(meter_id, ORIGINATOR), (meter_id, gaining)]
    alert = Alert(meter_id=meter_id, alert_code=DUPLICATE_UTRN, originator_id=None, counter=None)
    either = [((meter_id, ORIGINATOR), None), ((meter_id, gaining), None)]
    assert worker._addressed(alert) == either, "an alert may be about either"
    named = Answer(message_id=message_id(gaining, meter_id, Counter(1), RANDOM_PART), kind=AnswerKind.APPLIED)
    assert worker._addressed(named) == [((meter_id, gaining), 1)]
    worker._remove((meter_id, ORIGINATOR), 1)
    assert list(worker._queues) == [(meter_id, gaining)]


def _owed(meter_id: MeterId, since: int) -> Owed:
    return Owed(
        shard=shard_of(meter_id, CONFIG.shards), meter_id=meter_id, counter=Counter(1), originator_id=ORIGINATOR,
        participant_id=PSP_ID,
        transaction_id=new_id(), since=since,
    )  # fmt: skip


def _idle_worker() -> DeliveryWorker:
    client, clock = cast("EtcdClient", FakeEtcd()), SystemClock()
    outbox = EtcdOutbox(client, CONFIG, clock)
    attempt = AttemptDelivery(
        outbox=outbox, head_ends={}, clock=clock, times=StageTimes(), random=random.Random(1), config=DeliveryConfig(),
        utc_ahead=timedelta, origins=at_head_end(),
    )  # fmt: skip
    return DeliveryWorker(
        outbox=outbox, ownership=FlickeringOwnership(0, 1, 0), head_ends={}, answers=memory(),
        attempt=attempt, config=DeliveryConfig(), recorder=deaf_recorder(outbox, FlickeringOwnership(0, 1, 0)),
    )  # fmt: skip


class Waiting:
    """Attempts that end as they are told, and count how often each counter was tried."""

    def __init__(self) -> None:
        self.ends: dict[int, AttemptEnd | None] = {}
        self.tried: list[int] = []
        self.applied: set[int] = set()
        self.under_way = asyncio.Event()
        self.let_go = asyncio.Event()
        self.origins = at_head_end()

    def carriers(self, _: Vend) -> frozenset[str]:
        return frozenset({HEAD_END})

    async def __call__(self, stored: StoredVend, **_: object) -> AttemptEnd | None:
        self.tried.append(stored.vend.counter)
        self.under_way.set()
        end = self.ends.get(stored.vend.counter, Parked(HEAD_END, NOW))
        if end is None:
            await self.let_go.wait()
        if end is not None:
            return end
        to = DeliveryState.APPLIED if stored.vend.counter in self.applied else DeliveryState.REFUSED
        closed = stored.vend.delivery.close(to, DeliveryReason.NONE, NOW, 1)
        return Done(replace(stored, vend=stored.vend.with_delivery(closed)))


def _worker_of(attempts: Waiting, owned: list[Owed], ownership: FlickeringOwnership) -> DeliveryWorker:
    worker = _idle_worker()
    worker._attempt = cast("AttemptDelivery", attempts)
    worker._ownership = ownership
    worker._ours = {owned[0].shard}
    _remember(worker, owned)
    worker._take_listing(tuple(owned))
    return worker


def _remember(worker: DeliveryWorker, owned: list[Owed]) -> None:
    for owed in owned:
        made = with_authorization(vend(owed.counter, owed.meter_id), originator_id=owed.originator_id)
        sale = replace(made.sale, transaction_id=owed.transaction_id)
        worker._answers.remember(StoredVend(vend=replace(made, sale=sale), revision=1))


def _owed_by(meter_id: MeterId, *counters: int) -> list[Owed]:
    return [
        replace(_owed(meter_id, at), counter=Counter(counter), transaction_id=new_id())
        for at, counter in enumerate(counters, 1)
    ]


async def _until_idle(worker: DeliveryWorker, attempts: Waiting) -> None:
    """Give turns until the worker has none left and nothing is under way."""
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        while worker._ready or worker.under_way:
            if worker._ready:
                await worker._start(tasks, worker._next_ready())
            await asyncio.sleep(0)


@pytest.mark.parametrize("end", [Later(3600.0), Aside(3600.0)], ids=["unknown", "lapsed"])
async def test_what_is_not_known_of_one_code_holds_no_newer_one_of_its_meter(end: AttemptEnd) -> None:
    """After a Change of Tenancy the new tenant's top-up waited for the old one's, for up to a day."""
    meter_id, attempts = new_meter_id(), Waiting()
    owed = _owed_by(meter_id, 7, 8)
    attempts.ends = {7: end, 8: Later(3600.0)}
    worker = _worker_of(attempts, owed, FlickeringOwnership(owed[0].shard, 1, 0))
    await _until_idle(worker, attempts)
    assert attempts.tried == [7, 8]


async def test_with_alerts_that_name_no_code_one_waits_for_the_other() -> None:
    """The positive control of the order: then an alert can only be about the one that is not settled."""
    meter_id, attempts = new_meter_id(), Waiting()
    owed = _owed_by(meter_id, 7, 8)
    attempts.ends = {7: Later(3600.0), 8: Later(3600.0)}
    worker = _worker_of(attempts, owed, FlickeringOwnership(owed[0].shard, 1, 0))
    worker._config = DeliveryConfig(trust_unnamed_alerts=True)
    await _until_idle(worker, attempts)
    assert attempts.tried == [7]


@pytest.mark.parametrize(("end", "goes"), [(Later(3600.0), False), (Aside(3600.0), True)], ids=["to send", "lapsed"])
async def test_no_code_is_sent_that_makes_the_meter_forget_one_that_is_still_to_be_sent(
    end: AttemptEnd, goes: bool
) -> None:
    meter_id, attempts = new_meter_id(), Waiting()
    near, far = 7 + COUNTER_CACHE - 1, 7 + COUNTER_CACHE
    owed = _owed_by(meter_id, 7, near, far)
    attempts.ends = {7: end, near: Later(3600.0), far: Later(3600.0)}
    if goes:
        # Nor one beyond the next that is to be sent.
        owed = [owed[0], owed[2]]
    worker = _worker_of(attempts, owed, FlickeringOwnership(owed[0].shard, 1, 0))
    await _until_idle(worker, attempts)
    assert attempts.tried == ([7, far] if goes else [7, near])


async def test_a_vend_that_is_set_aside_holds_no_other_of_its_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    meter_id, attempts = new_meter_id(), Waiting()
    odd, good = _owed_by(meter_id, 7, 8)
    attempts.ends = {8: Later(3600.0)}
    worker = _worker_of(attempts, [odd, good], FlickeringOwnership(odd.shard, 1, 0))
    worker._answers.doubt((odd.participant_id, odd.transaction_id))
    asked: list[Owed] = []

    async def read(owed: Sequence[Owed]) -> Sequence[NotReady]:
        asked.extend(owed)
        return [NotReady("set aside") for _ in owed]

    monkeypatch.setattr(worker._outbox, "read", read)
    await _until_idle(worker, attempts)
    assert (asked, attempts.tried) == ([odd], [8])
    assert worker.owed_by_shard()[odd.shard] == 2


async def test_a_delivery_cancelled_before_its_first_step_leaves_its_lane_free() -> None:
    meter_id, attempts = new_meter_id(), Waiting()
    owed = _owed_by(meter_id, 7)
    worker = _worker_of(attempts, owed, FlickeringOwnership(owed[0].shard, 1, 0))
    attempts.ends = {7: Later(3600.0)}
    key = (meter_id, ORIGINATOR)
    async with asyncio.TaskGroup() as tasks:
        await worker._start(tasks, worker._next_ready())
        worker._stop(key)
    assert (worker.under_way, worker._queues[key].task, attempts.tried) == (0, None, [])
    await _until_idle(worker, attempts)
    assert attempts.tried == [7], "the shard is ours again, and its delivery goes"


async def test_a_shard_that_is_lost_and_gained_again_while_an_attempt_ends_goes_on() -> None:
    meter_id, attempts = new_meter_id(), Waiting()
    owed = _owed_by(meter_id, 7)
    worker = _worker_of(attempts, owed, FlickeringOwnership(owed[0].shard, 1, 0))
    attempts.ends = {7: None}
    key = (meter_id, ORIGINATOR)
    async with asyncio.TaskGroup() as tasks:
        await worker._start(tasks, worker._next_ready())
        await attempts.under_way.wait()
        worker._stop(key)
        # Gained before the cancelled attempt has come to its end: its counter sequence still has a task.
        worker._resume(key)
    attempts.ends = {7: Later(3600.0)}
    _remember(worker, owed)
    await _until_idle(worker, attempts)
    assert attempts.tried == [7, 7]


async def test_where_a_delivery_is_and_news_of_it() -> None:
    meter_id, attempts = new_meter_id(), Waiting()
    owed = _owed_by(meter_id, 7, 8, 9)
    attempts.ends = {7: Later(3600.0), 8: None, 9: None}
    worker = _worker_of(attempts, owed, FlickeringOwnership(owed[0].shard, 1, 0))
    assert worker.hand(meter_id, ORIGINATOR, Counter(7)) is Hand.WAITS
    attempts.let_go.set()
    attempts.applied = {8}
    await _until_idle(worker, attempts)
    hands = [worker.hand(meter_id, ORIGINATOR, Counter(counter)) for counter in (7, 8, 9, 10)]
    assert hands == [Hand.TRIED, Hand.APPLIED, Hand.FREE, Hand.FREE], "what ended otherwise may yet be credited"
    alert = Alert(meter_id=meter_id, alert_code=CREDIT_ADDED_LOCALLY, originator_id=ORIGINATOR, counter=Counter(7))
    worker.take_news(told(alert))
    assert bool(worker._queues[meter_id, ORIGINATOR].slots[7].box)
