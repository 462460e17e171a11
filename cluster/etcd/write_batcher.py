"""WriteBatcher: writes that wait together go together; the next group leaves when the previous one has returned."""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import NoReturn

from etcdpb import rpc_pb2 as pb

from cluster.etcd import ops
from cluster.etcd.client import EtcdClient
from cluster.etcd.commit import OutcomeKnown, Settled, commit_each, not_done
from core.domain.errors import LedgerUnavailable
from core.ports.clock import Clock


@dataclass(frozen=True, slots=True)
class Answered:
    """etcd's answer to one write: whether its compares held, its reads, and the revision."""

    succeeded: bool
    found: list[pb.KeyValue | None]
    revision: int


@dataclass(frozen=True, slots=True)
class _Waiting:
    txn: pb.TxnRequest
    keys: frozenset[bytes]
    answer: asyncio.Future[Answered]


class WriteBatcher:
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
                children = [waiting.txn for waiting in group]
                until = self._clock.monotonic() + self._resolve_s
                for waiting, settled in zip(
                    group, await commit_each(self._client, self._clock, children, until=until), strict=True
                ):
                    _answer(waiting, settled)
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


def _answer(waiting: _Waiting, settled: Settled) -> None:
    if waiting.answer.done():
        return
    if isinstance(settled, OutcomeKnown):
        waiting.answer.set_result(Answered(settled.reply.succeeded, ops.got(settled.reply), settled.revision))
        return
    waiting.answer.set_exception(not_done(settled))
    # Mark it as seen: the writer may be gone.
    waiting.answer.exception()


def _written(op: pb.RequestOp) -> bytes:
    return op.request_put.key or op.request_delete_range.key
