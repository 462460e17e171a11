"""A seller's ceiling over several nodes: never exceeded, hardly ever asked for, never left to lie."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest

from cluster.audit.ledger_scan import all_vends
from cluster.etcd import preconditions
from core.domain.ceiling import HOUR_MS, hour_of
from core.domain.effective_dated import Ms, instant_of, ms_of
from core.domain.errors import FENCED, IF_FIRST, CeilingReached, NotReady, Refused
from core.domain.meter import Pan
from core.domain.money import Pence
from core.issuing.ceilings import Ceilings
from core.ports.ceilings import Allotment
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.market_node import OPERATOR, MarketNode, as_, open_market
from tests.support.vends import PSP, PSP_ID, new_id

NODES, METERS, CEILING = 3, 12, 100_000


@dataclass
class Cluster:
    """Nodes over one ledger, running, and the PANs that they sell for."""

    nodes: list[MarketNode]
    pans: list[Pan]
    clock: HandClock

    async def sold(self) -> Counter[str]:
        """Pence sold, by seller, as the ledger has it."""
        found: Counter[str] = Counter()
        first = self.nodes[0].store
        async for stored in all_vends(first.client, first.config):
            found[stored.vend.sale.participant_id] += stored.vend.sale.amount
        return found

    async def sell_out(self, nodes: list[MarketNode], pence: int = 900, times: int = 60) -> list[Refused]:
        """Sell through all of `nodes` at the same time; return every refusal."""
        refused: list[Refused] = []

        async def till(node: MarketNode, number: int) -> None:
            for turn in range(times // METERS):
                try:
                    await node.sell(PSP, self.pans[(number + turn) % METERS], pence)
                except Refused as error:
                    refused.append(error)

        async with asyncio.TaskGroup() as tills:
            for number in range(METERS):
                for node in nodes:
                    tills.create_task(till(node, number))
        return refused

    async def set_ceiling(self, pence: int) -> None:
        """Set the ceiling, and return when the first node has heard of it."""
        node = self.nodes[0]
        done = await node.parties.set_ceiling(as_(OPERATOR), PSP_ID, Pence(pence))
        async with asyncio.timeout(5):
            while (known := node.registry.participant(PSP_ID)) is None or known.revision < done.revision:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@pytest.fixture
async def cluster(store: Store, request: pytest.FixtureRequest) -> Cluster:
    """Three nodes whose agreed ceiling is low."""
    clock = HandClock()
    nodes = [MarketNode(store, clock, ceiling_pence=getattr(request, "param", CEILING)) for _ in range(NODES)]
    made = await open_market(nodes[0], meters=METERS)
    return Cluster(nodes, [pan for _, pan in made], clock)


async def run(cluster: Cluster, stack: AsyncExitStack) -> None:
    for node in cluster.nodes:
        await stack.enter_async_context(node.running())


async def test_all_nodes_together_sell_up_to_the_ceiling_and_no_further(cluster: Cluster) -> None:
    async with AsyncExitStack() as stack:
        await run(cluster, stack)
        refused = await cluster.sell_out(cluster.nodes)
    sold = (await cluster.sold())[PSP_ID]
    assert 0.95 * CEILING < sold <= CEILING
    assert {type(one) for one in refused} == {CeilingReached}
    assert sold // 900 + len(refused) == NODES * 60


async def test_without_the_compare_they_sell_more(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preconditions, "ceiling_unmoved", lambda *_: [])
    async with AsyncExitStack() as stack:
        await run(cluster, stack)
        await cluster.sell_out(cluster.nodes)
    assert (await cluster.sold())[PSP_ID] > CEILING


@pytest.mark.parametrize("cluster", [10_000_000], indirect=True)
async def test_nearly_every_sale_asks_the_ledger_nothing_more(cluster: Cluster) -> None:
    """At the agreed ceiling, with sales of 20 pounds: 1 in 50."""
    async with AsyncExitStack() as stack:
        await run(cluster, stack)
        assert await cluster.sell_out(cluster.nodes, pence=2000, times=120) == []
    draws, sales = sum(node.ceilings.draws for node in cluster.nodes), NODES * 120
    assert draws / sales <= 0.05, f"{draws} draws for {sales} sales"


async def test_what_a_resting_node_holds_goes_back_and_is_sold_elsewhere(cluster: Cluster) -> None:
    one, other, _ = cluster.nodes
    async with AsyncExitStack() as stack:
        await run(cluster, stack)
        await one.sell(PSP, cluster.pans[0], 100)
        held = CEILING - 100
        with pytest.raises(CeilingReached):
            await other.sell(PSP, cluster.pans[1], held)
        cluster.clock.advance(6)
        await one.ceilings.give_back(idle_s=5)
        await other.sell(PSP, cluster.pans[1], held)
    assert (await cluster.sold())[PSP_ID] == CEILING


async def test_a_node_that_dies_takes_a_hundredth_of_the_ceiling_with_it_at_most(cluster: Cluster) -> None:
    one, *others = cluster.nodes
    async with AsyncExitStack() as stack:
        await run(cluster, stack)
        await one.sell(PSP, cluster.pans[0], 100)
        await cluster.sell_out(others, pence=300, times=240)
        cluster.clock.advance(6)
        for node in others:
            await node.ceilings.give_back()
        await cluster.sell_out([others[0]], pence=10, times=60)
    assert CEILING * 0.985 <= (await cluster.sold())[PSP_ID] <= CEILING


async def test_a_higher_and_a_lower_ceiling_hold_at_once(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    async with AsyncExitStack() as stack:
        await run(cluster, stack)
        await cluster.set_ceiling(300_000)
        await node.sell(PSP, cluster.pans[0], 200_000)
        assert node.ceilings.used()[PSP_ID] >= 200_000 / 300_000
        await node.sell(PSP, cluster.pans[1], 100)
        assert node.ceilings.held()[PSP_ID] > 0, "drawn under the higher ceiling"
        await node.parties.set_ceiling(as_(OPERATOR), PSP_ID, Pence(200_100))
        with pytest.raises(CeilingReached):
            await node.sell(PSP, cluster.pans[2], 100)
        await cluster.set_ceiling(200_200)
        await node.sell(PSP, cluster.pans[2], 100)
    assert (await cluster.sold())[PSP_ID] == 200_200


async def test_with_the_next_hour_it_begins_anew(cluster: Cluster) -> None:
    node = cluster.nodes[0]
    async with AsyncExitStack() as stack:
        await run(cluster, stack)
        await node.sell(PSP, cluster.pans[0], CEILING)
        with pytest.raises(CeilingReached) as refused:
            await node.sell(PSP, cluster.pans[1], 1)
        assert refused.value.final == IF_FIRST
        assert refused.value.facts["left_pence"] == "0"
        cluster.clock.advance(3600)
        await node.sell(PSP, cluster.pans[1], 1)


@pytest.mark.parametrize(("behind_s", "sells"), [(0.04, True), (1.9, True), (30, False)])
async def test_a_node_a_little_behind_at_the_turn_of_the_hour_sells_in_the_new_one(
    store: Store, behind_s: float, *, sells: bool
) -> None:
    """The ledger's time has come to the hour: another node has sold in it."""
    hour = instant_of(hour_of(ms_of(HandClock().now())) + HOUR_MS)
    ahead = MarketNode(store, HandClock(hour), ceiling_pence=CEILING)
    behind = MarketNode(store, HandClock(hour - timedelta(seconds=behind_s)), ceiling_pence=CEILING)
    one, other, *_ = [pan for _, pan in await open_market(ahead, meters=3)]
    async with ahead.running(), behind.running():
        await ahead.sell(PSP, one, 100)
        if sells:
            sold = await behind.sell(PSP, other, 100)
            assert sold.stored.vend.issued_at >= hour, "it is charged to the new hour, and dated in it"
        else:
            with pytest.raises(NotReady):
                await behind.sell(PSP, other, 100)


