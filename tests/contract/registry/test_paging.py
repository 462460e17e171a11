"""Lists of any length and weight: pages that one message carries, and that never look like the last; PANs by meter."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from etcdpb import rpc_pb2 as etcd
from utrn.v1 import meter_service_pb2 as pb

from cluster.codec.registry import value_of
from cluster.etcd import ops
from cluster.etcd.keys import Keys
from cluster.registry.pan_index import PanIndex
from core.api import paging
from core.domain.effective_dated import EffectiveDated, Ms, Period
from core.domain.meter import Meter, Pan
from core.domain.participant import Participant
from core.domain.record import Kind
from core.registry.meters import new_meter
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.market_node import OPERATOR, MarketNode, as_, open_market, put_all
from tests.support.patience import PATIENCE_S
from tests.support.servicers import calling, servicers
from tests.support.vends import SUPPLIER, card, meter, new_meter_id

GRPC_TAKES = 4 * 1024 * 1024
MANY, PERIODS = 60, 1000


@pytest.fixture
def node(store: Store) -> MarketNode:
    return MarketNode(store, HandClock())


def _of_years() -> Meter:
    """Return a meter whose settings changed a thousand times: more than 70 kB in an answer."""
    one = meter(new_meter_id())
    first, value = one.effective_through, one.settings.periods[0].value
    periods = [
        Period(replace(value, firmware=f"firmware {at}"), Ms(first + at), Ms(first + at + 1), first, "supplier-north")
        for at in range(PERIODS)
    ]
    periods.append(Period(value, Ms(first + PERIODS), None, first, "supplier-north"))
    return new_meter(replace(one, settings=EffectiveDated(tuple(periods))), SUPPLIER, first)


async def _pages(node: MarketNode, who: Participant) -> Sequence[pb.ListMetersResponse]:
    service, found, token = servicers(node).meters, list[pb.ListMetersResponse](), ""
    while True:
        found.append(await service.ListMeters(pb.ListMetersRequest(page_token=token, page_size=1000), calling(who)))
        token = found[-1].next_page_token
        if not token:
            return found


@pytest.mark.parametrize("who", [SUPPLIER, OPERATOR], ids=["supplier", "operator"])
async def test_a_page_is_what_one_message_carries_whatever_the_histories(
    node: MarketNode, who: Participant, monkeypatch: pytest.MonkeyPatch
) -> None:
    await open_market(node)
    meters = [_of_years() for _ in range(MANY)]
    for one in meters:
        await put_all(node, [one])
    async with node.running():
        found = await _pages(node, who)
        listed = [one.meter_id for page in found for one in page.meters]
        assert len(listed) == len(set(listed)) == MANY + 1
        assert {one.meter_id for one in meters} < set(listed)
        assert max(page.ByteSize() for page in found) < GRPC_TAKES / 2
        # The control: counted by number alone, one page is more than gRPC takes.
        monkeypatch.setattr(paging, "PAGE_BYTES_MAX", 1 << 40)
        (page,) = await _pages(node, who)
        assert page.ByteSize() > GRPC_TAKES


async def test_a_page_with_a_record_that_cannot_be_understood_is_not_the_last(node: MarketNode) -> None:
    await open_market(node)
    ids = sorted(new_meter_id() for _ in range(4))
    for id_ in ids:
        await put_all(node, [new_meter(meter(id_), SUPPLIER, meter(id_).effective_through)])
    garbled = ops.put(Keys(node.store.config.prefix).record(Kind.METER, ids[0]), b"\xff\xff")
    await node.store.client.txn(etcd.TxnRequest(success=[garbled]))
    async with node.running():
        found, after = await node.view.meters(as_(OPERATOR), "", 2)
        listed = [one.meter_id for one in found]
        while after:
            found, after = await node.view.meters(as_(OPERATOR), after, 2)
            listed += [one.meter_id for one in found]
    assert set(ids[1:]) < set(listed)
    assert ids[0] not in listed


async def test_the_pans_of_a_meter_are_found_whatever_became_of_them(node: MarketNode) -> None:
    ((first, pan), (second, _)) = await open_market(node, 2)
    async with node.running():
        assert [one.pan for one in node.registry.pans_of(first)] == [pan]
        await node.pans.repoint(as_(SUPPLIER), pan, first, second, None)
        async with asyncio.timeout(PATIENCE_S):
            while len(node.registry.pans_of(second)) < 2:  # noqa: ASYNC110  # the copy follows
                await asyncio.sleep(0)
        # It stood for the first one, and belongs to its history.
        assert [one.pan for one in node.registry.pans_of(first)] == [pan]
        assert node.registry.pans_of(new_meter_id()) == []


def test_the_index_follows_every_change_of_a_record() -> None:
    index, one, other = PanIndex(), new_meter_id(), new_meter_id()
    pan, second = Pan("9826000000000000001"), Pan("9826000000000000002")
    of_one, of_other, of_second = (value_of(card(*pair)) for pair in ((pan, one), (pan, other), (second, one)))
    index.change(pan, None, of_one)
    index.change(second, None, of_second)
    assert (index.pans_of(one), index.pans_of(other)) == ((pan, second), ())
    index.change(pan, of_one, of_other)
    assert (index.pans_of(one), index.pans_of(other)) == ((second,), (pan,))
    index.change(pan, of_other, None)
    index.change(second, of_second, None)
    assert (index.pans_of(one), index.pans_of(other)) == ((), ())
    assert not index._pans
