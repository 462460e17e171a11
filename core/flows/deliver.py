"""Step 7: DeliveryWorker sends what its shards owe, the same code under the same message id on every attempt.

Order is per counter sequence, by counter, one in flight. A meter has one sequence but for the time after a change of
supplier, when what became of the codes of the side before is still asked about; they do not hold up the side after.
Every state is written under the shard's epoch before it is acted on, so an owner that has been deposed without knowing
it can start nothing that the ledger does not refuse.
"""

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from core.domain.errors import Deposed, LedgerUnavailable, UtrnError
from core.domain.invariant import InvariantBroken
from core.domain.message_id import parse_message_id
from core.domain.meter import MeterId, OriginatorId
from core.flows.config import DeliveryConfig
from core.flows.confirm import CREDIT_ADDED_LOCALLY, DUPLICATE_UTRN
from core.flows.delivery_attempt import AttemptDelivery, Done, Later, Mailbox
from core.flows.idempotency import Answers
from core.flows.parked import Parked, ParkedAt, parked_by_head_end
from core.ports.headend import Alert, Answer, GivenUp, HeadEnd, HeadEndEvent, StreamRestored
from core.ports.ledger import StoredVend
from core.ports.outbox import Added, Listing, Outbox, Owed, Removed
from core.ports.ownership import Gained, Lost, Ownership

log = logging.getLogger(__name__)

_READ_AGAIN_AFTER_S = 0.5
_READ_MAX = 64
_NOTES_MAX = 10_000
_NOTES_AT_ONCE = 32
# Where no news comes to say that a head end is back (none is configured under that name), look again so often.
_PARKED_AT_MOST_S = 30.0
# After something that should never happen, and must not happen again and again at full speed.
_BUG_REST_S = 30.0
_STREAM_AGAIN_S = 1.0


# Whose codes for which meter.
_Key = tuple[MeterId, OriginatorId]


@dataclass(slots=True)
class _Lane:
    """What a meter is owed of a sequence. At most one of: a turn it waits for, a task at work, a timer it rests on.

    `parked` says which head end the first delivery waits for, as of its last attempt; None if for none.
    """

    mailbox: Mailbox = field(default_factory=Mailbox)
    owed: dict[int, Owed] = field(default_factory=dict)
    waiting: bool = False
    task: asyncio.Task[None] | None = None
    resting: asyncio.TimerHandle | None = None
    parked: Parked | None = None

    @property
    def first(self) -> Owed:
        """The delivery whose turn it is: the lowest counter."""
        return self.owed[min(self.owed)]


