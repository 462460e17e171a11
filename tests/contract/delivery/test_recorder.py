"""What meters say of codes whose delivery nobody owes reaches their vends; over the fake and over a real etcd."""

import asyncio
import collections
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, cast

import pytest
from etcdpb import rpc_pb2 as pb

from cluster.etcd import ops
from cluster.etcd.keys import Keys
from cluster.ledger.outbox import EtcdOutbox
from cluster.ledger.vends import EtcdLedger
from cluster.membership.placement import shard_of
from core.delivery import recorder as recorder_module
from core.delivery.origins import Received
from core.delivery.outcomes import CREDIT_ADDED_LOCALLY, DUPLICATE_UTRN
from core.delivery.recorder import Deliveries, Hand, Recorder
from core.domain.delivery import Delivery, DeliveryReason, DeliveryState
from core.domain.errors import HeadEndUnavailable
from core.domain.meter import MeterId
from core.domain.record import Kind, ReadSet, Ref
from core.domain.utrn import COUNTER_CACHE, Counter
from core.domain.vend import Operation, Vend
from core.metrics import SetAside
from core.ports.head_end import Alert, Answer, AnswerKind, Numbered
from core.ports.ledger import Committed, CounterState, Entry, StoredVend
from core.ports.outbox import DeliveryChange
from core.ports.ownership import OwnershipChange
from tests.fakes.clock import HandClock
from tests.support.answers import memory
from tests.support.etcd import Store
from tests.support.origins import at_head_end, sent
from tests.support.owed import id_of
from tests.support.patience import PATIENCE_S
from tests.support.vends import HEAD_END, NOW, ORIGINATOR, PSP_ID, SUPPLIER_ID, new_meter_id, vend

A = DeliveryState


@dataclass
class Telling:
    """A head end that keeps what meters say, under numbers; one that counts anew says so with a lower one."""

    kept: list[Answer | Alert] = field(default_factory=list)
    more: asyncio.Event = field(default_factory=asyncio.Event)
    read: list[int] = field(default_factory=list)

    def say(self, *said: Answer | Alert) -> None:
        self.kept += said
        self.more.set()
        self.more = asyncio.Event()

    async def said(self, after: int) -> AsyncIterator[Numbered]:
        self.read.append(after)
        if after > len(self.kept):
            yield Numbered(0)
            after = 0
        while True:
            more = self.more
            while after < len(self.kept):
                after += 1
                yield Numbered(after, self.kept[after - 1])
            await more.wait()


class Owning:
    """Owns what it is told to, under the epochs it is told."""

    def __init__(self, shards: int) -> None:
        self.shards, self.epochs = shards, dict[int, int]()

    def shard_of(self, meter_id: MeterId) -> int:
        return shard_of(meter_id, self.shards)

    def epoch(self, shard: int) -> int | None:
        return self.epochs.get(shard)

    async def changes(self) -> AsyncIterator[OwnershipChange]:
        for change in list[OwnershipChange]():
            yield change


