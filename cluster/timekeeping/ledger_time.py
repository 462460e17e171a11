"""LedgerTime: keeps cluster time in the ledger, and this node's idea of it. ClusterClock: the Clock that tells it.

Any node with a good lease advances the instant about once a second; the one that did it last comes first. Every write
compares that the instant is where it was heard to be: a node that has slept, or whose monotonic clock has jumped, hears
the others' instant before its own idea of the time can count.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, NoReturn

from etcdpb import rpc_pb2 as pb

from cluster.codec.approval import consented
from cluster.config import EtcdConfig
from cluster.etcd import ops, preconditions
from cluster.etcd.client import Compacted, EtcdClient, EtcdRefused, EtcdUnknown, EtcdUnreachable
from cluster.etcd.commit import commit_or_raise
from cluster.etcd.keys import Keys
from core.domain.approval import NO_CONSENT_NEEDED, Consent
from core.domain.cluster_time import Act, Doubt, Plan, Received, Sight, TimeKeeper, agreed, start, utc_ahead_ms
from core.domain.effective_dated import Ms, instant_of, ms_of
from core.domain.errors import ClocksDisagree, LedgerUnavailable, NotReady, RecordChanged
from core.ports.clock import Clock

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.1
_RETRY_AFTER_S = 0.1
_RACES_MAX = 10
_EtcdTrouble = (EtcdUnreachable, EtcdUnknown, EtcdRefused)


class ClusterClock:
    """Tells cluster time as `keeper` has it; `steady` is the operating system's clock."""

    def __init__(self, keeper: TimeKeeper, steady: Clock) -> None:
        self.keeper = keeper
        self.steady = steady

    def now(self) -> datetime:
        """Return cluster time.

        Raises:
            NotReady: this node does not know it.
        """
        told = self.keeper.tell(self.steady.monotonic())
        if told is None:
            raise NotReady("this node does not know the cluster's time yet; ask another")
        return instant_of(told)

    def hear(self, instant: Ms, revision: int, at: float) -> None:
        """Take in what was read of the ledger at monotonic `at`."""
        if revision:
            self.keeper.receive(Received(instant, revision, at), moved=False)

    def writable(self) -> Ms | None:
        """Return the latest instant that this node may write now without asking a peer; None if it is to ask first."""
        return self.keeper.writable(self.steady.monotonic())

    def wall(self) -> datetime:
        """Return what this node's wall clock says."""
        return self.steady.wall()

    def monotonic(self) -> float:
        """Return seconds of a clock that never goes back, and counts sleep."""
        return self.steady.monotonic()


@dataclass(frozen=True, slots=True)
class TimeState:
    """What this node makes of the time now: for operators and metrics.

    Attributes:
        known: Whether it knows cluster time.
        now: Cluster time; None if it was never heard of.
        ledger: The last instant of the ledger.
        doubt: Why it may be wrong.
        walls: The middle of the wall clocks that agree; None if no majority does.
        wall: This node's wall clock.
    """

    known: bool
    now: Ms | None
    ledger: Ms | None
    doubt: Doubt
    walls: Ms | None
    wall: Ms

    @property
    def off_ms(self) -> int | None:
        """How far the agreed wall clocks are ahead of cluster time."""
        return None if self.walls is None or self.now is None else self.walls - self.now

    @property
    def wall_off_ms(self) -> int | None:
        """How far this node's wall clock is ahead of cluster time."""
        return None if self.now is None else self.wall - self.now


