"""Which ledger this is: made once by an operator, known by every node, and accepted anew only by an operator's word."""

import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from etcdpb import rpc_pb2 as pb
from google.protobuf import timestamp_pb2
from utrn.store.v1 import records_pb2 as store

from cluster.codec.vend import SCHEMA, read
from cluster.etcd import ops, preconditions
from cluster.etcd.client import EtcdClient
from cluster.etcd.keys import Keys
from cluster.ledger.state_file import LedgerState

log = logging.getLogger(__name__)


class LedgerUnfit(Exception):
    """This node must not work on this ledger; the message says why, and what an operator can do."""


class LedgerThere(Exception):
    """There is a ledger under this prefix already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSeen:
    """The identity of etcd and of the ledger. `value` is the record's bytes; None if there is no ledger."""

    cluster_id: int
    revision: int
    value: bytes | None
    agreed: bytes | None

    @property
    def record(self) -> store.LedgerRecord:
        """The record.

        Raises:
            Unreadable: it is of a newer version, or no such record.
        """
        return read(store.LedgerRecord(), self.value or b"")

    @property
    def settings(self) -> Mapping[str, str]:
        """The agreed settings, by name.

        Raises:
            Unreadable: they are of a newer version, or no such record.
        """
        return dict(read(store.AgreedRecord(), self.agreed or b"").settings)


async def look(client: EtcdClient, keys: Keys) -> LedgerSeen:
    """Return what is there now. Linearizable.

    Raises:
        EtcdUnreachable: no member answered.
    """
    reply = await client.bare_read(pb.TxnRequest(success=[ops.get(keys.ledger()), ops.get(keys.agreed())]))
    ledger, agreed = ops.got(reply)
    return LedgerSeen(
        cluster_id=reply.header.cluster_id,
        revision=reply.header.revision,
        value=None if ledger is None else ledger.value,
        agreed=None if agreed is None else agreed.value,
    )


def unfit(keys: Keys, seen: LedgerSeen, known: LedgerState | None) -> str:
    """Return why a node that last knew `known` must not work on what it sees; empty if it may.

    Raises:
        Unreadable: the record is of a newer version, or no such record.
    """
    accept = "; see docs/runbooks/ledger-identity.md before `utrn ledger accept`: counters may be given out again"
    if seen.value is None and known is None:
        return (
            f"there is no ledger under etcd.prefix {keys.prefix!r}: mend a mistyped prefix, or make the ledger once, "
            "with `utrn ledger create --config FILE`"
        )
    if known is None:
        return ""
    if seen.value is None:
        return f"etcd.prefix {keys.prefix!r} is empty, and this node knows ledger {known.incarnation}{accept}"
    record = seen.record
    if record.incarnation != known.incarnation:
        if known.incarnation in record.before:
            return ""
        return f"this is ledger {record.incarnation}, and this node knows ledger {known.incarnation}{accept}"
    if seen.revision < known.revision:
        return f"the ledger has gone back, from revision {known.revision} to {seen.revision}{accept}"
    if seen.cluster_id != known.cluster_id:
        return f"another etcd cluster has this ledger: {seen.cluster_id:x}, not {known.cluster_id:x}{accept}"
    return ""


def differences(here: Mapping[str, str], agreed: Mapping[str, str]) -> list[str]:
    """Return a sentence for each setting that is not as agreed.

    A node may know schemes that are not agreed on yet: that is how one is brought in without a stop.
    """
    found = []
    for name in sorted(here.keys() | agreed.keys()):
        mine, theirs = here.get(name), agreed.get(name)
        if mine is None or theirs is None:
            found.append(f"{name}: {mine or 'nothing'} here, {theirs or 'nothing'} agreed in the ledger")
        elif name in WIDER_MAY_BE and set(theirs.split(",")) <= set(mine.split(",")):
            continue
        elif mine != theirs:
            found.append(f"{name}: {mine} here, {theirs} agreed in the ledger")
    return found


WIDER_MAY_BE = frozenset({"schemes"})


async def create(client: EtcdClient, keys: Keys, settings: Mapping[str, str], at: datetime) -> str:
    """Make the ledger under a prefix where there is none; return its incarnation.

    Raises:
        LedgerThere: there is one.
        EtcdUnreachable, EtcdRefused: nothing was written.
        EtcdUnknown: look, and repeat.
    """
    record = store.LedgerRecord(schema=SCHEMA, incarnation=uuid.uuid4().hex, sequence=1, made_at=_stamp(at))
    reply = await client.bare_txn(
        pb.TxnRequest(
            compare=preconditions.absent(keys.ledger()) + preconditions.absent(keys.agreed()),
            success=[_put(keys.ledger(), record), _put(keys.agreed(), _agreed(settings, at))],
        )
    )
    if not reply.succeeded:
        raise LedgerThere(f"there is a ledger under {keys.prefix!r} already")
    return record.incarnation


async def accept(
    client: EtcdClient,
    keys: Keys,
    seen: LedgerSeen,
    known: LedgerState | None,
    settings: Mapping[str, str],
    at: datetime,
) -> str:
    """Give what is there a new incarnation, which follows every one known of; return it.

    Raises:
        LedgerUnfit: somebody else changed it meanwhile.
        EtcdUnreachable, EtcdRefused: nothing was written.
        EtcdUnknown: look, and repeat.
    """
    before = [] if seen.value is None else [*seen.record.before, seen.record.incarnation]
    sequence = 0 if seen.value is None else seen.record.sequence
    if known is not None and known.incarnation not in before:
        before.append(known.incarnation)
        sequence = max(sequence, known.sequence)
    record = store.LedgerRecord(
        schema=SCHEMA, incarnation=uuid.uuid4().hex, sequence=sequence + 1, before=before, made_at=_stamp(at)
    )
    key = keys.ledger()
    puts = [_put(key, record)] + ([_put(keys.agreed(), _agreed(settings, at))] if seen.agreed is None else [])
    reply = await client.bare_txn(pb.TxnRequest(compare=_still(key, seen.value), success=puts))
    if not reply.succeeded:
        raise LedgerUnfit("the ledger's identity was changed meanwhile; look again")
    return record.incarnation


async def agree(client: EtcdClient, keys: Keys, settings: Mapping[str, str], at: datetime, *, seen: LedgerSeen) -> None:
    """Make `settings` the agreed ones, in the place of those seen. The client is to have a guard that is open.

    Raises:
        LedgerUnfit: somebody else agreed on others meanwhile: what an operator was shown is not what would be replaced.
        EtcdUnreachable, EtcdRefused: nothing was written.
        EtcdUnknown: look, and repeat.
    """
    key = keys.agreed()
    reply = await client.txn(
        pb.TxnRequest(compare=_still(key, seen.agreed), success=[_put(key, _agreed(settings, at))])
    )
    if not reply.succeeded:
        raise LedgerUnfit("the agreed settings were changed meanwhile; look again")


def _still(key: bytes, value: bytes | None) -> list[pb.Compare]:
    if value is None:
        return preconditions.absent(key)
    return [pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.VALUE, key=key, value=value)]


def _agreed(settings: Mapping[str, str], at: datetime) -> store.AgreedRecord:
    return store.AgreedRecord(schema=SCHEMA, settings=settings, agreed_at=_stamp(at))


def _put(key: bytes, record: store.LedgerRecord | store.AgreedRecord) -> pb.RequestOp:
    return ops.put(key, record.SerializeToString(deterministic=True))


def _stamp(at: datetime) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromDatetime(at)
    return stamp
