"""EtcdRegistryStore: the registry in etcd, linearizable; every write is one Txn that compares what it is based on."""

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from etcdpb import rpc_pb2 as pb
from utrn.store.v1 import records_pb2 as store

from cluster.codec.approval import consented
from cluster.codec.registry import kind_of, name_of, record_of, value_of
from cluster.codec.set_aside import SetAsideRecords
from cluster.codec.vend import GARBLED, SCHEMA, Unreadable, pointer_value, read, vend_of, vend_value
from cluster.config import EtcdConfig
from cluster.etcd import ops, preconditions
from cluster.etcd.client import EtcdClient, EtcdUnreachable, prefix_end
from cluster.etcd.commit import commit_or_raise, not_read
from cluster.etcd.keys import Keys
from cluster.ledger.vends import counter_of
from cluster.membership.placement import shard_of
from cluster.registry.snapshot import RegistrySnapshot
from cluster.timekeeping.fence import TimeFence
from core.domain.delivery import DeliveryState
from core.domain.effective_dated import Ms, ms_of
from core.domain.errors import LedgerFull, NotReady
from core.domain.meter import Meter, MeterId, OriginatorId, Pan
from core.domain.participant import ParticipantId
from core.domain.record import Kind, Ref, Versioned
from core.domain.registration_change import VendRef
from core.domain.transaction_id import TransactionId
from core.domain.utrn import Counter
from core.domain.vend import Vend
from core.ports.audit_context import NOTES
from core.ports.clock import Clock
from core.ports.ledger import CounterState
from core.ports.registry import CounterPut, R, Registry, RegistryStore, RegistryWrite, StoredRecord

_READ_AT_ONCE = 100
# Codes further back than this a meter credits no more: it keeps its 100 newest, and at most 500 are sold ahead of them.
_MAY_BE_CREDITED = 600
_CODES_AT_ONCE = 1000
_UNCREDITED_MAX = 1000


