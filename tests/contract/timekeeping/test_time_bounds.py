"""What is irreversible is bound by the ledger's time in its own transaction: vends on terms that end, and give-ups."""

import asyncio
from datetime import timedelta

import pytest
from etcdpb import rpc_pb2 as pb

from cluster.etcd import ops, preconditions
from cluster.etcd.keys import Keys
from cluster.ledger.outbox import EtcdOutbox
from cluster.ledger.vends import EtcdLedger
from cluster.membership.placement import shard_of
from core.delivery.attempt import Done, Later
from core.domain.delivery import DeliveryReason, DeliveryState
from core.domain.effective_dated import Ms, ms_of
from core.domain.errors import NotReady
from core.issuing.config import DeliveryConfig
from core.ports.ledger import Committed, CounterState, Entry, RegistrationMoved, StoredVend
from core.ports.outbox import DeliveryChange
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.owed import OwedDelivery
from tests.support.vends import NOW, new_meter_id, vend

T = ms_of(NOW)


async def set_time(store: Store, at: int) -> None:
    put = ops.put(Keys(store.config.prefix).time_now(), preconditions.time_value(at))
    await store.client.txn(pb.TxnRequest(success=[put]))


@pytest.mark.parametrize("without", [False, True])
async def test_without_the_time_compare_a_vend_is_sold_on_what_has_ended(
    store: Store, monkeypatch: pytest.MonkeyPatch, *, without: bool
) -> None:
    """A node signs, stands still, and commits when what allowed the sale has ended: its own clock has said yes."""
    if without:
        monkeypatch.setattr(preconditions, "time_before", lambda *_: [])
    ledger = EtcdLedger(store.client, store.config, HandClock())
    entry = Entry(vend=vend(1, new_meter_id()), seen=CounterState(), until=Ms(T + 1000))
    await set_time(store, T + 1000)
    (outcome,) = await ledger.commit([entry])
    assert isinstance(outcome, Committed if without else RegistrationMoved)


async def test_until_the_last_millisecond_it_is_sold(store: Store) -> None:
    ledger = EtcdLedger(store.client, store.config, HandClock())
    await set_time(store, T + 999)
    entry = Entry(vend=vend(1, new_meter_id()), seen=CounterState(), until=Ms(T + 1000))
    (outcome,) = await ledger.commit([entry])
    assert isinstance(outcome, Committed)


@pytest.mark.parametrize(("clock_s", "ended"), [(0, False), (86_399, False), (86_400, True)])
async def test_a_delivery_is_given_up_only_once_the_ledgers_time_has_come(
    store: Store, clock_s: int, *, ended: bool
) -> None:
    clock = HandClock()
    ledger, outbox = EtcdLedger(store.client, store.config, clock), EtcdOutbox(store.client, store.config, clock)
    (sold,) = await ledger.commit([Entry(vend=vend(1, new_meter_id()), seen=CounterState())])
    assert isinstance(sold, Committed)
    shard = shard_of(sold.stored.vend.meter_id, store.config.shards)
    own = pb.TxnRequest(success=[ops.put(Keys(store.config.prefix).shard(shard), b"node")])
    epoch = (await store.client.txn(own)).header.revision
    clock.advance(clock_s)
    delivery = sold.stored.vend.delivery.close(DeliveryState.ENTER_BY_HAND, DeliveryReason.NO_ANSWER, NOW, epoch)
    change = DeliveryChange(
        shard=shard, epoch=epoch, stored=sold.stored, delivery=delivery, not_before=Ms(T + 86_400_000)
    )
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(outbox.run())
        (outcome,) = await outbox.write([change])
        running.cancel()
    assert isinstance(outcome, StoredVend if ended else NotReady)


async def _asks_nobody(_: Ms) -> None:
    return


@pytest.mark.parametrize("without", [False, True])
async def test_without_the_time_compare_an_owner_two_days_ahead_gives_up_at_once(
    monkeypatch: pytest.MonkeyPatch, *, without: bool
) -> None:
    """Its clock says that a day has passed, and it does not ask the ledger first; the write preconditions."""
    work = OwedDelivery(DeliveryConfig(answer_wait_ms=50, give_up_after_s=86_400))
    monkeypatch.setattr(work.outbox._fence, "reach", _asks_nobody)
    if without:
        monkeypatch.setattr(preconditions, "time_reached", lambda *_: [])
    async with work.owed(attempts=1):
        work.node.clock.advance(timedelta(days=2).total_seconds())
        end, delivery = await work.attempt()
    assert isinstance(end, Done if without else Later)
    assert (delivery.state is DeliveryState.ENTER_BY_HAND) is without
