"""EtcdClient: etcd over grpc.aio: a deadline on every call, no blind retry of writes, reads repeated elsewhere.

A write ends in one of three ways: an answer; EtcdUnreachable or EtcdRefused, and nothing was written; EtcdUnknown, and
only a read can tell.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import grpc
from etcdpb import rpc_pb2 as pb
from etcdpb import rpc_pb2_grpc as rpc

from cluster.config import EtcdConfig
from cluster.etcd.connections import Connections
from cluster.etcd.ledger_guard import LedgerGuard

log = logging.getLogger(__name__)

_Reply = TypeVar("_Reply")
_Answer = TypeVar("_Answer", pb.TxnResponse, pb.RangeResponse)
# A member that has lost its leader answers at once instead of staying silent.
_HAS_LEADER = (("hasleader", "true"),)
_REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.OUT_OF_RANGE,
    }
)
# Another member would say the same, however often it is asked.
_DENIALS = frozenset(
    {
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
_RETRY_READ_AFTER_S = 0.05
# A read that is repeated waits between attempts, and is not repeated as fast as etcd denies it.
_DENIED_PAUSE_S = 0.5
_WATCH_SILENCE_S = 2.0


_PAGE_S = 10.0


class EtcdUnreachable(Exception):
    """No member can be reached; nothing was sent."""


class EtcdReadDenied(EtcdUnreachable):
    """etcd answers, and does not let this node read: a matter of its rights, not of the network."""


class EtcdUnknown(Exception):
    """The call was sent and not answered; it may have been carried out, or may yet be."""


class EtcdRefused(Exception):
    """etcd refused the call; nothing was written. `malformed`: it will refuse this one for ever, but not others."""

    def __init__(self, message: str, *, malformed: bool) -> None:
        """Keep the sentence, and whether the call itself is at fault."""
        super().__init__(message)
        self.malformed = malformed


class Compacted(Exception):
    """The history a watch wants is gone; list again."""


async def _range(channel: grpc.aio.Channel, *, request: pb.RangeRequest, timeout_s: float) -> pb.RangeResponse:
    return await rpc.KVStub(channel).Range(request, timeout=timeout_s)


def prefix_end(prefix: bytes) -> bytes:
    """Return the end of the range of keys that start with `prefix`."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