async def test_what_was_sold_is_answered_and_a_refused_repeat_is_fenced(cluster: Cluster) -> None:
    one, other, _ = cluster.nodes
    async with AsyncExitStack() as stack:
        await run(cluster, stack)
        sold_id, refused_id = new_id(), new_id()
        first = await one.sell(PSP, cluster.pans[0], CEILING, transaction_id=sold_id)
        again = await other.sell(PSP, cluster.pans[0], CEILING, transaction_id=sold_id)
        assert again.replayed
        assert again.stored.vend == first.stored.vend
        with pytest.raises(CeilingReached) as refused:
            await other.sell(PSP, cluster.pans[1], 500, transaction_id=refused_id, repeat=True)
        assert refused.value.final == FENCED
        await cluster.set_ceiling(10 * CEILING)
        with pytest.raises(CeilingReached) as fenced:
            await one.sell(PSP, cluster.pans[1], 500, transaction_id=refused_id)
        assert fenced.value.final == FENCED


async def test_a_sale_that_comes_to_nothing_gives_its_pence_back(cluster: Cluster) -> None:
    one, other, _ = cluster.nodes
    async with AsyncExitStack() as stack:
        await run(cluster, stack)
        sold_id = new_id()
        await one.sell(PSP, cluster.pans[0], 500, transaction_id=sold_id)
        await other.sell(PSP, cluster.pans[1], 100)
        before = other.ceilings.held()[PSP_ID]
        # Only the commit finds out that it was sold.
        assert (await other.sell(PSP, cluster.pans[0], 500, transaction_id=sold_id)).replayed
        assert other.ceilings.held()[PSP_ID] == before
        assert other.ceilings.sold[PSP_ID] == 100


class SlowDeal:
    """Answers draws when it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def draw(self, participant_id: str, hour: int, *, held: int, wanted: int) -> Allotment:
        await self.go.wait()
        return Allotment(hour=Ms(hour), pence=wanted, drawn_pence=wanted, ceiling_pence=1000, revision=0)


async def test_a_caller_that_goes_away_takes_nothing_from_those_that_wait() -> None:
    deal = SlowDeal()
    ceilings, now = Ceilings(deal, HandClock()), Ms(1_700_000_000_000)
    async with asyncio.TaskGroup() as callers:
        first, second = (callers.create_task(ceilings.take(PSP_ID, None, 100, now)) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        deal.go.set()
    assert second.result().pence == 100
    assert ceilings.draws == 1


class NoTime(HandClock):
    """Does not know cluster time."""

    def now(self) -> datetime:
        raise NotReady("this node does not know the cluster's time yet")


async def test_a_node_that_does_not_know_the_time_goes_on_and_draws_nothing() -> None:
    ceilings = Ceilings(SlowDeal(), NoTime())
    await ceilings.give_back()
    assert ceilings.used() == {}
