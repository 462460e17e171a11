"""The roster, over the fake and over a real etcd: which nodes should be there, alive or not, till one is forgotten."""

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, cast

from etcdpb import rpc_pb2 as pb

from cluster.etcd import ops
from cluster.etcd.keys import Keys
from cluster.membership.cluster_admin import EtcdCluster
from cluster.membership.shard_ownership import EtcdOwnership
from core.gateways.system_clock import SystemClock
from tests.contract.membership.test_shard_ownership import SHARDS, owned, until
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.machines import idle_time


def start(store: Store, name: str, **more: Any) -> tuple[EtcdOwnership, "asyncio.Task[Any]"]:
    ownership = EtcdOwnership(store.client, store.config, more.pop("clock", SystemClock()), node_id=name, **more)
    return ownership, asyncio.get_running_loop().create_task(ownership.run())


def cluster(store: Store, ownership: EtcdOwnership) -> EtcdCluster:
    nothing: Callable[[], Mapping[int, int]] = dict
    return EtcdCluster(
        client=store.client, config=store.config, clock=SystemClock(), ownership=ownership,
        peers=cast("Any", None), beat=cast("Any", None), owed=nothing, keeper=idle_time(store),
    )  # fmt: skip


async def test_a_node_stays_on_the_roster_when_its_lease_is_gone(store: Store) -> None:
    clock = HandClock()
    a, running = start(store, "a", address="10.0.0.1:8443", zone="z1", clock=clock)
    await owned(a, SHARDS)
    running.cancel()
    await store.client.revoke_lease(a.lease_id)
    b, running = start(store, "b", address="10.0.0.2:8443")
    await until(lambda: b.roster().keys() == {"a", "b"} and b.members().keys() == {"b"})
    record = b.roster()["a"]
    assert (record.address, record.zone) == ("10.0.0.1:8443", "z1")
    assert record.since.ToDatetime(tzinfo=UTC) == clock.now().astimezone(UTC)
    keys, _ = await store.client.list_prefix(Keys(store.config.prefix).rosters())
    assert [kv.lease for kv in keys] == [0, 0]
    running.cancel()
    await b.leave()


async def test_a_node_that_moved_says_where_it_is_and_keeps_when_it_joined(store: Store) -> None:
    clock = HandClock()
    a, running = start(store, "a", address="10.0.0.1:8443", clock=clock)
    await until(lambda: "a" in a.roster())
    joined: datetime = a.roster()["a"].since.ToDatetime(tzinfo=UTC)
    running.cancel()
    await a.leave()
    clock.advance(3600)
    again, running = start(store, "a", address="10.0.0.9:8443", clock=clock)
    await until(lambda: "a" in again.roster() and again.roster()["a"].address == "10.0.0.9:8443")
    assert again.roster()["a"].since.ToDatetime(tzinfo=UTC) == joined
    running.cancel()
    await again.leave()


async def test_only_a_node_that_is_gone_is_forgotten_and_it_may_join_again(store: Store) -> None:
    a, running = start(store, "a")
    await owned(a, SHARDS)
    b, b_running = start(store, "b")
    await until(lambda: b.members().keys() == b.roster().keys() == {"a", "b"})
    seen = cluster(store, b)
    assert not await seen.forget("a")
    assert "a" in b.roster()
    running.cancel()
    await a.leave()
    assert await seen.forget("a")
    await until(lambda: b.roster().keys() == {"b"})
    again, running = start(store, "a")
    await until(lambda: b.roster().keys() == {"a", "b"})
    for one, task in ((again, running), (b, b_running)):
        task.cancel()
        await one.leave()


async def test_a_live_node_whose_roster_was_deleted_by_hand_is_on_it_again_with_its_next_lease(store: Store) -> None:
    a, running = start(store, "a")
    await until(lambda: "a" in a.roster())
    await store.client.txn(pb.TxnRequest(success=[ops.delete(Keys(store.config.prefix).roster("a"))]))
    await until(lambda: "a" not in a.roster())
    await store.client.revoke_lease(a.lease_id)
    await until(lambda: "a" in a.roster())
    running.cancel()
    await a.leave()
