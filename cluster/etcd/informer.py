"""Informer: the one way to keep a copy of a prefix: list, then watch, for ever, and compare with the ledger.

A watch is quick and may lose events without a word: etcd's own faults (upstream 15220), a ledger put back, a bug here.
So each copy is compared with the ledger every so often: every key with its revision, no values, all as of one revision.
What differs is looked at again after a moment, because a watch may only be behind; what differs still was missed. It is
read, taken in, counted, and said.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

from etcdpb import rpc_pb2 as pb

from cluster.etcd import ops
from cluster.etcd.client import Compacted, EtcdClient, EtcdUnreachable

log = logging.getLogger(__name__)

_RETRY_AFTER_S = 0.1
# How long a watch may be behind without having lost anything.
_GRACE_S = 2.0
# Longer than a watch may be behind: it is cut after a few seconds without a sign of life.
_GONE_KEPT_S = 60.0
_NOT_GONE = (0, 0.0)
# About two milliseconds of work, at most, before others have their turn.
_AT_ONCE = 2_000
_PAGE_PAUSE_S = 0.05
_READ_AT_ONCE = 100
_SAID_AT_MOST = 20


class Replica(Protocol):
    """Somebody's copy of the keys under a prefix, in whatever form; a name is what follows a part's prefix.

    A record that cannot be understood is kept track of like any other: it must not be called missing.
    """

    def begin(self) -> None:
        """Begin a new listing; it lasts until `listed`."""
        ...

    def listed(self, revision: int) -> None:
        """Put the listing in the place of what was there; it is as of `revision`."""
        ...

    def put(self, kv: pb.KeyValue) -> None:
        """Store a key's newest value."""
        ...

    def remove(self, key: bytes, revision: int) -> None:
        """Remove a key that was deleted at `revision`."""
        ...

    def parts(self) -> Sequence[bytes]:
        """Return the prefixes that are compared one after another."""
        ...

    def names(self, part: bytes) -> Iterable[str]:
        """Return the names under a part that are there now; the result does not change under its reader."""
        ...

    def revision_of(self, part: bytes, name: str) -> int:
        """Return the revision of what is kept of a name; 0 if it is not there."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyState:
    """How a copy is: what was missed and healed so far, how far it is, and when it was last compared (loop time)."""

    name: str
    ready: bool
    healed: int
    revision: int
    compared_at: float


class Informer:
    """Keeps one replica true to the ledger."""

    def __init__(
        self, client: EtcdClient, prefix: bytes, replica: Replica, *, name: str, compare_s: float, told: bool = False
    ) -> None:
        """Take what to follow and who keeps it.

        Args:
            client: The ledger.
            prefix: What to follow.
            replica: Who keeps it.
            name: Of the copy, for logs and figures.
            compare_s: Seconds between comparisons; 0 for none.
            told: The replica is told of this node's own writes as well (`take`), before the watch tells.
        """
        self._client = client
        self._prefix = prefix
        self._replica = replica
        self._name = name
        self._compare_s = compare_s
        self._told = told
        self._parts: Sequence[bytes] = ()
        # Since which revision a key is gone, and when that was heard: what is older must not bring it back.
        self._gone: dict[bytes, tuple[int, float]] = {}
        self._comparing = False
        self._listing = False
        self._listings = 0
        self._healed = 0
        self._revision = 0
        self._compared_at = 0.0
        self.ready = False

    @property
    def state(self) -> CopyState:
        """How the copy is."""
        return CopyState(
            name=self._name,
            ready=self.ready,
            healed=self._healed,
            revision=self._revision,
            compared_at=self._compared_at,
        )

    async def run(self) -> NoReturn:  # type: ignore[misc]  # a task group whose tasks never end
        """Follow and compare, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow())
            if self._compare_s:
                tasks.create_task(self._compare_forever())

    async def _follow(self) -> NoReturn:
        while True:
            try:
                revision = await self._list()
                async for reply in self._client.watch(self._prefix, revision):
                    for event in reply.events:
                        self.take(event.kv, gone=event.type == pb.Event.DELETE)
                    # For display only: a progress reply may run ahead of the events up to its revision.
                    self._revision = max(self._revision, reply.header.revision)
            except (Compacted, EtcdUnreachable):
                await asyncio.sleep(_RETRY_AFTER_S)

    async def _list(self) -> int:
        revision = 0
        self._listings += 1
        self._listing = True
        self._replica.begin()
        async for page, revision in self._client.pages(self._prefix):  # noqa: B007  # the last one is what is returned
            for kv in page:
                self.take(kv, gone=False)
        self._replica.listed(revision)
        self._listing = False
        self._parts = self._replica.parts()
        self._revision = max(self._revision, revision)
        self._compared_at = asyncio.get_running_loop().time()
        self.ready = True
        return revision

    def take(self, kv: pb.KeyValue, *, gone: bool) -> bool:
        """Take in one change; return False if what is known is as new."""
        part = self._part(kv.key)
        there = self._replica.revision_of(part, name_of(kv.key, part))
        if kv.mod_revision <= max(there, self._gone.get(kv.key, _NOT_GONE)[0]):
            return False
        if gone:
            if self._told or self._comparing:
                self._gone[kv.key] = (kv.mod_revision, asyncio.get_running_loop().time())
            self._replica.remove(kv.key, kv.mod_revision)
        else:
            self._replica.put(kv)
        return True

    async def _compare_forever(self) -> NoReturn:
        while True:
            await asyncio.sleep(self._compare_s)
            if not self.ready:
                continue
            try:
                await self.compare()
            except (Compacted, EtcdUnreachable) as error:
                log.info("a copy could not be compared", extra={"copy": self._name, "error": type(error).__name__})

    async def compare(self) -> int:
        """Compare the copy with the ledger once; return how many keys were missed and are healed.

        Raises:
            Compacted, EtcdUnreachable: it could not be compared to the end.
        """
        if self._listing:
            # It is being read anew as it is: what is not read yet would all look missed.
            return 0
        listing, self._comparing = self._listings, True
        try:
            suspects = [key for part in self._parts for key in await self._differing(part)]
            healed = 0
            if suspects:
                await asyncio.sleep(_GRACE_S)
                # A listing meanwhile has read all of it anew.
                healed = await self._heal(suspects) if listing == self._listings else 0
        finally:
            self._comparing = False
        self._compared_at = asyncio.get_running_loop().time()
        # A watch may still be behind what was told or healed, and bring what was there before it.
        old = self._compared_at - _GONE_KEPT_S
        for key in [key for key, (_, heard_at) in self._gone.items() if heard_at < old]:
            del self._gone[key]
        return healed

    async def _differing(self, part: bytes) -> list[bytes]:
        """Return the keys whose revision in the ledger is not the copy's."""
        here, revision, found = await _set_of(self._replica.names(part)), 0, list[bytes]()
        async for page, revision in self._client.pages(part, keys_only=True):  # noqa: B007  # as above
            for number, kv in enumerate(page, start=1):
                name = name_of(kv.key, part)
                here.discard(name)
                if self._replica.revision_of(part, name) < kv.mod_revision:
                    found.append(kv.key)
                if number % _AT_ONCE == 0:
                    await asyncio.sleep(0)
            if len(page) >= _AT_ONCE:
                await asyncio.sleep(_PAGE_PAUSE_S)
        found += [key_of(part, name) for name in here if 0 < self._replica.revision_of(part, name) <= revision]
        return found

    async def _heal(self, suspects: list[bytes]) -> int:
        healed = 0
        for at in range(0, len(suspects), _READ_AT_ONCE):
            keys = suspects[at : at + _READ_AT_ONCE]
            reply = await self._client.read(pb.TxnRequest(success=[ops.get(key) for key in keys]))
            for key, kv in zip(keys, ops.got(reply), strict=True):
                if self._differs(key, kv, reply.header.revision):
                    healed += 1
                    self._say(key, healed)
        self._healed += healed
        return healed

    def _differs(self, key: bytes, kv: pb.KeyValue | None, revision: int) -> bool:
        """Take in what the ledger has of a key as of `revision`; return whether the copy had missed it."""
        if kv is not None:
            return self.take(kv, gone=False)
        part = self._part(key)
        if not self._replica.revision_of(part, name_of(key, part)):
            return False
        return self.take(pb.KeyValue(key=key, mod_revision=revision), gone=True)

    def _say(self, key: bytes, number: int) -> None:
        if number <= _SAID_AT_MOST:
            log.error(
                "a copy had missed a change; healed",
                extra={"copy": self._name, "key": key.decode(errors="backslashreplace")},
            )

    def _part(self, key: bytes) -> bytes:
        for part in self._parts or self._replica.parts():
            if key.startswith(part):
                return part
        return self._prefix


def name_of(key: bytes, part: bytes) -> str:
    """Return what of a key follows its part; bytes that are no text keep their place."""
    return key[len(part) :].decode(errors="surrogateescape")


def key_of(part: bytes, name: str) -> bytes:
    """Return the key of a name."""
    return part + name.encode(errors="surrogateescape")


async def _set_of(names: Iterable[str]) -> set[str]:
    """Return the names as a set; of a million, without keeping others waiting."""
    found: set[str] = set()
    for number, name in enumerate(names, start=1):
        found.add(name)
        if number % (10 * _AT_ONCE) == 0:
            await asyncio.sleep(0)
    return found
