"""FakeEtcd: etcd's transactions, leases, watches and compaction in memory; stands where EtcdClient stands.

Held to the same suites as the real one (tests/contract, and test_etcd_semantics.py above all). `before_txn` lets a test
fail or delay the next transaction. Leases run out by the loop's clock, so a virtual one makes them run out at once.
"""

import asyncio
import operator
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import Context
from typing import Any

from etcdpb import rpc_pb2 as pb

from cluster.etcd.client import Compacted, EtcdRefused, prefix_end

_CHILDREN_MAX = 128
# Where a nested transaction stands: branch and index, level by level.
Path = tuple[tuple[bool, int], ...]


class FakeEtcd:
    """One store; hand the same one to several clients of it."""

    def __init__(self) -> None:
        self.revision = 1
        self.keys: dict[bytes, pb.KeyValue] = {}
        self.history: list[pb.Event] = []
        self.leases: dict[int, tuple[int, asyncio.TimerHandle]] = {}
        self.compacted = 0
        self._last_lease = 0
        self._changed = asyncio.Event()
        self.before_txn: Callable[[], None] = lambda: None
        self.after_txn: Callable[[], None] = lambda: None
        self.published: Callable[[int], None] = lambda _: None

    async def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        self.before_txn()
        _check_limits(request)
        _check_duplicates(request)
        chosen = self._choose(request)
        self._check_leases(request, (), chosen)
        events: list[pb.Event] = []
        reply = self._apply(request, (), chosen, self.revision + 1, events)
        self._publish(events)
        reply.header.revision = self.revision
        await asyncio.sleep(0)
        self.after_txn()
        return reply

    async def read(self, request: pb.TxnRequest) -> pb.TxnResponse:
        return await self.txn(request)

    async def range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        await asyncio.sleep(0)
        return self._range(request)

    async def list_prefix(self, prefix: bytes) -> tuple[list[pb.KeyValue], int]:
        await asyncio.sleep(0)
        return list(self._range(pb.RangeRequest(key=prefix, range_end=prefix_end(prefix))).kvs), self.revision

    async def pages(
        self, prefix: bytes, *, page: int = 25_000, keys_only: bool = False
    ) -> AsyncIterator[tuple[Sequence[pb.KeyValue], int]]:
        found, revision = await self.list_prefix(prefix)
        for begin in range(0, max(1, len(found)), page):
            yield [_key_of(kv) if keys_only else kv for kv in found[begin : begin + page]], revision

    async def watch(self, prefix: bytes, after_revision: int) -> AsyncIterator[pb.WatchResponse]:
        at = 0
        if after_revision < self.compacted:
            raise Compacted
        while True:
            changed = self._changed
            events: list[pb.Event] = []
            while at < len(self.history):
                event = self.history[at]
                at += 1
                if event.kv.key.startswith(prefix) and event.kv.mod_revision > after_revision:
                    events.append(event)
            if events:
                # A compaction cuts only watches that have fallen behind it, and this one never has.
                reply = pb.WatchResponse(events=events)
                reply.header.revision = events[-1].kv.mod_revision
                yield reply
                continue
            await changed.wait()

    async def compact(self, revision: int) -> None:
        if not self.compacted < revision <= self.revision:
            raise EtcdRefused("required revision has been compacted, or is a future one", malformed=False)
        self.compacted = revision

    def put(self, key: bytes, value: bytes) -> None:
        """Write a key, as another client would."""
        events: list[pb.Event] = []
        self._put(pb.PutRequest(key=key, value=value), self.revision + 1, events)
        self._publish(events)

    def delete(self, key: bytes) -> None:
        """Delete a key behind everybody's back."""
        events: list[pb.Event] = []
        self._delete(key, self.revision + 1, events)
        self._publish(events)

    async def grant_lease(self, ttl_s: int) -> tuple[int, int]:
        self._last_lease += 1
        self._renew(self._last_lease, ttl_s)
        return self._last_lease, ttl_s

    async def keep_alive(self, lease_id: int, *, timeout_s: float) -> bool:
        await asyncio.sleep(0)
        if lease_id not in self.leases:
            return False
        self._renew(lease_id, self.leases[lease_id][0])
        return True

    async def lease_left_s(self, lease_id: int) -> tuple[int, int]:
        if lease_id not in self.leases:
            return -1, 0
        ttl_s, timer = self.leases[lease_id]
        return int(timer.when() - asyncio.get_running_loop().time()), ttl_s

    async def revoke_lease(self, lease_id: int) -> None:
        await asyncio.sleep(0)
        if lease_id not in self.leases:
            raise EtcdRefused("requested lease not found", malformed=False)
        self._end(lease_id)

    def _renew(self, lease_id: int, ttl_s: int) -> None:
        if lease_id in self.leases:
            self.leases[lease_id][1].cancel()
        # It is etcd's clock that runs: whatever becomes of the client whose work this is.
        timer = asyncio.get_running_loop().call_later(ttl_s, self._end, lease_id, context=Context())
        self.leases[lease_id] = (ttl_s, timer)

    def _end(self, lease_id: int) -> None:
        """Delete every key of a lease at one revision."""
        self.leases.pop(lease_id)[1].cancel()
        events: list[pb.Event] = []
        for key in [key for key, one in self.keys.items() if one.lease == lease_id]:
            self._delete(key, self.revision + 1, events)
        self._publish(events)

    def _publish(self, events: list[pb.Event]) -> None:
        if events:
            self.revision += 1
            self.history += events
            self.published(self.revision)
            self._changed.set()
            self._changed = asyncio.Event()

    async def close(self) -> None:
        return

    def _check_leases(self, request: pb.TxnRequest, path: Path, chosen: dict[Path, bool]) -> None:
        """Refuse the whole batch if a put that would be carried out names a lease that is gone."""
        branch = chosen[path]
        for index, op in enumerate(request.success if branch else request.failure):
            if op.HasField("request_txn"):
                self._check_leases(op.request_txn, (*path, (branch, index)), chosen)
            elif op.request_put.lease and op.request_put.lease not in self.leases:
                raise EtcdRefused("requested lease not found", malformed=False)

    def _choose(self, request: pb.TxnRequest, path: Path = ()) -> dict[Path, bool]:
        """Decide every compare, nested ones too, against the state before the transaction."""
        chosen: dict[Path, bool] = {path: all(self._holds(one) for one in request.compare)}
        for branch, requests in ((True, request.success), (False, request.failure)):
            for index, op in enumerate(requests):
                if op.HasField("request_txn"):
                    chosen |= self._choose(op.request_txn, (*path, (branch, index)))
        return chosen

    def _holds(self, compare: pb.Compare) -> bool:
        there = self.keys.get(compare.key)
        if there is None and compare.target == pb.Compare.VALUE:
            # The value of a key that is not there is like no other, and neither more nor less than any.
            return False
        found = pb.KeyValue() if there is None else there
        if compare.target == pb.Compare.VALUE:
            return _compared(compare.result, found.value, compare.value)
        actual = {
            pb.Compare.VERSION: found.version,
            pb.Compare.CREATE: found.create_revision,
            pb.Compare.MOD: found.mod_revision,
        }[compare.target]
        return _compared(compare.result, actual, getattr(compare, compare.WhichOneof("target_union") or "version"))

    def _apply(
        self, request: pb.TxnRequest, path: Path, chosen: dict[Path, bool], revision: int, events: list[pb.Event]
    ) -> pb.TxnResponse:
        branch = chosen[path]
        reply = pb.TxnResponse(succeeded=branch)
        for index, op in enumerate(request.success if branch else request.failure):
            match op.WhichOneof("request"):
                case "request_txn":
                    nested = self._apply(op.request_txn, (*path, (branch, index)), chosen, revision, events)
                    reply.responses.append(pb.ResponseOp(response_txn=nested))
                case "request_put":
                    self._put(op.request_put, revision, events)
                    reply.responses.append(pb.ResponseOp(response_put=pb.PutResponse()))
                case "request_delete_range":
                    self._delete(op.request_delete_range.key, revision, events)
                    reply.responses.append(pb.ResponseOp(response_delete_range=pb.DeleteRangeResponse()))
                case _:
                    reply.responses.append(pb.ResponseOp(response_range=self._range(op.request_range)))
        return reply

    def _put(self, put: pb.PutRequest, revision: int, events: list[pb.Event]) -> None:
        before = self.keys.get(put.key)
        after = pb.KeyValue(
            key=put.key,
            value=put.value,
            lease=put.lease,
            create_revision=revision if before is None else before.create_revision,
            mod_revision=revision,
            version=1 if before is None else before.version + 1,
        )
        self.keys[put.key] = after
        events.append(pb.Event(type=pb.Event.PUT, kv=after))

    def _delete(self, key: bytes, revision: int, events: list[pb.Event]) -> None:
        if self.keys.pop(key, None) is not None:
            events.append(pb.Event(type=pb.Event.DELETE, kv=pb.KeyValue(key=key, mod_revision=revision)))

    def _range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        if request.range_end:
            found = sorted(key for key in self.keys if request.key <= key < request.range_end)
        else:
            found = [request.key] if request.key in self.keys else []
        kvs = [] if request.count_only else [self.keys[key] for key in found]
        page = kvs[: request.limit] if request.limit else kvs
        reply = pb.RangeResponse(kvs=page, count=len(found), more=len(page) < len(kvs))
        reply.header.revision = self.revision
        return reply