class DeliveryWorker:
    """Mirrors the whole outbox, and works on the shards this node owns."""

    def __init__(
        self,
        *,
        outbox: Outbox,
        ownership: Ownership,
        head_ends: Mapping[str, HeadEnd],
        answers: Answers,
        attempt: AttemptDelivery,
        config: DeliveryConfig,
    ) -> None:
        self._outbox = outbox
        self._ownership = ownership
        self._head_ends = head_ends
        self._answers = answers
        self._attempt = attempt
        self._config = config
        self._lanes: dict[_Key, _Lane] = {}
        self._of_meter: dict[MeterId, list[_Key]] = {}
        self._turn: deque[_Key] = deque()
        self._work = asyncio.Event()
        self._notes: asyncio.Queue[Alert] = asyncio.Queue(maxsize=_NOTES_MAX)
        self._under_way = 0
        self._ours: set[int] = set()

    @property
    def under_way(self) -> int:
        """How many deliveries are being attempted."""
        return self._under_way

    def owed_by_shard(self) -> Counter[int]:
        """Return how many deliveries are owed in each shard, ours or not."""
        counts: Counter[int] = Counter()
        for (meter_id, _), lane in self._lanes.items():
            counts[self._ownership.shard_of(meter_id)] += len(lane.owed)
        return counts

    def parked(self) -> Mapping[str, ParkedAt]:
        """Return what waits here for each head end that is away or not configured."""
        return parked_by_head_end((lane.parked, len(lane.owed)) for lane in self._lanes.values())

    async def run(self) -> NoReturn:
        """Deliver for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._mirror_outbox())
            tasks.create_task(self._follow_ownership())
            tasks.create_task(self._note_forever())
            for name, head_end in self._head_ends.items():
                tasks.create_task(self._hear_forever(name, head_end))
            await self._dispatch(tasks)
        raise InvariantBroken("the delivery worker never ends by itself")

    async def _mirror_outbox(self) -> None:
        async for event in self._outbox.watch():
            match event:
                case Listing(owed):
                    self._take_listing(owed)
                case Added(owed):
                    self._lane(_key(owed)).owed[owed.counter] = owed
                    self._offer(_key(owed))
                case Removed(counter=counter):
                    self._remove(_key(event), counter)

    def _take_listing(self, listed: tuple[Owed, ...]) -> None:
        for lane in self._lanes.values():
            lane.owed.clear()
        for owed in listed:
            self._lane(_key(owed)).owed[owed.counter] = owed
        for key in list(self._lanes):
            self._tidy(key)
        for key in self._oldest_first():
            self._offer(key)

    async def _follow_ownership(self) -> None:
        async for change in self._ownership.changes():
            match change:
                case Gained(shard):
                    self._ours.add(shard)
                    for key in self._lanes_of(shard):
                        self._wake(key)
                case Lost(shard):
                    self._ours.discard(shard)
                    for key in self._lanes_of(shard):
                        self._stop(key)

    async def _hear_forever(self, name: str, head_end: HeadEnd) -> NoReturn:
        """Hear a head end for ever: nothing it says, and no mistake of ours about it, ends the node or the others."""
        while True:
            try:
                await self._hear(head_end)
            except Exception:
                log.exception("a head end's events were not understood; heard again", extra={"head_end": name})
            await asyncio.sleep(_STREAM_AGAIN_S)

    async def _hear(self, head_end: HeadEnd) -> None:
        async for event in head_end.events():
            for key in self._addressed(event):
                lane = self._lanes.get(key)
                if lane is not None:
                    lane.mailbox.put(event)
                    if _decides(event):
                        self._wake(key)
            if isinstance(event, Alert) and event.alert_code in (CREDIT_ADDED_LOCALLY, DUPLICATE_UTRN):
                # Full: the next credit of the meter tells the same and more. Answers must not wait for it.
                with contextlib.suppress(asyncio.QueueFull):
                    self._notes.put_nowait(event)

    def _addressed(self, event: HeadEndEvent) -> list[_Key]:
        match event:
            case Answer(message_id=message_id) | GivenUp(message_id=message_id):
                named = parse_message_id(message_id)
                return [] if named is None else [(named[1], named[0])]
            case Alert(meter_id=meter_id):
                return list(self._of_meter.get(meter_id, ()))
            case StreamRestored():
                # After an outage those who have waited longest come first.
                return self._oldest_first()

    async def _note_forever(self) -> NoReturn:
        """Write down what alerts tell, some at a time, so that they share a commit."""
        while True:
            alerts = [await self._notes.get()]
            while not self._notes.empty() and len(alerts) < _NOTES_AT_ONCE:
                alerts.append(self._notes.get_nowait())
            async with asyncio.TaskGroup() as tasks:
                for alert in alerts:
                    tasks.create_task(self._note(alert))

    async def _note(self, alert: Alert) -> None:
        """Remember how far the meter has come: it decides how many more codes may be issued for it."""
        shard = self._ownership.shard_of(alert.meter_id)
        epoch = self._ownership.epoch(shard)
        if alert.counter is None or alert.originator_id is None or epoch is None:
            return
        try:
            await self._outbox.note_applied(
                shard=shard,
                epoch=epoch,
                originator_id=alert.originator_id,
                meter_id=alert.meter_id,
                counter=alert.counter,
            )
        except (Deposed, UtrnError) as error:
            # Not needed for money: the next credit of this meter tells the same and more.
            log.info("what an alert told was not recorded", extra={"meter_id": alert.meter_id, "error": str(error)})

    async def _dispatch(self, tasks: asyncio.TaskGroup) -> NoReturn:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._turn and self._under_way < self._config.in_flight_max:
                await self._start(tasks, self._next_turn())

    def _next_turn(self) -> list[Owed]:
        """Return the deliveries that start now; what is not ours stays in the mirror."""
        firsts: list[Owed] = []
        while self._turn and len(firsts) < _READ_MAX:
            lane = self._lanes.get(self._turn.popleft())
            if lane is None:
                continue
            lane.waiting = False
            if not lane.owed or lane.task is not None:
                continue
            if self._ownership.epoch(lane.first.shard) is not None:
                firsts.append(lane.first)
            else:
                self._rest_in_doubt(lane.first)
        return firsts

    def _rest_in_doubt(self, owed: Owed) -> None:
        """Look again soon at a delivery that may not start now, if its shard is ours: the lease is only in doubt."""
        if owed.shard in self._ours:
            self._rest(_key(owed), _READ_AGAIN_AFTER_S)

    async def _start(self, tasks: asyncio.TaskGroup, firsts: list[Owed]) -> None:
        try:
            vends = await self._vends(firsts)
        except LedgerUnavailable:
            for owed in firsts:
                self._rest(_key(owed), _READ_AGAIN_AFTER_S)
            return
        for owed, stored in zip(firsts, vends, strict=True):
            lane = self._lanes.get(_key(owed))
            epoch = self._ownership.epoch(owed.shard)
            if lane is None or lane.task is not None:
                continue
            if epoch is None:
                self._rest_in_doubt(owed)
                continue
            if stored is None or not stored.vend.delivery.owed:
                self._remove(_key(owed), owed.counter)
                self._offer(_key(owed))
                continue
            self._under_way += 1
            lane.task = tasks.create_task(self._deliver(lane, owed, stored, epoch))

    async def _vends(self, owed: list[Owed]) -> list[StoredVend | None]:
        """Return the vend of each delivery; those committed here lately are known without asking the ledger.

        If one from memory is older than it looks, the compare of the first write tells.
        """
        known = [self._answers.fresh((one.participant_id, one.transaction_id)) for one in owed]
        fresh = [stored if stored is not None and stored.vend.delivery.owed else None for stored in known]
        missing = [one for one, stored in zip(owed, fresh, strict=True) if stored is None]
        read = iter(await self._outbox.read(missing) if missing else ())
        return [stored if stored is not None else next(read) for stored in fresh]

    async def _deliver(self, lane: _Lane, owed: Owed, stored: StoredVend, epoch: int) -> None:
        """Make one attempt, and see to what follows from it."""
        key, vend = _key(owed), (owed.participant_id, owed.transaction_id)
        try:
            end = await self._attempt(
                stored,
                shard=owed.shard,
                epoch=epoch,
                ours=lambda: self._ownership.epoch(owed.shard) == epoch,
                mailbox=lane.mailbox,
            )
        except Exception:
            # One delivery that cannot be made here must not take the others with it, nor one node after the other.
            log.exception("an attempt failed as none should", extra={"meter_id": owed.meter_id, "shard": owed.shard})
            end = Later(_BUG_REST_S)
        finally:
            self._under_way -= 1
            lane.task = None
            self._answers.doubt(vend)
        lane.parked = end if isinstance(end, Parked) else None
        match end:
            case Done(done):
                self._answers.remember(done)
                lane.owed.pop(owed.counter, None)
                self._offer(key)
            case Later(delay_s):
                self._rest(key, 0.0 if lane.mailbox else delay_s)
            case Parked():
                self._rest(key, _PARKED_AT_MOST_S)
            case None:
                self._rest(key, _READ_AGAIN_AFTER_S)
        self._tidy(key)
        if self._turn:
            self._work.set()

    def _lane(self, key: _Key) -> _Lane:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane()
            self._of_meter.setdefault(key[0], []).append(key)
        return lane

    def _lanes_of(self, shard: int) -> list[_Key]:
        return [key for key in self._oldest_first() if self._ownership.shard_of(key[0]) == shard]

    def _oldest_first(self) -> list[_Key]:
        """Return every lane in the order in which the first of what it is owed was asked for."""

        def since(key: _Key) -> int:
            lane = self._lanes[key]
            return lane.first.since if lane.owed else 0

        return sorted(self._lanes, key=since)

    def _offer(self, key: _Key) -> None:
        """Give the lane a turn, if something is owed in it and it has none, nor works, nor rests."""
        lane = self._lanes.get(key)
        if lane is None or not lane.owed or lane.waiting or lane.task is not None or lane.resting is not None:
            return
        lane.waiting = True
        self._turn.append(key)
        self._work.set()

    def _rest(self, key: _Key, delay_s: float) -> None:
        """Give the lane a turn after `delay_s`."""
        lane = self._lanes.get(key)
        if lane is not None and lane.resting is None:
            lane.resting = asyncio.get_running_loop().call_later(delay_s, self._wake, key)

    def _wake(self, key: _Key) -> None:
        """End the lane's rest."""
        lane = self._lanes.get(key)
        if lane is not None and lane.resting is not None:
            lane.resting.cancel()
            lane.resting = None
        self._offer(key)

    def _stop(self, key: _Key) -> None:
        """Break off work on the lane: it is no longer ours."""
        lane = self._lanes[key]
        lane.parked = None
        if lane.task is not None:
            lane.task.cancel()

    def _remove(self, key: _Key, counter: int) -> None:
        lane = self._lanes.get(key)
        if lane is not None:
            lane.owed.pop(counter, None)
            self._tidy(key)

    def _tidy(self, key: _Key) -> None:
        lane = self._lanes.get(key)
        if lane is None or lane.owed or lane.task is not None:
            return
        if lane.resting is not None:
            lane.resting.cancel()
        del self._lanes[key]
        others = self._of_meter[key[0]]
        others.remove(key)
        if not others:
            del self._of_meter[key[0]]


def _key(owed: Owed | Removed) -> _Key:
    return owed.meter_id, owed.originator_id


def _decides(event: HeadEndEvent) -> bool:
    """Return whether a resting delivery should look at `event` at once; the rest can wait for its next attempt."""
    match event:
        case Alert(alert_code=code):
            return code == CREDIT_ADDED_LOCALLY
        case GivenUp():
            return False
        case _:
            return True
