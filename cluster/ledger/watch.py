"""LedgerWatch: proves, at start and ever after, that a node's ledger is the one it knows, and that the two agree."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from etcdpb import rpc_pb2 as pb

from cluster.codec.set_aside import SetAsideRecords
from cluster.codec.vend import Unreadable
from cluster.config import EtcdConfig
from cluster.etcd import ops
from cluster.etcd.client import EtcdClient, EtcdRefused, EtcdUnknown, EtcdUnreachable
from cluster.etcd.informer import CopyState
from cluster.etcd.keys import Keys
from cluster.etcd.ledger_guard import LedgerGuard
from cluster.etcd.prefix_mirror import PrefixMirror
from cluster.etcd.space import LedgerSpace
from cluster.ledger.identity import LedgerSeen, LedgerUnfit, differences, look, unfit
from cluster.ledger.state_file import LedgerState, StateFile

log = logging.getLogger(__name__)

_LOOK_AGAIN_S = 0.2
_KEEP_EVERY_S = 1.0
# How long a raft term may be behind one that was heard of: elections take no longer.
_TERM_PATIENCE_S = 5.0
_SAY_AGAIN_S = 30.0
_PAGE = "docs/runbooks/ledger-identity.md"


@dataclass(frozen=True, kw_only=True)
class LedgerParts:
    """The way to the ledger, and what watches over it."""

    client: EtcdClient
    guard: LedgerGuard
    watch: "LedgerWatch"
    aside: SetAsideRecords
    space: LedgerSpace

    @property
    def problems(self) -> list[str]:
        """What an operator should know of the ledger itself, a sentence each."""
        return [*self.watch.problems, *self.space.problems]


class LedgerWatch:
    """Opens the guard, closes it, and keeps on this node's disk what it knows of its ledger."""

    def __init__(
        self, client: EtcdClient, config: EtcdConfig, guard: LedgerGuard, state: StateFile, settings: Mapping[str, str]
    ) -> None:
        """Take the ledger's client and guard, where the state is kept, and this node's settings that must be agreed."""
        self._client = client
        self._keys = Keys(config.prefix)
        self._guard = guard
        self._state = state
        self._settings = settings
        self._known: LedgerState | None = None
        self._proven = False
        self._differing: list[str] = []
        self._kept_at = 0.0
        self._config = PrefixMirror(client, self._keys.configs(), self._heard, compare_s=config.compare_members_s)

    @property
    def identified(self) -> bool:
        """True while this is the ledger that the node knows."""
        return self._proven and not self._guard.lost

    @property
    def agreed(self) -> bool:
        """True while every setting is as agreed in the ledger."""
        return self._proven and not self._differing

    @property
    def incarnation(self) -> str:
        """The ledger's incarnation; empty before the first look."""
        return "" if self._known is None else self._known.incarnation

    @property
    def kept_at(self) -> float:
        """When the state was last kept on the disk, in loop time; 0 for never."""
        return self._kept_at

    @property
    def copy(self) -> CopyState:
        """How the copy of the ledger's identity is."""
        return self._config.state

    @property
    def problems(self) -> list[str]:
        """What an operator should know of the ledger's identity and the agreed settings."""
        if self._guard.lost:
            return [f"{self._guard.lost}: nothing is issued or delivered; {_PAGE}"]
        differing = [f"{one}: {_PAGE}" for one in self._differing]
        return [*differing, *([] if self._proven else ["this node has not looked at its ledger yet: ask again"])]

    async def run(self) -> NoReturn:  # type: ignore[misc]  # a task group whose tasks never end
        """Prove, then watch, for ever.

        Raises:
            LedgerUnfit: this node must not work on this ledger.
        """
        await self._prove()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._config.run())
            tasks.create_task(self._keep_forever())
            tasks.create_task(self._settle_doubts())
            tasks.create_task(self._say_forever())

    async def _prove(self) -> None:
        known = self._state.read()
        while True:
            try:
                seen = await look(self._client, self._keys)
                break
            except EtcdUnreachable:
                await asyncio.sleep(_LOOK_AGAIN_S)
        try:
            why = unfit(self._keys, seen, known)
            differing = [] if why else differences(self._settings, seen.settings)
            if why or differing:
                raise LedgerUnfit(why or f"{'; '.join(differing)}; see {_PAGE}")
            self._take(seen, known)
        except Unreadable as error:
            raise LedgerUnfit(f"config/ledger or config/agreed cannot be understood: {error}") from error
        await self._keep()
        self._proven = True
        self._guard.hold("")

    def _take(self, seen: LedgerSeen, known: LedgerState | None) -> None:
        record = seen.record
        same = known is not None and known.incarnation == record.incarnation
        revision = max(seen.revision, known.revision if known is not None and same else 0)
        self._guard.know(record.incarnation, (self._keys.ledger(), seen.value or b""), revision, seen.cluster_id)
        self._known = LedgerState(
            incarnation=record.incarnation, sequence=record.sequence, cluster_id=seen.cluster_id, revision=revision
        )
        log.info("the ledger", extra={"incarnation": record.incarnation, "sequence": record.sequence})

    def _heard(self) -> None:
        """Look at what the watch has brought: another incarnation, or other agreed settings."""
        ledger, agreed = self._config.keys.get("ledger"), self._config.keys.get("agreed")
        if not self._config.ready or ledger is None or agreed is None:
            return
        seen = LedgerSeen(cluster_id=0, revision=0, value=ledger.value, agreed=agreed.value)
        try:
            if seen.record.incarnation != self.incarnation:
                self._guard.lose(f"another incarnation is in the ledger's place: {seen.record.incarnation}")
            self._differing = differences(self._settings, seen.settings)
        except Unreadable as error:
            self._differing = [f"config/ledger or config/agreed cannot be understood: {error}"]
        for one in self._differing:
            log.error("a setting is not as agreed; this node does not serve", extra={"setting": one})
        self._guard.hold("; ".join(self._differing))

    async def _keep_forever(self) -> NoReturn:
        while True:
            await asyncio.sleep(_KEEP_EVERY_S)
            await self._keep()

    async def _keep(self) -> None:
        """Keep what is known, unless it is known no more."""
        known = self._known
        if known is None or self._guard.lost:
            return
        revision = max(self._guard.revision, known.revision)
        self._known = LedgerState(
            incarnation=known.incarnation, sequence=known.sequence, cluster_id=known.cluster_id, revision=revision
        )
        try:
            await asyncio.to_thread(self._state.write, self._known)
            self._kept_at = asyncio.get_running_loop().time()
        except OSError as error:
            log.error("what is known of the ledger cannot be kept", extra={"error": str(error)})  # noqa: TRY400

    async def _settle_doubts(self) -> NoReturn:
        while True:
            await self._guard.doubt.wait()
            # Cleared whatever comes of it: what is lost stays lost, and must not be looked into for ever.
            self._guard.doubt.clear()
            await self._settle_doubt()

    async def _settle_doubt(self) -> None:
        """Propose through raft until the reply proves that the ledger went back, or that it did not."""
        loop = asyncio.get_running_loop()
        until = loop.time() + _TERM_PATIENCE_S
        # Changes nothing and is no read: its compare fails, for no key has version -1. So it goes through raft.
        key = self._keys.ledger()
        nothing = pb.TxnRequest(
            compare=[pb.Compare(result=pb.Compare.EQUAL, target=pb.Compare.VERSION, key=key, version=-1)],
            success=[ops.delete(key)],
        )
        while not self._guard.lost:
            floor = self._guard.floor()
            try:
                reply = await self._client.bare_txn(nothing)
            except (EtcdUnreachable, EtcdUnknown, EtcdRefused):
                await asyncio.sleep(_LOOK_AGAIN_S)
                continue
            if self._guard.judge(reply.header, floor, proposed=True):
                self._guard.trust_again()
                return
            if loop.time() >= until and reply.header.raft_term < floor.term:
                self._guard.lose(f"the ledger's raft term went back, from {floor.term} to {reply.header.raft_term}")
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _say_forever(self) -> NoReturn:
        while True:
            await asyncio.sleep(_SAY_AGAIN_S)
            for problem in self.problems:
                log.critical("the ledger may not be used", extra={"why": problem})
