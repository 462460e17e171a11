"""MirroredPrefix: a small part of etcd kept in memory by watch, and told of our own writes before the watch tells."""

import asyncio
from collections.abc import Callable, Mapping
from typing import NoReturn

from etcdpb import rpc_pb2 as pb

from cluster.client import Compacted, EtcdClient, EtcdUnreachable

_RETRY_AFTER_S = 0.1


class MirroredPrefix:
    """Every key under a prefix. For prefixes with few keys: it remembers one revision for each key it ever saw."""

    def __init__(self, client: EtcdClient, prefix: bytes, changed: Callable[[], None]) -> None:
        """Take what to mirror, and whom to tell after each change."""
        self._client = client
        self._prefix = prefix
        self._changed = changed
        self._keys: dict[str, pb.KeyValue] = {}
        self._revisions: dict[str, int] = {}
        self.ready = False

    @property
    def keys(self) -> Mapping[str, pb.KeyValue]:
        """What is there, by the part of the key after the prefix."""
        return self._keys

    async def run(self) -> NoReturn:
        """Follow for ever."""
        while True:
            try:
                found, revision = await self._client.list_prefix(self._prefix)
                self._take(found, revision)
                async for reply in self._client.watch(self._prefix, revision):
                    for event in reply.events:
                        self.apply(event.kv, gone=event.type == pb.Event.DELETE)
            except (Compacted, EtcdUnreachable):
                await asyncio.sleep(_RETRY_AFTER_S)

    def apply(self, kv: pb.KeyValue, *, gone: bool) -> None:
        """Take in one change, from the watch or of our own; one that is older than what is known changes nothing."""
        name = self._name(kv.key)
        if kv.mod_revision <= self._revisions.get(name, 0):
            return
        self._revisions[name] = kv.mod_revision
        if gone:
            self._keys.pop(name, None)
        else:
            self._keys[name] = kv
        self._changed()

    def _take(self, found: list[pb.KeyValue], revision: int) -> None:
        names = {self._name(kv.key) for kv in found}
        for name in list(self._keys):
            if name not in names and self._revisions[name] <= revision:
                self._revisions[name] = revision
                del self._keys[name]
        for kv in found:
            self.apply(kv, gone=False)
        self.ready = True
        self._changed()

    def _name(self, key: bytes) -> str:
        return key[len(self._prefix) :].decode()
