"""etcd that runs out of space: what it really refuses, what stops early here, and what protects people and goes on."""

import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from etcdpb import rpc_pb2 as pb
from etcdpb import rpc_pb2_grpc as rpc

from cluster.codec.registry import name_of
from cluster.etcd import ops
from cluster.etcd.client import EtcdClient, EtcdRefused
from cluster.etcd.keys import Keys
from cluster.etcd.ledger_guard import LedgerGuard
from cluster.etcd.space import LedgerSpace
from cluster.ledger.identity import create, look
from cluster.ledger.vends import EtcdLedger
from cluster.membership.lease import Lease
from cluster.registry.store import EtcdRegistryStore
from core.api.status import status_of
from core.domain.errors import LedgerFull
from core.domain.record import Ref
from core.ports.ledger import Committed, CounterState, Entry, Present
from core.ports.registry import RegistryWrite
from tests.fakes.clock import HandClock
from tests.support.etcd import RealEtcd, Store
from tests.support.vends import NOW, card, meter, new_meter_id, vend

_MB = 1024**2


def status(size: int, *errors: str) -> pb.StatusResponse:
    return pb.StatusResponse(dbSize=size, errors=errors)


def space_of(quota: int = 100 * _MB) -> LedgerSpace:
    return LedgerSpace(EtcdClient.__new__(EtcdClient), quota)


def test_it_warns_at_seventy_stops_at_ninety_and_goes_on_at_eighty_five() -> None:
    space = space_of()
    for size, full, problems in (
        (69, False, 0),
        (71, False, 1),
        (91, True, 1),
        (86, True, 1),
        (84, False, 1),
        (10, False, 0),
    ):
        space.take({"a": status(size * _MB), "b": status(1 * _MB), "c": None})
        assert (space.full, len(space.problems)) == (full, problems), size
    space.take({"a": None, "b": None})
    assert space.used_bytes == 10 * _MB, "who says nothing is as before"


def test_the_alarm_stops_issuing_whatever_the_size_says() -> None:
    space = space_of()
    space.take({"a": status(5 * _MB, "memberID:1 alarm:NOSPACE ")})
    assert space.full
    assert "do not restart" in space.problems[0]
    space.take({"a": status(5 * _MB)})
    assert not space.full


async def test_nothing_new_is_issued_and_what_was_decided_is_answered(store: Store) -> None:
    full = False
    ledger = EtcdLedger(store.client, store.config, HandClock(), lambda: full)
    meter_id, other = new_meter_id(), new_meter_id()
    sold = Entry(vend=vend(1, meter_id), seen=CounterState())
    (first,) = await ledger.commit([sold])
    assert isinstance(first, Committed)
    full = True
    again, refused = await ledger.commit([sold, Entry(vend=vend(1, other), seen=CounterState())])
    assert isinstance(again, Present)
    assert again.stored == first.stored
    assert isinstance(refused, LedgerFull)
    assert any(detail.type_url.endswith("RetryInfo") for detail in status_of(refused).details)
    full = False
    (later,) = await ledger.commit([Entry(vend=vend(1, other), seen=CounterState())])
    assert isinstance(later, Committed)


async def test_a_card_is_blocked_and_replaced_and_no_meter_is_added(store: Store) -> None:
    full = False
    records = EtcdRegistryStore(store.client, store.config, HandClock(), full=lambda: full)
    meter_id = new_meter_id()
    old, new = card("9826000000000000001", meter_id), card("9826000000000000002", meter_id)  # type: ignore[arg-type]
    there = await records.write(RegistryWrite(expect=[(Ref(*name_of(old)), 0)], put=[old]))
    assert there is not None
    full = True
    added = meter(new_meter_id())
    with pytest.raises(LedgerFull):
        await records.write(RegistryWrite(expect=[(Ref(*name_of(added)), 0)], put=[added]))
    blocked = replace(old, replaced_by=new.pan)
    done = await records.write(
        RegistryWrite(expect=[(Ref(*name_of(old)), there), (Ref(*name_of(new)), 0)], put=[blocked, new])
    )
    assert done is not None


