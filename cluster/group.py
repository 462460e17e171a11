"""GroupWriter: writes that wait together go together; the next group leaves when the previous one has returned."""

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import NoReturn

from etcdpb import rpc_pb2 as pb

from cluster import ops
from cluster.client import EtcdClient, EtcdRefused, EtcdUnknown, EtcdUnreachable
from core.domain.errors import LedgerUnavailable, OutcomeUnknown
from core.ports.clock import Clock

log = logging.getLogger(__name__)

_RETRY_AFTER_S = 0.05


@dataclass(frozen=True, slots=True)
class Answered:
    """What etcd said of one write: whether its compares held, what its reads found, and at which revision."""

    succeeded: bool
    found: list[pb.KeyValue | None]
    revision: int


@dataclass(frozen=True, slots=True)
class _Waiting:
    txn: pb.TxnRequest
    keys: frozenset[bytes]
    answer: asyncio.Future[Answered]


class GroupWriter:
    """Sends small transactions in groups. Each must be safe to send again: once carried out, its compares fail."""

    def __init__(self, client: EtcdClient, clock: Clock, *, batch_max: int, resolve_s: float, waiting_max: int) -> None:
        self._client = client
        self._clock = clock
        self._batch_max = batch_max
        self._resolve_s = resolve_s
        self._waiting_max = waiting_max
        self._waiting: deque[_Waiting] = deque()
        self._work = asyncio.Event()

    async def write(self, txn: pb.TxnRequest) -> Answered:
        """Return what etcd said of `txn`. Cancelling the call does not take the write back.

        Raises:
            LedgerUnavailable: nothing was written.
            OutcomeUnknown: only a read can tell.
        """
        if len(self._waiting) >= self._waiting_max:
            raise LedgerUnavailable("too many writes wait for the ledger; nothing was written")
        keys = frozenset(_written(op) for op in txn.success)
        waiting = _Waiting(txn, keys, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._work.set()
        return await asyncio.shield(waiting.answer)

    async def run(self) -> NoReturn:
        """Send groups for ever."""
        while True:
            await self._work.wait()
            group = self._take()
            if group:
                await self._send(group, self._clock.monotonic() + self._resolve_s)
            else:
                self._work.clear()

    def _take(self) -> list[_Waiting]:
        """Return the next group. No key twice: etcd would refuse the whole group."""
        group: list[_Waiting] = []
        keys: set[bytes] = set()
        later: list[_Waiting] = []
        while self._waiting and len(group) < self._batch_max:
            waiting = self._waiting.popleft()
            if keys & waiting.keys:
                later.append(waiting)
            else:
                group.append(waiting)
                keys |= waiting.keys
        self._waiting.extendleft(reversed(later))
        return group

    async def _send(self, group: list[_Waiting], until: float) -> None:
        unknown = False
        while True:
            try:
                reply = await self._client.txn(ops.group([waiting.txn for waiting in group]))
            except EtcdRefused as refused:
                if refused.malformed and len(group) > 1:
                    middle = len(group) // 2
                    await self._send(group[:middle], until)
                    await self._send(group[middle:], until)
                    return None
                log.exception("etcd refuses a write")
                return _fail(group, LedgerUnavailable("the ledger takes no writes now"))
            except EtcdUnreachable:
                if not unknown:
                    return _fail(group, LedgerUnavailable("the ledger cannot be reached; nothing was written"))
            except EtcdUnknown:
                unknown = True
            else:
                return _answer(group, reply)
            if self._clock.monotonic() >= until:
                return _fail(group, OutcomeUnknown("the ledger did not say whether this was written"))
            await asyncio.sleep(_RETRY_AFTER_S)


def _answer(group: list[_Waiting], reply: pb.TxnResponse) -> None:
    for waiting, op in zip(group, reply.responses, strict=True):
        child = op.response_txn
        if not waiting.answer.done():
            waiting.answer.set_result(Answered(child.succeeded, ops.got(child), reply.header.revision))


def _fail(group: list[_Waiting], error: LedgerUnavailable | OutcomeUnknown) -> None:
    for waiting in group:
        if not waiting.answer.done():
            waiting.answer.set_exception(error)
            # Mark it as seen: the writer may be gone.
            waiting.answer.exception()


def _written(op: pb.RequestOp) -> bytes:
    return op.request_put.key or op.request_delete_range.key
