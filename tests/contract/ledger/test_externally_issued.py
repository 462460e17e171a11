"""Codes of a supplier's own generator: which counters they may have, and how a wrong one is set right."""

from collections.abc import AsyncIterator

import pytest
from etcdpb import rpc_pb2 as pb

from cluster.etcd import ops
from cluster.etcd.keys import Keys
from cluster.membership.placement import shard_of
from core.domain.delivery import DeliveryReason, DeliveryState
from core.domain.errors import CounterOutOfRange, CounterTaken
from core.domain.meter import Custody, MeterId, OriginatorId, Pan
from core.domain.money import Pence
from core.domain.utrn import REBUILT_AT_MOST, Counter
from core.domain.vend import Channel, Operation, Sale
from core.issuing.counter_cache import Counters
from core.ports.ledger import StoredVend
from core.ports.outbox import DeliveryChange
from core.registry.counter_transfer import HandOver
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.head_ends import HEAD_END
from tests.support.market_node import GAINING_ID, OPERATOR, MarketNode, as_, open_market
from tests.support.origins import RANDOM_PART
from tests.support.vends import NOW, ORIGINATOR, PSP, SUPPLIER, SUPPLIER_ID, new_id, utrn


class Bench:
    """A meter whose supplier makes its codes itself, and has them delivered."""

    def __init__(self, node: MarketNode, meter_id: MeterId, pan: Pan) -> None:
        self.node, self.meter_id, self.pan = node, meter_id, pan
        self.shard = shard_of(meter_id, node.store.config.shards)

    async def deliver(self, counter: int, *, mac: int = 0) -> StoredVend:
        code = utrn(counter, 1000, mac or counter)
        sale = Sale(
            participant_id=SUPPLIER_ID, transaction_id=new_id(self.node.clock.now()), pan=self.pan,
            operation=Operation.EXTERNALLY_ISSUED, amount=Pence(1000), channel=Channel.APP,
            code=(code, Counter(counter)),
        )  # fmt: skip
        return (await self.node.issue(as_(SUPPLIER), sale, time_left_s=None)).stored

    async def end(self, stored: StoredVend, state: DeliveryState, reason: DeliveryReason) -> None:
        """Send a code once, and have its meter say so of it."""
        key = Keys(self.node.store.config.prefix).shard(self.shard)
        await self.node.store.client.txn(pb.TxnRequest(success=[ops.put(key, b"node-a")]))
        epoch = (await self.node.store.client.range(pb.RangeRequest(key=key))).kvs[0].create_revision
        sent = stored.vend.delivery.send(NOW, epoch, head_end=HEAD_END, random_part=RANDOM_PART)
        for delivery in (sent, sent.close(state, reason, NOW, epoch)):
            change = DeliveryChange(shard=self.shard, epoch=epoch, stored=stored, delivery=delivery)
            (outcome,) = await self.node.outbox.write([change])
            assert isinstance(outcome, StoredVend), outcome
            stored = outcome


@pytest.fixture
async def bench(store: Store) -> AsyncIterator[Bench]:
    node = MarketNode(store, HandClock())
    ((meter_id, pan),) = await open_market(node)
    out = HandOver(meter_id=meter_id, custody_before=Custody.CENTRAL, custody=Custody.SUPPLIER)
    await node.hand_over(as_(SUPPLIER), out)
    async with node.running():
        yield Bench(node, meter_id, pan)


async def test_a_counter_wrong_by_a_multiple_of_1024_is_refused_and_blocks_nothing(bench: Bench) -> None:
    with pytest.raises(CounterOutOfRange) as refused:
        await bench.deliver(1025)
    assert refused.value.facts == {"counter_min": "1", "counter_max": str(REBUILT_AT_MOST)}
    for counter in (1, 2, 3, REBUILT_AT_MOST):
        await bench.deliver(counter)


async def test_without_the_bound_it_is_taken(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counters, "check_externally_issued", staticmethod(lambda *_: None))
    await bench.deliver(1025)


async def test_the_bound_goes_with_what_the_meter_is_known_to_have_credited(bench: Bench) -> None:
    for counter in (REBUILT_AT_MOST + 1, 0xFFFFFFFF):
        with pytest.raises(CounterOutOfRange):
            await bench.deliver(counter)
    await bench.end(await bench.deliver(500), DeliveryState.APPLIED, DeliveryReason.CREDITED)
    await bench.deliver(500 + REBUILT_AT_MOST)
    with pytest.raises(CounterOutOfRange):
        await bench.deliver(500 + REBUILT_AT_MOST + 1)


async def test_many_that_were_never_credited_do_not_stand_in_the_way_of_the_right_one(bench: Bench) -> None:
    """The room of this service's own codes is not theirs: 505 was over it, and blocked the sequence."""
    await bench.deliver(505)
    await bench.deliver(506)
    await bench.deliver(1)


async def test_a_code_that_is_none_gives_its_counter_back(bench: Bench) -> None:
    wrong = await bench.deliver(7, mac=111)
    with pytest.raises(CounterTaken):
        await bench.deliver(7, mac=222)
    await bench.end(wrong, DeliveryState.REFUSED, DeliveryReason.NOT_AUTHENTIC)
    right = await bench.deliver(7, mac=222)
    await bench.end(right, DeliveryState.APPLIED, DeliveryReason.CREDITED)
    found = await bench.node.outbox.code(OriginatorId(ORIGINATOR), bench.meter_id, Counter(7))
    assert found.stored is not None
    assert found.stored.vend.sale == right.vend.sale, "what the meter says of 7 is said of the right one"
    with pytest.raises(CounterTaken):
        await bench.deliver(7, mac=333)


async def test_a_code_refused_for_another_reason_keeps_its_counter(bench: Bench) -> None:
    full = await bench.deliver(7, mac=111)
    await bench.end(full, DeliveryState.REFUSED, DeliveryReason.MAX_BALANCE)
    with pytest.raises(CounterTaken):
        await bench.deliver(7, mac=222)


async def test_a_change_of_supplier_tells_every_code_that_is_not_known_to_be_credited(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A code of two steps that was never sent lay below a newer one that was credited, and was told to nobody."""
    node = MarketNode(store, HandClock())
    ((meter_id, pan),) = await open_market(node)
    bench = Bench(node, meter_id, pan)
    async with node.running():
        unused = (await node.sell(PSP, pan, 5000, operation=Operation.ISSUE)).stored
        credited = (await node.sell(PSP, pan)).stored
        await bench.end(credited, DeliveryState.APPLIED, DeliveryReason.CREDITED)
        by_hand = (await node.sell(PSP, pan)).stored
        await bench.end(by_hand, DeliveryState.ENTER_BY_HAND, DeliveryReason.NO_ANSWER)
        owed = (await node.sell(PSP, pan)).stored
        with monkeypatch.context() as patched:
            patched.setattr("cluster.registry.store._CODES_AT_ONCE", 2)
            patched.setattr("cluster.registry.store._UNCREDITED_MAX", 2)
            few, more = await node.records.codes_uncredited(OriginatorId(ORIGINATOR), meter_id)
        assert ([one.counter for one in few], more) == ([1, 3], 1)
        await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, None)
        ((change,), _) = await node.view.changes(as_(SUPPLIER), SUPPLIER_ID)
    told = [(one.transaction_id, one.counter) for one in change.uncredited]
    assert told == [(one.vend.sale.transaction_id, one.vend.counter) for one in (unused, by_hand, owed)]
    assert (change.uncredited_more, change.highest_applied, change.last_issued) == (0, 2, 4)
    assert [one.counter for one in change.in_flight] == [4]
