"""EtcdOwnership: which shards this node owns. A claim is create-if-absent on the node's lease; its revision, the epoch.

Leases are no locks: a paused owner may believe in its shard longer than etcd does. The epoch compared in every delivery
write is what makes that harmless; the deadline kept here only makes it rare.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeVar

from etcdpb import rpc_pb2 as pb
from google.protobuf import timestamp_pb2
from google.protobuf.message import DecodeError
from utrn.store.v1 import records_pb2 as store

from cluster.codec.set_aside import SetAsideRecords
from cluster.codec.vend import GARBLED, SCHEMA, read
from cluster.config import EtcdConfig
from cluster.etcd import ops, preconditions
from cluster.etcd.client import Compacted, EtcdClient, EtcdRefused, EtcdUnknown, EtcdUnreachable
from cluster.etcd.informer import CopyState
from cluster.etcd.keys import Keys
from cluster.etcd.prefix_mirror import PrefixMirror
from cluster.membership.lease import Lease
from cluster.membership.placement import moves, shard_of
from core.domain.invariant import InvariantBroken
from core.domain.meter import MeterId
from core.ports.clock import Clock
from core.ports.ownership import Gained, Lost, Ownership, OwnershipChange

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_RETRY_AFTER_S = 0.1
_EtcdTrouble = (EtcdUnreachable, EtcdUnknown, EtcdRefused, Compacted)


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether this node stands ready to own shards."""

    hsm_ready: bool = True
    mirror_ready: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A live node as etcd has it."""

    node_id: str
    address: str
    zone: str
    version: str
    hsm_ready: bool
    mirror_ready: bool
    lease_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The owner of a shard."""

    node_id: str
    epoch: int
    lease_id: int