def _key_of(kv: pb.KeyValue) -> pb.KeyValue:
    bare = pb.KeyValue()
    bare.CopyFrom(kv)
    bare.ClearField("value")
    return bare


def _compared(result: pb.Compare.CompareResult.ValueType, actual: Any, wanted: Any) -> bool:
    holds = {
        pb.Compare.EQUAL: operator.eq,
        pb.Compare.GREATER: operator.gt,
        pb.Compare.LESS: operator.lt,
        pb.Compare.NOT_EQUAL: operator.ne,
    }[result]
    return bool(holds(actual, wanted))


def _check_limits(request: pb.TxnRequest, room: int = _CHILDREN_MAX) -> None:
    size = max(len(request.compare), len(request.success), len(request.failure))
    if size > room:
        raise EtcdRefused("too many operations", malformed=True)
    for op in (*request.success, *request.failure):
        if op.HasField("request_txn"):
            _check_limits(op.request_txn, room - size)


def _check_duplicates(request: pb.TxnRequest) -> None:
    puts = [key for op in request.success for key in _puts(op)]
    if len(puts) != len(set(puts)):
        raise EtcdRefused("duplicate key given in txn request", malformed=True)


def _puts(op: pb.RequestOp) -> set[bytes]:
    if op.HasField("request_put"):
        return {op.request_put.key}
    if op.HasField("request_txn"):
        return {key for nested in (*op.request_txn.success, *op.request_txn.failure) for key in _puts(nested)}
    return set()
