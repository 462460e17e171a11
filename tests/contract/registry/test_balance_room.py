"""Codes sold and not yet in the balance that was told count against the meter's maximum: at every node, and at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import cast

import pytest
from etcdpb import rpc_pb2 as pb

from cluster.codec.vend import vend_value
from cluster.config import EtcdConfig
from cluster.etcd import ops
from cluster.etcd.client import EtcdClient, EtcdUnknown
from cluster.etcd.keys import Keys
from core.domain.delivery import DeliveryReason, DeliveryState
from core.domain.effective_dated import ms_of
from core.domain.errors import AboveMaxBalance, OutcomeUnknown, Refused, UtrnError
from core.domain.meter import MeterId, Pan, PanForm
from core.domain.money import Pence
from core.domain.vend import Vend
from core.issuing import group_commit
from core.issuing.check_eligibility import CheckEligibility
from core.ports.ledger import CounterState
from tests.fakes.clock import HandClock
from tests.fakes.etcd import FakeEtcd
from tests.support.etcd import Store
from tests.support.head_ends import HEAD_END
from tests.support.held import HeldClient
from tests.support.market_node import GAINING, GAINING_ID, OPERATOR, MarketNode, as_, open_market
from tests.support.origins import RANDOM_PART
from tests.support.patience import PATIENCE_S
from tests.support.vends import ORIGINATOR, PSP, SUPPLIER, SUPPLIER_ID

MAX, TOLD = 10_000, 4_000
FIFTY = 5_000


@dataclass
class Market:
    """Two nodes and one meter with room for 60 pounds: its balance is 40, its maximum 100."""

    a: MarketNode
    b: MarketNode
    way: HeldClient
    meter_id: MeterId
    pan: Pan

    async def tell(self, pence: int = TOLD, *, ago_s: float = 0.0) -> None:
        """Tell a balance that was read so long ago, and have both nodes know it."""
        at = ms_of(self.a.clock.now() - timedelta(seconds=ago_s))
        done = await self.a.meters.record_balance(as_(SUPPLIER), self.meter_id, pence, at)
        for node in (self.a, self.b):
            await node.seen(self.meter_id, done.revision)

    async def sell(self, node: MarketNode, pence: int = FIFTY) -> Vend | UtrnError:
        try:
            return (await node.sell(PSP, self.pan, pence)).stored.vend
        except UtrnError as error:
            return error

    async def sold(self, node: MarketNode, pence: int = FIFTY) -> Vend:
        vend = await self.sell(node, pence)
        assert isinstance(vend, Vend)
        return vend

    async def refused(self, node: MarketNode, pence: int = FIFTY) -> int:
        """Return the room that a refusal tells."""
        refusal = await self.sell(node, pence)
        assert isinstance(refusal, AboveMaxBalance)
        return int(refusal.facts["room_pence"])

    async def close(self, vend: Vend, state: DeliveryState) -> None:
        """Have a vend's delivery end, as its owner writes it."""
        node = self.b
        sent = vend.delivery.send(node.clock.now(), 1, head_end=HEAD_END, random_part=RANDOM_PART)
        closed = vend.with_delivery(sent.close(state, DeliveryReason.NONE, node.clock.now(), 1))
        key = Keys(node.store.config.prefix).vend(vend.sale.participant_id, vend.sale.transaction_id)
        await node.store.client.txn(pb.TxnRequest(success=[ops.put(key, vend_value(closed))]))

    def pass_s(self, seconds: float) -> None:
        for node in (self.a, self.b):
            node.clock.advance(seconds)


@asynccontextmanager
async def a_market(store: Store, *, maximum: int = MAX, told: bool = True) -> AsyncIterator[Market]:
    way = HeldClient(store.client)
    a, b = MarketNode(Store(way.as_client, store.config), HandClock()), MarketNode(store, HandClock())
    ((meter_id, pan),) = await open_market(b)
    async with AsyncExitStack() as stack:
        for node in (a, b):
            await stack.enter_async_context(node.running())
        market = Market(a, b, way, meter_id, pan)
        if maximum:
            await b.meters.change(as_(SUPPLIER), meter_id, lambda one: replace(one, max_balance_pence=maximum), None)
        market.pass_s(1)
        if told:
            await market.tell()
        yield market


async def test_with_room_for_sixty_pounds_one_of_three_sales_of_fifty_passes(store: Store) -> None:
    async with a_market(store) as market:
        await market.sold(market.a)
        assert await market.refused(market.a) == 1_000
        assert await market.refused(market.b) == 1_000, "the other node knows of it"
        assert await market.refused(market.b, 1_100) == 1_000
        await market.sold(market.b, 1_000)
        assert await market.refused(market.a, 100) == 0


async def test_without_the_count_of_what_was_sold_all_three_pass(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_commit, "check_balance", lambda *_: None)
    async with a_market(store) as market:
        for node in (market.a, market.b, market.a):
            await market.sold(node)


async def test_of_sales_at_once_at_two_nodes_as_many_pass_as_there_is_room_for(store: Store) -> None:
    async with a_market(store) as market:
        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(market.sell(node, 2_000)) for node in (market.a, market.b) for _ in range(6)]
        sold = [one.result() for one in asked if isinstance(one.result(), Vend)]
        assert len(sold) == 3
        assert all(isinstance(one.result(), Vend | AboveMaxBalance) for one in asked)


async def test_what_was_credited_counts_until_a_balance_is_told_that_holds_it(store: Store) -> None:
    async with a_market(store) as market:
        vend = await market.sold(market.a)
        market.pass_s(60)
        await market.close(vend, DeliveryState.APPLIED)
        assert await market.refused(market.b) == 1_000, "the meter holds it, the balance that was told does not"
        # Read before the code was credited, told after it.
        await market.tell(ago_s=30)
        assert await market.refused(market.b) == 1_000
        market.pass_s(1)
        await market.tell(TOLD + FIFTY)
        assert await market.refused(market.a, 1_100) == 1_000
        market.pass_s(1)
        await market.tell(TOLD)
        await market.sold(market.a)


