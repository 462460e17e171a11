"""What every Outbox keeps, over the fake and over a real etcd; and what goes wrong without the epoch compare."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from etcdpb import rpc_pb2 as pb

from cluster.etcd import ops, preconditions
from cluster.etcd.keys import Keys
from cluster.ledger.outbox import EtcdOutbox
from cluster.ledger.vends import EtcdLedger
from cluster.membership.placement import shard_of
from core.domain.delivery import DeliveryReason, DeliveryState
from core.domain.errors import DeliveryChanged, Deposed
from core.domain.meter import MeterId
from core.domain.utrn import Counter
from core.ports.ledger import Committed, CounterState, Entry, StoredVend
from core.ports.outbox import Added, DeliveryChange, Listing, Owed, Removed, WriteOutcome
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.head_ends import HEAD_END
from tests.support.origins import RANDOM_PART
from tests.support.vends import NOW, ORIGINATOR, new_meter_id, vend


class Bench:
    """A ledger, an outbox, and a shard that can change hands."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.ledger = EtcdLedger(store.client, store.config, HandClock())
        self.outbox = EtcdOutbox(store.client, store.config, HandClock())
        self.keys = Keys(store.config.prefix)

    async def own(self, meter_id: MeterId, node: str) -> tuple[int, int]:
        """Let `node` become the owner of the meter's shard; return shard and epoch."""
        shard = shard_of(meter_id, self.store.config.shards)
        key = self.keys.shard(shard)
        await self.store.client.txn(pb.TxnRequest(success=[ops.delete(key)]))
        reply = await self.store.client.txn(pb.TxnRequest(success=[ops.put(key, node.encode())]))
        return shard, reply.header.revision

    async def owe(self, meter_id: MeterId, counter: int = 1, seen: CounterState | None = None) -> Committed:
        (outcome,) = await self.ledger.commit([Entry(vend=vend(counter, meter_id), seen=seen or CounterState())])
        assert isinstance(outcome, Committed)
        return outcome

    async def send(self, stored: StoredVend, shard: int, epoch: int) -> WriteOutcome:
        delivery = stored.vend.delivery.send(NOW, epoch, head_end=HEAD_END, random_part=RANDOM_PART)
        change = DeliveryChange(shard=shard, epoch=epoch, stored=stored, delivery=delivery)
        (outcome,) = await self.outbox.write([change])
        return outcome

    async def close(self, stored: StoredVend, shard: int, epoch: int) -> WriteOutcome:
        delivery = stored.vend.delivery.close(DeliveryState.APPLIED, DeliveryReason.CREDITED, NOW, epoch)
        change = DeliveryChange(shard=shard, epoch=epoch, stored=stored, delivery=delivery)
        (outcome,) = await self.outbox.write([change])
        return outcome


@pytest.fixture
async def bench(store: Store) -> AsyncIterator[Bench]:
    made = Bench(store)
    # Not a TaskGroup: a fixture's two halves run in different tasks.
    running = asyncio.get_running_loop().create_task(made.outbox.run())
    yield made
    running.cancel()


def _owed(stored: StoredVend, shard: int) -> Owed:
    sale = stored.vend.sale
    return Owed(
        shard=shard,
        meter_id=stored.vend.meter_id,
        counter=stored.vend.counter,
        originator_id=stored.vend.originator_id,
        participant_id=sale.participant_id,
        transaction_id=sale.transaction_id,
        since=stored.revision,
    )


async def test_what_is_owed_is_listed_then_told_as_it_changes(bench: Bench) -> None:
    meter_id = new_meter_id()
    shard, epoch = await bench.own(meter_id, "a")
    first = await bench.owe(meter_id)
    reader = EtcdOutbox(bench.store.client, bench.store.config, HandClock())
    following = asyncio.get_running_loop().create_task(reader.run())
    events = reader.watch()
    listing = await anext(events)
    assert listing == Listing((_owed(first.stored, shard),))
    second = await bench.owe(meter_id, 2, first.counter)
    assert await anext(events) == Added(_owed(second.stored, shard))
    await bench.close(first.stored, shard, epoch)
    assert await anext(events) == Removed(shard=shard, meter_id=meter_id, counter=Counter(1), originator_id=ORIGINATOR)
    following.cancel()