class Full:
    """An etcd that has really raised NOSPACE; `client` is a node's, with its guard; `lease` was granted before."""

    def __init__(self, etcd: RealEtcd, client: EtcdClient, guard: LedgerGuard, lease: Lease) -> None:
        self.etcd, self.client, self.guard, self.lease = etcd, client, guard, lease

    async def maintain(self) -> None:
        """Do what docs/runbooks/etcd-space.md says: compact, defragment, take the alarm away."""
        reply = await self.client.bare_read(pb.TxnRequest(success=[ops.get(b"any")]))
        async with grpc.aio.insecure_channel(self.etcd.endpoints[0]) as channel:
            compact = pb.CompactionRequest(revision=reply.header.revision, physical=True)
            await rpc.KVStub(channel).Compact(compact)
            maintenance = rpc.MaintenanceStub(channel)
            await maintenance.Defragment(pb.DefragmentRequest())
            alarms = await maintenance.Alarm(pb.AlarmRequest(action=pb.AlarmRequest.GET))
            for alarm in alarms.alarms:
                await maintenance.Alarm(
                    pb.AlarmRequest(action=pb.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm)
                )


@pytest.fixture
def small(tmp_path: Path) -> Iterator[RealEtcd]:
    real = RealEtcd(tmp_path, options=("--quota-backend-bytes", str(8 * _MB)))
    yield real
    real.stop()


async def _fill(client: EtcdClient) -> None:
    for number in range(1000):
        put = ops.put(b"filler%d" % (number % 3), os.urandom(200_000))
        await client.bare_txn(pb.TxnRequest(success=[put]))


@pytest.fixture
async def full(small: RealEtcd) -> AsyncIterator[Full]:
    config = small.config(quota_bytes=8 * _MB)
    guard, keys = LedgerGuard(), Keys(config.prefix)
    client = EtcdClient(config, guard)
    await create(client, keys, {}, NOW)
    seen = await look(client, keys)
    guard.know(seen.record.incarnation, (keys.ledger(), seen.value or b""), seen.revision, seen.cluster_id)
    lease = Lease(client, config, HandClock())
    await lease.renew()
    with pytest.raises(EtcdRefused, match="space exceeded"):
        await _fill(client)
    yield Full(small, client, guard, lease)
    await client.close()


@pytest.mark.real
async def test_what_etcd_really_refuses_when_it_has_raised_nospace(full: Full) -> None:
    space = LedgerSpace(full.client, 8 * _MB)
    space.take(await full.client.members())
    assert space.alarm
    assert space.full
    put = ops.put(b"block a card", b"x")
    # As itself it is refused; nested, as all writes of a node are, it is carried out: etcd 3.4 does not count it.
    with pytest.raises(EtcdRefused, match="space exceeded"):
        await full.client.bare_txn(pb.TxnRequest(success=[put]))
    assert (await full.client.txn(pb.TxnRequest(success=[put]))).succeeded
    on_lease = ops.put(b"shard", b"node-a", lease=full.lease.lease_id)
    assert (await full.client.txn(pb.TxnRequest(success=[on_lease]))).succeeded
    assert (await full.client.txn(pb.TxnRequest(success=[ops.delete(b"shard")]))).succeeded
    # Leases live on, and no new one is to be had: a node that restarts now owns nothing.
    assert await full.lease.renew()
    with pytest.raises(EtcdRefused, match="space exceeded"):
        await full.client.grant_lease(2)


@pytest.mark.real
async def test_the_runbook_frees_it(full: Full) -> None:
    await full.maintain()
    space = LedgerSpace(full.client, 8 * _MB)
    space.take(await full.client.members())
    assert not space.alarm
    assert not space.full
    lease_id, _ = await full.client.grant_lease(2)
    assert lease_id
    await full.client.bare_txn(pb.TxnRequest(success=[ops.put(b"any", b"x")]))