@pytest.mark.parametrize("state", [None, DeliveryState.REFUSED, DeliveryState.ENTER_BY_HAND])
async def test_a_code_that_may_yet_be_entered_counts_whatever_is_told(
    store: Store, state: DeliveryState | None
) -> None:
    async with a_market(store) as market:
        vend = await market.sold(market.a)
        market.pass_s(60)
        if state is not None:
            await market.close(vend, state)
        market.pass_s(1)
        await market.tell()
        assert await market.refused(market.b) == 1_000


async def test_a_balance_told_again_counts_what_is_sold_from_there_on(store: Store) -> None:
    async with a_market(store) as market:
        await market.sold(market.a, 2_000)
        market.pass_s(1)
        await market.tell(5_000)
        await market.sold(market.b, 2_500)
        assert await market.refused(market.a, 1_000) == 500


async def test_a_sale_between_the_reading_and_the_telling_counts(store: Store) -> None:
    async with a_market(store) as market:
        market.pass_s(10)
        market.way.hold()
        async with asyncio.TaskGroup() as tasks:
            telling = tasks.create_task(market.tell())
            await market.way.waiting.wait()
            # What is told has counted the codes by now; this one is not among them.
            await market.sold(market.b)
            market.way.release()
        await telling
        assert await market.refused(market.a) == 1_000


async def test_an_unknown_outcome_counts_if_it_was_carried_out() -> None:
    etcd = FakeEtcd()
    store = Store(cast("EtcdClient", etcd), EtcdConfig(endpoints=("fake:1",), resolve_timeout_ms=100))
    async with a_market(store) as market:
        # So that the counter sequence need not be read.
        await market.sold(market.a, 100)

        def lost() -> None:
            market.a.clock.advance(0.2)
            raise EtcdUnknown("the answer was lost")

        etcd.after_txn = lost
        assert isinstance(await market.sell(market.a), OutcomeUnknown)
        etcd.after_txn = lambda: None
        assert await market.refused(market.a) == 500, "of 900, which nobody is told to the penny"
        assert await market.refused(market.b) == 500


async def test_eligibility_tells_the_room_that_is_left(store: Store) -> None:
    async with a_market(store) as market:
        await market.sold(market.a)
        node = market.b
        check = CheckEligibility(authorize=node.authorize, ledger=node.ledger, counters=node.counters)

        async def asked(pence: int) -> tuple[Refused, ...]:
            found = await check(as_(PSP), market.pan, amount=Pence(pence), channel=None, deliver=True)
            return found.objections

        assert await asked(1_000) == ()
        (objection,) = await asked(2_000)
        assert (objection.reason, objection.facts["room_pence"]) == ("ABOVE_MAX_BALANCE", "1000")


async def test_asking_often_does_not_tell_the_balance_to_the_penny_and_a_sale_goes_by_the_penny(store: Store) -> None:
    async with a_market(store) as market:
        node = market.b
        check = CheckEligibility(authorize=node.authorize, ledger=node.ledger, counters=node.counters)

        async def most(least: int, most: int) -> int:
            """Return the most that is answered without an objection, by halving."""
            while least < most:
                middle = (least + most + 1) // 2
                found = await check(as_(PSP), market.pan, amount=Pence(middle), channel=None, deliver=True)
                least, most = (least, middle - 1) if found.objections else (middle, most)
            return least

        room = await most(1, 20_000)
        assert room % 500 == 0
        await market.sold(market.a, 1_037)
        left = await most(1, 20_000)
        assert (left % 500, left <= room - 1_037) == (0, True)
        # What is really left is sold, to the penny.
        await market.sold(market.a, room - 1_037)
        assert await market.refused(market.a, 1) == 0


async def test_the_codes_of_an_earlier_supplier_take_no_room(store: Store) -> None:
    async with a_market(store) as market:
        await market.sold(market.a)
        node = market.b
        await node.meters.change_supplier(as_(OPERATOR), market.meter_id, SUPPLIER_ID, GAINING_ID, None)
        market.pass_s(1)
        pan = Pan("9826111111111111111")
        await node.pans.give(as_(GAINING), pan, PanForm.VIRTUAL, market.meter_id, None)
        market.pass_s(1)
        async with asyncio.timeout(PATIENCE_S):
            while market.b.registry.card(pan) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        sold = await node.sell(GAINING, pan, FIFTY)
        assert sold.stored.vend.supplier_id == GAINING_ID
        with pytest.raises(AboveMaxBalance) as refused:
            await node.sell(GAINING, pan, FIFTY)
        assert refused.value.facts["room_pence"] == "1000"


async def test_a_meter_without_a_maximum_or_a_balance_costs_one_write_and_no_read() -> None:
    for maximum, told in ((0, False), (MAX, False), (0, True)):
        etcd = FakeEtcd()
        store = Store(cast("EtcdClient", etcd), EtcdConfig(endpoints=("fake:1",)))
        async with a_market(store, maximum=maximum, told=told) as market:
            await market.sold(market.a)
            asked: list[int] = []
            etcd.before_txn = lambda asked=asked: asked.append(1)  # type: ignore[misc]
            for _ in range(3):
                await market.sold(market.a)
            assert len(asked) == 3
            (state,) = await market.a.ledger.counters([(ORIGINATOR, market.meter_id)])
            assert isinstance(state, CounterState)
            assert state.sold_since_pence == (4 * FIFTY if told else 0)