class EtcdRegistryStore:
    """The registry behind the copies."""

    def __init__(
        self,
        client: EtcdClient,
        config: EtcdConfig,
        clock: Clock,
        aside: SetAsideRecords | None = None,
        full: Callable[[], bool] = lambda: False,
    ) -> None:
        self._full = full
        self._aside = SetAsideRecords() if aside is None else aside
        self._client = client
        self._keys = Keys(config.prefix)
        self._shards = config.shards
        self._clock = clock
        self._resolve_s = config.resolve_timeout_ms / 1000
        self._fence = TimeFence(client, self._keys, clock)

    async def read(self, kind: type[R], *ids: str) -> Versioned[R] | None:
        """Return one record as it is now."""
        (found,) = await self.read_many([Ref(kind_of(kind), "/".join(ids))])
        return cast("Versioned[R] | None", found)

    async def read_many(self, refs: Sequence[Ref]) -> Sequence[Versioned[StoredRecord] | None]:
        """Return records as they are now, in order."""
        found: list[Versioned[StoredRecord] | None] = []
        for at in range(0, len(refs), _READ_AT_ONCE):
            chunk = refs[at : at + _READ_AT_ONCE]
            kvs = await self._get([self._key(ref) for ref in chunk])
            found += [
                None if kv is None else self._understood(ref.kind, kv) for ref, kv in zip(chunk, kvs, strict=True)
            ]
        notes = NOTES.get()
        if notes is not None:
            for ref, known in zip(refs, found, strict=True):
                notes.look(ref, 0 if known is None else known.revision)
        return found

    async def list_records(self, kind: type[R], *ids: str, after: str = "", limit: int = 100) -> Sequence[Versioned[R]]:
        """Return records in the order of their ids."""
        prefix = self._keys.record(kind_of(kind), "/".join((*ids, "")) if ids else "")
        # Never before what is asked for: `after` comes from callers, and what lies before may be another's.
        start = max(prefix, self._keys.record(kind_of(kind), after) + b"\0") if after else prefix
        found: list[Versioned[R]] = []
        odd = False
        while len(found) < limit:
            # In parts: a thousand records with long histories are more than one answer of etcd carries.
            part = min(limit - len(found), _READ_AT_ONCE)
            reply = await self._range(pb.RangeRequest(key=start, range_end=prefix_end(prefix), limit=part))
            for kv in reply.kvs:
                # One that cannot be understood is left out and alarmed; a page must not look like the last one for it.
                try:
                    found.append(cast("Versioned[R]", self._understood(kind_of(kind), kv)))
                except NotReady:
                    odd = True
            if not reply.more:
                break
            start = reply.kvs[-1].key + b"\0"
        if odd and not found:
            raise _not_understood()
        return found

    async def sequence(self, originator_id: OriginatorId, meter_id: MeterId) -> CounterState:
        """Return a counter sequence as it is now."""
        counter, applied = await self._get(
            [self._keys.counter(originator_id, meter_id), self._keys.applied(originator_id, meter_id)]
        )
        try:
            return counter_of(counter, applied)
        except Unreadable as error:
            kv = counter if counter is not None else applied
            if kv is not None:
                self._aside.note("counter", kv.key, kv.mod_revision, error)
            raise _not_understood() from error

    async def uncredited(self, originator_id: OriginatorId, meter_id: MeterId, state: CounterState, *, at: Ms) -> int:
        """Return the pence of the codes of a sequence, up to `state`, that were not known to be credited at `at`."""
        prefix = self._keys.codes(originator_id, meter_id)
        first = self._keys.code(originator_id, meter_id, max(1, state.last_issued - _MAY_BE_CREDITED + 1))
        reply = await self._range(pb.RangeRequest(key=first, range_end=prefix_end(prefix)))
        codes = [kv for kv in reply.kvs if self._keys.parse_code(kv.key) <= state.last_issued]
        pence = 0
        for begin in range(0, len(codes), _READ_AT_ONCE):
            pointers = [self._pointer(kv) for kv in codes[begin : begin + _READ_AT_ONCE]]
            kvs = await self._get(
                [self._keys.vend(pointer.participant_id, pointer.transaction_id) for pointer in pointers]
            )
            vends = [self._vend(kv) for kv in kvs if kv is not None]
            pence += sum(vend.sale.amount for vend in vends if not _credited_by(vend, at))
        return pence

    def _pointer(self, kv: pb.KeyValue) -> store.VendPointer:
        try:
            return read(store.VendPointer(), kv.value)
        except Unreadable as error:
            self._aside.note("code", kv.key, kv.mod_revision, error)
            raise _not_understood() from error

    def _vend(self, kv: pb.KeyValue) -> Vend:
        try:
            return vend_of(kv.value)
        except Unreadable as error:
            self._aside.note("vend", kv.key, kv.mod_revision, error)
            raise _not_understood() from error

    async def owed(self, meter_id: MeterId) -> Sequence[VendRef]:
        """Return the deliveries owed to a meter now."""
        prefix = self._keys.outboxes_of(shard_of(meter_id, self._shards), meter_id)
        reply = await self._range(pb.RangeRequest(key=prefix, range_end=prefix_end(prefix), limit=1000))
        return [self._owed(kv) for kv in reply.kvs]

    async def codes_uncredited(self, originator_id: OriginatorId, meter_id: MeterId) -> tuple[Sequence[VendRef], int]:
        """Return the codes of a sequence not known to be credited now, lowest counter first, and how many more."""
        prefix = self._keys.codes(originator_id, meter_id)
        start, found, more = prefix, list[VendRef](), 0
        while True:
            reply = await self._range(pb.RangeRequest(key=start, range_end=prefix_end(prefix), limit=_CODES_AT_ONCE))
            for kv in reply.kvs:
                pointer = self._pointer(kv)
                if pointer.credited:
                    continue
                if len(found) < _UNCREDITED_MAX:
                    found.append(_vend_at(pointer, self._keys.parse_code(kv.key)))
                else:
                    more += 1
            if len(reply.kvs) < _CODES_AT_ONCE:
                return found, more
            start = reply.kvs[-1].key + b"\0"

    async def write(self, write: RegistryWrite) -> int | None:
        """Carry out all of `write`."""
        revision, notes = await self._write(write), NOTES.get()
        if notes is not None and revision is not None:
            notes.written_at = revision
        return revision

    async def _write(self, write: RegistryWrite) -> int | None:
        if self._full() and _only_adds(write):
            raise LedgerFull("the ledger is nearly full; nothing was written, and nothing new is registered for now")
        await self._fence.reach(max(write.not_before, write.consent.not_before))
        settled = await commit_or_raise(self._client, self._clock, self._txn(write), resolve_s=self._resolve_s)
        if settled.reply.succeeded:
            return settled.revision
        if not write.put:
            return None
        (there,) = ops.got(settled.reply)
        # Ours, byte for byte: an earlier sending was carried out, and its answer was lost.
        ours = settled.resent and there is not None and there.value == value_of(write.put[0])
        return there.mod_revision if ours and there is not None else None

    async def snapshot(self, pan: Pan, caller_id: ParticipantId) -> Registry:
        """Return what decides about a top-up of `pan` by that caller, as it is now."""
        copy = RegistrySnapshot(self._keys, self._aside)
        await self._copy_into(copy, [Ref(Kind.PAN, pan), Ref(Kind.PARTICIPANT, caller_id)])
        card = copy.card(pan)
        meters = sorted({period.value.meter_id for period in card.record.uses.periods}) if card is not None else []
        await self._copy_into(copy, [Ref(Kind.METER, one) for one in meters])
        refs: set[Ref] = set()
        for meter_id in meters:
            meter = copy.meter(meter_id)
            refs |= _neighbours(meter.record, caller_id) if meter is not None else set()
        await self._copy_into(copy, sorted(refs))
        return copy

    async def _copy_into(self, copy: RegistrySnapshot, refs: Sequence[Ref]) -> None:
        for kv in await self._get([self._key(ref) for ref in refs]):
            if kv is not None:
                copy.apply(kv, gone=False)

    def _txn(self, write: RegistryWrite) -> pb.TxnRequest:
        keys = self._keys
        compare: list[pb.Compare] = []
        for ref, revision in write.expect:
            compare += preconditions.record_unmoved(self._key(ref), revision)
        for ref, _ in write.claim:
            compare += preconditions.absent(self._key(ref))
        for originator_id, meter_id, seen in write.unmoved:
            compare += preconditions.counter_unmoved(keys.counter(originator_id, meter_id), seen.revision)
        if write.not_before:
            compare += preconditions.time_reached(keys.time_now(), write.not_before)
        puts = [ops.put(keys.record(*name_of(record)), value_of(record)) for record in write.put]
        puts += [ops.put(self._key(ref), owner.encode()) for ref, owner in write.claim]
        puts += [ops.delete(self._key(ref)) for ref in write.release]
        puts += [ops.put(keys.due(at, meter_id), b"") for at, meter_id in write.due]
        puts += [ops.delete(keys.due(at, meter_id)) for at, meter_id in write.done]
        if write.counter is not None:
            pair = write.counter.originator_id, write.counter.meter_id
            compare += preconditions.counter_unmoved(keys.counter(*pair), write.counter.seen.revision)
            compare += preconditions.applied_unmoved(keys.applied(*pair), write.counter.seen.applied_revision)
            puts += self._sequence_puts(write.counter)
        for vend in write.vends:
            more, wanted = self._taken_over(vend)
            compare += more
            puts += wanted
        more, done = consented(keys, write.consent)
        compare, puts = compare + more, puts + done
        failure = [ops.get(keys.record(*name_of(one))) for one in write.put[:1]]
        return pb.TxnRequest(compare=compare, success=puts, failure=failure)

    def _sequence_puts(self, counter: CounterPut) -> list[pb.RequestOp]:
        pair = counter.originator_id, counter.meter_id
        record = store.CounterRecord(
            schema=SCHEMA,
            last_issued=counter.last_issued,
            last_issued_here=counter.seen.last_issued_here,
            last_issued_at=counter.seen.last_issued_at,
            balance_at=counter.balance_at,
            sold_since_pence=counter.sold_since_pence,
        )
        applied = store.AppliedRecord(schema=SCHEMA, highest_applied=counter.highest_applied)
        return [
            ops.put(self._keys.counter(*pair), record.SerializeToString(deterministic=True)),
            ops.put(self._keys.applied(*pair), applied.SerializeToString(deterministic=True)),
        ]

    def _taken_over(self, vend: Vend) -> tuple[list[pb.Compare], list[pb.RequestOp]]:
        keys = self._keys
        vend_key = keys.vend(vend.sale.participant_id, vend.sale.transaction_id)
        code_key, pointer = keys.code(vend.originator_id, vend.meter_id, vend.counter), pointer_value(vend)
        puts = [ops.put(vend_key, vend_value(vend)), ops.put(code_key, pointer)]
        if vend.delivery.owed:
            shard = shard_of(vend.meter_id, self._shards)
            outbox = keys.outbox(shard, vend.meter_id, vend.counter, vend.originator_id)
            puts.append(ops.put(outbox, pointer))
        return preconditions.vend_absent(vend_key) + preconditions.code_absent(code_key), puts

    def _understood(self, kind: Kind, kv: pb.KeyValue) -> Versioned[StoredRecord]:
        """Return what a record says.

        Raises:
            NotReady: it cannot be understood, and is set aside.
        """
        try:
            return Versioned(record_of(kind, kv.value), kv.mod_revision)
        except GARBLED as error:
            self._aside.note(kind, kv.key, kv.mod_revision, error)
            raise _not_understood() from error

    def _owed(self, kv: pb.KeyValue) -> VendRef:
        try:
            pointer = read(store.VendPointer(), kv.value)
            _, _, counter, _ = self._keys.parse_outbox(kv.key)
        except GARBLED as error:
            self._aside.note("outbox", kv.key, kv.mod_revision, error)
            raise _not_understood() from error
        return _vend_at(pointer, counter)

    def _key(self, ref: Ref) -> bytes:
        # A SAN URI may hold anything, and may be long.
        record_id = hashlib.sha256(ref.id.encode()).hexdigest() if ref.kind is Kind.IDENTITY else ref.id
        return self._keys.record(ref.kind, record_id)

    async def _get(self, keys: Sequence[bytes]) -> list[pb.KeyValue | None]:
        if not keys:
            return []
        try:
            return ops.got(await self._client.read(pb.TxnRequest(success=[ops.get(key) for key in keys])))
        except EtcdUnreachable as error:
            raise not_read(error) from error

    async def _range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        try:
            return await self._client.range(request)
        except EtcdUnreachable as error:
            raise not_read(error) from error


