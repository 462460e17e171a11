"""A registry event that was lost: the send that meets the record which moved reads it from the ledger, and goes on."""

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from core.delivery.attempt import Done
from core.delivery.fresh_meters import FreshMeters, head_end_of
from core.delivery.waiting import Parked
from core.domain.delivery import DeliveryReason, DeliveryState
from core.domain.effective_dated import Ms
from core.domain.meter import Meter
from core.domain.record import Versioned
from tests.support.market_node import GAINING_ID, OPERATOR, MarketNode, as_, at
from tests.support.owed import OwedDelivery
from tests.support.vends import HEAD_END, SUPPLIER, SUPPLIER_ID, new_meter_id

OTHER = "another"
Change = Callable[[MarketNode, OwedDelivery], Awaitable[object]]


async def _balance(other: MarketNode, work: OwedDelivery) -> None:
    await other.meters.record_balance(as_(SUPPLIER), work.meter_id, 500, Ms(at(other, -1)))


async def _supplier(other: MarketNode, work: OwedDelivery) -> None:
    await other.meters.change_supplier(as_(OPERATOR), work.meter_id, SUPPLIER_ID, GAINING_ID, None)


async def _head_end(other: MarketNode, work: OwedDelivery) -> None:
    await other.meters.change(as_(SUPPLIER), work.meter_id, lambda one: replace(one, head_end=OTHER), None)


@pytest.mark.parametrize(
    ("change", "sent", "end", "state"),
    [
        (_balance, 1, None, DeliveryState.UNKNOWN),
        (_supplier, 0, Done, DeliveryState.REFUSED),
        (_head_end, 0, Parked, DeliveryState.QUEUED),
    ],
    ids=["balance told", "supplier changed", "other head end"],
)
async def test_a_delivery_whose_meters_event_was_lost_goes_on_by_what_the_ledger_has(
    change: Change, sent: int, end: type | None, state: DeliveryState
) -> None:
    work = OwedDelivery()
    async with work.owed(attempts=0, following=False):
        await change(MarketNode(work.node.store, work.node.clock), work)
        first, delivery = await work.attempt()
        assert (first, delivery.state, work.head_end.sent) == (None, DeliveryState.QUEUED, []), "the ledger refused"
        second, delivery = await work.attempt()
    assert (len(work.head_end.sent), delivery.state) == (sent, state)
    if end is not None:
        assert isinstance(second, end)
    if change is _supplier:
        assert delivery.reason is DeliveryReason.SUPPLIER_CHANGED


async def test_without_the_look_at_the_ledger_it_is_held_until_the_copy_is_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The positive control."""

    async def not_read(*_: object) -> None:
        return None

    monkeypatch.setattr(FreshMeters, "read_again", not_read)
    work = OwedDelivery()
    async with work.owed(attempts=0, following=False):
        await _balance(MarketNode(work.node.store, work.node.clock), work)
        ends = [(await work.attempt())[0] for _ in range(5)]
    assert (ends, work.head_end.sent) == ([None] * 5, [])


async def test_what_was_read_holds_until_the_copy_moves() -> None:
    work = OwedDelivery()
    async with work.owed(attempts=0, following=False):
        node = work.node
        meters, copied = work.meters, node.registry.meter(work.meter_id)
        await _head_end(MarketNode(node.store, node.clock), work)
        assert head_end_of(meters, work.meter_id)[0] == HEAD_END
        await meters.read_again(work.meter_id)
        assert head_end_of(meters, work.meter_id)[0] == OTHER
        assert copied is not None
        newer: Versioned[Meter] | None = Versioned(copied.record, copied.revision + 100)
        node.registry.meter = lambda _: newer  # type: ignore[method-assign,assignment]
        assert meters.meter(work.meter_id) == newer
        unknown = new_meter_id()
        await meters.read_again(unknown)
        assert meters.meter(unknown) is None, "the ledger has none, whatever the copy says"
