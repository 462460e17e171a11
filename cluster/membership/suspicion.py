"""Suspicions: a peer that a majority has not heard for a while, and that does not answer through etcd, loses its lease.

A suspicion is a key in etcd, on the lease of who suspects. The suspect answers with a key of its own: whatever was said
before the answer is answered. So nodes that cannot hear each other, but all reach etcd, take nothing from each other.
A wrong guess costs a hand-over, never money: the epoch compared in every delivery write sees to that.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import NoReturn, Protocol

from etcdpb import rpc_pb2 as pb
from google.protobuf.message import DecodeError
from utrn.store.v1 import records_pb2 as store

from cluster.codec.vend import SCHEMA
from cluster.config import EtcdConfig, PeersConfig
from cluster.etcd import ops
from cluster.etcd.client import Compacted, EtcdClient, EtcdRefused, EtcdUnknown, EtcdUnreachable, prefix_end
from cluster.etcd.keys import Keys
from cluster.etcd.prefix_mirror import PrefixMirror
from core.ports.clock import Clock

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.025
_ANSWER_AGAIN_S = 0.02
_SAY_AGAIN_S = 0.1
_EtcdTrouble = (EtcdUnreachable, EtcdUnknown, EtcdRefused, Compacted)


class Membership(Protocol):
    """This node among the others; EtcdOwnership is it."""

    @property
    def node_id(self) -> str:
        """This node."""
        ...

    @property
    def lease_id(self) -> int:
        """Its lease; 0 while it has none."""
        ...

    @property
    def lease_good(self) -> bool:
        """True while etcd has acknowledged it of late."""
        ...

    def members(self) -> Mapping[str, object]:
        """Return every live node, by id, this one among them."""
        ...


class Suspicions:
    """The suspicions of this node and its peers, and the leases that end by them."""

    def __init__(
        self,
        client: EtcdClient,
        etcd: EtcdConfig,
        config: PeersConfig,
        clock: Clock,
        *,
        me: Membership,
        silent: Callable[[], Mapping[str, int]],
        revoke: Callable[[str, int, str], Awaitable[None]],
    ) -> None:
        """Take the clients of etcd, who this node is, what it does not hear, and what ends a lease.

        Args:
            client: Of etcd.
            etcd: Where the keys are.
            config: How long a suspect has to answer.
            clock: Its monotonic side.
            me: This node and the members.
            silent: The lease of every peer that this node has not heard for too long, by node id.
            revoke: Ends the lease of a node, for a reason.
        """
        self._client = client
        self._keys = Keys(etcd.prefix)
        self._answer_s = config.answer_ms / 1000
        self._clock = clock
        self._me = me
        self._silent = silent
        self._revoke = revoke
        self._spoken = asyncio.Event()
        self._words = PrefixMirror(client, self._keys.suspicions(), self._spoken.set, compare_s=etcd.compare_members_s)
        self._standing: dict[tuple[str, int], float] = {}
        self._ending: set[tuple[str, int]] = set()

    async def run(self) -> NoReturn:
        """Suspect, answer and judge, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._words.run())
            tasks.create_task(self._answer_forever())
            while True:
                await asyncio.sleep(_LOOK_EVERY_S)
                if self._words.ready and self._me.lease_good:
                    await self._look(tasks)

    async def _look(self, tasks: asyncio.TaskGroup) -> None:
        silent = self._silent()
        try:
            await self._publish(silent)
            for case in self._due(silent):
                if await self._stands_in_ledger(*case):
                    self._ending.add(case)
                    tasks.create_task(self._end(case))
        except _EtcdTrouble as error:
            log.info("a suspicion was not told", extra={"error": str(error)})
            await asyncio.sleep(_SAY_AGAIN_S)

    async def _publish(self, silent: Mapping[str, int]) -> None:
        """Write what this node suspects and delete what it suspects no more; nothing, if all is said already."""
        lease_id = self._me.lease_id
        said = {node: kv for node, by, kv in _parsed(self._words.keys) if by == self._me.node_id != node}
        news = {
            node: suspected
            for node, suspected in silent.items()
            if node not in said or (said[node].lease, _lease_in(said[node])) != (lease_id, suspected)
        }
        over = said.keys() - silent.keys()
        if not news and not over:
            return
        puts = [self._say(node, suspected, lease_id) for node, suspected in news.items()]
        deletes = [ops.delete(self._keys.suspicion(node, self._me.node_id)) for node in over]
        reply = await self._client.txn(pb.TxnRequest(success=[*puts, *deletes]))
        self._heard_own([*puts, *deletes], reply.header.revision)
        for node in news:
            log.warning("a peer is not heard; told to the others", extra={"peer": node})
        for node in over:
            log.info("a peer is suspected no more", extra={"peer": node})

    def _due(self, silent: Mapping[str, int]) -> list[tuple[str, int]]:
        """Return the cases that have stood for as long as a suspect has to answer."""
        now, living = self._clock.monotonic(), self._me.members()
        standing = [case for case in silent.items() if stands(*case, self._words.keys, living)]
        self._standing = {case: self._standing.get(case, now) for case in standing}
        return [
            case for case, since in self._standing.items() if now - since >= self._answer_s and case not in self._ending
        ]

    async def _stands_in_ledger(self, node_id: str, lease_id: int) -> bool:
        """Return whether a case stands by the ledger itself, and not only by a copy that may be behind an answer."""
        reply = await self._client.read(
            pb.TxnRequest(success=[_list(self._keys.suspicions()), _list(self._keys.nodes())])
        )
        words, nodes = (op.response_range.kvs for op in reply.responses)
        living = {_after(self._keys.nodes(), kv.key): kv.lease for kv in nodes}
        said = {_after(self._keys.suspicions(), kv.key): kv for kv in words}
        return living.get(node_id) == lease_id and stands(node_id, lease_id, said, living)

    async def _end(self, case: tuple[str, int]) -> None:
        try:
            await self._revoke(*case, "a majority does not hear it, and it has not answered")
        finally:
            self._ending.discard(case)
            # If that failed, the suspect has as long again.
            self._standing.pop(case, None)

    async def _answer_forever(self) -> NoReturn:
        """Answer whatever is said about this node, at once: it lives, and etcd takes its word."""
        while True:
            await self._spoken.wait()
            self._spoken.clear()
            lease_id = self._me.lease_id
            if not lease_id or not self._accused(lease_id):
                continue
            answer = self._say(self._me.node_id, lease_id, lease_id)
            try:
                reply = await self._client.txn(pb.TxnRequest(success=[answer]))
                self._heard_own([answer], reply.header.revision)
                log.warning("suspected by peers, and answered")
            except _EtcdTrouble as error:
                log.info("suspected by peers, and the answer was not taken", extra={"error": str(error)})
                await asyncio.sleep(_ANSWER_AGAIN_S)
                self._spoken.set()

    def _accused(self, lease_id: int) -> bool:
        me = self._me.node_id
        answer = self._words.keys.get(f"{me}/{me}")
        return any(
            node == me != by and _lease_in(kv) == lease_id and kv.mod_revision > _revision(answer)
            for node, by, kv in _parsed(self._words.keys)
        )

    def _say(self, node_id: str, suspected: int, lease_id: int) -> pb.RequestOp:
        record = store.SuspicionRecord(schema=SCHEMA, lease_id=suspected)
        key = self._keys.suspicion(node_id, self._me.node_id)
        return ops.put(key, record.SerializeToString(deterministic=True), lease=lease_id)

    def _heard_own(self, written: Iterable[pb.RequestOp], revision: int) -> None:
        for op in written:
            put = op.request_put
            kv = pb.KeyValue(
                key=put.key or op.request_delete_range.key, value=put.value, lease=put.lease, mod_revision=revision
            )
            self._words.apply(kv, gone=not put.key)


