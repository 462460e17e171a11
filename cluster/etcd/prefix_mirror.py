"""PrefixMirror: a small part of etcd kept in memory by watch, and told of our own writes before the watch tells."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from etcdpb import rpc_pb2 as pb

from cluster.etcd.client import EtcdClient
from cluster.etcd.informer import CopyState, Informer, Replica, name_of


class PrefixMirror:
    """Every key under a prefix. For prefixes with few keys."""

    def __init__(self, client: EtcdClient, prefix: bytes, changed: Callable[[], None], *, compare_s: float = 0) -> None:
        """Take what to mirror, whom to tell after each change, and how often to compare with the ledger (seconds)."""
        self._prefix = prefix
        self._changed = changed
        self._keys: dict[str, pb.KeyValue] = {}
        self._listing: set[str] | None = None
        name = prefix.decode().rstrip("/").rpartition("/")[2]
        self._informer = Informer(client, prefix, self, name=name, compare_s=compare_s, told=True)

    @property
    def keys(self) -> Mapping[str, pb.KeyValue]:
        """What is there, by the part of the key after the prefix."""
        return self._keys

    @property
    def ready(self) -> bool:
        """True once everything was read."""
        return self._informer.ready

    @property
    def state(self) -> CopyState:
        """How the copy is."""
        return self._informer.state

    async def run(self) -> NoReturn:
        """Follow for ever."""
        await self._informer.run()

    def apply(self, kv: pb.KeyValue, *, gone: bool) -> None:
        """Take in a change of our own; one that is older than what is known changes nothing."""
        self._informer.take(kv, gone=gone)

    def begin(self) -> None:
        """Take what follows as a listing."""
        self._listing = set()

    def listed(self, revision: int) -> None:
        """Drop what the listing does not have, unless it is newer than the listing."""
        listing, self._listing = self._listing or set(), None
        for name in list(self._keys):
            if name not in listing and self._keys[name].mod_revision <= revision:
                del self._keys[name]
        self._changed()

    def put(self, kv: pb.KeyValue) -> None:
        """Take in a key's value; in a listing, one that is older than a write of our own changes nothing."""
        name = name_of(kv.key, self._prefix)
        if self._listing is not None:
            self._listing.add(name)
        if name not in self._keys or self._keys[name].mod_revision < kv.mod_revision:
            self._keys[name] = kv
        if self._listing is None:
            self._changed()

    def remove(self, key: bytes, revision: int) -> None:
        """Take in that a key is gone."""
        del revision
        self._keys.pop(name_of(key, self._prefix), None)
        self._changed()

    def parts(self) -> Sequence[bytes]:
        """It is compared as a whole."""
        return (self._prefix,)

    def names(self, part: bytes) -> Iterable[str]:
        """Return every name."""
        del part
        return list(self._keys)

    def revision_of(self, part: bytes, name: str) -> int:
        """Return the revision of a name; 0, in a listing, of one that it has not had yet: it must hear of each."""
        del part
        kv = self._keys.get(name)
        unheard = self._listing is not None and name not in self._listing
        return 0 if kv is None or unheard else kv.mod_revision


if TYPE_CHECKING:
    _: type[Replica] = PrefixMirror
