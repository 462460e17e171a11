"""Everything that happens in the ledger, in order of revision: for drills and checkers. Not on a vend's path."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from etcdpb import rpc_pb2 as pb
from utrn.store.v1 import records_pb2 as store

from cluster.client import EtcdClient
from cluster.config import EtcdConfig
from cluster.keys import Keys
from cluster.records import read, vend_of
from core.domain.meter import MeterId, OriginatorId
from core.domain.vend import Vend


@dataclass(frozen=True, slots=True)
class VendSeen:
    """A vend was written. `created`: for the first time."""

    vend: Vend
    created: bool


@dataclass(frozen=True, slots=True)
class VendGone:
    """A vend was deleted."""

    participant_id: str
    transaction_id: str


@dataclass(frozen=True, slots=True)
class OwnerSeen:
    """A node became the owner of a shard."""

    shard: int
    node_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class OwnerGone:
    """A shard lost its owner."""

    shard: int


@dataclass(frozen=True, slots=True)
class CounterSeen:
    """A counter sequence was written."""

    originator_id: OriginatorId
    meter_id: MeterId
    last_issued: int


Change = VendSeen | VendGone | OwnerSeen | OwnerGone | CounterSeen


@dataclass(frozen=True, slots=True)
class LedgerEvent:
    """A change, the revision at which it was made, and when this reader heard of it (monotonic, seconds)."""

    revision: int
    change: Change
    heard_at: float = 0.0


async def follow(client: EtcdClient, config: EtcdConfig) -> AsyncIterator[Sequence[LedgerEvent]]:
    """Return every change from now on, those of one reply together, for ever; an empty list says: nothing new.

    The first item is empty: what happens after it will be seen.

    Raises:
        Compacted: changes were lost.
    """
    keys = Keys(config.prefix)
    reply = await client.range(pb.RangeRequest(key=b"\0", count_only=True))
    yield []
    async for news in client.watch(config.prefix.encode(), reply.header.revision):
        yield [one for one in (event_of(keys, event) for event in news.events) if one is not None]


def event_of(keys: Keys, event: pb.Event) -> LedgerEvent | None:
    """Return what an event of etcd says; None if it is of no interest."""
    kind, _, name = event.kv.key.decode().removeprefix(keys.prefix).partition("/")
    change = _gone(kind, name) if event.type == pb.Event.DELETE else _seen(kind, name, event.kv)
    return None if change is None else LedgerEvent(event.kv.mod_revision, change)


def _gone(kind: str, name: str) -> Change | None:
    match kind:
        case "vend":
            participant_id, _, transaction_id = name.partition("/")
            return VendGone(participant_id, transaction_id)
        case "shard":
            return OwnerGone(int(name))
        case _:
            return None


def _seen(kind: str, name: str, kv: pb.KeyValue) -> Change | None:
    match kind:
        case "vend":
            return VendSeen(vend_of(kv.value), created=kv.version == 1)
        case "shard":
            return OwnerSeen(int(name), kv.value.decode(), kv.create_revision)
        case "counter":
            originator_id, _, meter_id = name.partition("/")
            last = read(store.CounterRecord(), kv.value).last_issued
            return CounterSeen(OriginatorId(originator_id), MeterId(meter_id), last)
        case _:
            return None