def stands(node_id: str, lease_id: int, words: Mapping[str, pb.KeyValue], living: Collection[str]) -> bool:
    """Return whether a majority of the living says that it does not hear a node under its lease, unanswered.

    Args:
        node_id: The suspect.
        lease_id: Its lease.
        words: What was said: `<suspect>/<by>`; its own answer is under its own name.
        living: Every node with a lease, the suspect among them. Of two, none is a majority: that is left to the lease.
    """
    answered = _revision(words.get(f"{node_id}/{node_id}"))
    accusers = {
        by
        for node, by, kv in _parsed(words)
        if node == node_id != by and by in living and _lease_in(kv) == lease_id and kv.mod_revision > answered
    }
    return 2 * len(accusers) > len(living)


def _parsed(words: Mapping[str, pb.KeyValue]) -> Iterable[tuple[str, str, pb.KeyValue]]:
    for name, kv in words.items():
        node, _, by = name.partition("/")
        yield node, by, kv


def _lease_in(kv: pb.KeyValue) -> int:
    # Without the schema check: while versions are mixed every node's word counts, and none decides about money. What
    # cannot be read names no lease, and so means nobody.
    try:
        return store.SuspicionRecord.FromString(kv.value).lease_id
    except DecodeError:
        return 0


def _revision(kv: pb.KeyValue | None) -> int:
    return kv.mod_revision if kv is not None else 0


def _list(prefix: bytes) -> pb.RequestOp:
    return pb.RequestOp(request_range=pb.RangeRequest(key=prefix, range_end=prefix_end(prefix)))


def _after(prefix: bytes, key: bytes) -> str:
    return key[len(prefix) :].decode()
