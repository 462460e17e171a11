"""EtcdOwnership: which shards this node owns. A claim is create-if-absent on the node's lease; its revision, the epoch.

Leases are no locks: a paused owner may believe in its shard longer than etcd does. The epoch compared in every delivery
write is what makes that harmless; the deadline kept here only makes it rare.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, NoReturn

from etcdpb import rpc_pb2 as pb
from utrn.store.v1 import records_pb2 as store

from cluster import compares, ops
from cluster.client import Compacted, EtcdClient, EtcdRefused, EtcdUnknown, EtcdUnreachable
from cluster.config import EtcdConfig
from cluster.keys import Keys
from cluster.lease import Lease
from cluster.records import SCHEMA
from cluster.shards import plan, shard_of
from core.domain.invariant import InvariantBroken
from core.domain.meter import MeterId
from core.ports.clock import Clock
from core.ports.ownership import Gained, Lost, Ownership, OwnershipChange

log = logging.getLogger(__name__)

_RETRY_AFTER_S = 0.1
_EtcdTrouble = (EtcdUnreachable, EtcdUnknown, EtcdRefused, Compacted)


class ShardCountDiffers(Exception):
    """The ledger was made with another number of shards; it can never change."""


class EtcdOwnership:
    """This node's shards."""

    def __init__(
        self,
        client: EtcdClient,
        config: EtcdConfig,
        clock: Clock,
        *,
        node_id: str,
        address: str = "",
        zone: str = "",
        version: str = "",
    ) -> None:
        self._client = client
        self._config = config
        self._keys = Keys(config.prefix)
        self._lease = Lease(client, config, clock)
        self._node = store.NodeRecord(schema=SCHEMA, node_id=node_id, address=address, zone=zone, version=version)
        self._epochs: dict[int, int] = {}
        self._moved = asyncio.Event()
        self._looked = asyncio.Event()
        self._leaving = False

    def shard_of(self, meter_id: MeterId) -> int:
        """Return the shard of a meter."""
        return shard_of(meter_id, self._config.shards)

    def epoch(self, shard: int) -> int | None:
        """Return the epoch under which this node may start work on `shard` now; None if it may not."""
        return self._epochs.get(shard) if self._lease.good else None

    async def changes(self) -> AsyncIterator[OwnershipChange]:
        """Return what this node owns now, as Gained, then every change, in order, for ever. For one reader."""
        told: dict[int, int] = {}
        while True:
            self._moved.clear()
            now = dict(self._epochs) if self._lease.good else {}
            for shard, epoch in list(told.items()):
                if now.get(shard) != epoch:
                    del told[shard]
                    yield Lost(shard)
            for shard, epoch in now.items():
                if shard not in told:
                    told[shard] = epoch
                    yield Gained(shard, epoch)
            await self._moved.wait()

    async def run(self) -> NoReturn:
        """Keep the lease alive and claim what the plan gives this node, for ever.

        Raises:
            ShardCountDiffers: the configuration does not fit the ledger.
        """
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_lease())
            tasks.create_task(self._watch())
            tasks.create_task(self._claim_forever())
        raise InvariantBroken("ownership never ends by itself")

    async def leave(self) -> None:
        """Give up every shard and the node's own key at once, so that others need not wait for the lease."""
        self._leaving = True
        self._epochs.clear()
        await self._lease.give_up()

    async def _keep_lease(self) -> NoReturn:
        was_good = False
        while True:
            try:
                alive = await self._lease.renew()
                pause_s = self._config.keepalive_ms / 1000
                if not alive:
                    log.warning("the lease is gone, and every shard with it")
                    self._epochs.clear()
                    pause_s = 0.0
            except _EtcdTrouble:
                pause_s = _RETRY_AFTER_S
            if self._lease.good != was_good or not self._epochs:
                was_good = self._lease.good
                self._moved.set()
                self._looked.set()
            await asyncio.sleep(pause_s)

    async def _watch(self) -> NoReturn:
        """Look again whenever a node or an owner comes or goes."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_prefix(self._keys.nodes()))
            tasks.create_task(self._watch_prefix(self._keys.shards()))
        raise InvariantBroken("watching never ends by itself")

    async def _watch_prefix(self, prefix: bytes) -> NoReturn:
        while True:
            try:
                reply = await self._client.range(pb.RangeRequest(key=prefix, count_only=True))
                self._looked.set()
                async for _ in self._client.watch(prefix, reply.header.revision):
                    self._looked.set()
            except _EtcdTrouble:
                await asyncio.sleep(_RETRY_AFTER_S)

    async def _claim_forever(self) -> NoReturn:
        agreed = False
        while True:
            await self._looked.wait()
            self._looked.clear()
            if not self._lease.good or self._leaving:
                continue
            try:
                if not agreed:
                    await self._agree_on_shards()
                    agreed = True
                await self._reconcile()
            except _EtcdTrouble as error:
                log.info("claiming shards failed, tried again", extra={"error": str(error)})
                await asyncio.sleep(_RETRY_AFTER_S)
                self._looked.set()

    async def _agree_on_shards(self) -> None:
        key, wanted = self._keys.shard_count(), str(self._config.shards).encode()
        reply = await self._client.txn(
            pb.TxnRequest(compare=compares.absent(key), success=[ops.put(key, wanted)], failure=[ops.get(key)])
        )
        if not reply.succeeded:
            (there,) = ops.got(reply)
            if there is None or there.value != wanted:
                told = "nothing" if there is None else there.value.decode()
                raise ShardCountDiffers(f"etcd.shards: {self._config.shards} here, {told} in the ledger")

    async def _reconcile(self) -> None:
        """Bring what this node owns into line with the plan and with what etcd says."""
        lease_id = self._lease.lease_id
        await self._announce(lease_id)
        owners, _ = await self._client.list_prefix(self._keys.shards())
        nodes, _ = await self._client.list_prefix(self._keys.nodes())
        owned = {self._keys.parse_shard(one.key): one for one in owners}
        ours = {shard: one.create_revision for shard, one in owned.items() if one.lease == lease_id}
        alive = [one.key.decode().removeprefix(self._keys.nodes().decode()) for one in nodes]
        planned = plan(self._config.shards, alive)
        free = [shard for shard, node in planned.items() if node == self._node.node_id and shard not in owned]
        for shard in free:
            epoch = await self._claim(shard, lease_id)
            if epoch is not None:
                ours[shard] = epoch
        if lease_id == self._lease.lease_id and not self._leaving and ours != self._epochs:
            log.info("shards owned", extra={"shards": len(ours), "before": len(self._epochs)})
            self._epochs = ours
            self._moved.set()

    async def _announce(self, lease_id: int) -> None:
        key = self._keys.node(self._node.node_id)
        value = self._node.SerializeToString(deterministic=True)
        reply = await self._client.range(pb.RangeRequest(key=key))
        if not reply.kvs or reply.kvs[0].lease != lease_id or reply.kvs[0].value != value:
            await self._client.txn(pb.TxnRequest(success=[ops.put(key, value, lease=lease_id)]))

    async def _claim(self, shard: int, lease_id: int) -> int | None:
        key = self._keys.shard(shard)
        reply = await self._client.txn(
            pb.TxnRequest(
                compare=compares.absent(key),
                success=[ops.put(key, self._node.node_id.encode(), lease=lease_id)],
            )
        )
        return reply.header.revision if reply.succeeded else None


if TYPE_CHECKING:
    _: type[Ownership] = EtcdOwnership
