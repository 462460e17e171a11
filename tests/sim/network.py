"""What lies between a node and etcd in the simulation: delay, loss before and after, silence, freezing, death."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextvars import Context
from typing import TypeVar

from etcdpb import rpc_pb2 as pb

from cluster.etcd.client import Compacted, EtcdRefused, EtcdUnknown, EtcdUnreachable
from tests.fakes.etcd import FakeEtcd

_T = TypeVar("_T")
_CALL_S = 1.0
_GRAIN_S = 0.05
_LATE = 0.5
_LATE_S = (0.5, 1.2, 3.0, 8.0)


class Link:
    """One node's way to the outside. Faults are drawn at every call, and set by the nemesis for a while."""

    def __init__(self, chance: random.Random, *, loss: float) -> None:
        self._chance = chance
        self.loss = loss
        self.cut = False
        self.slow = 1.0
        self.dead = False
        # How late watches tell, and which share of what they should tell they lose.
        self.lag_s = 0.0
        self.deaf = 0.0
        self._late = set[asyncio.Task[None]]()
        self._frozen_until = 0.0
        self._stalled_until = 0.0

    @property
    def silent(self) -> bool:
        """True while its peers hear nothing of its node."""
        return self.dead or self.cut or self.still

    @property
    def still(self) -> bool:
        """True while its node is frozen or stands still."""
        return max(self._frozen_until, self._stalled_until) > asyncio.get_running_loop().time()

    def freeze(self, seconds: float) -> None:
        """Let nothing in or out for a while; what is on its way arrives late."""
        self._frozen_until = asyncio.get_running_loop().time() + seconds

    def stall(self, seconds: float) -> None:
        """Note that the node behind this link stands still for a while."""
        self._stalled_until = asyncio.get_running_loop().time() + seconds

    async def pass_through(self) -> None:
        """Return when one message has passed; never, if its sender is dead."""
        await asyncio.sleep(self._chance.uniform(0.0002, 0.004) * self.slow)
        loop = asyncio.get_running_loop()
        while (left := self._frozen_until - loop.time()) > 0:  # noqa: ASYNC110  # virtual time
            await asyncio.sleep(left)
        if self.dead:
            await loop.create_future()

    def missed(self) -> bool:
        """Return whether a watch loses an event, for good."""
        return self.deaf > 0 and self._chance.random() < self.deaf

    def lost(self) -> bool:
        """Return whether a message is lost."""
        return self.cut or self._chance.random() < self.loss

    async def write(self, act: Callable[[], Awaitable[_T]]) -> _T:
        """Carry a write out, as a client sees it: answered, not sent, or unknown."""
        if self.cut and self._chance.random() < 0.5:
            await asyncio.sleep(_CALL_S)
            await self.pass_through()
            raise EtcdUnreachable("no etcd member can be reached")
        await self.pass_through()
        if self.lost():
            if self._chance.random() < _LATE:
                # It hangs on its way: etcd carries it out when its sender has long given it up, or died.
                self._late.add(asyncio.get_running_loop().create_task(self._carry_out_late(act), context=Context()))
            await self._silence()
        reply = await act()
        await self.pass_through()
        if self.lost():
            await self._silence()
        return reply

    async def _carry_out_late(self, act: Callable[[], Awaitable[object]]) -> None:
        await asyncio.sleep(self._chance.choice(_LATE_S))
        with contextlib.suppress(EtcdRefused):
            await act()

    async def _silence(self) -> None:
        await asyncio.sleep(_CALL_S)
        await self.pass_through()
        raise EtcdUnknown("etcd: DEADLINE_EXCEEDED")

    async def read(self, act: Callable[[], Awaitable[_T]]) -> _T:
        """Carry a read out; repeated once, as the client does, before it gives up."""
        for _ in range(2):
            await self.pass_through()
            if not self.lost():
                reply = await act()
                await self.pass_through()
                if not self.lost():
                    return reply
            await asyncio.sleep(_CALL_S)
        raise EtcdUnreachable("no etcd member answered")


class SimClient:
    """Stands where EtcdClient stands, for one node, over its link."""

    def __init__(self, etcd: FakeEtcd, link: Link) -> None:
        self._etcd = etcd
        self._link = link

    async def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        return await self._link.write(lambda: self._etcd.txn(request))

    async def read(self, request: pb.TxnRequest) -> pb.TxnResponse:
        return await self._link.read(lambda: self._etcd.read(request))

    async def range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        return await self._link.read(lambda: self._etcd.range(request))

    async def list_prefix(self, prefix: bytes) -> tuple[list[pb.KeyValue], int]:
        return await self._link.read(lambda: self._etcd.list_prefix(prefix))

    async def pages(
        self, prefix: bytes, *, keys_only: bool = False
    ) -> AsyncIterator[tuple[Sequence[pb.KeyValue], int]]:
        # One page: `FakeEtcd` lists as of one revision, and this link then delays or loses all of it.
        async def whole() -> list[tuple[Sequence[pb.KeyValue], int]]:
            return [page async for page in self._etcd.pages(prefix, keys_only=keys_only)]

        for one in await self._link.read(whole):
            yield one

    async def grant_lease(self, ttl_s: int) -> tuple[int, int]:
        return await self._link.write(lambda: self._etcd.grant_lease(ttl_s))

    async def keep_alive(self, lease_id: int, *, timeout_s: float) -> bool:
        return await self._link.write(lambda: self._etcd.keep_alive(lease_id, timeout_s=timeout_s))

    async def revoke_lease(self, lease_id: int) -> None:
        await self._link.write(lambda: self._etcd.revoke_lease(lease_id))

    async def watch(self, prefix: bytes, after_revision: int) -> AsyncIterator[pb.WatchResponse]:
        revision = after_revision
        async for reply in self._etcd.watch(prefix, after_revision):
            await self._link.pass_through()
            if self._link.lag_s:
                await asyncio.sleep(self._link.lag_s)
            while self._link.cut:
                await asyncio.sleep(_GRAIN_S)
                await self._link.pass_through()
                # Cut off for long, it falls behind a compaction; it must list again.
                if revision < self._etcd.compacted:
                    raise Compacted
            revision = reply.events[-1].kv.mod_revision
            if self._link.missed():
                continue
            yield reply