class Bench:
    """A ledger, one meter, and nodes that hear what it says."""

    def __init__(self, store: Store) -> None:
        self.store, self.keys = store, Keys(store.config.prefix)
        self.ledger = EtcdLedger(store.client, store.config, HandClock())
        self.outbox = EtcdOutbox(store.client, store.config, HandClock())
        self.meter_id, self.state = new_meter_id(), CounterState()
        self.shard = shard_of(self.meter_id, store.config.shards)
        self.head_end = Telling()
        self.set_aside = SetAside()
        self.deliveries: Deliveries | None = None
        self.spent_here: Callable[..., tuple[bool, ReadSet]] = lambda *_: (True, ())

    async def issue(self, operation: Operation = Operation.ISSUE) -> StoredVend:
        made = vend(self.state.next, self.meter_id, operation=operation)
        (outcome,) = await self.ledger.commit([Entry(vend=made, seen=self.state)])
        assert isinstance(outcome, Committed)
        self.state = outcome.counter
        return outcome.stored

    async def own(self, node: str) -> int:
        key = self.keys.shard(self.shard)
        await self.store.client.txn(pb.TxnRequest(success=[ops.delete(key)]))
        reply = await self.store.client.txn(pb.TxnRequest(success=[ops.put(key, node.encode())]))
        return reply.header.revision

    async def write(self, stored: StoredVend, delivery: Delivery, epoch: int) -> StoredVend:
        change = DeliveryChange(shard=self.shard, epoch=epoch, stored=stored, delivery=delivery)
        (outcome,) = await self.outbox.write([change])
        assert isinstance(outcome, StoredVend), outcome
        return outcome

    async def ended(self, state: DeliveryState, reason: DeliveryReason, epoch: int) -> StoredVend:
        """Return a vend that was sent once, and whose delivery ended so."""
        stored = await self.issue(Operation.TOP_UP)
        stored = await self.write(stored, sent(stored.vend.delivery, epoch), epoch)
        return await self.write(stored, stored.vend.delivery.close(state, reason, NOW, epoch), epoch)

    @asynccontextmanager
    async def node(
        self, epoch: int, *, head_end: str = HEAD_END, also: Mapping[int, int] = MappingProxyType({})
    ) -> AsyncIterator[Recorder]:
        """A node that owns the meter's shard under `epoch`, and others under theirs, and hears the head end."""
        ownership = Owning(self.store.config.shards)
        ownership.epochs.update(also)
        ownership.epochs[self.shard] = epoch
        outbox = EtcdOutbox(self.store.client, self.store.config, HandClock())
        recorder = Recorder(
            outbox=outbox, ownership=ownership, head_ends={head_end: self.head_end},  # type: ignore[dict-item]
            answers=memory(), clock=HandClock(), origins=at_head_end(self.set_aside),
            spent_here=self.spent_here,
        )  # fmt: skip
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(outbox.run()), tasks.create_task(recorder.run(self.deliveries))]
            for shard, under in ownership.epochs.items():
                recorder.gained(shard, under)
            try:
                yield recorder
            finally:
                for one in running:
                    one.cancel()

    def alert(self, code: int, counter: int) -> Alert:
        return Alert(meter_id=self.meter_id, alert_code=code, originator_id=ORIGINATOR, counter=Counter(counter))

    def answer(self, one: Vend, kind: AnswerKind) -> Answer:
        return Answer(message_id=id_of(one), kind=kind)

    async def delivery(self, one: StoredVend) -> Delivery:
        found = await self.ledger.find(PSP_ID, one.vend.sale.transaction_id)
        assert isinstance(found, StoredVend)
        return found.vend.delivery

    async def until(self, one: StoredVend, state: DeliveryState) -> Delivery:
        async with asyncio.timeout(PATIENCE_S):
            while (delivery := await self.delivery(one)).state is not state:  # noqa: ASYNC110  # the ledger's word
                await asyncio.sleep(0.002)
        return delivery

    async def until_heard(self) -> None:
        """Return when everything that was said is recorded, and how far that goes is too."""
        async with asyncio.timeout(PATIENCE_S):
            while ((await self.outbox.heard([self.shard], HEAD_END))[0] or 0) < len(self.head_end.kept):  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def applied(self) -> int:
        return (await self.outbox.sequence(ORIGINATOR, self.meter_id)).highest_applied


