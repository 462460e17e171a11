"""What a supplier registers itself, and how much: by call, file, exchange and replacement; operators any number."""

from dataclasses import dataclass, replace

import pytest

from core.domain.errors import OperatorOnly, Overloaded, RecordExists
from core.domain.meter import Meter, Pan, PanForm
from core.domain.participant import Participant
from core.registry.bulk_load import LoadRecords
from core.registry.meter_exchange import ExchangeMeter
from core.registry.meters import MeterAdmin
from core.registry.pans import PanAdmin
from core.registry.registrations import registrations
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.market_node import OPERATOR, MarketNode, as_, open_market
from tests.support.vends import SUPPLIER, meter, new_meter_id

BURST = 3


@dataclass(frozen=True)
class Office:
    """Where a market's records are registered: three at once by one supplier, and one more each second."""

    node: MarketNode
    meters: MeterAdmin
    pans: PanAdmin
    load: LoadRecords

    async def give(self, who: Participant, number: int, at: Meter | None = None) -> None:
        """Give a new PAN to a meter that is there."""
        (known,), _ = await self.node.view.meters(as_(OPERATOR), "", 1)
        meter_id = known.meter_id if at is None else at.meter_id
        await self.pans.give(as_(who), _pan(number), PanForm.PLASTIC, meter_id, None)

    async def replace_lost(self, who: Participant, lost: int, new: int) -> None:
        """Replace one PAN by another."""
        await self.pans.replace_lost(as_(who), _pan(lost), _pan(new), PanForm.PLASTIC)


def _pan(number: int) -> Pan:
    return Pan(f"98261000000000{number:05d}")


async def _office(store: Store, *suppliers_register: str) -> Office:
    node = MarketNode(store, HandClock())
    await open_market(node)
    rule = registrations(node.clock, burst=BURST, per_minute=60, suppliers_register=suppliers_register)
    return Office(
        node,
        meters=replace(node.meters, registrations=rule),
        pans=replace(node.pans, registrations=rule),
        load=replace(node.load(b""), registrations=rule),
    )


@pytest.fixture
async def office(store: Store) -> Office:
    return await _office(store, "meters", "pans")


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


async def test_an_exchange_and_a_replacement_are_no_way_round_the_quota(office: Office) -> None:
    exchange = ExchangeMeter(meters=office.meters, store=office.node.meters.store)
    was = _new()
    await office.meters.add(as_(SUPPLIER), was)
    for _ in range(BURST - 1):
        now = _new()
        await exchange(as_(SUPPLIER), was.meter_id, now, [])
        assert not (await exchange(as_(SUPPLIER), was.meter_id, now, [])).changed, "said again, it costs nothing"
        was = now
    with pytest.raises(Overloaded):
        await exchange(as_(SUPPLIER), was.meter_id, _new(), [])
    office.node.clock.advance(60)
    await office.give(SUPPLIER, 0)
    for number in range(BURST - 1):
        await office.replace_lost(SUPPLIER, number, number + 1)
    with pytest.raises(Overloaded):
        await office.replace_lost(SUPPLIER, BURST - 1, BURST)
    await office.replace_lost(OPERATOR, BURST - 1, BURST)


async def test_a_free_id_is_registered_by_the_feed_only_where_suppliers_register_nothing(store: Store) -> None:
    office = await _office(store)
    there, new = _new(), _new()
    await office.meters.add(as_(OPERATOR), there)
    await office.give(OPERATOR, 0)
    for refused in (office.meters.add(as_(SUPPLIER), new), office.give(SUPPLIER, 1)):
        with pytest.raises(OperatorOnly, match="registration feed"):
            await refused
    # What is there already is told as before, and a lost card is its supplier's to replace, at any hour.
    assert not (await office.meters.add(as_(SUPPLIER), there)).changed
    with pytest.raises(RecordExists):
        await office.give(SUPPLIER, 0, at=there)
    await office.replace_lost(SUPPLIER, 0, 1)

    loaded = await office.load(as_(SUPPLIER), [(1, there), (2, new)])
    assert (loaded.loaded, loaded.unchanged, list(loaded.problems)) == (0, 1, [2])
    assert isinstance(loaded.problems[2], OperatorOnly)
    assert (await office.load(as_(OPERATOR), [(1, new)])).loaded == 1


async def test_a_kind_that_suppliers_register_opens_no_other(store: Store) -> None:
    office = await _office(store, "pans")
    await office.give(SUPPLIER, 1)
    with pytest.raises(OperatorOnly):
        await office.meters.add(as_(SUPPLIER), _new())
