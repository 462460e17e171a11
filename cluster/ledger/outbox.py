"""EtcdOutbox: what is owed to meters, and the writes of its owners, each fenced by the epoch of its shard."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from etcdpb import rpc_pb2 as pb
from utrn.store.v1 import records_pb2 as store

from cluster.codec.approval import consented
from cluster.codec.set_aside import SetAsideRecords
from cluster.codec.vend import SCHEMA, Unreadable, pointer_value, read, vend_value
from cluster.config import EtcdConfig
from cluster.etcd import ops, preconditions
from cluster.etcd.client import EtcdClient, EtcdUnreachable, prefix_end
from cluster.etcd.commit import not_read
from cluster.etcd.informer import CopyState
from cluster.etcd.keys import Keys
from cluster.etcd.write_batcher import Answered, WriteBatcher
from cluster.ledger.outbox_mirror import OutboxMirror
from cluster.ledger.vends import counter_of, stored_of
from cluster.membership.placement import shard_of
from cluster.timekeeping.fence import TimeFence
from core.domain.approval import NO_CONSENT_NEEDED, Consent
from core.domain.delivery import Delivery, DeliveryReason, DeliveryState
from core.domain.errors import DeliveryChanged, Deposed, LedgerUnavailable, NotReady, UtrnError
from core.domain.invariant import check
from core.domain.meter import MeterId, OriginatorId
from core.domain.participant import ParticipantId
from core.domain.utrn import Counter
from core.domain.vend import Vend
from core.ports.clock import Clock
from core.ports.ledger import CounterState, StoredVend
from core.ports.outbox import Code, DeliveryChange, Outbox, OutboxEvent, Owed, WriteOutcome

_WAITING_MAX = 10_000
_KNOWN_MAX = 200_000
_RACES_MAX = 5
_READ_AT_ONCE = 64


_Sequence = tuple[OriginatorId, MeterId]


class EtcdOutbox:
    """The outbox in etcd. `run` must be running for writes to go out and for `watch` to tell anything.

    A record that cannot be understood is set aside: its delivery waits, and the others go on.
    """

    def __init__(
        self, client: EtcdClient, config: EtcdConfig, clock: Clock, aside: SetAsideRecords | None = None
    ) -> None:
        self._client = client
        self._aside = SetAsideRecords() if aside is None else aside
        self._keys = Keys(config.prefix)
        self._shards = config.shards
        self._group = WriteBatcher(
            client,
            clock,
            batch_max=config.batch_max,
            resolve_s=config.resolve_timeout_ms / 1000,
            waiting_max=_WAITING_MAX,
        )
        self._fence = TimeFence(client, self._keys, clock)
        # What is known to be applied: the highest counter and the revision of its key. A compare tells when it is old.
        self._applied: OrderedDict[_Sequence, tuple[int, int]] = OrderedDict()
        self._mirror = OutboxMirror(client, self._keys, self._aside, compare_s=config.compare_outbox_s)

    @property
    def mirrored(self) -> bool:
        """True once the first Listing of `watch` has been taken in."""
        return self._mirror.complete

    @property
    def state(self) -> CopyState:
        """How the copy of what is owed is."""
        return self._mirror.state

    @property
    def mirror_revision(self) -> int:
        """How far the watch says it is. For display: a progress reply may run ahead of the events before it."""
        return self._mirror.state.revision

    async def run(self) -> NoReturn:  # type: ignore[misc]  # a task group whose tasks never end
        """Send writes and follow what is owed, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._group.run())
            tasks.create_task(self._mirror.run())

    def watch(self) -> AsyncIterator[OutboxEvent]:
        """Return a Listing, then every change, in order, for ever; for one reader."""
        return self._mirror.watch()

    async def read(self, owed: Sequence[Owed]) -> Sequence[StoredVend | NotReady | None]:
        """Return the vend of each, in order; None where it is no longer owed, NotReady where it is set aside."""
        reads = [
            ops.get(key)
            for one in owed
            for key in (
                self._keys.outbox(one.shard, one.meter_id, one.counter, one.originator_id),
                self._keys.vend(one.participant_id, one.transaction_id),
            )
        ]
        found = await self._got(reads)
        pairs = [(found[at], found[at + 1]) for at in range(0, len(found), 2)]
        return [
            None if pointer is None or vend is None else self._readable(vend) or _set_aside() for pointer, vend in pairs
        ]

    async def write(self, changes: Sequence[DeliveryChange]) -> Sequence[WriteOutcome]:
        """Write each change for itself; return one outcome per change, in order."""
        return [await self._write(change) for change in changes]

    async def note_applied(
        self, *, shard: int, epoch: int, originator_id: OriginatorId, meter_id: MeterId, counter: Counter
    ) -> None:
        """Record that the meter is at `counter` or further, if it was issued; never lowers what is known."""
        sequence = (originator_id, meter_id)
        shard_key, applied_key = self._keys.shard(shard), self._keys.applied(*sequence)
        counter_key = self._keys.counter(*sequence)
        for _ in range(_RACES_MAX):
            state = await self.sequence(*sequence)
            if not state.highest_applied < counter <= state.last_issued:
                return
            answered = await self._group.write(
                pb.TxnRequest(
                    compare=preconditions.epoch_current(shard_key, epoch)
                    + preconditions.applied_unmoved(applied_key, state.applied_revision)
                    + preconditions.issued_unmoved(counter_key, state.revision),
                    success=[ops.put(applied_key, _applied_value(counter))],
                    failure=[ops.get(shard_key)],
                )
            )
            if answered.succeeded:
                self._know(sequence, counter, answered.revision)
                return
            (owner,) = answered.found
            if owner is None or owner.create_revision != epoch:
                raise Deposed(f"shard {shard} has another owner than epoch {epoch}")
        raise LedgerUnavailable("others keep writing what is applied at this meter; nothing was written")

    async def settle(
        self, stored: StoredVend, delivery: Delivery, consent: Consent = NO_CONSENT_NEEDED
    ) -> StoredVend | DeliveryChanged:
        """Write what is said of a code whose delivery nobody owes any more; closes its case."""
        check(not stored.vend.delivery.owed, "what is owed is written by its shard's owner only")
        shard = shard_of(stored.vend.meter_id, self._shards)
        change = DeliveryChange(shard=shard, epoch=0, stored=stored, delivery=delivery, consent=consent)
        outcome = await self._write(change, owned=False)
        if isinstance(outcome, StoredVend | DeliveryChanged):
            return outcome
        check(isinstance(outcome, UtrnError), "no epoch was compared")
        raise outcome

    async def sequence(self, originator_id: OriginatorId, meter_id: MeterId) -> CounterState:
        """Return where a counter sequence is now; raise NotReady if one of its records is set aside."""
        counter, applied = await self._got(self._reads_of((originator_id, meter_id)))
        return self._sequence_of(counter, applied)

    async def code(self, originator_id: OriginatorId, meter_id: MeterId, counter: Counter) -> Code:
        """Return what the ledger has of one counter; raise NotReady if a record of it is there and is set aside."""
        (pointing,) = await self._got([ops.get(self._keys.code(originator_id, meter_id, counter))])
        reads = self._reads_of((originator_id, meter_id))
        if pointing is not None:
            vend_key = self._readably_pointed_at("code", pointing)
            if vend_key is None:
                raise _set_aside("the index record of the counter")
            reads.append(ops.get(vend_key))
        spent, applied, *vends = await self._got(reads)
        vend = vends[0] if vends else None
        stored = None if vend is None else self._readable(vend)
        if vend is not None and stored is None:
            raise _set_aside()
        return Code(sequence=self._sequence_of(spent, applied), stored=stored)

    async def cases(
        self, supplier_id: ParticipantId, *, after: str = "", limit: int = 100
    ) -> tuple[Sequence[StoredVend], str]:
        """Return open cases of a supplier in the order of their keys, and where to go on: "" at the end."""
        prefix = self._keys.cases(supplier_id)
        start = prefix + after.encode() + b"\0" if after else prefix
        request = pb.RangeRequest(key=start, range_end=prefix_end(prefix), limit=limit)
        try:
            found = (await self._client.range(request)).kvs
        except EtcdUnreachable as error:
            raise not_read(error) from error
        vends: list[StoredVend | None] = []
        for at in range(0, len(found), _READ_AT_ONCE):
            pointed = [self._readably_pointed_at("case", kv) for kv in found[at : at + _READ_AT_ONCE]]
            part = await self._got([ops.get(key) for key in pointed if key is not None])
            vends += [None if kv is None else self._readable(kv) for kv in part]
        more = found[-1].key.removeprefix(prefix).decode() if len(found) == limit else ""
        # One that was settled between the two reads is no case any more.
        open_ = [
            stored for stored in vends if stored is not None and stored.vend.delivery.state is DeliveryState.NEEDS_CHECK
        ]
        return open_, more

    def _readably_pointed_at(self, kind: str, kv: pb.KeyValue) -> bytes | None:
        """Return the key of the vend that a record points at; None if the record cannot be understood."""
        try:
            pointer = read(store.VendPointer(), kv.value)
        except Unreadable as error:
            self._aside.note(kind, kv.key, kv.mod_revision, error)
            return None
        self._aside.clear(kind, kv.key)
        return self._keys.vend(pointer.participant_id, pointer.transaction_id)

    def _sequence_of(self, counter: pb.KeyValue | None, applied: pb.KeyValue | None) -> CounterState:
        """Return a counter sequence from its two records; raise NotReady if one is set aside."""
        for kind, kv, of in (("counter", counter, store.CounterRecord()), ("applied", applied, store.AppliedRecord())):
            if kv is None:
                continue
            try:
                read(of, kv.value)
            except Unreadable as error:
                self._aside.note(kind, kv.key, kv.mod_revision, error)
                raise _set_aside("the counter sequence of this meter") from error
            self._aside.clear(kind, kv.key)
        return counter_of(counter, applied)

    async def case_count(self) -> int:
        """Return how many cases are open, of all suppliers."""
        prefix = self._keys.cases()
        try:
            return (
                await self._client.range(pb.RangeRequest(key=prefix, range_end=prefix_end(prefix), count_only=True))
            ).count
        except EtcdUnreachable as error:
            raise not_read(error) from error

    async def heard(self, shards: Sequence[int], head_end: str) -> Sequence[int | None]:
        """Return up to which event of a head end what it said is written down, for each shard; 0 for none."""
        found = await self._got([ops.get(self._keys.heard(shard, head_end)) for shard in shards])
        return [0 if kv is None else self._heard_of(kv) for kv in found]

    def _heard_of(self, kv: pb.KeyValue) -> int | None:
        try:
            sequence = read(store.HeardRecord(), kv.value).sequence
        except Unreadable as error:
            self._aside.note("heard", kv.key, kv.mod_revision, error)
            return None
        self._aside.clear("heard", kv.key)
        return sequence

    async def note_heard(self, *, shard: int, epoch: int, head_end: str, sequence: int) -> None:
        """Record that everything up to an event is written down, for one shard."""
        record = store.HeardRecord(schema=SCHEMA, sequence=sequence)
        answered = await self._group.write(
            pb.TxnRequest(
                compare=preconditions.epoch_current(self._keys.shard(shard), epoch),
                success=[ops.put(self._keys.heard(shard, head_end), record.SerializeToString(deterministic=True))],
            )
        )
        if not answered.succeeded:
            raise Deposed(f"shard {shard} has another owner than epoch {epoch}")

    def _reads_of(self, sequence: _Sequence) -> list[pb.RequestOp]:
        return [ops.get(self._keys.counter(*sequence)), ops.get(self._keys.applied(*sequence))]

    async def _got(self, reads: Sequence[pb.RequestOp]) -> list[pb.KeyValue | None]:
        try:
            return ops.got(await self._client.read(pb.TxnRequest(success=reads)))
        except EtcdUnreachable as error:
            raise not_read(error) from error

    async def _write(self, change: DeliveryChange, *, owned: bool = True) -> WriteOutcome:
        vend = change.stored.vend.with_delivery(change.delivery)
        sequence = (vend.originator_id, vend.meter_id)
        for _ in range(_RACES_MAX):
            applied = self._applied_after(vend)
            try:
                await self._fence.reach(change.not_before)
                answered = await self._group.write(self._txn(change, vend, applied, owned=owned))
            except UtrnError as error:
                return error
            if answered.succeeded:
                if applied is not None:
                    self._know(sequence, applied, answered.revision)
                return StoredVend(vend=vend, revision=answered.revision)
            try:
                outcome = self._judge(change, vend, answered, owned=owned)
            except UtrnError as error:
                return error
            if outcome is not None:
                return outcome
            # Only what is known to be applied was out of date; it has just been learnt.
        return LedgerUnavailable("others keep writing what is applied at this meter; nothing was written")

    def _txn(self, change: DeliveryChange, vend: Vend, applied: int | None, *, owned: bool) -> pb.TxnRequest:
        keys = self._keys
        shard_key = keys.shard(change.shard)
        vend_key = keys.vend(vend.sale.participant_id, vend.sale.transaction_id)
        applied_key = keys.applied(vend.originator_id, vend.meter_id)
        compare = preconditions.epoch_current(shard_key, change.epoch) if owned else []
        compare += preconditions.vend_unmoved(vend_key, change.stored.revision)
        for ref, revision in change.read_set:
            compare += preconditions.authorizing_record_unmoved(keys.record(ref.kind, ref.id), revision)
        if change.not_before:
            compare += preconditions.time_reached(keys.time_now(), change.not_before)
        more, done = consented(keys, change.consent)
        compare += more
        success = [ops.put(vend_key, vend_value(vend)), *done]
        if not vend.delivery.owed:
            success += self._ending(change, vend)
        if applied is not None:
            _, revision = self._applied.get((vend.originator_id, vend.meter_id), (0, 0))
            compare += preconditions.applied_unmoved(applied_key, revision)
            success.append(ops.put(applied_key, _applied_value(applied)))
        failure = [ops.get(shard_key), ops.get(vend_key), ops.get(applied_key)]
        return pb.TxnRequest(compare=compare, success=success, failure=failure)

    def _ending(self, change: DeliveryChange, vend: Vend) -> list[pb.RequestOp]:
        """Return what else changes with a delivery that nobody owes any more: outbox, code and case."""
        keys, of = self._keys, (vend.originator_id, vend.meter_id, vend.counter)
        puts = [ops.delete(keys.outbox(change.shard, vend.meter_id, vend.counter, vend.originator_id))]
        state, was = vend.delivery.state, change.stored.vend.delivery.state
        if state is DeliveryState.APPLIED:
            puts.append(ops.put(keys.code(*of), pointer_value(vend, credited=True)))
        elif vend.gave_counter_back:
            puts.append(ops.delete(keys.code(*of)))
        if state is DeliveryState.NEEDS_CHECK:
            puts.append(ops.put(keys.case(vend.supplier_id, *of), pointer_value(vend)))
        elif was is DeliveryState.NEEDS_CHECK:
            puts.append(ops.delete(keys.case(vend.supplier_id, *of)))
        return puts

    def _judge(self, change: DeliveryChange, vend: Vend, answered: Answered, *, owned: bool) -> WriteOutcome | None:
        """Return why a write was not carried out; None if it may be tried again with what was learnt."""
        owner, there, applied = answered.found
        if there is not None and there.value == vend_value(vend):
            # Ours, epoch and all: an earlier sending was carried out, and its answer was lost.
            return stored_of(there)
        if owned and (owner is None or owner.create_revision != change.epoch):
            return Deposed(f"shard {change.shard} has another owner than epoch {change.epoch}")
        if there is None or there.mod_revision != change.stored.revision:
            return DeliveryChanged("the vend is not where this change was based on")
        sequence = (vend.originator_id, vend.meter_id)
        _, believed = self._applied.get(sequence, (0, 0))
        self._learn(sequence, applied)
        if (change.read_set or change.consent.expect) and (
            not _is_named(vend) or self._applied[sequence][1] == believed
        ):
            return DeliveryChanged("the meter, or a consent, is not what this change was based on")
        return None

    def _applied_after(self, vend: Vend) -> int | None:
        """Return the highest applied counter to write with `vend`; None if there is nothing to write."""
        if not _is_named(vend):
            return None
        highest, _ = self._applied.get((vend.originator_id, vend.meter_id), (0, 0))
        return vend.counter if vend.counter > highest else None

    def _learn(self, sequence: _Sequence, applied: pb.KeyValue | None) -> None:
        try:
            highest = 0 if applied is None else read(store.AppliedRecord(), applied.value).highest_applied
        except Unreadable as error:
            self._aside.note("applied", applied.key if applied is not None else b"", 0, error)
            raise LedgerUnavailable(
                "what is applied at this meter cannot be understood; nothing was written"
            ) from error
        self._know(sequence, highest, 0 if applied is None else applied.mod_revision)

    def _know(self, sequence: _Sequence, highest: int, revision: int) -> None:
        self._applied[sequence] = (highest, revision)
        self._applied.move_to_end(sequence)
        if len(self._applied) > _KNOWN_MAX:
            self._applied.popitem(last=False)

    def _readable(self, found: pb.KeyValue) -> StoredVend | None:
        """Return a vend; None if it cannot be understood, and is set aside: its delivery waits, the others go on."""
        try:
            return stored_of(found)
        except Unreadable as error:
            self._aside.note("vend", found.key, found.mod_revision, error)
            return None


def _set_aside(what: str = "the vend") -> NotReady:
    return NotReady(f"{what} cannot be understood by this node, and is set aside; it waits")


def _is_named(vend: Vend) -> bool:
    """Return whether the meter has named the code's counter: it has come so far, whatever became of the code."""
    delivery = vend.delivery
    return delivery.state is DeliveryState.APPLIED or delivery.reason is DeliveryReason.DUPLICATE_UNPROVEN


def _applied_value(highest: int) -> bytes:
    return store.AppliedRecord(schema=SCHEMA, highest_applied=highest).SerializeToString(deterministic=True)


if TYPE_CHECKING:
    _: type[Outbox] = EtcdOutbox