@pytest.fixture
async def bench(store: Store, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(recorder_module, "_SAVE_EVERY_S", -1.0)
    monkeypatch.setattr(recorder_module, "_AGAIN_S", 0.01)
    made = Bench(store)
    running = asyncio.get_running_loop().create_task(made.outbox.run())
    yield made
    running.cancel()


ENDS = [
    (A.NOT_REQUESTED, DeliveryReason.NONE, DeliveryReason.ALREADY_CREDITED),
    (A.QUEUED, DeliveryReason.NONE, DeliveryReason.ALREADY_CREDITED),
    (A.ENTER_BY_HAND, DeliveryReason.NO_ANSWER, DeliveryReason.ALREADY_CREDITED),
    (A.NEEDS_CHECK, DeliveryReason.DUPLICATE_UNPROVEN, DeliveryReason.ALREADY_CREDITED),
    (A.REFUSED, DeliveryReason.MAX_BALANCE, DeliveryReason.CREDITED_AFTER_REFUSAL),
]


async def _in(bench: Bench, state: DeliveryState, reason: DeliveryReason, epoch: int) -> StoredVend:
    if state in (A.NOT_REQUESTED, A.QUEUED):
        return await bench.issue(Operation.ISSUE if state is A.NOT_REQUESTED else Operation.TOP_UP)
    return await bench.ended(state, reason, epoch)


@pytest.mark.parametrize(("state", "reason", "told"), ENDS, ids=[row[0].name for row in ENDS])
async def test_a_code_credited_at_the_keypad_is_applied_whatever_became_of_its_delivery(
    bench: Bench, state: DeliveryState, reason: DeliveryReason, told: DeliveryReason
) -> None:
    epoch = await bench.own("node-a")
    stored = await _in(bench, state, reason, epoch)
    assert (await bench.delivery(stored)).state is state
    async with bench.node(epoch) as node:
        bench.head_end.say(bench.alert(CREDIT_ADDED_LOCALLY, stored.vend.counter))
        delivery = await bench.until(stored, A.APPLIED)
        await bench.until_heard()
    assert (delivery.reason, delivery.epoch) == (told, epoch)
    assert await bench.applied() == stored.vend.counter
    assert await bench.outbox.case_count() == 0
    owed = await bench.store.client.range(pb.RangeRequest(key=bench.keys.outboxes(), range_end=b"\xff"))
    assert not [kv for kv in owed.kvs if bench.meter_id.encode() in kv.key]
    assert node.counts["credited_after_refusal"] == (state is A.REFUSED)


async def test_an_answer_after_sending_was_given_up_reaches_its_vend(bench: Bench) -> None:
    epoch = await bench.own("node-a")
    stored = await bench.ended(A.ENTER_BY_HAND, DeliveryReason.NO_ANSWER, epoch)
    async with bench.node(epoch):
        bench.head_end.say(bench.answer(stored.vend, AnswerKind.APPLIED))
        await bench.until(stored, A.APPLIED)


async def test_an_answer_to_a_message_never_sent_is_not_believed(bench: Bench) -> None:
    epoch = await bench.own("node-a")
    stored, other = await bench.issue(), await bench.issue()
    async with bench.node(epoch):
        bench.head_end.say(bench.answer(stored.vend, AnswerKind.APPLIED))
        bench.head_end.say(bench.alert(CREDIT_ADDED_LOCALLY, other.vend.counter))
        await bench.until(other, A.APPLIED)
    assert (await bench.delivery(stored)).state is A.NOT_REQUESTED
    assert bench.set_aside.counts[HEAD_END, "answer to a message never sent"] == 1


async def test_a_head_end_that_does_not_reach_the_meter_says_nothing_of_its_codes(bench: Bench) -> None:
    epoch = await bench.own("node-a")
    stored = await bench.issue()
    async with bench.node(epoch, head_end="another"):
        bench.head_end.say(bench.alert(CREDIT_ADDED_LOCALLY, stored.vend.counter))
        async with asyncio.timeout(PATIENCE_S):
            while not bench.set_aside.counts:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
    assert (await bench.delivery(stored)).state is A.NOT_REQUESTED


@pytest.mark.parametrize(
    ("newer", "spent_here", "state"),
    [
        (COUNTER_CACHE - 1, True, A.APPLIED),
        (COUNTER_CACHE, True, A.NEEDS_CHECK),
        (0, False, A.NEEDS_CHECK),
    ],
    ids=["within the cache", "beyond it", "another generator's sequence"],
)
async def test_a_duplicate_is_a_credit_only_while_the_meter_must_remember_it(
    bench: Bench, newer: int, spent_here: bool, state: DeliveryState
) -> None:
    epoch = await bench.own("node-a")
    bench.spent_here = lambda *_: (spent_here, ())
    stored = await bench.issue()
    for _ in range(newer):
        await bench.issue()
    async with bench.node(epoch):
        bench.head_end.say(bench.alert(DUPLICATE_UTRN, 1))
        delivery = await bench.until(stored, state)
    assert await bench.applied() == 1, "either way the meter is at this counter or further"
    if state is A.NEEDS_CHECK:
        assert delivery.reason is DeliveryReason.DUPLICATE_UNPROVEN
        ((case,), more) = await bench.outbox.cases(SUPPLIER_ID)
        assert (case.vend.sale, more, await bench.outbox.case_count()) == (stored.vend.sale, "", 1)


@pytest.mark.parametrize("counter", [2, 2**32 - 1])
async def test_a_counter_that_was_never_issued_changes_nothing_and_is_an_alarm(bench: Bench, counter: int) -> None:
    epoch = await bench.own("node-a")
    stored = await bench.issue()
    async with bench.node(epoch) as node:
        bench.head_end.say(bench.alert(CREDIT_ADDED_LOCALLY, counter))
        await bench.until_heard()
    assert (await bench.applied(), node.counts["never_issued"]) == (0, 1)
    assert (await bench.delivery(stored)).state is A.NOT_REQUESTED
    await bench.outbox.note_applied(
        shard=bench.shard, epoch=epoch, originator_id=ORIGINATOR, meter_id=bench.meter_id, counter=Counter(counter)
    )
    assert await bench.applied() == 0


async def test_what_was_said_while_nobody_owned_the_shard_is_heard_by_its_next_owner(bench: Bench) -> None:
    stored = await bench.issue()
    async with bench.node(await bench.own("node-a")):
        bench.head_end.say(bench.alert(CREDIT_ADDED_LOCALLY, 99))
        await bench.until_heard()
    bench.head_end.say(bench.alert(CREDIT_ADDED_LOCALLY, stored.vend.counter))
    async with bench.node(await bench.own("node-b")):
        await bench.until(stored, A.APPLIED)
    assert bench.head_end.read == [0, 1], "it reads on where the one before left off"


async def test_without_the_cursor_of_the_ledger_it_is_lost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control: a node that begins with what is said from now on, as every node did."""
    stored, later = await bench.issue(), await bench.issue()
    bench.head_end.say(bench.alert(CREDIT_ADDED_LOCALLY, stored.vend.counter))

    async def from_now_on(_: EtcdOutbox, shards: list[int], __: str) -> list[int]:
        return [len(bench.head_end.kept) for _ in shards]

    with monkeypatch.context() as patched:
        patched.setattr(EtcdOutbox, "heard", from_now_on)
        async with bench.node(await bench.own("node-b")):
            async with asyncio.timeout(PATIENCE_S):
                while not bench.head_end.read:  # noqa: ASYNC110
                    await asyncio.sleep(0.002)
            bench.head_end.say(bench.alert(CREDIT_ADDED_LOCALLY, later.vend.counter))
            await bench.until(later, A.APPLIED)
    assert (await bench.delivery(stored)).state is A.NOT_REQUESTED


async def test_a_deposed_node_records_nothing_and_moves_no_cursor(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = await bench.issue()
    old = await bench.own("node-a")
    new = await bench.own("node-b")
    deposed, save = asyncio.Event(), Recorder._save

    async def saved(self: Recorder, *arguments: Any) -> None:
        await save(self, *arguments)
        deposed.set()

    monkeypatch.setattr(Recorder, "_save", saved)
    async with bench.node(old):
        bench.head_end.say(bench.alert(CREDIT_ADDED_LOCALLY, stored.vend.counter))
        async with asyncio.timeout(PATIENCE_S):
            await deposed.wait()
    assert (await bench.delivery(stored)).state is A.NOT_REQUESTED
    assert await bench.outbox.heard([bench.shard], HEAD_END) == [0]
    async with bench.node(new):
        assert (await bench.until(stored, A.APPLIED)).epoch == new


async def test_a_shard_whose_place_is_not_understood_waits_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder_module, "_ASIDE_AGAIN_S", 0.05)
    stored, epoch, other = await bench.issue(), await bench.own("node-a"), (bench.shard + 1) % bench.store.config.shards
    key = Keys(bench.store.config.prefix).heard(other, HEAD_END)
    await bench.store.client.txn(pb.TxnRequest(success=[ops.put(key, b"\xff\xfenot a record")]))
    async with bench.node(epoch) as recorder:
        recorder.gained(other, epoch)
        bench.head_end.say(bench.alert(CREDIT_ADDED_LOCALLY, stored.vend.counter))
        await bench.until(stored, A.APPLIED)
        await bench.until_heard()
        assert await bench.outbox.heard([other], HEAD_END) == [None], "nobody has made up how far it is recorded"
        bench.head_end.read.clear()
        await bench.store.client.txn(pb.TxnRequest(success=[ops.delete(key)]))
        async with asyncio.timeout(PATIENCE_S):
            while 0 not in bench.head_end.read:  # noqa: ASYNC110  # it is read from the beginning, as a new one
                await asyncio.sleep(0.002)


async def test_a_head_end_that_counts_anew_is_heard_from_its_beginning(bench: Bench) -> None:
    first, second = await bench.issue(), await bench.issue()
    epoch = await bench.own("node-a")
    async with bench.node(epoch):
        for _ in range(3):
            bench.head_end.say(bench.alert(CREDIT_ADDED_LOCALLY, first.vend.counter))
        await bench.until_heard()
    bench.head_end = Telling()
    bench.head_end.say(bench.alert(CREDIT_ADDED_LOCALLY, second.vend.counter))
    async with bench.node(epoch) as node:
        await bench.until(second, A.APPLIED)
        assert node.counts["began_anew"] == 1


async def test_ten_thousand_at_once_are_all_recorded_though_little_waits(bench: Bench) -> None:
    """What came beyond 10,000 waiting alerts was dropped; here the head end is held back."""
    stored = await bench.issue()
    bench.head_end.say(*(bench.alert(CREDIT_ADDED_LOCALLY, 99) for _ in range(12_000)))
    bench.head_end.say(bench.alert(CREDIT_ADDED_LOCALLY, stored.vend.counter))
    async with bench.node(await bench.own("node-a")):
        await bench.until(stored, A.APPLIED)


async def test_an_outage_of_the_head_end_ends(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = await bench.issue()
    telling, broken = Telling.said, iter(range(3))

    async def said(self: Telling, after: int) -> AsyncIterator[Numbered]:
        if next(broken, None) is not None:
            raise HeadEndUnavailable("away")
        async for one in telling(self, after):
            yield one

    monkeypatch.setattr(Telling, "said", said)
    bench.head_end.say(bench.alert(CREDIT_ADDED_LOCALLY, stored.vend.counter))
    async with bench.node(await bench.own("node-a")):
        await bench.until(stored, A.APPLIED)


async def test_what_was_told_of_a_counter_before_it_was_issued_is_not_believed_afterwards(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "_SAVE_EVERY_S", 3600.0)
    first, epoch = await bench.issue(), await bench.own("node-a")
    async with bench.node(epoch) as node:
        bench.head_end.say(bench.alert(CREDIT_ADDED_LOCALLY, 2))
        await bench.until_heard()
        assert node.counts["never_issued"] == 1
    second = await bench.issue()
    bench.head_end.say(bench.alert(CREDIT_ADDED_LOCALLY, first.vend.counter))
    async with bench.node(await bench.own("node-b")):
        await bench.until(first, A.APPLIED)
    assert (await bench.delivery(second)).state is A.NOT_REQUESTED


class OneDelivery:
    """A node that is trying the code, or has ended it."""

    def __init__(self) -> None:
        self.where, self.alerts = Hand.TRIED, list[Received]()
        self.asked = asyncio.Event()

    def hand(self, *_: object) -> Hand:
        self.asked.set()
        return self.where

    def take_news(self, received: Received) -> None:
        self.alerts.append(received)


async def test_what_is_said_while_an_attempt_ends_otherwise_is_recorded_after_it(bench: Bench) -> None:
    """The meter took a repeat of the message, and the attempt ended by the refusal of the first, a moment before."""
    epoch, deliveries = await bench.own("node-a"), OneDelivery()
    stored = await bench.issue(Operation.TOP_UP)
    stored = await bench.write(stored, sent(stored.vend.delivery, epoch), epoch)
    bench.deliveries = deliveries
    async with bench.node(epoch):
        bench.head_end.say(bench.answer(stored.vend, AnswerKind.APPLIED))
        await deliveries.asked.wait()
        assert await bench.outbox.heard([bench.shard], HEAD_END) == [0], "it is held: a crash now must not lose it"
        closed = stored.vend.delivery.close(A.REFUSED, DeliveryReason.MAX_BALANCE, NOW, epoch)
        await bench.write(stored, closed, epoch)
        deliveries.where = Hand.FREE
        delivery = await bench.until(stored, A.APPLIED)
        await bench.until_heard()
    assert delivery.reason is DeliveryReason.CREDITED_AFTER_REFUSAL


async def test_what_an_attempt_has_written_is_not_written_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch, deliveries = await bench.own("node-a"), OneDelivery()
    stored = await bench.issue(Operation.TOP_UP)
    bench.deliveries = deliveries
    asked: list[int] = []
    code = EtcdOutbox.code

    async def counted(self: EtcdOutbox, *which: Any) -> Any:
        asked.append(which[2])
        return await code(self, *which)

    monkeypatch.setattr(EtcdOutbox, "code", counted)
    async with bench.node(epoch):
        bench.head_end.say(bench.answer(stored.vend, AnswerKind.APPLIED))
        await deliveries.asked.wait()
        deliveries.where = Hand.APPLIED
        await bench.until_heard()
    assert asked == []


async def test_what_a_head_end_can_say_without_end_is_not_logged_without_end(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Counters that were never issued, and events counted anew again and again: counted all, logged now and then."""
    recorder = Recorder(
        outbox=bench.outbox, ownership=Owning(bench.store.config.shards), head_ends={}, answers=memory(),
        clock=HandClock(), origins=at_head_end(bench.set_aside),
    )  # fmt: skip
    reading = recorder_module._Reading(HEAD_END, {})
    for sequence in [10, 5] * 500:
        recorder._check_order(reading, [Numbered(sequence)])
    for counter in range(1, 501):
        alert = Alert(
            meter_id=bench.meter_id, alert_code=CREDIT_ADDED_LOCALLY, originator_id=ORIGINATOR, counter=Counter(counter)
        )
        named = recorder_module._named(Numbered(counter, alert))
        assert named is not None
        await recorder._write(named, bench.shard, 1, reading)
    assert (recorder.counts["began_anew"], recorder.counts["never_issued"]) == (500, 500)
    # Its own lines: an earlier test's gRPC may still complain of its closed loop.
    said = [
        record for record in caplog.records if record.levelname == "ERROR" and record.name == recorder_module.__name__
    ]
    assert 0 < len(said) <= 20


async def test_one_meters_vend_that_is_set_aside_holds_up_no_other_and_its_credit_is_not_lost(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "_SAVE_EVERY_S", -1.0)
    odd, fine = await bench.issue(), await bench.issue()
    key = bench.keys.vend(odd.vend.sale.participant_id, odd.vend.sale.transaction_id)
    (kept,) = (await bench.store.client.range(pb.RangeRequest(key=key))).kvs
    await bench.store.client.txn(pb.TxnRequest(success=[ops.put(key, b"\xff")]))
    async with bench.node(await bench.own("node-a")):
        bench.head_end.say(bench.alert(CREDIT_ADDED_LOCALLY, odd.vend.counter))
        bench.head_end.say(bench.alert(CREDIT_ADDED_LOCALLY, fine.vend.counter))
        await bench.until(fine, A.APPLIED)
        assert await bench.outbox.heard([bench.shard], HEAD_END) == [0], "the next owner must hear it again"
    await bench.store.client.txn(pb.TxnRequest(success=[ops.put(key, kept.value)]))
    async with bench.node(await bench.own("node-b")):
        await bench.until(odd, A.APPLIED)


async def _of_another_meter(bench: Bench, *, same_shard: bool = True) -> tuple[StoredVend, Alert]:
    """Return a vend of another meter, and the alert that it is credited."""
    meter_id = new_meter_id()
    while (shard_of(meter_id, bench.store.config.shards) == bench.shard) is not same_shard:
        meter_id = new_meter_id()
    (outcome,) = await bench.ledger.commit([Entry(vend=vend(1, meter_id), seen=CounterState())])
    assert isinstance(outcome, Committed)
    return outcome.stored, replace(bench.alert(CREDIT_ADDED_LOCALLY, 1), meter_id=meter_id)


@pytest.mark.parametrize("bad", [b"\xff", b"\x08\x63"], ids=["garbled", "newer"])
@pytest.mark.parametrize("which", ["code", "counter", "applied"])
async def test_a_credit_told_while_a_record_of_its_counter_is_set_aside_is_not_lost(
    bench: Bench, which: str, bad: bytes
) -> None:
    odd, fine, later = await bench.issue(), await _of_another_meter(bench), await _of_another_meter(bench)
    key = {
        "code": bench.keys.code(ORIGINATOR, bench.meter_id, odd.vend.counter),
        "counter": bench.keys.counter(ORIGINATOR, bench.meter_id),
        "applied": bench.keys.applied(ORIGINATOR, bench.meter_id),
    }[which]
    kept = (await bench.store.client.range(pb.RangeRequest(key=key))).kvs
    await bench.store.client.txn(pb.TxnRequest(success=[ops.put(key, bad)]))
    async with bench.node(await bench.own("node-a")) as node:
        bench.head_end.say(bench.alert(CREDIT_ADDED_LOCALLY, odd.vend.counter))
        for stored, alert in (fine, later):
            # What was read before the second was said is saved before the second is recorded.
            bench.head_end.say(alert)
            await bench.until(stored, A.APPLIED)
        assert node.counts["not_understood"] == 0
        assert await bench.outbox.heard([bench.shard], HEAD_END) == [0], "the next owner must hear it again"
    right = [ops.put(key, kv.value) for kv in kept] or [ops.delete(key)]
    await bench.store.client.txn(pb.TxnRequest(success=right))
    async with bench.node(await bench.own("node-b")):
        await bench.until(odd, A.APPLIED)


async def test_what_is_held_of_one_shard_keeps_no_other_shards_place_back(bench: Bench) -> None:
    odd, (fine, alert) = await bench.issue(), await _of_another_meter(bench, same_shard=False)
    other, epoch = shard_of(fine.vend.meter_id, bench.store.config.shards), await bench.own("node-a")
    key = bench.keys.counter(ORIGINATOR, bench.meter_id)
    (kept,) = (await bench.store.client.range(pb.RangeRequest(key=key))).kvs
    txn = pb.TxnRequest(success=[ops.put(key, b"\xff"), ops.put(bench.keys.shard(other), b"node-a")])
    await bench.store.client.txn(txn)
    (owner,) = (await bench.store.client.range(pb.RangeRequest(key=bench.keys.shard(other)))).kvs
    also = {other: owner.create_revision}
    async with bench.node(epoch, also=also) as node:
        bench.head_end.say(bench.alert(CREDIT_ADDED_LOCALLY, odd.vend.counter), alert)
        # Counter 2 of the other meter was never issued.
        bench.head_end.say(replace(alert, counter=Counter(2)))
        async with asyncio.timeout(PATIENCE_S):
            while await bench.outbox.heard([other], HEAD_END) != [3]:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        assert await bench.outbox.heard([bench.shard], HEAD_END) == [0]
        assert (node.waiting_now()[0], node.counts["never_issued"]) == (1, 1)
    # It is issued now. The next reading begins before what the meter said of it, and does not believe that any more.
    (outcome,) = await bench.ledger.commit(
        [Entry(vend=vend(2, fine.vend.meter_id), seen=await bench.outbox.sequence(ORIGINATOR, fine.vend.meter_id))]
    )
    assert isinstance(outcome, Committed)
    await bench.store.client.txn(pb.TxnRequest(success=[ops.put(key, kept.value)]))
    async with bench.node(epoch, also=also) as node:
        await bench.until(odd, A.APPLIED)
        await bench.until_heard()
        assert node.waiting_now() == (0, 0.0)
    assert bench.head_end.read == [0, 0]
    assert (await bench.delivery(outcome.stored)).state is A.QUEUED


def test_what_is_left_to_an_attempt_is_taken_back_from_one_that_takes_too_long(bench: Bench) -> None:
    clock, deliveries = HandClock(), OneDelivery()
    recorder = Recorder(
        outbox=bench.outbox, ownership=Owning(bench.store.config.shards), head_ends={}, answers=memory(),
        clock=clock, origins=at_head_end(),
    )  # fmt: skip
    recorder._deliveries = deliveries
    reading = recorder_module._Reading(HEAD_END, {bench.shard: 1})
    said = recorder_module._Named(bench.meter_id, ORIGINATOR, Counter(1), duplicate=False, event=cast("Any", None))
    reading.held[said] = (7, clock.monotonic())
    clock.advance(recorder_module._HELD_AT_MOST_S - 0.1)
    assert recorder._released(reading) == {}
    clock.advance(0.2)
    assert recorder._released(reading) == {said: 7}
    assert not reading.held


async def test_a_write_that_met_another_meter_record_is_made_by_the_ledgers(bench: Bench) -> None:
    """This node's copy of the meter's record is behind; without another look it stays so, write after write."""
    stored, epoch = await bench.issue(), await bench.own("node-a")
    copy, asked = {bench.meter_id: 99}, list[MeterId]()

    async def read_again(meter_id: MeterId) -> None:
        asked.append(meter_id)
        copy[meter_id] = 0

    recorder = Recorder(
        outbox=bench.outbox, ownership=Owning(bench.store.config.shards), head_ends={}, answers=memory(),
        clock=HandClock(), origins=replace(at_head_end(), read_again=read_again),
        spent_here=lambda meter_id, _: (True, ((Ref(Kind.METER, meter_id), copy[meter_id]),)),
    )  # fmt: skip
    named = recorder_module._named(Numbered(1, bench.alert(DUPLICATE_UTRN, stored.vend.counter)))
    assert named is not None
    await recorder._write(named, bench.shard, epoch, recorder_module._Reading(HEAD_END, {bench.shard: epoch}))
    assert (asked, (await bench.delivery(stored)).state) == ([bench.meter_id], A.APPLIED)


def test_what_is_held_when_a_head_end_counts_anew_holds_back_what_is_saved(bench: Bench) -> None:
    recorder = cast("Any", Recorder.__new__(Recorder))
    recorder.counts = collections.Counter()
    reading = recorder_module._Reading(HEAD_END, {bench.shard: 1})
    reading.saved, reading.at = {bench.shard: 20}, 30
    said = recorder_module._Named(bench.meter_id, ORIGINATOR, Counter(1), duplicate=False, event=cast("Any", None))
    reading.held[said] = (30, 0.0)
    recorder._check_order(reading, [Numbered(1)])
    assert (reading.at, reading.saved, reading.held[said][0]) == (1, {bench.shard: 0}, 0)
