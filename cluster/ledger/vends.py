"""EtcdLedger: group commit as one Txn with a nested Txn per vend; unknown outcomes are resolved by reading back.

A child is safe to send again: if an earlier sending was carried out, its compare on the absent vend fails, and its
reads answer with the vend that is there. That read is linearizable, so repeating the child is the read-back.

One key decides an id: it holds the vend, or the refusal that closed the id, and never changes from one to the other.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from etcdpb import rpc_pb2 as pb
from utrn.store.v1 import records_pb2 as store

from cluster.codec.vend import (
    SCHEMA,
    Unreadable,
    pointer_value,
    read,
    refusal_value,
    under_vend_key_of,
    vend_of,
    vend_value,
)
from cluster.config import EtcdConfig
from cluster.etcd import ops, preconditions
from cluster.etcd.client import EtcdClient, EtcdUnreachable
from cluster.etcd.commit import OutcomeKnown, Settled, commit_each, commit_or_raise, not_done, not_read
from cluster.etcd.keys import Keys
from cluster.membership.placement import shard_of
from core.domain.effective_dated import FAR_FUTURE, NEVER, Ms, ms_of
from core.domain.errors import CounterTaken, LedgerFull, LedgerUnavailable
from core.domain.invariant import check
from core.domain.meter import MeterId, OriginatorId
from core.domain.participant import ParticipantId
from core.domain.record import Kind, ReadSet, Ref
from core.domain.refusal import ClosedRefusal
from core.domain.transaction_id import TransactionId
from core.domain.vend import Operation, Vend
from core.ports.clock import Clock
from core.ports.ledger import (
    Closed,
    CommitOutcome,
    Committed,
    CounterMoved,
    CounterState,
    Entry,
    Found,
    Ledger,
    Present,
    RegistrationMoved,
    StoredVend,
)

log = logging.getLogger(__name__)

_KEPT_MAX = 10_000


@dataclass(frozen=True, slots=True)
class _Child:
    """One entry, its transaction, and what it wants to have written."""

    entry: Entry
    txn: pb.TxnRequest
    wanted: bytes


class EtcdLedger:
    """The ledger in etcd."""

    def __init__(
        self, client: EtcdClient, config: EtcdConfig, clock: Clock, full: Callable[[], bool] = lambda: False
    ) -> None:
        """Take the client of etcd, and `full`, which says that nothing new may be issued because space runs out."""
        self._full = full
        self._client = client
        self._keys = Keys(config.prefix)
        self._shards = config.shards
        self._clock = clock
        self._resolve_s = config.resolve_timeout_ms / 1000
        self._batch_max = config.batch_max
        # Never changed once made.
        self._kept: dict[tuple[Ref, int], list[pb.Compare]] = {}

    async def commit(self, entries: Sequence[Entry]) -> Sequence[CommitOutcome]:
        """Commit each entry for itself, all in one round trip; return one outcome per entry, in order."""
        check(len(entries) <= self._batch_max, "a batch fits etcd's limit on a nested transaction")
        if self._full():
            return await self._while_full(entries)
        refused = {index: _taken_here() for index, entry in enumerate(entries) if _below_ours(entry)}
        children = [self._child(entry) for index, entry in enumerate(entries) if index not in refused]
        until = self._clock.monotonic() + self._resolve_s
        settled = await commit_each(self._client, self._clock, [child.txn for child in children], until=until)
        outcomes = iter([_outcome(child, one) for child, one in zip(children, settled, strict=True)])
        return [refused[index] if index in refused else next(outcomes) for index in range(len(entries))]

    async def _while_full(self, entries: Sequence[Entry]) -> Sequence[CommitOutcome]:
        """Write nothing; what was decided before is answered all the same."""
        sales = [entry.vend.sale for entry in entries]
        reads = [ops.get(self._keys.vend(sale.participant_id, sale.transaction_id)) for sale in sales]
        try:
            found = ops.got(await self._client.read(pb.TxnRequest(success=reads)))
        except EtcdUnreachable as error:
            return [not_read(error) for _ in entries]
        return [_decided(kv) for kv in found]

    async def find(self, participant_id: ParticipantId, transaction_id: TransactionId) -> Found | None:
        """Return the committed vend or the refusal that closed the id; None if there is neither now. Linearizable."""
        try:
            reply = await self._client.range(pb.RangeRequest(key=self._keys.vend(participant_id, transaction_id)))
        except EtcdUnreachable as error:
            raise not_read(error) from error
        return _readable(reply.kvs[0]) if reply.kvs else None

    async def close_refused(self, refusal: ClosedRefusal) -> Found:
        """Close the id of `refusal`, unless something is under it; return what is under it from now on, for ever."""
        key = self._keys.vend(refusal.participant_id, refusal.transaction_id)
        # Safe to send again: once there, the key is answered as it is.
        txn = pb.TxnRequest(
            compare=preconditions.vend_absent(key),
            success=[ops.put(key, refusal_value(refusal))],
            failure=[ops.get(key)],
        )
        settled = await commit_or_raise(self._client, self._clock, txn, resolve_s=self._resolve_s)
        if settled.reply.succeeded:
            return refusal
        (there,) = ops.got(settled.reply)
        check(there is not None, "a key that is not absent is there")
        return refusal if there is None else _readable(there)

    async def counters(
        self, keys: Sequence[tuple[OriginatorId, MeterId]]
    ) -> Sequence[CounterState | LedgerUnavailable]:
        """Return the counter sequence of each (originator, meter) as it is now, in order. One linearizable read."""
        reads = [ops.get(key) for pair in keys for key in (self._keys.counter(*pair), self._keys.applied(*pair))]
        try:
            found = ops.got(await self._client.read(pb.TxnRequest(success=reads)))
        except EtcdUnreachable as error:
            raise not_read(error) from error
        return [_counter_or_error(found[at], found[at + 1]) for at in range(0, len(found), 2)]

    async def request_delivery(self, stored: StoredVend, queued: Vend, read_set: ReadSet) -> StoredVend | None:
        """Store `queued` in place of `stored` and put it into the outbox, in one transaction."""
        key = self._keys.vend(queued.sale.participant_id, queued.sale.transaction_id)
        wanted = vend_value(queued)
        txn = pb.TxnRequest(
            compare=preconditions.vend_unmoved(key, stored.revision) + self.read_set_unmoved(read_set),
            success=[ops.put(key, wanted), self._owe(queued, pointer_value(queued))],
            failure=[ops.get(key)],
        )
        settled = await commit_or_raise(self._client, self._clock, txn, resolve_s=self._resolve_s)
        if settled.reply.succeeded:
            return StoredVend(vend=queued, revision=settled.revision)
        (there,) = ops.got(settled.reply)
        return stored_of(there) if there is not None and there.value == wanted else None

    def _child(self, entry: Entry) -> _Child:
        vend, keys = entry.vend, self._keys
        vend_key = keys.vend(vend.sale.participant_id, vend.sale.transaction_id)
        counter_key = keys.counter(vend.originator_id, vend.meter_id)
        wanted = vend_value(vend)
        code_key = keys.code(vend.originator_id, vend.meter_id, vend.counter)
        compare = preconditions.vend_absent(vend_key) + preconditions.counter_unmoved(counter_key, entry.seen.revision)
        compare += preconditions.code_absent(code_key) + self.read_set_unmoved(vend.authorization.read_set)
        if entry.until < FAR_FUTURE:
            # A node that stood still since it signed must not sell on what has ended meanwhile.
            compare += preconditions.time_before(keys.time_now(), entry.until)
        pointer = pointer_value(vend)
        success = [ops.put(vend_key, wanted), ops.put(counter_key, _counter_value(entry)), ops.put(code_key, pointer)]
        failure = [
            ops.get(vend_key),
            ops.get(counter_key),
            ops.get(keys.applied(vend.originator_id, vend.meter_id)),
            ops.get(code_key),
        ]
        if vend.delivery.owed:
            success.append(self._owe(vend, pointer))
        return _Child(entry, pb.TxnRequest(compare=compare, success=success, failure=failure), wanted)

    def read_set_unmoved(self, read_set: ReadSet) -> list[pb.Compare]:
        """Return the compares of every record that a vend is based on."""
        found: list[pb.Compare] = []
        for one in read_set:
            (kind, record_id), revision = one
            if kind is Kind.METER or kind is Kind.PAN:
                found += preconditions.authorizing_record_unmoved(self._keys.record(kind, record_id), revision)
                continue
            # The supplier's and the appointment's are the same for vend after vend.
            kept = self._kept.get(one)
            if kept is None:
                if len(self._kept) >= _KEPT_MAX:
                    self._kept.clear()
                kept = preconditions.authorizing_record_unmoved(self._keys.record(kind, record_id), revision)
                self._kept[one] = kept
            found += kept
        return found

    def _owe(self, vend: Vend, pointer: bytes) -> pb.RequestOp:
        shard = shard_of(vend.meter_id, self._shards)
        return ops.put(self._keys.outbox(shard, vend.meter_id, vend.counter, vend.originator_id), pointer)


def stored_of(found: pb.KeyValue) -> StoredVend:
    """Return the vend of a key as etcd has it."""
    return StoredVend(vend=vend_of(found.value), revision=found.mod_revision)


def found_of(found: pb.KeyValue) -> Found:
    """Return what a vend's key holds.

    Raises:
        Unreadable: it is not what this program writes.
    """
    there = under_vend_key_of(found.value)
    return there if isinstance(there, ClosedRefusal) else StoredVend(vend=there, revision=found.mod_revision)


def _readable(found: pb.KeyValue) -> Found:
    try:
        return found_of(found)
    except Unreadable as error:
        raise _unreadable(found.key, error) from error


def counter_of(counter: pb.KeyValue | None, applied: pb.KeyValue | None) -> CounterState:
    """Return a counter sequence from its two keys; neither need be there."""
    highest = 0 if applied is None else read(store.AppliedRecord(), applied.value).highest_applied
    applied_revision = 0 if applied is None else applied.mod_revision
    if counter is None:
        return CounterState(highest_applied=highest, applied_revision=applied_revision)
    record = read(store.CounterRecord(), counter.value)
    return CounterState(
        last_issued=record.last_issued,
        last_issued_here=record.last_issued_here,
        highest_applied=highest,
        revision=counter.mod_revision,
        applied_revision=applied_revision,
        last_issued_at=Ms(record.last_issued_at),
        balance_at=Ms(record.balance_at),
        sold_since_pence=record.sold_since_pence,
    )


def _decided(kv: pb.KeyValue | None) -> CommitOutcome:
    if kv is None:
        return LedgerFull("the ledger is nearly full; nothing was written, and nothing new is issued for now")
    try:
        there = found_of(kv)
    except Unreadable as error:
        return _unreadable(kv.key, error)
    return Closed(refusal=there) if isinstance(there, ClosedRefusal) else Present(stored=there)


def _counter_or_error(counter: pb.KeyValue | None, applied: pb.KeyValue | None) -> CounterState | LedgerUnavailable:
    try:
        return counter_of(counter, applied)
    except Unreadable as error:
        key = b"" if counter is None else counter.key
        log.exception("a counter sequence cannot be understood", extra={"key": key.decode(), "error": str(error)})
        return LedgerUnavailable("the counter sequence of this meter cannot be understood; tell the operator")


def _outcome(child: _Child, settled: Settled) -> CommitOutcome:
    if not isinstance(settled, OutcomeKnown):
        return not_done(settled)
    if settled.reply.succeeded:
        revision = settled.revision
        stored = StoredVend(vend=child.entry.vend, revision=revision)
        return Committed(stored=stored, counter=_counter_after(child.entry, revision))
    vend, counter, applied, code = ops.got(settled.reply)
    state = _counter_or_error(counter, applied)
    if vend is not None:
        try:
            there = found_of(vend)
        except Unreadable as error:
            return _unreadable(vend.key, error)
        if isinstance(there, ClosedRefusal):
            return Closed(refusal=there)
        # Ours, byte for byte: an earlier sending of this child was carried out, and its answer was lost.
        if vend.value == child.wanted and isinstance(state, CounterState):
            return Committed(stored=there, counter=state)
        return Present(stored=there)
    if isinstance(state, LedgerUnavailable):
        return state
    moved = state.revision != child.entry.seen.revision
    if code is not None and (not moved or child.entry.vend.sale.operation is Operation.EXTERNALLY_ISSUED):
        return CounterTaken("this counter belongs to another transaction_id already", field="utrn_counter")
    return CounterMoved(counter=state) if moved else RegistrationMoved()


def _unreadable(key: bytes, error: Unreadable) -> LedgerUnavailable:
    log.error("a stored vend cannot be read", extra={"key": key.decode(), "error": str(error)})
    return LedgerUnavailable("what the ledger has under this transaction_id cannot be read; tell the operator")


def _counter_after(entry: Entry, revision: int) -> CounterState:
    last, here = _spent(entry)
    return CounterState(
        last_issued=last,
        last_issued_here=here,
        highest_applied=entry.seen.highest_applied,
        revision=revision,
        last_issued_at=_dated(entry),
        balance_at=entry.told.at,
        sold_since_pence=_sold_since(entry),
    )


def _counter_value(entry: Entry) -> bytes:
    last, here = _spent(entry)
    record = store.CounterRecord(
        schema=SCHEMA,
        last_issued=last,
        last_issued_here=here,
        last_issued_at=_dated(entry),
        balance_at=entry.told.at,
        sold_since_pence=_sold_since(entry),
    )
    return record.SerializeToString(deterministic=True)


def _sold_since(entry: Entry) -> int:
    """Return the pence that the balance does not hold, after `entry`; nobody counts where no balance was told."""
    return 0 if entry.told.at == NEVER else entry.seen.outstanding(entry.told) + entry.vend.sale.amount


def _dated(entry: Entry) -> Ms:
    return max(entry.seen.last_issued_at, ms_of(entry.vend.issued_at))


def _spent(entry: Entry) -> tuple[int, int]:
    """Return the last counter spent by anyone and by this service, after `entry`."""
    counter, seen = entry.vend.counter, entry.seen
    if entry.vend.sale.operation is Operation.EXTERNALLY_ISSUED:
        return max(seen.last_issued, counter), seen.last_issued_here
    check(counter == seen.last_issued + 1, "counters are dense")
    return counter, counter


def _below_ours(entry: Entry) -> bool:
    vend = entry.vend
    return vend.sale.operation is Operation.EXTERNALLY_ISSUED and vend.counter <= entry.seen.last_issued_here


def _taken_here() -> CounterTaken:
    return CounterTaken(
        "this service has issued codes for the meter up to this counter; only one generator may serve a meter",
        field="utrn_counter",
    )


if TYPE_CHECKING:
    _: type[Ledger] = EtcdLedger