class LedgerTime:
    """This node's part in keeping cluster time.

    `sight` returns what this node sees of the others, given its wall clock and monotonic seconds; None while it does
    not know who should be there. `may_write` says whether its lease is good.
    """

    def __init__(
        self,
        client: EtcdClient,
        config: EtcdConfig,
        clock: ClusterClock,
        *,
        node_id: str,
        sight: Callable[[Ms, float], Sight | None],
        may_write: Callable[[], bool],
    ) -> None:
        self._client = client
        self._keys = Keys(config.prefix)
        self.clock = clock
        self._steady = clock.steady
        self._node_id = node_id
        self._resolve_s = config.resolve_timeout_ms / 1000
        self._sight = sight
        self._may_write = may_write
        self._rule = clock.keeper.rule
        self._doubt_revision = 0
        self._unread = 0
        # Since when this node waits for a peer, and after which instant of the ledger; None while it hears the ledger.
        self._alone: tuple[int, float] | None = None
        self._looked_at: float | None = None
        self._watched_since: float | None = None
        self._watching = asyncio.Event()
        self._mine = False
        self._was_off: tuple[bool, bool] = (False, False)
        self.keeper = clock.keeper

    @property
    def known(self) -> bool:
        """Whether this node knows cluster time."""
        return self.keeper.known(self._steady.monotonic())

    def wall(self) -> Ms:
        """Return what this node's wall clock says."""
        return ms_of(self._steady.wall())

    def estimate(self) -> Ms | None:
        """Return what this node, asked by its peers, makes of cluster time; None if it has never known it.

        Also while it stands aside, because it has told a later time: whoever starts anew then must not find that
        nobody carries the time, and believe wall clocks.
        """
        return self.keeper.counted(self._steady.monotonic()) if self.keeper.established else None

    def state(self) -> TimeState:
        """Return what this node makes of the time now."""
        at, wall = self._steady.monotonic(), self.wall()
        sight, last = self._sight(wall, at), self.keeper.last
        return TimeState(
            known=self.keeper.known(at),
            now=self.keeper.estimate(at),
            ledger=None if last is None else last.instant,
            doubt=self.keeper.doubt,
            walls=None if sight is None else agreed(sight, self._rule.agree_ms),
            wall=wall,
        )

    def utc_ahead(self) -> timedelta:
        """Return how far UTC may be ahead of cluster time: for instants that others compare with their wall clocks."""
        state = self.state()
        if state.wall_off_ms is None:
            return timedelta()
        return timedelta(milliseconds=utc_ahead_ms(self._rule, state.wall_off_ms, state.off_ms, state.doubt))

    async def run(self) -> NoReturn:
        """Hear the ledger's time, and advance it, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.follow())
            await self._carry()

    async def watching(self) -> None:
        """Return once this node has read what the ledger says of the time."""
        await self._watching.wait()

    async def follow(self) -> NoReturn:
        """Follow what the ledger says of the time."""
        prefix = self._keys.time()
        while True:
            try:
                found, revision = await self._client.list_prefix(prefix)
                # As of now, not of when it was asked for: it may have been written while the question was on its way,
                # and late is the safe side.
                self._take_all(found, self._steady.monotonic())
                async for reply in self._client.watch(prefix, revision):
                    at = self._steady.monotonic()
                    for event in reply.events:
                        self._take(event.kv, at, gone=event.type == pb.Event.DELETE)
            except (Compacted, EtcdUnreachable):
                await asyncio.sleep(_RETRY_AFTER_S)

    def _take_all(self, found: list[pb.KeyValue], at: float) -> None:
        """Take what is there; only what has moved since this node's first look says that somebody carries the time."""
        first = self._watched_since is None
        if not any(kv.key == self._keys.time_doubt() for kv in found):
            self._settle_doubt(None)
        for kv in found:
            self._take(kv, at, gone=False, moved=not first)
        if first:
            self._watched_since = self._steady.monotonic()
            self._watching.set()

    def _take(self, kv: pb.KeyValue, at: float, *, gone: bool, moved: bool = True) -> None:
        if kv.key == self._keys.time_doubt():
            self._settle_doubt(None if gone else kv)
        elif kv.key == self._keys.time_now() and not gone:
            last, instant = self.keeper.last, preconditions.time_of(kv.value)
            if instant is None:
                self._say_unread(kv.mod_revision)
            elif last is None or kv.mod_revision > last.revision:
                self._mine = False
                self.keeper.receive(Received(Ms(instant), kv.mod_revision, at), moved=moved)

    def _say_unread(self, revision: int) -> None:
        """Say once that the ledger's time cannot be understood: this node goes on counting, and writes none."""
        if revision != self._unread:
            log.error("the ledger's time cannot be understood; tell the operator", extra={"revision": revision})
        self._unread = revision

    def _settle_doubt(self, kv: pb.KeyValue | None) -> None:
        self._doubt_revision = 0 if kv is None else kv.mod_revision
        self.keeper.doubt = Doubt.NONE if kv is None else _doubt_of(kv)

    async def _carry(self) -> NoReturn:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self.look()

    async def look(self) -> None:
        """Take one look at the clocks, and advance the ledger's time if it is this node's turn."""
        at, wall = self._steady.monotonic(), self.wall()
        self._notice_silence(at)
        sight = self._sight(wall, at)
        if sight is None or self._watched_since is None:
            return
        self._tell_if_off(sight, wall, at)
        plan = self._plan(sight, at) if self._may_write() else None
        if plan is not None and plan.act is not Act.WAIT:
            await self._write(plan, at)

    def _plan(self, sight: Sight, at: float) -> Plan | None:
        """Return what is to be written now; None if it is not this node's turn."""
        keeper, rule, last = self.keeper, self._rule, self.keeper.last
        if not keeper.established:
            watched_s = at - (self._watched_since or at)
            return start(rule, sight, keeper.estimate(at), me=self._node_id, watched_s=watched_s, doubt=keeper.doubt)
        peers = self._peers_heard_since(sight)
        if self._waits_for_peers(sight, peers, at):
            return None
        if last is None or keeper.silence_s(at) < rule.advance_s + (0.0 if self._mine else rule.stand_in_s):
            return None
        return keeper.advance(at, agreed(sight, rule.agree_ms), peers)

    def _notice_silence(self, at: float) -> None:
        """Note from when on a peer must be heard before this node writes an instant.

        From the first look at which the ledger is silent; and anew after a gap between two looks: this machine has
        slept, or its clock has leapt, and what it heard before was carried on by the clock that is in doubt.
        """
        keeper, last_look = self.keeper, self._looked_at
        self._looked_at = at
        if keeper.last is None or not keeper.alone(at):
            self._alone = None
            return
        gap = last_look is not None and at - last_look > self._rule.alone_s
        if self._alone is None or self._alone[0] != keeper.last.revision or gap:
            self._alone = (keeper.last.revision, at)

    def _peers_heard_since(self, sight: Sight) -> list[Ms]:
        """Return what peers make of cluster time that were heard after this node had noticed that it is alone."""
        if self._alone is None:
            return []
        since = self._alone[1]
        return [time for node, time in sight.times.items() if time is not None and sight.heard[node] > since]

    def _waits_for_peers(self, sight: Sight, peers: Sequence[Ms], at: float) -> bool:
        """Return whether, after a silence, a peer is to be heard first.

        If it was this node's monotonic clock that has leapt, the peers beat many times a second, and carry the time:
        one of the two is heard before `silent_s` has passed. Also a peer without a lease may live: after an outage of
        etcd all are without, and one has the first.
        """
        if self._alone is None or peers or set(sight.known) <= {self._node_id}:
            return False
        return at - self._alone[1] < self._rule.silent_s

    async def _write(self, plan: Plan, at: float) -> None:
        """Write an instant that was right at monotonic `at`, if the ledger's is where it was heard to be."""
        keeper, key = self.keeper, self._keys.time_now()
        revision = 0 if keeper.last is None else keeper.last.revision
        if keeper.last is not None and plan.instant <= keeper.last.instant:
            # It only rises; a clock that is drawn back this far stands still for a moment.
            plan = plan._replace(instant=Ms(keeper.last.instant + 1))
        compare = preconditions.time_unmoved(key, revision, plan.instant)
        put = [ops.put(key, preconditions.time_value(plan.instant))]
        if plan.doubt is not keeper.doubt:
            compare += preconditions.record_unmoved(self._keys.time_doubt(), self._doubt_revision)
            put.append(self._doubt_op(plan.doubt, self._node_id))
        txn = pb.TxnRequest(compare=compare, success=put, failure=[ops.get(key)])
        try:
            reply = await self._client.txn(txn)
        except _EtcdTrouble as error:
            log.info("the ledger's time was not advanced", extra={"error": str(error)})
            await asyncio.sleep(_RETRY_AFTER_S)
            return
        if not reply.succeeded:
            (there,) = ops.got(reply)
            if there is not None:
                self._take(there, self._steady.monotonic(), gone=False)
            return
        self._mark(plan)
        keeper.receive(Received(plan.instant, reply.header.revision, at), moved=True, own=True)
        self._mine = True

    async def accept(self, by: str, consent: Consent = NO_CONSENT_NEEDED) -> None:
        """Set cluster time to the wall clocks that agree: forward at once, back by letting it run slowly.

        Raises:
            ClocksDisagree: none do, or this node does not know cluster time.
            RecordChanged: the consent was used or withdrawn meanwhile.
            LedgerUnavailable, OutcomeUnknown: look and repeat.
        """
        for _ in range(_RACES_MAX):
            at, state, last = self._steady.monotonic(), self.state(), self.keeper.last
            if state.walls is None or state.now is None or last is None or not state.known:
                raise ClocksDisagree("no majority of wall clocks agrees, or this node does not know cluster time")
            instant = max(state.walls, state.now, Ms(last.instant + 1))
            doubt = Doubt.AHEAD if state.walls < state.now else Doubt.NONE
            if await self._set(instant, doubt, last.revision, at, by, consent):
                log.warning("an operator has set the cluster's time", extra={"by": by, "off_ms": state.off_ms})
                return
        raise LedgerUnavailable("others keep setting the ledger's time; nothing was written")

    async def _set(self, instant: Ms, doubt: Doubt, revision: int, at: float, by: str, consent: Consent) -> bool:
        """Write an instant on somebody's word; return whether it is written."""
        key = self._keys.time_now()
        compare, done = consented(self._keys, consent)
        consent_key = [self._keys.record(ref.kind, ref.id) for ref, _ in consent.expect[:1]]
        txn = pb.TxnRequest(
            compare=preconditions.time_unmoved(key, revision, instant) + compare,
            success=[ops.put(key, preconditions.time_value(instant)), self._doubt_op(doubt, by), *done],
            failure=[ops.get(one) for one in (key, *consent_key)],
        )
        # Once carried out, the compare fails: then it is looked at again, and there is nothing left to set.
        settled = await commit_or_raise(self._client, self._steady, txn, resolve_s=self._resolve_s)
        if settled.reply.succeeded:
            self.keeper.receive(Received(instant, settled.revision, at), moved=True, own=True)
            return True
        there, *approval = ops.got(settled.reply)
        if there is not None:
            self._take(there, self._steady.monotonic(), gone=False)
        if approval and (approval[0] is None or approval[0].mod_revision != consent.expect[0][1]):
            raise RecordChanged("the approval was used or withdrawn meanwhile; look what the time is", kind="approval")
        return False

    def _doubt_op(self, doubt: Doubt, by: str) -> pb.RequestOp:
        key = self._keys.time_doubt()
        return ops.delete(key) if doubt is Doubt.NONE else ops.put(key, f"{doubt.value} {by}".encode())

    def _mark(self, plan: Plan) -> None:
        """Say what is out of the ordinary."""
        facts = {"to": instant_of(plan.instant).isoformat(), "doubt": plan.doubt.value}
        if not self.keeper.established:
            log.warning("nobody carried the cluster's time: it begins here", extra={**facts, "act": plan.act.name})
        elif plan.act is Act.SET:
            log.warning("the cluster's time is set forward to a majority of wall clocks", extra=facts)
        elif plan.doubt is not self.keeper.doubt:
            log.warning("the cluster's time is settled by a majority of wall clocks", extra=facts)

    def _tell_if_off(self, sight: Sight, wall: Ms, at: float) -> None:
        """Say once when wall clocks and cluster time part, and when they meet again."""
        now = self.keeper.estimate(at)
        if now is None or not self.keeper.established:
            return
        walls = agreed(sight, self._rule.agree_ms)
        off = (
            abs(wall - now) > self._rule.off_ms,
            walls is not None and abs(walls - now) > self._rule.off_ms,
        )
        if off == self._was_off:
            return
        facts = {"wall_off_s": (wall - now) / 1000, "majority_off_s": None if walls is None else (walls - now) / 1000}
        if off[1]:
            log.error("a majority of wall clocks is off the cluster's time; an operator must judge", extra=facts)
        elif off[0]:
            log.warning("this node's wall clock is off the cluster's time, by which it goes", extra=facts)
        else:
            log.info("wall clocks and the cluster's time agree", extra=facts)
        self._was_off = off


if TYPE_CHECKING:
    _: type[Clock] = ClusterClock


def _doubt_of(kv: pb.KeyValue) -> Doubt:
    """Return what is in doubt; NONE, by which no clock is believed beyond a slow draw, if it cannot be understood."""
    told = kv.value.decode(errors="replace").split(" ")[0]
    known = {one.value: one for one in Doubt}
    if told not in known:
        log.error("what is in doubt about the ledger's time cannot be understood", extra={"told": told})
    return known.get(told, Doubt.NONE)
