"""The one optimistic transaction of the registry: what an attempt has read, its write compares."""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from core.domain.errors import ParticipantNotFound, RecordChanged
from core.domain.meter import Custody, Meter
from core.domain.participant import Participant, ParticipantId, ParticipantStatus
from core.domain.record import Versioned
from core.ports.registry import RegistryWrite
from core.registry.counter_transfer import HandOver
from core.transaction import Reads, Written, transact
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.market_node import GAINING_ID, OPERATOR, MarketNode, as_, open_market
from tests.support.vends import SUPPLIER_ID, always, meter, new_meter_id

OVERTAKEN = RecordChanged("others keep changing it", kind="meter")


METER = new_meter_id()


class Counted:
    """A store that counts what it is asked: each question is a round trip to etcd."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.asked: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.asked[name] += 1
        return getattr(self._store, name)


@pytest.fixture
async def node(store: Store) -> MarketNode:
    node = MarketNode(store, HandClock())
    await open_market(node)
    await node.meters.add(as_(OPERATOR), meter(METER))
    return node


def _of_model(known: Versioned[Meter] | None, model: str) -> Meter:
    assert known is not None
    return replace(known.record, model=model)


async def test_what_was_read_is_compared_and_tried_again_when_it_moved(node: MarketNode) -> None:
    names = iter(["moved by another", "moved again"])
    attempts = 0

    async def other() -> None:
        async def attempt(reads: Reads) -> RegistryWrite:
            return RegistryWrite(put=[_of_model(await reads.read(Meter, METER), next(names))])

        await transact(node.meters.store, attempt, overtaken=OVERTAKEN)

    async def attempt(reads: Reads) -> RegistryWrite:
        nonlocal attempts
        attempts += 1
        known = await reads.read(Meter, METER)
        if attempts < 3:
            await other()
        before = "" if known is None else known.record.model
        return RegistryWrite(put=[_of_model(known, f"mine, based on {before}")])

    assert (await transact(node.meters.store, attempt, overtaken=OVERTAKEN)).changed
    written = await node.meters.store.read(Meter, METER)
    assert written is not None
    assert (attempts, written.record.model) == (3, "mine, based on moved again")


async def test_who_is_always_overtaken_is_told(node: MarketNode) -> None:
    async def attempt(reads: Reads) -> RegistryWrite:
        known = await reads.read(Meter, METER)
        await node.meters.store.write(
            RegistryWrite(put=[_of_model(known, f"another {known.revision if known else 0}")])
        )
        return RegistryWrite(put=[_of_model(known, "mine")])

    with pytest.raises(RecordChanged, match="others keep"):
        await transact(node.meters.store, attempt, overtaken=OVERTAKEN, attempts_max=2)


async def test_without_the_reads_in_the_compare_the_other_one_is_lost(
    node: MarketNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The positive control."""
    monkeypatch.setattr(Reads, "preconditions", property(lambda _: []))

    async def attempt(reads: Reads) -> RegistryWrite:
        known = await reads.read(Meter, METER)
        await node.meters.store.write(RegistryWrite(put=[_of_model(known, "another")]))
        return RegistryWrite(put=[_of_model(known, "mine")])

    await transact(node.meters.store, attempt, overtaken=OVERTAKEN)
    written = await node.meters.store.read(Meter, METER)
    assert written is not None
    assert written.record.model == "mine"


async def test_a_record_that_is_not_there_must_still_not_be_there(node: MarketNode) -> None:
    new, raced = meter(new_meter_id()), False

    async def attempt(reads: Reads) -> RegistryWrite | Written:
        nonlocal raced
        there = await reads.read(Meter, new.meter_id)
        if there is not None:
            return Written(revision=there.revision, changed=False)
        if not raced:
            raced = True
            await node.meters.add(as_(OPERATOR), new)
        return RegistryWrite(put=[new])

    assert not (await transact(node.meters.store, attempt, overtaken=OVERTAKEN)).changed


async def test_each_record_is_read_once(node: MarketNode) -> None:
    counted: Any = Counted(node.meters.store)

    async def attempt(reads: Reads) -> RegistryWrite:
        for _ in range(3):
            known = await reads.read(Meter, METER)
        return RegistryWrite(put=[_of_model(known, "once")])

    await transact(counted, attempt, overtaken=OVERTAKEN)
    assert counted.asked == {"read": 1, "write": 1}


async def test_a_settings_change_takes_four_round_trips(node: MarketNode) -> None:
    """The meter, its supplier, the counter sequence of both, and the write: it was six, the meter read twice."""
    known = meter(new_meter_id())
    await node.meters.add(as_(OPERATOR), known)
    counted: Any = Counted(node.meters.store)
    meters = replace(node.meters, store=counted, turn=replace(node.meters.turn, store=counted))
    await meters.change(as_(OPERATOR), known.meter_id, lambda settings: replace(settings, firmware="2.0"), None)
    assert counted.asked == {"read": 2, "sequence": 1, "write": 1}


class Meanwhile:
    """A store before whose first write a supplier leaves, at another node."""

    def __init__(self, store: Any, supplier_id: ParticipantId) -> None:
        self._store = store
        self._supplier_id = supplier_id
        self.left = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def write(self, write: RegistryWrite) -> int | None:
        if not self.left:
            self.left = True
            there = await self._store.read(Participant, self._supplier_id)
            gone = replace(there.record, statuses=always(ParticipantStatus.LEFT))
            assert await self._store.write(RegistryWrite(put=[gone])) is not None
        revision: int | None = await self._store.write(write)
        return revision


async def _registered(node: MarketNode) -> object:
    return await node.meters.add(as_(OPERATOR), meter(new_meter_id()))


async def _changed_supplier(node: MarketNode) -> object:
    return await node.meters.change_supplier(as_(OPERATOR), METER, SUPPLIER_ID, GAINING_ID, None)


async def _exchanged(node: MarketNode) -> object:
    return await node.exchange(as_(OPERATOR), METER, meter(new_meter_id()), [])


async def _taken_over(node: MarketNode) -> object:
    back = HandOver(meter_id=METER, custody_before=Custody.SUPPLIER, custody=Custody.CENTRAL, last_issued=5)
    return await node.hand_over(as_(OPERATOR), back)


@pytest.mark.parametrize(
    ("change", "supplier_id"),
    [
        (_registered, SUPPLIER_ID),
        (_changed_supplier, GAINING_ID),
        (_exchanged, SUPPLIER_ID),
        (_taken_over, SUPPLIER_ID),
    ],
    ids=["register", "change supplier", "exchange", "take over"],
)
async def test_a_supplier_that_leaves_between_the_read_and_the_write_gets_no_meter(
    node: MarketNode, change: Callable[[MarketNode], Awaitable[object]], supplier_id: ParticipantId
) -> None:
    """What decides is compared, also where it is another record than the one that is written."""
    if change is _taken_over:
        await node.hand_over(
            as_(OPERATOR), HandOver(meter_id=METER, custody_before=Custody.CENTRAL, custody=Custody.SUPPLIER)
        )
    store: Any = Meanwhile(node.meters.store, supplier_id)
    meters = replace(node.meters, store=store, turn=replace(node.meters.turn, store=store))
    node.meters, node.exchange = meters, replace(node.exchange, meters=meters, store=store)
    node.hand_over = replace(node.hand_over, meters=meters, store=store)
    before = await node.records.read(Meter, METER)
    with pytest.raises(ParticipantNotFound):
        await change(node)
    assert store.left
    assert await node.records.read(Meter, METER) == before