class EtcdClient:
    """Calls go to the current member; a failure moves on to the next.

    With a guard, every reply is judged, every write is fenced by the ledger's incarnation, and while the guard is
    closed nothing is read or written but by the methods whose names begin with `bare_`.
    """

    def __init__(self, config: EtcdConfig, guard: LedgerGuard | None = None) -> None:
        self._guard = guard
        self._timeout_s = config.call_timeout_ms / 1000
        self._connections = Connections(config)

    async def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """Carry out a transaction once.

        Raises:
            EtcdUnreachable, EtcdRefused: nothing was written.
            EtcdUnknown: only a read can tell.
        """
        guard = self._guard
        if guard is None:
            return await self.bare_txn(request)
        self._check_writable()
        fenced, floor = guard.fenced(request), guard.floor()
        reply = await self.bare_txn(fenced)
        if not guard.judge(reply.header, floor, proposed=True):
            # It may have been carried out, and not in the ledger it was meant for.
            raise EtcdUnknown(guard.why_closed)
        if not reply.succeeded:
            guard.lose("another incarnation of the ledger is in its place")
            raise EtcdRefused(guard.why_closed, malformed=False)
        inner = reply.responses[0].response_txn
        inner.header.CopyFrom(reply.header)
        return inner

    async def bare_txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """Carry out a transaction as it is, whatever the guard says: for what establishes which ledger this is.

        Raises:
            EtcdUnreachable, EtcdRefused, EtcdUnknown: as `txn`.
        """
        return await self._write(lambda channel: rpc.KVStub(channel).Txn(request, timeout=self._timeout_s))

    async def bare_read(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """Read, whatever the guard says.

        Raises:
            EtcdUnreachable: no member answered.
        """
        return await self._retried(lambda channel: rpc.KVStub(channel).Txn(request, timeout=self._timeout_s))

    async def read(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """Carry out a transaction that only reads; repeated at other members until it succeeds or time is up.

        Raises:
            EtcdUnreachable: no member answered.
            EtcdReadDenied: this node may not read, at any member.
        """
        return await self._read(lambda channel: rpc.KVStub(channel).Txn(request, timeout=self._timeout_s))

    async def range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        """Read keys; repeated at other members until it succeeds or time is up.

        Raises:
            EtcdUnreachable: no member answered.
            EtcdReadDenied: this node may not read, at any member.
            Compacted: the revision asked for is gone.
        """
        return await self._read(lambda channel: rpc.KVStub(channel).Range(request, timeout=self._timeout_s))

    async def list_prefix(self, prefix: bytes) -> tuple[list[pb.KeyValue], int]:
        """Return every key under `prefix` as of one revision, and that revision.

        Raises:
            EtcdUnreachable: no member answered.
            Compacted: it took so long that the revision is gone; list again.
        """
        found: list[pb.KeyValue] = []
        revision = 0
        async for page, revision in self.pages(prefix):  # noqa: B007  # the last one is what is returned
            found.extend(page)
        return found, revision

    async def pages(
        self, prefix: bytes, *, page: int = 25_000, keys_only: bool = False
    ) -> AsyncIterator[tuple[Sequence[pb.KeyValue], int]]:
        """Yield the keys under `prefix` page by page, all as of one revision, each with that revision.

        `keys_only` leaves the values out; each key still comes with its revisions.

        For every page etcd counts all keys that are left: few large pages, or a large registry is counted for minutes.

        Raises:
            EtcdUnreachable, Compacted: as `list_prefix`.
        """
        revision, start = 0, prefix
        while True:
            request = pb.RangeRequest(
                key=start, range_end=prefix_end(prefix), limit=page, revision=revision, keys_only=keys_only
            )
            # A large page takes its time, and nobody's money waits for it.
            reply = await self._read(partial(_range, request=request, timeout_s=_PAGE_S))
            revision = revision or reply.header.revision
            yield reply.kvs, revision
            if not reply.more:
                return
            start = reply.kvs[-1].key + b"\0"

    async def grant_lease(self, ttl_s: int) -> tuple[int, int]:
        """Return the id of a new lease and the TTL that etcd really grants, in seconds.

        Raises:
            EtcdUnreachable, EtcdRefused, EtcdUnknown: an unknown lease runs out by itself.
        """
        request = pb.LeaseGrantRequest(TTL=ttl_s)
        self._check_writable()
        reply = await self._write(lambda channel: rpc.LeaseStub(channel).LeaseGrant(request, timeout=self._timeout_s))
        self._see(reply.header)
        return reply.ID, reply.TTL

    async def revoke_lease(self, lease_id: int) -> None:
        """Revoke a lease, which deletes its keys.

        Raises:
            EtcdUnreachable, EtcdUnknown: it runs out by itself.
        """
        request = pb.LeaseRevokeRequest(ID=lease_id)
        await self._write(lambda channel: rpc.LeaseStub(channel).LeaseRevoke(request, timeout=self._timeout_s))

    async def compact(self, revision: int) -> None:
        """Forget the history before `revision`; watches that are behind it must list again.

        Raises:
            EtcdUnreachable, EtcdUnknown: repeat.
            EtcdRefused: the revision is compacted already, or not there yet.
        """
        request = pb.CompactionRequest(revision=revision)
        await self._write(lambda channel: rpc.KVStub(channel).Compact(request, timeout=self._timeout_s))

    async def lease_left_s(self, lease_id: int) -> tuple[int, int]:
        """Return the seconds that a lease has left, -1 if it is gone, and the seconds it was granted for.

        Raises:
            EtcdUnreachable: no member answered.
        """
        request = pb.LeaseTimeToLiveRequest(ID=lease_id)
        reply = await self._retried(
            lambda channel: rpc.LeaseStub(channel).LeaseTimeToLive(request, timeout=self._timeout_s)
        )
        return reply.TTL, reply.grantedTTL

    async def members(self) -> dict[str, pb.StatusResponse | None]:
        """Return the status of each configured endpoint; None where it does not answer."""

        async def ask(channel: grpc.aio.Channel) -> pb.StatusResponse | None:
            try:
                return await rpc.MaintenanceStub(channel).Status(pb.StatusRequest(), timeout=self._timeout_s)
            except grpc.aio.AioRpcError:
                return None

        async with asyncio.TaskGroup() as tasks:
            asking = {
                endpoint: tasks.create_task(ask(channel))
                for endpoint, channel in self._connections.by_endpoint().items()
            }
        return {endpoint: task.result() for endpoint, task in asking.items()}

    async def keep_alive(self, lease_id: int, *, timeout_s: float) -> bool:
        """Send one keepalive; return whether the lease still lives.

        Raises:
            EtcdUnreachable, EtcdUnknown: not acknowledged; the next one goes to another member.
        """

        async def once(channel: grpc.aio.Channel) -> bool:
            call = rpc.LeaseStub(channel).LeaseKeepAlive(timeout=timeout_s, metadata=_HAS_LEADER)
            try:
                await call.write(pb.LeaseKeepAliveRequest(ID=lease_id))
                reply = await call.read()
                return isinstance(reply, pb.LeaseKeepAliveResponse) and reply.TTL > 0
            finally:
                call.cancel()

        # A ledger that may not be used must not keep this node's shards for it.
        if self._guard is not None and self._guard.why_closed:
            raise EtcdUnreachable(self._guard.why_closed)
        try:
            return await self._write(once)
        except asyncio.InvalidStateError as error:
            raise EtcdUnknown("the keepalive stream ended") from error

    async def watch(self, prefix: bytes, after_revision: int) -> AsyncIterator[pb.WatchResponse]:
        """Return every change under `prefix` after a revision, in order, for ever; a cut is resumed.

        A reply without events is a sign of life and nothing else: etcd answers a progress request before it has sent
        the events up to the revision in that answer's header (upstream issue 15220). So a cut is resumed after the last
        event that was received. What etcd itself leaves out cannot be seen here: whoever keeps a copy compares it.

        Raises:
            Compacted: changes were lost; list again.
        """
        revision = after_revision
        while True:
            try:
                async for reply in self._watch_once(prefix, revision):
                    if reply.events:
                        # Events of one revision may come in several replies only if fragmented, which is not asked for.
                        revision = reply.events[-1].kv.mod_revision
                    self._see(reply.header)
                    if not reply.created:
                        yield reply
            except (grpc.aio.AioRpcError, TimeoutError, EtcdUnreachable, asyncio.InvalidStateError) as error:
                log.info("watch cut, resumed", extra={"prefix": prefix.decode(), "error": type(error).__name__})
                self._connections.rotate()
            await asyncio.sleep(_RETRY_READ_AFTER_S)

    async def renew(self) -> None:
        """Open every connection anew, with the certificates that are there now; calls under way end by themselves."""
        await self._connections.renew()

    async def close(self) -> None:
        """Close every channel."""
        await self._connections.close()

    async def _watch_once(self, prefix: bytes, after_revision: int) -> AsyncIterator[pb.WatchResponse]:
        channel = await self._ready_channel()
        call = rpc.WatchStub(channel).Watch(metadata=_HAS_LEADER)
        try:
            create = pb.WatchCreateRequest(
                key=prefix, range_end=prefix_end(prefix), start_revision=after_revision + 1, progress_notify=True
            )
            await call.write(pb.WatchRequest(create_request=create))
            while True:
                reply = await self._next_reply(call)
                if reply.compact_revision:
                    raise Compacted
                if reply.canceled:
                    raise EtcdUnreachable(reply.cancel_reason)
                yield reply
        finally:
            call.cancel()

    @staticmethod
    async def _next_reply(call: "grpc.aio.StreamStreamCall[Any, Any]") -> pb.WatchResponse:
        """Return the next reply; after silence ask for a sign of life, and fail if none comes."""
        # A read under way must not be cancelled: grpc would end the call. So the read is shielded.
        read = asyncio.ensure_future(call.read())  # noqa: TID251  # owned and awaited right here
        try:
            for _ in range(2):
                done, _pending = await asyncio.wait((read,), timeout=_WATCH_SILENCE_S)
                if done:
                    if read.cancelled():
                        # By its channel, which was closed; who cancels this task is not answered by a result.
                        raise EtcdUnreachable("the watch stream was closed")
                    reply = read.result()
                    if not isinstance(reply, pb.WatchResponse):
                        raise EtcdUnreachable("the watch stream ended")
                    return reply
                await call.write(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
        finally:
            if not read.done():
                read.cancel()
        raise TimeoutError

    async def _write(self, call: Callable[[grpc.aio.Channel], Awaitable[_Reply]]) -> _Reply:
        channel = await self._ready_channel()
        try:
            return await call(channel)
        except grpc.aio.AioRpcError as error:
            if error.code() in _REFUSALS:
                malformed = error.code() is grpc.StatusCode.INVALID_ARGUMENT
                raise EtcdRefused(f"etcd: {error.code().name}: {error.details()}", malformed=malformed) from error
            self._connections.rotate()
            raise EtcdUnknown(f"etcd: {error.code().name}") from error

    async def _read(self, call: Callable[[grpc.aio.Channel], Awaitable[_Answer]]) -> _Answer:
        if self._guard is None:
            return await self._retried(call)
        if self._guard.why_unreadable:
            raise EtcdUnreachable(self._guard.why_unreadable)
        floor = self._guard.floor()
        reply = await self._retried(call)
        if not self._guard.judge(reply.header, floor, proposed=False):
            raise EtcdUnreachable(self._guard.why_unreadable)
        return reply

    def _check_writable(self) -> None:
        if self._guard is not None and self._guard.why_closed:
            raise EtcdRefused(self._guard.why_closed, malformed=False)

    def _see(self, header: pb.ResponseHeader) -> None:
        if self._guard is not None:
            self._guard.see(header)

    async def _retried(self, call: Callable[[grpc.aio.Channel], Awaitable[_Reply]]) -> _Reply:
        try:
            async with asyncio.timeout(2 * self._timeout_s):
                while True:
                    try:
                        return await call(await self._ready_channel())
                    except grpc.aio.AioRpcError as error:
                        if error.code() is grpc.StatusCode.OUT_OF_RANGE:
                            raise Compacted from error
                        if error.code() in _DENIALS:
                            log.warning("etcd denies a read", extra={"told": error.details()})
                            await asyncio.sleep(_DENIED_PAUSE_S)
                            raise EtcdReadDenied(f"etcd: {error.code().name}: {error.details()}") from error
                        self._connections.rotate()
                    await asyncio.sleep(_RETRY_READ_AFTER_S)
        except TimeoutError as error:
            raise EtcdUnreachable("no etcd member answered") from error

    async def _ready_channel(self) -> grpc.aio.Channel:
        """Return a channel with a live connection.

        Raises:
            EtcdUnreachable: there is none within the time of a call.
        """
        channel = await self._connections.live()
        if channel is None:
            raise EtcdUnreachable("no etcd member can be reached")
        return channel