async def test_an_owner_writes_the_next_state(bench: Bench) -> None:
    meter_id = new_meter_id()
    shard, epoch = await bench.own(meter_id, "a")
    stored = (await bench.owe(meter_id)).stored
    sent = await bench.send(stored, shard, epoch)
    assert isinstance(sent, StoredVend)
    assert sent.vend.delivery.state is DeliveryState.SENT
    assert await bench.outbox.read([_owed(stored, shard)]) == [sent]


async def _deposed_owner_writes(bench: Bench) -> WriteOutcome:
    """An owner is paused, another takes over, the first goes on; return what its write came to."""
    meter_id = new_meter_id()
    shard, old_epoch = await bench.own(meter_id, "paused")
    stored = (await bench.owe(meter_id)).stored
    await bench.own(meter_id, "successor")
    return await bench.send(stored, shard, old_epoch)


async def test_a_deposed_epoch_writes_nothing(bench: Bench) -> None:
    assert isinstance(await _deposed_owner_writes(bench), Deposed)


async def test_without_the_epoch_compare_a_deposed_owner_writes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preconditions, "epoch_current", lambda key, epoch: [])
    assert isinstance(await _deposed_owner_writes(bench), StoredVend)


async def test_a_shard_without_an_owner_takes_no_write(bench: Bench) -> None:
    meter_id = new_meter_id()
    shard, epoch = await bench.own(meter_id, "a")
    stored = (await bench.owe(meter_id)).stored
    await bench.store.client.txn(pb.TxnRequest(success=[ops.delete(bench.keys.shard(shard))]))
    assert isinstance(await bench.send(stored, shard, epoch), Deposed)


async def test_a_write_on_an_old_state_is_refused(bench: Bench) -> None:
    meter_id = new_meter_id()
    shard, epoch = await bench.own(meter_id, "a")
    stored = (await bench.owe(meter_id)).stored
    await bench.send(stored, shard, epoch)
    other = stored.vend.delivery.mark_outcome_unknown(epoch)
    (outcome,) = await bench.outbox.write([DeliveryChange(shard=shard, epoch=epoch, stored=stored, delivery=other)])
    assert isinstance(outcome, DeliveryChanged)


async def test_a_write_carried_out_before_is_recognised(bench: Bench) -> None:
    meter_id = new_meter_id()
    shard, epoch = await bench.own(meter_id, "a")
    stored = (await bench.owe(meter_id)).stored
    assert await bench.send(stored, shard, epoch) == await bench.send(stored, shard, epoch)


async def test_a_closed_delivery_is_no_longer_owed_and_tells_how_far_the_meter_is(bench: Bench) -> None:
    meter_id = new_meter_id()
    shard, epoch = await bench.own(meter_id, "a")
    stored = (await bench.owe(meter_id)).stored
    assert isinstance(await bench.close(stored, shard, epoch), StoredVend)
    assert await bench.outbox.read([_owed(stored, shard)]) == [None]
    (state,) = await bench.ledger.counters([(ORIGINATOR, meter_id)])
    assert isinstance(state, CounterState)
    assert (state.highest_applied, state.unapplied) == (1, 0)


async def test_what_is_known_to_be_applied_never_falls(bench: Bench, store: Store) -> None:
    meter_id = new_meter_id()
    shard, epoch = await bench.own(meter_id, "a")
    first = last = await bench.owe(meter_id)
    for counter in range(2, 10):
        last = await bench.owe(meter_id, counter, last.counter)
    await bench.outbox.note_applied(
        shard=shard, epoch=epoch, originator_id=ORIGINATOR, meter_id=meter_id, counter=Counter(9)
    )
    fresh = Bench(store)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(fresh.outbox.run())
        assert isinstance(await fresh.close(first.stored, shard, epoch), StoredVend)
        await fresh.outbox.note_applied(
            shard=shard, epoch=epoch, originator_id=ORIGINATOR, meter_id=meter_id, counter=Counter(3)
        )
        running.cancel()
    (state,) = await bench.ledger.counters([(ORIGINATOR, meter_id)])
    assert isinstance(state, CounterState)
    assert state.highest_applied == 9


