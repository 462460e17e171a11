"""How much a supplier registers itself: a burst, then so much a minute, by call and by file; operators any number."""

from dataclasses import replace

import pytest

from core.domain.errors import Overloaded
from core.domain.meter import Meter, Pan, PanForm
from core.domain.party import Participant
from core.flows.load_records import LoadRecords
from core.flows.quota import registrations
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.market_node import OPERATOR, MarketNode, as_, open_market
from tests.support.vends import SUPPLIER, meter, new_meter_id

BURST = 3


@pytest.fixture
async def node(store: Store) -> MarketNode:
    """A market whose suppliers may register three at once, and one more each second."""
    node = MarketNode(store, HandClock())
    await open_market(node)
    count = registrations(node.clock, burst=BURST, per_minute=60)
    node.meters, node.pans = replace(node.meters, count_new=count), replace(node.pans, count_new=count)
    node.counting = count  # type: ignore[attr-defined]
    return node


def _new() -> Meter:
    return meter(new_meter_id())


async def _given(node: MarketNode, who: Participant, number: int) -> None:
    ((known, *_), _) = await node.view.meters(as_(OPERATOR), "", 1)
    await node.pans.give(as_(who), Pan(f"98261000000000{number:05d}"), PanForm.PLASTIC, known.meter_id, None)


async def test_meters_and_pans_are_counted_together_and_time_gives_them_back(node: MarketNode) -> None:
    await node.meters.add(as_(SUPPLIER), _new())
    await _given(node, SUPPLIER, 1)
    last = _new()
    await node.meters.add(as_(SUPPLIER), last)
    with pytest.raises(Overloaded):
        await node.meters.add(as_(SUPPLIER), _new())
    with pytest.raises(Overloaded):
        await _given(node, SUPPLIER, 2)
    # What is there already costs nothing, and the feed is no supplier.
    assert not (await node.meters.add(as_(SUPPLIER), last)).changed
    await node.meters.add(as_(OPERATOR), _new())
    node.clock.advance(1)
    await _given(node, SUPPLIER, 2)
    with pytest.raises(Overloaded):
        await _given(node, SUPPLIER, 3)


async def test_a_file_counts_line_by_line_and_loaded_again_costs_nothing(node: MarketNode) -> None:
    load: LoadRecords = replace(node.load(b""), count_new=node.counting)  # type: ignore[attr-defined]
    lines = [(number, _new()) for number in range(1, 6)]
    assert (await load(as_(SUPPLIER), lines)).loaded == 5, "a part is taken whole"
    assert (await load(as_(SUPPLIER), lines)).unchanged == 5
    with pytest.raises(Overloaded):
        await load(as_(SUPPLIER), [(6, _new())])
    assert (await load(as_(OPERATOR), [(7, _new())])).loaded == 1
    node.clock.advance(60)
    assert (await load(as_(SUPPLIER), [(8, _new())])).loaded == 1
