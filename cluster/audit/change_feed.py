"""Everything that happens in the ledger, in order of revision: for drills and checkers. Not on a vend's path."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import cast

from etcdpb import rpc_pb2 as pb
from utrn.store.v1 import records_pb2 as store

from cluster.codec.registry import record_of
from cluster.codec.vend import GARBLED, read, under_vend_key_of
from cluster.config import EtcdConfig
from cluster.etcd.client import EtcdClient
from cluster.etcd.keys import Keys
from core.domain.meter import MeterId, OriginatorId
from core.domain.participant import ParticipantId
from core.domain.record import Kind, Ref
from core.domain.refusal import ClosedRefusal
from core.domain.transaction_id import TransactionId
from core.domain.utrn import Counter
from core.domain.vend import Vend
from core.ports.registry import RegistryRecord

# The records that decide about a sale. The others (reminders, claims, notes) follow from them.
_RECORDS = frozenset({Kind.PARTICIPANT, Kind.METER, Kind.PAN, Kind.APPOINTMENT, Kind.MODEL})

# Two participants may use the same transaction id: theirs are two vends.
VendKey = tuple[ParticipantId, TransactionId]


@dataclass(frozen=True, slots=True)
class VendSeen:
    """A vend was written under `key`, which its record must agree with. `created`: for the first time."""

    vend: Vend
    created: bool
    key: VendKey


@dataclass(frozen=True, slots=True)
class RefusalSeen:
    """An id was closed as refused. `created`: nothing was under it before, as it must be."""

    refusal: ClosedRefusal
    created: bool
    key: VendKey


@dataclass(frozen=True, slots=True)
class VendGone:
    """A vend, or the refusal under its key, was deleted."""

    key: VendKey


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


@dataclass(frozen=True, slots=True)
class AppliedSeen:
    """A write of the highest counter known to be applied in a counter sequence."""

    originator_id: OriginatorId
    meter_id: MeterId
    highest_applied: int


@dataclass(frozen=True, slots=True)
class CodeSeen:
    """It was written which vend a counter belongs to."""

    originator_id: OriginatorId
    meter_id: MeterId
    counter: Counter
    vend: VendKey


@dataclass(frozen=True, slots=True)
class OwedSeen:
    """A delivery was put into the outbox, in that shard; `vend` is what its pointer names."""

    shard: int
    meter_id: MeterId
    counter: Counter
    originator_id: OriginatorId
    vend: VendKey


@dataclass(frozen=True, slots=True)
class OwedGone:
    """A delivery was taken out of the outbox."""

    shard: int
    meter_id: MeterId
    counter: Counter
    originator_id: OriginatorId


@dataclass(frozen=True, slots=True)
class RecordSeen:
    """A record of the registry was written."""

    ref: Ref
    record: RegistryRecord


@dataclass(frozen=True, slots=True)
class RecordGone:
    """A record of the registry was deleted."""

    ref: Ref


@dataclass(frozen=True, slots=True)
class NotUnderstood:
    """A record was written that this program cannot understand."""

    key: str


Change = (
    VendSeen
    | RefusalSeen
    | VendGone
    | OwnerSeen
    | OwnerGone
    | CounterSeen
    | AppliedSeen
    | CodeSeen
    | OwedSeen
    | OwedGone
    | RecordSeen
    | RecordGone
    | NotUnderstood
)


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
    kv, key = event.kv, event.kv.key.decode(errors="backslashreplace")
    kind, _, name = key.removeprefix(keys.prefix).partition("/")
    change: Change | None
    try:
        change = _gone(keys, kind, name, kv) if event.type == pb.Event.DELETE else _seen(keys, kind, name, kv)
    except GARBLED:
        change = NotUnderstood(key)
    return None if change is None else LedgerEvent(event.kv.mod_revision, change)


def record_seen(keys: Keys, kv: pb.KeyValue) -> RecordSeen | None:
    """Return the registry's record that a key holds; None if it is none that decides about a sale."""
    kind, record_id = keys.parse_registry(kv.key)
    if kind not in _RECORDS:
        return None
    record = record_of(Kind(kind), kv.value)
    return RecordSeen(Ref(Kind(kind), record_id), cast("RegistryRecord", record))


def _gone(keys: Keys, kind: str, name: str, kv: pb.KeyValue) -> Change | None:
    match kind:
        case "vend":
            return VendGone(vend_key_of(name))
        case "shard":
            return OwnerGone(int(name))
        case "outbox":
            return OwedGone(*keys.parse_outbox(kv.key))
        case "registry":
            record_kind, record_id = keys.parse_registry(kv.key)
            return RecordGone(Ref(Kind(record_kind), record_id)) if record_kind in _RECORDS else None
        case _:
            return None


def _seen(keys: Keys, kind: str, name: str, kv: pb.KeyValue) -> Change | None:
    match kind:
        case "vend":
            there, created, key = under_vend_key_of(kv.value), kv.version == 1, vend_key_of(name)
            if isinstance(there, ClosedRefusal):
                return RefusalSeen(there, created, key)
            return VendSeen(there, created, key)
        case "shard":
            return OwnerSeen(int(name), kv.value.decode(), kv.create_revision)
        case "counter":
            return CounterSeen(*_sequence(name), read(store.CounterRecord(), kv.value).last_issued)
        case "applied":
            return AppliedSeen(*_sequence(name), read(store.AppliedRecord(), kv.value).highest_applied)
        case "code":
            return CodeSeen(*_sequence(name.rpartition("/")[0]), keys.parse_code(kv.key), _pointed_at(kv.value))
        case "outbox":
            return OwedSeen(*keys.parse_outbox(kv.key), _pointed_at(kv.value))
        case "registry":
            return record_seen(keys, kv)
        case _:
            return None


def _pointed_at(value: bytes) -> VendKey:
    pointer = read(store.VendPointer(), value)
    return ParticipantId(pointer.participant_id), TransactionId(pointer.transaction_id)


def vend_key_of(name: str) -> VendKey:
    """Return what a vend's key names; `name` is what follows the prefix of all vends."""
    participant_id, _, transaction_id = name.partition("/")
    return ParticipantId(participant_id), TransactionId(transaction_id)


def _sequence(name: str) -> tuple[OriginatorId, MeterId]:
    originator_id, _, meter_id = name.partition("/")
    return OriginatorId(originator_id), MeterId(meter_id)
