"""OutboxMirror: each node's copy of what is owed to meters, kept by one watch and told to one reader."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from etcdpb import rpc_pb2 as pb
from utrn.store.v1 import records_pb2 as store

from cluster.codec.set_aside import SetAsideRecords
from cluster.codec.vend import GARBLED, read
from cluster.etcd.client import EtcdClient
from cluster.etcd.informer import CopyState, Informer, Replica, name_of
from cluster.etcd.keys import Keys
from core.domain.participant import ParticipantId
from core.domain.transaction_id import TransactionId
from core.ports.outbox import Added, Listing, OutboxEvent, Owed, Removed

_KIND = "outbox"


class OutboxMirror:
    """The keys of the outbox. `run` must be running for `watch` to tell anything.

    `complete` is true once the first Listing of `watch` has been taken in. A record that cannot be understood is set
    aside: its delivery is not told of, and the others are.
    """

    def __init__(self, client: EtcdClient, keys: Keys, aside: SetAsideRecords, *, compare_s: float) -> None:
        """Take where the outbox is, and how often the copy is compared with the ledger (seconds; 0: never)."""
        self._keys = keys
        self._aside = aside
        # What is there, with its revision; and what the reader of `watch` has not taken yet.
        self._there: dict[str, int] = {}
        self._listing: list[pb.KeyValue] | None = None
        self._news: asyncio.Queue[OutboxEvent] = asyncio.Queue()
        self._informer = Informer(client, keys.outboxes(), self, name="outbox", compare_s=compare_s)
        self.complete = False

    @property
    def state(self) -> CopyState:
        """How the copy is."""
        return self._informer.state

    async def run(self) -> NoReturn:
        """Follow what is owed, for ever."""
        await self._informer.run()

    async def watch(self) -> AsyncIterator[OutboxEvent]:
        """Return a Listing, then every change, in order, for ever; for one reader.

        What the watch has lost is told as well, once a comparison with the ledger has found it.
        """
        while True:
            event = await self._news.get()
            yield event
            if isinstance(event, Listing):
                self.complete = True

    def begin(self) -> None:
        """Begin a listing."""
        self._there, self._listing = {}, []

    def listed(self, revision: int) -> None:
        """Tell the listing."""
        del revision
        listing, self._listing = self._listing or [], None
        self._news.put_nowait(Listing(tuple(one for kv in listing if (one := self._understood(kv)) is not None)))

    def put(self, kv: pb.KeyValue) -> None:
        """Store an owed delivery."""
        self._there[self._name(kv.key)] = kv.mod_revision
        if self._listing is not None:
            self._listing.append(kv)
        elif (owed := self._understood(kv)) is not None:
            self._news.put_nowait(Added(owed))

    def remove(self, key: bytes, revision: int) -> None:
        """Remove a delivery that is no longer owed."""
        del revision
        self._there.pop(self._name(key), None)
        self._aside.clear(_KIND, key)
        with suppress(*GARBLED):
            shard, meter_id, counter, originator_id = self._keys.parse_outbox(key)
            self._news.put_nowait(Removed(shard=shard, meter_id=meter_id, counter=counter, originator_id=originator_id))

    def parts(self) -> Sequence[bytes]:
        """It is compared as a whole."""
        return (self._keys.outboxes(),)

    def names(self, part: bytes) -> Iterable[str]:
        """Return every name."""
        del part
        return list(self._there)

    def revision_of(self, part: bytes, name: str) -> int:
        """Return the revision of a name; 0 if it is not there."""
        del part
        return self._there.get(name, 0)

    def _name(self, key: bytes) -> str:
        return name_of(key, self._keys.outboxes())

    def _understood(self, kv: pb.KeyValue) -> Owed | None:
        """Return what a record says is owed; None if it cannot be understood, and is set aside."""
        try:
            owed = self._owed(kv)
        except GARBLED as error:
            self._aside.note(_KIND, kv.key, kv.mod_revision, error)
            return None
        self._aside.clear(_KIND, kv.key)
        return owed

    def _owed(self, found: pb.KeyValue) -> Owed:
        shard, meter_id, counter, originator_id = self._keys.parse_outbox(found.key)
        pointer = read(store.VendPointer(), found.value)
        return Owed(
            shard=shard,
            meter_id=meter_id,
            counter=counter,
            originator_id=originator_id,
            participant_id=ParticipantId(pointer.participant_id),
            transaction_id=TransactionId(pointer.transaction_id),
            since=found.mod_revision,
        )


if TYPE_CHECKING:
    _: type[Replica] = OutboxMirror