class EtcdOwnership:
    """This node's shards, and what it knows of the other nodes."""

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
        fitness: Callable[[], Readiness] = Readiness,
        aside: SetAsideRecords | None = None,
    ) -> None:
        self._aside = SetAsideRecords() if aside is None else aside
        self._client = client
        self._config = config
        self._keys = Keys(config.prefix)
        self._lease = Lease(client, config, clock)
        self._clock = clock
        self._record = store.NodeRecord(schema=SCHEMA, node_id=node_id, address=address, zone=zone, version=version)
        self._fitness = fitness
        self._announced: tuple[int, Readiness] | None = None
        self._epochs: dict[int, int] = {}
        self._moved = asyncio.Event()
        self._looked = asyncio.Event()
        self._leaving = False
        every_s = config.compare_members_s
        self._nodes = PrefixMirror(client, self._keys.nodes(), self._looked.set, compare_s=every_s)
        self._shards = PrefixMirror(client, self._keys.shards(), self._looked.set, compare_s=every_s)
        self._drains = PrefixMirror(client, self._keys.drains(), self._looked.set, compare_s=every_s)
        self._roster = PrefixMirror(client, self._keys.rosters(), lambda: None, compare_s=every_s)

    @property
    def node_id(self) -> str:
        """This node."""
        return self._record.node_id

    @property
    def lease_id(self) -> int:
        """The lease that this node's shards hang on; 0 while it has none."""
        return self._lease.lease_id

    @property
    def lease_good(self) -> bool:
        """True while etcd has acknowledged this node's lease of late."""
        return self._lease.good

    @property
    def seen(self) -> bool:
        """True once this node has read who is there and who should be."""
        return self._nodes.ready and self._roster.ready

    @property
    def leaving(self) -> bool:
        """True once the node has given up everything for good."""
        return self._leaving

    @property
    def drained(self) -> bool:
        """True if an operator has drained this node."""
        return self.node_id in self._drains.keys

    def shard_of(self, meter_id: MeterId) -> int:
        """Return the shard of a meter."""
        return shard_of(meter_id, self._config.shards)

    def epoch(self, shard: int) -> int | None:
        """Return the epoch under which this node may start work on `shard` now; None if it may not."""
        return self._epochs.get(shard) if self._lease.good else None

    def epochs(self) -> Mapping[int, int]:
        """Return the shards that this node owns, with their epochs."""
        return self._epochs

    def members(self) -> dict[str, Member]:
        """Return every live node, by id, as last heard from etcd."""
        return self._understood("node", self._nodes, _member)

    def owners(self) -> dict[int, Owner]:
        """Return every owned shard with its owner, as last heard from etcd."""
        owners = self._understood("shard", self._shards, lambda kv: (self._keys.parse_shard(kv.key), _owner(kv)))
        return dict(owners.values())

    def drains(self) -> dict[str, store.DrainRecord]:
        """Return every drained node, by id."""
        told = self._understood("drain", self._drains, lambda kv: read(store.DrainRecord(), kv.value))
        # That the key is there is what drains a node; who wrote it, and when, is for people.
        return {name: told.get(name) or store.DrainRecord(node_id=name) for name in self._drains.keys}

    def roster(self) -> dict[str, store.RosterRecord]:
        """Return every node that should be there, alive or not, by id."""
        # Without the schema check, as for members: nothing here decides about money.
        told = self._understood("roster", self._roster, lambda kv: store.RosterRecord.FromString(kv.value))
        return {name: told.get(name) or store.RosterRecord(node_id=name) for name in self._roster.keys}

    def _understood(self, kind: str, mirror: PrefixMirror, of: Callable[[pb.KeyValue], _T]) -> dict[str, _T]:
        """Return what a mirror's records say, by name; one that cannot be understood is set aside."""
        found: dict[str, _T] = {}
        for name, kv in mirror.keys.items():
            try:
                found[name] = of(kv)
            except GARBLED as error:
                self._aside.note(kind, kv.key, kv.mod_revision, error)
        return found

    def copies(self) -> list[CopyState]:
        """Return how each copy of a part of the ledger is."""
        return [mirror.state for mirror in (self._nodes, self._shards, self._drains, self._roster)]

    async def changes(self) -> AsyncIterator[OwnershipChange]:
        """Return what this node owns now, as Gained, then every change, in order, for ever. For one reader.

        What the reader was told is compared with what is, again and again: a lease may run out by time and be good
        again with nobody looking in between. Events only make it quicker.
        """
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
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.keepalive_ms / 1000):
                    await self._moved.wait()

    async def run(self) -> NoReturn:
        """Keep the lease alive, claim what the plan gives this node and hand over what it gives to others, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_lease())
            for mirror in (self._nodes, self._shards, self._drains, self._roster):
                tasks.create_task(mirror.run())
            tasks.create_task(self._move_forever())
        raise InvariantBroken("ownership never ends by itself")

    async def leave(self) -> None:
        """Give up every shard and the node's own key at once, so that others need not wait for the lease."""
        self._leaving = True
        self._epochs = {}
        self._moved.set()
        await self._lease.give_up()

    async def _keep_lease(self) -> NoReturn:
        while True:
            if self._leaving:
                # A new lease would only have to run out again.
                await asyncio.Event().wait()
            try:
                alive = await self._lease.renew()
                pause_s = self._config.keepalive_ms / 1000
                if not alive:
                    log.warning("the lease is gone, and every shard with it")
                    self._epochs = {}
                    pause_s = 0.0
            except _EtcdTrouble:
                pause_s = _RETRY_AFTER_S
            self._moved.set()
            if self._announced != (self._lease.lease_id, self._fitness()) or not self._epochs:
                self._looked.set()
            await asyncio.sleep(pause_s)

    async def _move_forever(self) -> NoReturn:
        while True:
            await self._looked.wait()
            if not self._lease.good or self._leaving:
                # What was heard stays unread until it can be acted on.
                await asyncio.sleep(_RETRY_AFTER_S)
                continue
            self._looked.clear()
            try:
                await self._reconcile(self._lease.lease_id)
            except _EtcdTrouble as error:
                log.info("moving shards failed, tried again", extra={"error": str(error)})
                await asyncio.sleep(_RETRY_AFTER_S)
                self._looked.set()

    async def _reconcile(self, lease_id: int) -> None:
        """Bring what this node owns into line with the plan and with what etcd says."""
        await self._announce(lease_id)
        if not all(mirror.ready for mirror in (self._nodes, self._shards, self._drains)):
            return
        members, owners = self.members(), self.owners()
        mine = {shard: owner.epoch for shard, owner in owners.items() if owner.lease_id == lease_id}
        able = [member.node_id for member in members.values() if member.hsm_ready and member.mirror_ready]
        claim, hand_over = moves(
            self._config.shards,
            me=self.node_id,
            mine=mine,
            owned=owners,
            alive=members,
            able=[node for node in able if node not in self._drains.keys],
        )
        kept = {shard: epoch for shard, epoch in mine.items() if shard not in hand_over}
        # Work on what is handed over stops here, before anybody else can begin it.
        self._own(lease_id, kept)
        if hand_over:
            await self._hand_over({shard: mine[shard] for shard in hand_over})
        if claim:
            self._own(lease_id, kept | await self._claim(claim, lease_id))

    def _own(self, lease_id: int, epochs: dict[int, int]) -> None:
        if lease_id == self._lease.lease_id and not self._leaving and epochs != self._epochs:
            log.info("shards owned", extra={"shards": len(epochs), "before": len(self._epochs)})
            self._epochs = epochs
            self._moved.set()

    async def _announce(self, lease_id: int) -> None:
        """Tell the others that this node lives, and how it is."""
        fitness = self._fitness()
        if self._announced == (lease_id, fitness):
            return
        self._record.hsm_ready, self._record.mirror_ready = fitness.hsm_ready, fitness.mirror_ready
        key, value = self._keys.node(self.node_id), self._record.SerializeToString(deterministic=True)
        alive = ops.put(key, value, lease=lease_id)
        # One transaction: an operator cannot take a node off the roster between the two, when it would live unexpected.
        reply = await self._client.txn(pb.TxnRequest(success=[alive, ops.nested(self._join())]))
        await self._correct_roster(reply.responses[1].response_txn)
        self._announced = (lease_id, fitness)
        self._nodes.apply(
            pb.KeyValue(key=key, value=value, lease=lease_id, mod_revision=reply.header.revision), gone=False
        )

    def _join(self) -> pb.TxnRequest:
        """Return what puts this node on the roster if it is not there, and reads what is there if it is."""
        key = self._keys.roster(self.node_id)
        value = self._roster_value(self._now())
        return pb.TxnRequest(compare=preconditions.absent(key), success=[ops.put(key, value)], failure=[ops.get(key)])

    def _now(self) -> timestamp_pb2.Timestamp:
        now = timestamp_pb2.Timestamp()
        now.FromDatetime(self._clock.now())
        return now

    async def _correct_roster(self, joined: pb.TxnResponse) -> None:
        """Write where this node is now, if the roster says otherwise; when it first joined stays."""
        there = None if joined.succeeded else ops.got(joined)[0]
        if there is None:
            return
        try:
            before = store.RosterRecord.FromString(there.value)
        except DecodeError as error:
            # This node's own, and only for people: it is written anew.
            self._aside.note("roster", there.key, there.mod_revision, error)
            before = store.RosterRecord(since=self._now())
        if (before.address, before.zone) != (self._record.address, self._record.zone):
            unmoved = preconditions.record_unmoved(there.key, there.mod_revision)
            put = ops.put(there.key, self._roster_value(before.since))
            await self._client.txn(pb.TxnRequest(compare=unmoved, success=[put]))

    def _roster_value(self, since: timestamp_pb2.Timestamp) -> bytes:
        mine = self._record
        record = store.RosterRecord(
            schema=SCHEMA, node_id=mine.node_id, address=mine.address, zone=mine.zone, since=since
        )
        return record.SerializeToString(deterministic=True)

    async def _claim(self, shards: list[int], lease_id: int) -> dict[int, int]:
        """Claim what is free; return what was got, with its epochs."""
        value = self.node_id.encode()
        keys = [self._keys.shard(shard) for shard in shards]
        children = [
            pb.TxnRequest(compare=preconditions.absent(key), success=[ops.put(key, value, lease=lease_id)])
            for key in keys
        ]
        got: dict[int, int] = {}
        for at in range(0, len(children), self._config.batch_max):
            reply = await self._client.txn(ops.group(children[at : at + self._config.batch_max]))
            revision = reply.header.revision
            for op, key, shard in zip(reply.responses, keys[at:], shards[at:], strict=False):
                if op.response_txn.succeeded:
                    got[shard] = revision
                    owned = pb.KeyValue(
                        key=key, value=value, lease=lease_id, create_revision=revision, mod_revision=revision
                    )
                    self._shards.apply(owned, gone=False)
        return got

    async def _hand_over(self, epochs: Mapping[int, int]) -> None:
        """Free the shards, each only while it is ours; the node that the plan names is waiting for it."""
        log.info("handing shards over", extra={"shards": len(epochs)})
        items = [(self._keys.shard(shard), epoch) for shard, epoch in epochs.items()]
        for at in range(0, len(items), self._config.batch_max):
            part = items[at : at + self._config.batch_max]
            children = [
                pb.TxnRequest(compare=preconditions.owner_unmoved(key, epoch), success=[ops.delete(key)])
                for key, epoch in part
            ]
            reply = await self._client.txn(ops.group(children))
            for op, (key, _) in zip(reply.responses, part, strict=True):
                if op.response_txn.succeeded:
                    self._shards.apply(pb.KeyValue(key=key, mod_revision=reply.header.revision), gone=True)


def _owner(kv: pb.KeyValue) -> Owner:
    return Owner(node_id=kv.value.decode(), epoch=kv.create_revision, lease_id=kv.lease)


def _member(kv: pb.KeyValue) -> Member:
    # Without the schema check: while versions are mixed, every node must know every other one. What a later version
    # adds here may be ignored, and nothing here decides about money.
    record = store.NodeRecord.FromString(kv.value)
    return Member(
        node_id=record.node_id,
        address=record.address,
        zone=record.zone,
        version=record.version,
        hsm_ready=record.hsm_ready,
        mirror_ready=record.mirror_ready,
        lease_id=kv.lease,
    )


if TYPE_CHECKING:
    _: type[Ownership] = EtcdOwnership
