"""What a watch has lost is found by comparison and healed, over the fake and a real etcd; without it, never."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast

import pytest
from etcdpb import rpc_pb2 as pb

from cluster.codec.registry import name_of, value_of
from cluster.etcd import informer, ops
from cluster.etcd.client import Compacted, EtcdClient
from cluster.etcd.keys import Keys
from cluster.etcd.prefix_mirror import PrefixMirror
from cluster.ledger.outbox import EtcdOutbox
from cluster.ledger.vends import EtcdLedger
from cluster.registry.replica import EtcdRegistryReplica
from core.domain.meter import MeterId
from core.domain.vend import Vend
from core.ports.ledger import Committed, CounterState, Entry
from core.ports.outbox import Added, Listing, OutboxEvent, Removed
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.losing import LosingClient
from tests.support.vends import meter, new_meter_id, vend

_SOON_S = 0.2


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(informer, "_GRACE_S", _SOON_S)


@asynccontextmanager
async def running(*parts: Coroutine[None, None, None]) -> AsyncIterator[None]:
    tasks = [asyncio.get_running_loop().create_task(part) for part in parts]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()


async def until(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    try:
        async with asyncio.timeout(seconds):
            while not holds():  # noqa: ASYNC110  # nobody tells of what is looked for
                await asyncio.sleep(0.01)
    except TimeoutError:
        return False
    return True


async def _owe(store: Store, one: Vend, seen: CounterState) -> Committed:
    (outcome,) = await EtcdLedger(store.client, store.config, HandClock()).commit([Entry(vend=one, seen=seen)])
    assert isinstance(outcome, Committed)
    return outcome


async def _heard_with(store: Store, compare_s: float) -> tuple[list[OutboxEvent], EtcdOutbox, Committed, Committed]:
    """Owe two deliveries and end one, all of which the watch loses; return what the reader heard within a time."""
    client = LosingClient(store.client, lambda _: False)
    config = replace(store.config, compare_outbox_s=compare_s)
    outbox = EtcdOutbox(cast("EtcdClient", client), config, HandClock())
    heard, meter_id = list[OutboxEvent](), new_meter_id()
    ended = await _owe(store, vend(1, meter_id), CounterState())

    async def hear() -> None:
        async for event in outbox.watch():
            heard.append(event)

    async with running(outbox.run(), hear()):
        assert await until(lambda: outbox.mirrored)
        client.loses = lambda _: True
        owed = await _owe(store, vend(2, meter_id), ended.counter)
        await _end(store, meter_id, ended)
        assert await until(lambda: client.lost >= 2)
        client.loses = lambda _: False
        await until(lambda: len(heard) >= 3, 3.0)
        assert client.lost == 2
    return heard, outbox, owed, ended


async def _end(store: Store, meter_id: MeterId, ended: Committed) -> None:
    """Take a delivery out of the outbox, as the write of its owner does that closes it."""
    found, _ = await store.client.list_prefix(Keys(store.config.prefix).outboxes())
    name = f"/{meter_id}/{ended.stored.vend.counter:010d}/".encode()
    (key,) = [kv.key for kv in found if name in kv.key]
    await store.client.txn(pb.TxnRequest(success=[ops.delete(key)]))


async def test_a_delivery_that_the_watch_lost_is_told_and_one_that_ended_is_taken_back(store: Store) -> None:
    heard, outbox, owed, ended = await _heard_with(store, _SOON_S)
    listing, *later = heard
    assert isinstance(listing, Listing)
    assert [one.transaction_id for one in listing.owed] == [ended.stored.vend.sale.transaction_id]
    told = {type(one): one for one in later}
    added, removed = told[Added], told[Removed]
    assert isinstance(added, Added)
    assert isinstance(removed, Removed)
    assert added.owed.transaction_id == owed.stored.vend.sale.transaction_id
    assert removed.counter == ended.stored.vend.counter
    assert outbox.state.healed == 2
    assert outbox.state.compared_at > 0


async def test_without_the_comparison_the_delivery_is_lost_for_good(store: Store) -> None:
    heard, outbox, _, _ = await _heard_with(store, 0)
    assert len(heard) == 1
    assert outbox.state.healed == 0


async def test_the_registry_s_copy_is_healed(store: Store) -> None:
    keys, client = Keys(store.config.prefix), LosingClient(store.client, lambda _: False)
    registry = EtcdRegistryReplica(cast("EtcdClient", client), replace(store.config, compare_registry_s=_SOON_S))
    old, new = new_meter_id(), new_meter_id()
    await _put(store, meter(old))
    due = keys.due(5, old)
    await store.client.txn(pb.TxnRequest(success=[ops.put(due, b"")]))
    async with running(registry.run()):
        assert await until(lambda: registry.ready)
        client.loses = lambda _: True
        await _put(store, meter(new))
        await _put(store, replace(meter(old), make="Another"))
        await store.client.txn(pb.TxnRequest(success=[ops.delete(due)]))
        assert await until(lambda: registry.meter(new) is not None)
        assert await until(lambda: not registry.due_by(10))  # type: ignore[arg-type]
        known = registry.meter(old)
        assert known is not None
        assert known.record.make == "Another"
        assert registry.state.healed == 3


class SlowClient(LosingClient):
    """Its watches tell nothing before a gate is open."""

    def __init__(self, client: EtcdClient, gate: asyncio.Event) -> None:
        super().__init__(client, lambda _: False)
        self._gate = gate

    async def watch(self, prefix: bytes, after_revision: int) -> AsyncIterator[pb.WatchResponse]:
        async for reply in super().watch(prefix, after_revision):
            await self._gate.wait()
            yield reply


async def _put(store: Store, record: object) -> None:
    keys = Keys(store.config.prefix)
    put = ops.put(keys.record(*name_of(record)), value_of(record))  # type: ignore[arg-type]
    await store.client.txn(pb.TxnRequest(success=[put]))


async def test_a_small_prefix_is_healed_and_its_own_newer_write_is_not_undone(store: Store) -> None:
    prefix = f"{store.config.prefix}small/".encode()
    client = LosingClient(store.client, lambda _: True)
    mirror = PrefixMirror(cast("EtcdClient", client), prefix, lambda: None, compare_s=_SOON_S)
    await store.client.txn(pb.TxnRequest(success=[ops.put(prefix + b"a", b"1")]))
    async with running(mirror.run()):
        assert await until(lambda: mirror.ready)
        await store.client.txn(pb.TxnRequest(success=[ops.put(prefix + b"b", b"2")]))
        reply = await store.client.txn(pb.TxnRequest(success=[ops.delete(prefix + b"a")]))
        mirror.apply(pb.KeyValue(key=prefix + b"a", mod_revision=reply.header.revision), gone=True)
        assert await until(lambda: set(mirror.keys) == {"b"})
        # The delete was this node's own and known: only the put had been missed.
        assert mirror.state.healed == 1


async def test_a_watch_that_is_behind_a_comparison_brings_nothing_back_that_is_gone(store: Store) -> None:
    prefix, gate = f"{store.config.prefix}back/".encode(), asyncio.Event()
    client, told = SlowClient(store.client, gate), list[set[str]]()
    mirror = PrefixMirror(cast("EtcdClient", client), prefix, lambda: told.append(set(mirror.keys)))
    async with running(mirror.run()):
        assert await until(lambda: mirror.ready)
        await store.client.txn(pb.TxnRequest(success=[ops.put(prefix + b"a", b"1")]))
        reply = await store.client.txn(pb.TxnRequest(success=[ops.delete(prefix + b"a")]))
        mirror.apply(pb.KeyValue(key=prefix + b"a", mod_revision=reply.header.revision), gone=True)
        assert await mirror._informer.compare() == 0
        gate.set()
        await store.client.txn(pb.TxnRequest(success=[ops.put(prefix + b"b", b"2")]))
        assert await until(lambda: "b" in mirror.keys)
        assert not any("a" in keys for keys in told), "what this node has deleted itself is never there again"


async def test_what_a_comparison_found_gone_is_not_brought_back_by_a_watch_that_is_behind(store: Store) -> None:
    """Also in a copy that is told nothing of this node's own writes, as the outbox's."""
    prefix, gate = f"{store.config.prefix}found-gone/".encode(), asyncio.Event()
    client, told = SlowClient(store.client, gate), list[set[str]]()
    await store.client.txn(pb.TxnRequest(success=[ops.put(prefix + b"a", b"1")]))
    mirror = PrefixMirror(cast("EtcdClient", client), prefix, lambda: told.append(set(mirror.keys)))
    mirror._informer._told = False
    async with running(mirror.run()):
        assert await until(lambda: mirror.ready)
        await store.client.txn(pb.TxnRequest(success=[ops.put(prefix + b"a", b"2")]))
        await store.client.txn(pb.TxnRequest(success=[ops.delete(prefix + b"a")]))
        assert await mirror._informer.compare() == 1
        assert not mirror.keys
        told.clear()
        gate.set()
        await store.client.txn(pb.TxnRequest(success=[ops.put(prefix + b"b", b"3")]))
        assert await until(lambda: "b" in mirror.keys)
        assert not any("a" in keys for keys in told), "what the ledger has no longer is never there again"


async def test_what_a_new_listing_has_not_read_yet_is_not_called_missed(store: Store) -> None:
    prefix, gate, cut = f"{store.config.prefix}anew/".encode(), asyncio.Event(), asyncio.Event()

    class Anew(LosingClient):
        listings = 0

        async def pages(
            self, prefix: bytes, *, page: int = 25_000, keys_only: bool = False
        ) -> AsyncIterator[tuple[Sequence[pb.KeyValue], int]]:
            self.listings += not keys_only
            if self.listings == 2 and not keys_only:
                await gate.wait()
            async for one in store.client.pages(prefix, page=page, keys_only=keys_only):
                yield one

        async def watch(self, prefix: bytes, after_revision: int) -> AsyncIterator[pb.WatchResponse]:
            if self.listings == 1:
                await cut.wait()
                raise Compacted
            async for reply in super().watch(prefix, after_revision):
                yield reply

    client = Anew(store.client, lambda _: False)
    await store.client.txn(pb.TxnRequest(success=[ops.put(prefix + b"a", b"1")]))
    mirror = PrefixMirror(cast("EtcdClient", client), prefix, lambda: None)
    async with running(mirror.run()):
        assert await until(lambda: mirror.ready)
        cut.set()
        assert await until(lambda: client.listings == 2)
        assert await mirror._informer.compare() == 0
        gate.set()
        assert await until(lambda: mirror._informer._listings == 2 and not mirror._informer._listing)
        assert (set(mirror.keys), mirror.state.healed) == ({"a"}, 0)


async def test_a_watch_that_is_only_behind_counts_as_healed_nothing(store: Store) -> None:
    prefix, gate = f"{store.config.prefix}behind/".encode(), asyncio.Event()
    client = SlowClient(store.client, gate)
    mirror = PrefixMirror(cast("EtcdClient", client), prefix, lambda: None)
    async with running(mirror.run()):
        assert await until(lambda: mirror.ready)
        await store.client.txn(pb.TxnRequest(success=[ops.put(prefix + b"a", b"1")]))
        comparing = asyncio.get_running_loop().create_task(mirror._informer.compare())
        await asyncio.sleep(0)
        gate.set()
        assert await comparing == 0
        assert set(mirror.keys) == {"a"}
