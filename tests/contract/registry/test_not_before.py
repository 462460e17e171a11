"""What must not happen before an instant is bounded by the ledger's own time, whatever the writing node believes."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from etcdpb import rpc_pb2 as pb

from cluster.etcd import ops, preconditions
from cluster.etcd.keys import Keys
from cluster.registry.store import EtcdRegistryStore
from cluster.timekeeping.fence import TimeFence
from core.domain.delivery import DeliveryReason, DeliveryState
from core.domain.effective_dated import Ms
from core.domain.record import Kind, Ref
from core.gateways.system_clock import SystemClock
from core.ports.ledger import StoredVend
from core.ports.outbox import DeliveryChange
from core.ports.registry import RegistryWrite
from tests.contract.delivery.test_outbox import Bench
from tests.support.etcd import Store
from tests.support.head_ends import HEAD_END
from tests.support.origins import RANDOM_PART
from tests.support.vends import NOW, meter, new_meter_id

LEDGER_MS = 1_795_000_000_000


@pytest.fixture
async def believing(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A node that takes every instant for reached; the ledger's time stands still."""

    async def reached(_: TimeFence, __: Ms) -> None:
        return

    monkeypatch.setattr(TimeFence, "reach", reached)
    now = ops.put(Keys(store.config.prefix).time_now(), preconditions.time_value(LEDGER_MS))
    await store.client.txn(pb.TxnRequest(success=[now]))
    return store


@pytest.mark.parametrize(("ahead_ms", "written"), [(0, True), (1, False), (46_800_000, False)])
async def test_a_change_is_not_carried_out_before_the_ledgers_time(
    believing: Store, ahead_ms: int, *, written: bool
) -> None:
    records = EtcdRegistryStore(believing.client, believing.config, SystemClock())
    one = meter(new_meter_id())
    write = RegistryWrite(expect=[(Ref(Kind.METER, one.meter_id), 0)], put=[one], not_before=Ms(LEDGER_MS + ahead_ms))
    assert (await records.write(write) is not None) is written


@pytest.fixture
async def bench(believing: Store) -> AsyncIterator[Bench]:
    bench = Bench(believing)
    running = asyncio.get_running_loop().create_task(bench.outbox.run())
    yield bench
    running.cancel()


@pytest.mark.parametrize(("ahead_ms", "written"), [(0, True), (1, False), (172_800_000, False)])
async def test_a_delivery_is_not_given_up_before_the_ledgers_time(
    bench: Bench, ahead_ms: int, *, written: bool
) -> None:
    meter_id = new_meter_id()
    shard, epoch = await bench.own(meter_id, "node-a")
    stored = (await bench.owe(meter_id)).stored
    sent = stored.vend.delivery.send(NOW, epoch, head_end=HEAD_END, random_part=RANDOM_PART)
    given_up = sent.close(DeliveryState.ENTER_BY_HAND, DeliveryReason.NO_ANSWER, NOW, epoch)
    change = DeliveryChange(
        shard=shard, epoch=epoch, stored=stored, delivery=given_up, not_before=Ms(LEDGER_MS + ahead_ms)
    )
    (outcome,) = await bench.outbox.write([change])
    assert isinstance(outcome, StoredVend) is written