async def test_what_is_applied_is_held_against_what_is_issued_when_it_is_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter_id = new_meter_id()
    shard, epoch = await bench.own(meter_id, "a")
    await bench.owe(meter_id)
    counter, sequence, asked = bench.keys.counter(ORIGINATOR, meter_id), EtcdOutbox.sequence, list[CounterState]()

    async def read_just_before_it_moves(self: EtcdOutbox, *of: Any) -> CounterState:
        asked.append(await sequence(self, *of))
        if len(asked) == 1:
            await bench.store.client.txn(pb.TxnRequest(success=[ops.delete(counter)]))
        return asked[-1]

    monkeypatch.setattr(EtcdOutbox, "sequence", read_just_before_it_moves)
    await bench.outbox.note_applied(
        shard=shard, epoch=epoch, originator_id=ORIGINATOR, meter_id=meter_id, counter=Counter(1)
    )
    assert [one.last_issued for one in asked] == [1, 0]
    assert (await sequence(bench.outbox, ORIGINATOR, meter_id)).highest_applied == 0


async def test_a_deposed_owner_notes_nothing(bench: Bench) -> None:
    meter_id = new_meter_id()
    shard, epoch = await bench.own(meter_id, "a")
    await bench.owe(meter_id)
    await bench.own(meter_id, "b")
    with pytest.raises(Deposed):
        await bench.outbox.note_applied(
            shard=shard, epoch=epoch, originator_id=ORIGINATOR, meter_id=meter_id, counter=Counter(1)
        )


async def test_a_deposed_owner_does_not_say_how_far_it_has_heard(bench: Bench) -> None:
    shard, epoch = await bench.own(new_meter_id(), "a")
    await bench.outbox.note_heard(shard=shard, epoch=epoch, head_end="north", sequence=7)
    with pytest.raises(Deposed):
        await bench.outbox.note_heard(shard=shard, epoch=epoch - 1, head_end="north", sequence=9)
    assert list(await bench.outbox.heard([shard], "north")) == [7]


async def test_a_confirmation_does_not_disturb_the_next_issue(bench: Bench) -> None:
    meter_id = new_meter_id()
    shard, epoch = await bench.own(meter_id, "a")
    first = await bench.owe(meter_id)
    await bench.close(first.stored, shard, epoch)
    await bench.owe(meter_id, 2, first.counter)


async def test_many_writes_at_once_go_together_and_each_is_answered(bench: Bench) -> None:
    async with asyncio.TaskGroup() as tasks:
        writing = [tasks.create_task(_one_delivery(bench)) for _ in range(100)]
    assert all(task.result() for task in writing)


async def _one_delivery(bench: Bench) -> bool:
    meter_id = new_meter_id()
    shard = shard_of(meter_id, bench.store.config.shards)
    reply = await bench.store.client.range(pb.RangeRequest(key=bench.keys.shard(shard)))
    if not reply.kvs:
        await bench.store.client.txn(
            pb.TxnRequest(
                compare=preconditions.absent(bench.keys.shard(shard)), success=[ops.put(bench.keys.shard(shard), b"a")]
            )
        )
        reply = await bench.store.client.range(pb.RangeRequest(key=bench.keys.shard(shard)))
    epoch = reply.kvs[0].create_revision
    sent = await bench.send((await bench.owe(meter_id)).stored, shard, epoch)
    return isinstance(sent, StoredVend) and isinstance(await bench.close(sent, shard, epoch), StoredVend)
