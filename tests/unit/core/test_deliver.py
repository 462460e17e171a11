"""The delivery worker, where no process drill can look: what it does while its lease is in doubt."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import cast

import pytest
from etcdpb import rpc_pb2 as pb

from app.clock import SystemClock
from cluster import ops
from cluster.client import EtcdClient
from cluster.config import EtcdConfig
from cluster.keys import Keys
from cluster.ledger import EtcdLedger
from cluster.outbox import EtcdOutbox
from cluster.shards import shard_of
from core.domain.meter import MeterId, OriginatorId
from core.domain.token import Counter
from core.flows import deliver
from core.flows.config import DeliveryConfig
from core.flows.confirm import DUPLICATE_UTRN
from core.flows.deliver import DeliveryWorker
from core.flows.delivery_attempt import AttemptDelivery
from core.flows.idempotency import Answers
from core.observe import StageTimes
from core.ports.headend import Alert, Answer, AnswerKind, StreamRestored
from core.ports.ledger import CounterState, Entry
from core.ports.outbox import Owed
from core.ports.ownership import Gained, OwnershipChange
from tests.fakes.etcd import FakeEtcd
from tests.sim.meters import SimHeadEnd, SimMeters, SimWan, code_of
from tests.support.vends import HEAD_END, ORIGINATOR, PSP_ID, new_id, new_meter_id, vend

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
    monkeypatch.setattr(deliver, "_READ_AGAIN_AFTER_S", 0.01)
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
        answers=Answers(recent_max=10),
        attempt=AttemptDelivery(
            outbox=outbox, head_ends={HEAD_END: head_end}, clock=clock, times=StageTimes(), random=chance,
            config=DeliveryConfig(),
        ),
        config=DeliveryConfig(),
    )  # fmt: skip
    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
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
    assert list(worker._turn) == in_order
    assert worker._addressed(StreamRestored()) == in_order


async def test_codes_of_two_suppliers_for_one_meter_do_not_hold_each_other_up() -> None:
    """After a change of supplier: what became of the old one's code 1 is asked about, and the new one's is sent."""
    meter_id, gaining = new_meter_id(), OriginatorId("90b3d51f30010009")
    worker = _idle_worker()
    old = _owed(meter_id, 1)
    new = replace(old, originator_id=gaining, transaction_id=new_id(), since=2)
    worker._take_listing((old, new))
    assert list(worker._turn) == [(meter_id, ORIGINATOR), (meter_id, gaining)]
    alert = Alert(meter_id=meter_id, alert_code=DUPLICATE_UTRN, originator_id=None, counter=None)
    assert worker._addressed(alert) == [(meter_id, ORIGINATOR), (meter_id, gaining)], "an alert may be about either"
    named = Answer(message_id=f"{gaining}:{meter_id}:{1 << 32}", kind=AnswerKind.APPLIED)
    assert worker._addressed(named) == [(meter_id, gaining)]
    worker._remove((meter_id, ORIGINATOR), 1)
    assert list(worker._lanes) == [(meter_id, gaining)]


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
        outbox=outbox, head_ends={}, clock=clock, times=StageTimes(), random=random.Random(1), config=DeliveryConfig()
    )
    return DeliveryWorker(
        outbox=outbox, ownership=FlickeringOwnership(0, 1, 0), head_ends={}, answers=Answers(recent_max=10),
        attempt=attempt, config=DeliveryConfig(),
    )  # fmt: skip
