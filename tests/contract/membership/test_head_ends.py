"""Which head ends there are: agreed through the ledger, and named by every registration that names one."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from etcdpb import rpc_pb2 as pb

from cluster.etcd import ops
from cluster.etcd.keys import Keys
from cluster.membership.head_ends import EtcdHeadEnds, head_end_names
from core.domain.effective_dated import ms_of
from core.domain.errors import HeadEndUnknown, NotReady
from core.domain.meter import Custody, Meter, Settings
from core.domain.vend import Operation
from core.registry.counter_transfer import HandOver
from tests.contract.registry.test_load_records import load, problems
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.head_ends import HEAD_END
from tests.support.lines import SUPPLIER_LINE, meter_line
from tests.support.market_node import OPERATOR, MarketNode, as_, open_market
from tests.support.patience import PATIENCE_S
from tests.support.vends import PSP, SUPPLIER, meter, new_id, new_meter_id

TYPO = "sandbx"


@pytest.fixture
def node(store: Store) -> MarketNode:
    return MarketNode(store, HandClock())


def _mistyped(settings: Settings) -> Settings:
    return replace(settings, head_end=TYPO)


async def _add(node: MarketNode, _: Meter) -> None:
    await node.meters.add(as_(SUPPLIER), meter(new_meter_id(), settings=Settings(head_end=TYPO)))


async def _change(node: MarketNode, there: Meter) -> None:
    await node.meters.change(as_(SUPPLIER), there.meter_id, _mistyped, None)


async def _change_later(node: MarketNode, there: Meter) -> None:
    later = ms_of(node.clock.now()) + 3_600_000
    await node.meters.change(as_(SUPPLIER), there.meter_id, _mistyped, later)  # type: ignore[arg-type]


async def _exchange(node: MarketNode, there: Meter) -> None:
    new = meter(new_meter_id(), settings=Settings(head_end=TYPO))
    await node.exchange(as_(SUPPLIER), there.meter_id, new, [])


async def _hand_over(node: MarketNode, there: Meter) -> None:
    out = HandOver(meter_id=there.meter_id, custody_before=Custody.CENTRAL, custody=Custody.SMSO)
    await node.hand_over(as_(OPERATOR), out)
    back = HandOver(meter_id=there.meter_id, custody_before=Custody.SMSO, custody=Custody.CENTRAL, settings=_mistyped)
    await node.hand_over(as_(OPERATOR), back)


WAYS = {"add": _add, "change": _change, "change later": _change_later, "exchange": _exchange, "hand over": _hand_over}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
async def test_a_head_end_that_is_not_there_is_refused_wherever_it_is_set(
    node: MarketNode, way: Callable[[MarketNode, Meter], Awaitable[None]]
) -> None:
    ((meter_id, _),) = await open_market(node)
    known = await node.records.read(Meter, meter_id)
    assert known is not None
    with pytest.raises(HeadEndUnknown) as refused:
        await way(node, known.record)
    assert refused.value.facts["head_end"] == TYPO
    assert HEAD_END in refused.value.message, "what there is, is told"
    node.head_ends = frozenset({HEAD_END, TYPO})
    known = await node.records.read(Meter, meter_id)
    assert known is not None
    if way is not _hand_over:
        await way(node, known.record)


async def test_bulk_load_names_the_line_with_a_head_end_that_is_not_there(node: MarketNode) -> None:
    loaded = await load(node, [SUPPLIER_LINE, meter_line(1), meter_line(2, head_end=TYPO)])
    assert (loaded.loaded, problems(loaded)) == (2, {3: "HEAD_END_UNKNOWN"})


async def test_a_node_that_does_not_know_the_head_ends_yet_refuses_for_now(node: MarketNode) -> None:
    ((meter_id, _),) = await open_market(node)
    node.head_ends = None
    with pytest.raises(NotReady):
        await node.meters.change(as_(SUPPLIER), meter_id, _mistyped, None)
    done = await node.meters.change(as_(SUPPLIER), meter_id, lambda one: replace(one, zone="n"), None)
    assert done.changed, "what sets no head end does not wait"


async def test_a_meter_whose_head_end_is_gone_is_sold_codes_by_hand_and_none_to_be_sent(node: MarketNode) -> None:
    ((meter_id, pan),) = await open_market(node)
    async with node.running():
        issued = await node.sell(PSP, pan, operation=Operation.ISSUE)
        node.head_ends = frozenset({"another"})
        with pytest.raises(HeadEndUnknown) as refused:
            await node.sell(PSP, pan)
        assert refused.value.facts == {"head_end": HEAD_END, "known": "another"}
        await node.sell(PSP, pan, operation=Operation.ISSUE)
        sale = issued.stored.vend.sale
        with pytest.raises(HeadEndUnknown):
            await node.send(as_(PSP), sale.participant_id, sale.transaction_id)
        done = await node.meters.change(as_(SUPPLIER), meter_id, lambda one: replace(one, zone="n"), None)
        assert done.changed, "a name that was there before stands in nobody's way"
        node.head_ends = None
        await node.sell(PSP, pan, transaction_id=new_id(node.clock.now()))


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110  # a watch is waited for
            await asyncio.sleep(0.01)


async def test_every_node_knows_the_head_ends_of_all_and_says_which_it_lacks(store: Store) -> None:
    first = EtcdHeadEnds(store.client, store.config, HandClock(), node_id="node-a", own=["dcc", "smso"])
    second = EtcdHeadEnds(store.client, store.config, HandClock(), node_id="node-b", own=["dcc"])
    assert first() is None, "until the ledger has been read"
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(one.run()) for one in (first, second)]
        await _until(lambda: second.missing == {"smso"})
        assert second() == first() == frozenset({"dcc", "smso"})
        assert first.missing == frozenset()
        for one in running:
            one.cancel()
    assert await head_end_names(store.client, store.config) == {"dcc", "smso"}
    # All nodes come back without it: the ledger remembers.
    third = EtcdHeadEnds(store.client, store.config, HandClock(), node_id="node-a", own=["dcc"])
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(third.run())
        await _until(lambda: third.missing == {"smso"})
        await store.client.txn(pb.TxnRequest(success=[ops.delete(Keys(store.config.prefix).head_end("smso"))]))
        await _until(lambda: third.missing == frozenset())
        task.cancel()