def _only_adds(write: RegistryWrite) -> bool:
    """Return whether a write adds records and changes none: what blocks, ends or replaces something must go on."""
    added = {ref for ref, revision in write.expect if revision == 0}
    return bool(write.put) and all(Ref(*name_of(record)) in added for record in write.put)


def _not_understood() -> NotReady:
    return NotReady("a record that this depends on cannot be understood by this node; ask another, or the operator")


def _credited_by(vend: Vend, at: Ms) -> bool:
    delivery = vend.delivery
    applied = delivery.state is DeliveryState.APPLIED
    return applied and delivery.closed_at is not None and ms_of(delivery.closed_at) <= at


def _vend_at(pointer: store.VendPointer, counter: Counter) -> VendRef:
    return VendRef(
        participant_id=ParticipantId(pointer.participant_id),
        transaction_id=TransactionId(pointer.transaction_id),
        counter=counter,
    )


def _neighbours(meter: Meter, caller_id: ParticipantId) -> set[Ref]:
    """Return what else decides about a meter: its suppliers, what they have appointed the caller to, and its model."""
    refs: set[Ref] = {Ref(Kind.MODEL, f"{meter.make}/{meter.model}")} if meter.make else set()
    for period in meter.registrations.periods:
        refs.add(Ref(Kind.PARTICIPANT, period.value.supplier_id))
        refs.add(Ref(Kind.APPOINTMENT, f"{period.value.supplier_id}/{caller_id}"))
    return refs


if TYPE_CHECKING:
    _: type[RegistryStore] = EtcdRegistryStore
