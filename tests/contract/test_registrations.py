"""How much a supplier registers itself: a burst, then so much a minute, by call and by file; operators any number."""

from dataclasses import dataclass, replace

import pytest

from core.domain.errors import Overloaded
from core.domain.meter import Meter, Pan, PanForm
from core.domain.party import Participant
from core.flows.keep_meters import KeepMeters
from core.flows.keep_pans import KeepPans
from core.flows.load_records import LoadRecords
from core.flows.quota import registrations
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.market_node import OPERATOR, MarketNode, as_, open_market
from tests.support.vends import SUPPLIER, meter, new_meter_id

BURST = 3


@dataclass(frozen=True)
class Office:
    """Where a market's records are registered: three at once by one supplier, and one more each second."""

    node: MarketNode
    meters: KeepMeters
    pans: KeepPans
    load: LoadRecords

    async def give(self, who: Participant, number: int) -> None:
        """Give a new PAN to a meter that is there."""
        (known,), _ = await self.node.view.meters(as_(OPERATOR), "", 1)
        await self.pans.give(as_(who), Pan(f"98261000000000{number:05d}"), PanForm.PLASTIC, known.meter_id, None)


@pytest.fixture
async def office(store: Store) -> Office:
    node = MarketNode(store, HandClock())
    await open_market(node)
    count = registrations(node.clock, burst=BURST, per_minute=60)
    return Office(
        node,
        meters=replace(node.meters, count_new=count),
        pans=replace(node.pans, count_new=count),
        load=replace(node.load(b""), count_new=count),
    )


def _new() -> Meter:
    return meter(new_meter_id())


async def test_meters_and_pans_are_counted_together_and_time_gives_them_back(office: Office) -> None:
    await office.meters.add(as_(SUPPLIER), _new())
    await office.give(SUPPLIER, 1)
    last = _new()
    await office.meters.add(as_(SUPPLIER), last)
    with pytest.raises(Overloaded):
        await office.meters.add(as_(SUPPLIER), _new())
    with pytest.raises(Overloaded):
        await office.give(SUPPLIER, 2)
    # What is there already costs nothing, and the feed is no supplier.
    assert not (await office.meters.add(as_(SUPPLIER), last)).changed
    await office.meters.add(as_(OPERATOR), _new())
    office.node.clock.advance(1)
    await office.give(SUPPLIER, 2)
    with pytest.raises(Overloaded):
        await office.give(SUPPLIER, 3)


async def test_a_file_counts_line_by_line_and_loaded_again_costs_nothing(office: Office) -> None:
    load = office.load
    lines = [(number, _new()) for number in range(1, 6)]
    assert (await load(as_(SUPPLIER), lines)).loaded == 5, "a part is taken whole"
    assert (await load(as_(SUPPLIER), lines)).unchanged == 5
    with pytest.raises(Overloaded):
        await load(as_(SUPPLIER), [(6, _new())])
    assert (await load(as_(OPERATOR), [(7, _new())])).loaded == 1
    office.node.clock.advance(60)
    assert (await load(as_(SUPPLIER), [(8, _new())])).loaded == 1
