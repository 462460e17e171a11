"""What Ownership keeps, over the fake and over a real etcd: one owner a shard, an epoch that only rises, a fence."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from etcdpb import rpc_pb2 as pb

from cluster.etcd import ops
from cluster.etcd.keys import Keys
from cluster.membership.lease import Lease
from cluster.membership.shard_ownership import EtcdOwnership
from core.gateways.system_clock import SystemClock
from core.ports.clock import Clock
from core.ports.ownership import Gained, Lost
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.patience import PATIENCE_S

SHARDS = 32


@asynccontextmanager
async def node(store: Store, name: str, clock: Clock | None = None) -> AsyncIterator[EtcdOwnership]:
    ownership = EtcdOwnership(store.client, store.config, clock or SystemClock(), node_id=name)
    running = asyncio.get_running_loop().create_task(ownership.run())
    try:
        yield ownership
    finally:
        running.cancel()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110  # the port tells changes, this asks what is
            await asyncio.sleep(0.01)


async def owned(ownership: EtcdOwnership, wanted: int) -> dict[int, int]:
    """Return the epochs once `ownership` has `wanted` shards."""
    epochs: dict[int, int] = {}
    async with asyncio.timeout(PATIENCE_S):
        async for change in ownership.changes():
            match change:
                case Gained(shard, epoch):
                    epochs[shard] = epoch
                case Lost(shard):
                    del epochs[shard]
            if len(epochs) == wanted:
                return epochs
    raise AssertionError


async def test_a_node_alone_owns_everything(store: Store) -> None:
    async with node(store, "a") as a:
        epochs = await owned(a, SHARDS)
        assert all(a.epoch(shard) == epoch for shard, epoch in epochs.items())
        await a.leave()


async def test_a_leaver_hands_over_at_once_and_epochs_rise(store: Store) -> None:
    async with node(store, "a") as a:
        before = await owned(a, SHARDS)
        async with node(store, "b") as b:
            await a.leave()
            assert all(a.epoch(shard) is None for shard in before)
            after = await owned(b, SHARDS)
            assert all(after[shard] > before[shard] for shard in before)
            await b.leave()


async def test_a_revoked_lease_loses_every_shard_and_claims_again(store: Store) -> None:
    async with node(store, "a") as a:
        before = await owned(a, SHARDS)
        await store.client.revoke_lease(a._lease.lease_id)
        await until(lambda: (a.epoch(0) or 0) > before[0])
        await a.leave()


async def test_what_is_lost_is_told_before_it_is_gained_anew(store: Store) -> None:
    async with node(store, "a") as a:
        told: dict[int, list[int | None]] = {}
        async with asyncio.timeout(PATIENCE_S):
            async for change in a.changes():
                told.setdefault(change.shard, []).append(change.epoch if isinstance(change, Gained) else None)
                if sum(map(len, told.values())) == SHARDS:
                    await store.client.revoke_lease(a.lease_id)
                if sum(map(len, told.values())) == 3 * SHARDS:
                    break
        for first, lost, second in told.values():
            assert lost is None
            assert first is not None
            assert second is not None
            assert second > first
        await a.leave()


async def test_a_shard_is_handed_over_only_by_the_owner_that_has_it(store: Store) -> None:
    async with node(store, "a") as a:
        await until(lambda: len(a.epochs()) == SHARDS)
        epoch, key = a.epochs()[3], Keys(store.config.prefix).shard(3)
        # As of an epoch that has ended: somebody else has the shard by now.
        await a._hand_over({3: epoch - 1})
        (there,) = (await store.client.range(pb.RangeRequest(key=key))).kvs
        assert there.create_revision == epoch
        await a._hand_over({3: epoch})
        async with asyncio.timeout(PATIENCE_S):
            while True:
                (there,) = (await store.client.range(pb.RangeRequest(key=key))).kvs or (there,)
                if there.create_revision > epoch:
                    break
                await asyncio.sleep(0.01)
        await a.leave()


async def test_a_lease_that_ran_out_by_time_and_is_good_again_owns_again_though_nobody_looked_in_between(
    store: Store,
) -> None:
    clock = HandClock()
    async with node(store, "a", clock) as a:
        await until(lambda: len(a.epochs()) == SHARDS)
        clock.advance(store.config.lease_ttl_s)
        # The reader looks while the lease is in doubt; the next renewal finds it good before and good after.
        assert len(await owned(a, SHARDS)) == SHARDS
        await a.leave()


async def test_a_shard_that_came_free_while_the_lease_was_in_doubt_is_claimed_when_it_is_good_again(
    store: Store,
) -> None:
    clock = HandClock()
    async with node(store, "a", clock) as a:
        await until(lambda: len(a.epochs()) == SHARDS)
        before = a.epochs()[0]
        clock.advance(store.config.lease_ttl_s)
        free = ops.delete(Keys(store.config.prefix).shard(0))
        await store.client.txn(pb.TxnRequest(success=[free]))
        await until(lambda: a.epochs().get(0, 0) > before)
        await a.leave()


async def test_the_fence_falls_by_our_own_clock_though_etcd_says_nothing(store: Store) -> None:
    clock = HandClock()
    lease = Lease(store.client, store.config, clock)
    seen = [lease.good]
    await lease.renew()
    for seconds in (0.0, store.config.lease_ttl_s * store.config.fence_share - 0.01, 0.02):
        clock.advance(seconds)
        seen.append(lease.good)
    await lease.renew()
    seen.append(lease.good)
    await lease.give_up()
    seen.append(lease.good)
    assert seen == [False, True, True, False, True, False]


async def test_the_owners_are_written_where_others_look(store: Store) -> None:
    async with node(store, "a") as a:
        await owned(a, SHARDS)
        found, _ = await store.client.list_prefix(Keys(store.config.prefix).shards())
        assert {one.value for one in found} == {b"a"}
        assert len(found) == SHARDS
        await a.leave()
