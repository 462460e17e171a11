"""Step 7: DeliveryWorker sends what its shards owe, the same code under the same message id on every attempt.

One code of a counter sequence is in flight at a time, the lowest counter first. A delivery that rests (its outcome is
unknown, or it may not be sent any more) holds no other one up: a meter takes codes in any order, as long as none falls
further behind than it remembers (COUNTER_CACHE). Every state is written under the shard's epoch before it is acted on,
so an owner that has been deposed without knowing it can start nothing that the ledger does not refuse.
"""

import asyncio
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping
from functools import partial
from typing import NoReturn

from core.delivery.attempt import Aside, AttemptDelivery, Done, Later
from core.delivery.origins import ANOTHERS_METER, Received
from core.delivery.outcomes import CREDIT_ADDED_LOCALLY
from core.delivery.recorder import Hand, Recorder
from core.delivery.sequence_queue import SequenceQueue, Slot
from core.delivery.waiting import Parked, ParkedAt, parked_by_head_end
from core.domain.delivery import DeliveryState
from core.domain.errors import HeadEndUnavailable, LedgerUnavailable, NotReady
from core.domain.invariant import InvariantBroken
from core.domain.message_id import parse_message_id
from core.domain.meter import MeterId, OriginatorId
from core.domain.utrn import Counter as UtrnCounter
from core.issuing.config import DeliveryConfig
from core.issuing.recent_vends import RecentVends
from core.ports.head_end import Alert, Answer, GivenUp, HeadEnd, HeadEndEvent, StreamRestored
from core.ports.ledger import StoredVend
from core.ports.outbox import Added, Listing, Outbox, Owed, Removed
from core.ports.ownership import Gained, Lost, Ownership

log = logging.getLogger(__name__)

_READ_AGAIN_AFTER_S = 0.5
# A vend that is set aside is put right by an operator, or read by a newer node.
_ASIDE_REST_S = 30.0
_READ_MAX = 64
# Of so many codes applied here lately nothing more need be written down.
_APPLIED_MAX = 10_000
# Where no news comes to say that a head end is back (none is configured under that name), look again so often.
_PARKED_AT_MOST_S = 30.0
# After something that should never happen, and must not happen again and again at full speed.
_BUG_REST_S = 30.0
_STREAM_AGAIN_S = 1.0


# Whose codes for which meter.
_Key = tuple[MeterId, OriginatorId]


class DeliveryWorker:
    """Mirrors the whole outbox, and works on the shards this node owns. `recorder` hears of what it no longer owes."""

    def __init__(
        self,
        *,
        outbox: Outbox,
        ownership: Ownership,
        head_ends: Mapping[str, HeadEnd],
        answers: RecentVends,
        attempt: AttemptDelivery,
        recorder: Recorder,
        config: DeliveryConfig,
    ) -> None:
        self._outbox = outbox
        self._ownership = ownership
        self._head_ends = head_ends
        self._answers = answers
        self._attempt = attempt
        self.recorder = recorder
        self._config = config
        self._queues: dict[_Key, SequenceQueue] = {}
        self._of_meter: dict[MeterId, list[_Key]] = {}
        # A shard gained or lost must not cost a look at what is owed in all others.
        self._of_shard: dict[int, dict[_Key, None]] = {}
        self._ready: deque[_Key] = deque()
        self._work = asyncio.Event()
        self._under_way = 0
        self._ours: set[int] = set()
        self._applied: OrderedDict[tuple[_Key, int], None] = OrderedDict()

    @property
    def under_way(self) -> int:
        """How many deliveries are being attempted."""
        return self._under_way

    def owed_by_shard(self) -> Counter[int]:
        """Return how many deliveries are owed in each shard, ours or not."""
        return Counter(
            {shard: sum(len(self._queues[key].slots) for key in keys) for shard, keys in self._of_shard.items()}
        )

    def longest_owed_s(self) -> float:
        """Return how long this node has known of what is owed longest in its shards and waits for no head end; or 0."""
        ours = (self._queues[key] for shard in self._ours for key in self._of_shard.get(shard, ()))
        known = (slot.first_heard_at for queue in ours if queue.parked is None for slot in queue.slots.values())
        first = min(known, default=None)
        return 0.0 if first is None else asyncio.get_running_loop().time() - first

    def parked(self) -> Mapping[str, ParkedAt]:
        """Return what waits here for each head end that is away or not configured."""
        return parked_by_head_end((queue.parked, len(queue.slots)) for queue in self._queues.values())

    async def run(self) -> NoReturn:
        """Deliver for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._mirror_outbox())
            tasks.create_task(self._follow_ownership())
            tasks.create_task(self.recorder.run(self))
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
                    self._add(owed)
                    self._enqueue(_key(owed))
                case Removed(counter=counter):
                    self._remove(_key(event), counter)

    def _take_listing(self, listed: tuple[Owed, ...]) -> None:
        kept = {(_key(owed), int(owed.counter)) for owed in listed}
        for key, queue in list(self._queues.items()):
            for counter in [slot for slot in queue.slots if (key, slot) not in kept]:
                self._remove(key, counter)
        for owed in listed:
            self._add(owed)
        for key in self._oldest_first(self._queues):
            self._enqueue(key)

    async def _follow_ownership(self) -> None:
        async for change in self._ownership.changes():
            match change:
                case Gained(shard, epoch):
                    self._ours.add(shard)
                    self.recorder.gained(shard, epoch)
                    for key in self._queues_of(shard):
                        self._resume(key)
                case Lost(shard):
                    self._ours.discard(shard)
                    self.recorder.lost(shard)
                    for key in self._queues_of(shard):
                        self._stop(key)
            # Others have their turn between one shard and the next: the lease is renewed by this very loop.
            await asyncio.sleep(0)

    async def _hear_forever(self, name: str, head_end: HeadEnd) -> NoReturn:
        """Hear a head end for ever: nothing it says, and no mistake of ours about it, ends the node or the others."""
        while True:
            try:
                await self._hear(name, head_end)
            except Exception:
                log.exception("a head end's events were not understood; heard again", extra={"head_end": name})
            await asyncio.sleep(_STREAM_AGAIN_S)

    async def _hear(self, name: str, head_end: HeadEnd) -> None:
        async for event in head_end.events():
            if isinstance(event, StreamRestored):
                self._go_on_through(name, can_be_asked=await _can_be_asked(head_end))
            else:
                self._take(Received(name, event))

    def _go_on_through(self, name: str, *, can_be_asked: bool) -> None:
        """Let what waits for a head end that is back go on; what others carry is not touched by it.

        What was sent through a head end that cannot be asked keeps its back-off: all that is left is to send it again.
        """
        back = Received(name, StreamRestored())
        # After an outage those who have waited longest come first.
        for key in self._oldest_first(self._queues):
            queue = self._queues[key]
            sent = [slot for slot in queue.slots.values() if name in slot.carriers]
            for slot in sent:
                slot.box.put(back)
            if (sent and can_be_asked) or (queue.parked is not None and queue.parked.head_end == name):
                self._resume(key)

    def _take(self, received: Received) -> None:
        for key, counter in self._addressed(received.event):
            self._post(key, counter, received)

    def _addressed(self, event: HeadEndEvent) -> list[tuple[_Key, int | None]]:
        """Return the counter sequences of an event, each with its counter; None for every delivery that was sent."""
        match event:
            case Answer(message_id=message_id) | GivenUp(message_id=message_id):
                named = parse_message_id(message_id)
                return [] if named is None else [((named[1], named[0]), named[2])]
            case Alert(meter_id=meter_id, originator_id=originator_id, counter=counter):
                if originator_id is None or counter is None:
                    return [(key, None) for key in self._of_meter.get(meter_id, ())]
                return [((meter_id, originator_id), counter)]
            case StreamRestored():
                return []

    def _post(self, key: _Key, counter: int | None, received: Received) -> None:
        queue = self._queues.get(key)
        if queue is None:
            return
        # Of what was never sent nothing can be said without naming it.
        named = (slot for slot in queue.slots.values() if slot.mailbox is not None) if counter is None else ()
        about = [*named, *filter(None, (queue.slots.get(counter or 0),))]
        heard = [slot for slot in about if self._may_tell(received.head_end, slot)]
        for slot in heard:
            slot.box.put(received)
        if len(heard) < len(about):
            self._attempt.origins.set_aside.record(received.head_end, ANOTHERS_METER)
        if heard and _decides(received.event):
            self._resume(key, counter)

    def _may_tell(self, head_end: str, slot: Slot) -> bool:
        """Return whether a head end can know anything of a delivery; its attempt judges what it tells more closely."""
        try:
            return head_end in slot.carriers or self._attempt.origins.reaches(head_end, slot.owed.meter_id)
        except NotReady:
            # The recorder comes to it again.
            return False

    def hand(self, meter_id: MeterId, originator_id: OriginatorId, counter: UtrnCounter) -> Hand:
        """Return where the delivery of a code is at this node."""
        key = (meter_id, originator_id)
        queue = self._queues.get(key)
        slot = None if queue is None else queue.slots.get(counter)
        if slot is not None:
            return Hand.TRIED if slot.tried else Hand.WAITS
        return Hand.APPLIED if (key, counter) in self._applied else Hand.FREE

    def take_news(self, received: Received) -> None:
        """Give an alert that names a code to the code's delivery."""
        self._take(received)

    async def _dispatch(self, tasks: asyncio.TaskGroup) -> NoReturn:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._ready and self._under_way < self._config.in_flight_max:
                await self._start(tasks, self._next_ready())

    def _next_ready(self) -> list[Owed]:
        """Return the deliveries that start now; what is not ours stays in the mirror."""
        firsts: list[Owed] = []
        while self._ready and len(firsts) < _READ_MAX:
            queue = self._queues.get(self._ready.popleft())
            if queue is None:
                continue
            queue.waiting = False
            owed = None if queue.task is not None else self._next(queue)
            if owed is None:
                continue
            if self._ownership.epoch(owed.shard) is not None:
                firsts.append(owed)
            else:
                self._rest_in_doubt(owed)
        return firsts

    def _next(self, queue: SequenceQueue) -> Owed | None:
        # An alert that names no code can only be about the one code in flight, if it is to be believed at all.
        return queue.next(in_order=self._config.trust_unnamed_alerts)

    def _rest_in_doubt(self, owed: Owed) -> None:
        """Look again soon at a delivery that may not start now, if its shard is ours: the lease is only in doubt."""
        if owed.shard in self._ours:
            self._back_off(owed, _READ_AGAIN_AFTER_S)

    async def _start(self, tasks: asyncio.TaskGroup, firsts: list[Owed]) -> None:
        try:
            vends = await self._vends(firsts)
        except LedgerUnavailable:
            for owed in firsts:
                self._back_off(owed, _READ_AGAIN_AFTER_S)
            return
        for owed, stored in zip(firsts, vends, strict=True):
            key = _key(owed)
            queue = self._queues.get(key)
            epoch = self._ownership.epoch(owed.shard)
            slot = None if queue is None else queue.slots.get(owed.counter)
            if queue is None or slot is None or slot.owed != owed or queue.task is not None:
                self._enqueue(key)
            elif epoch is None:
                self._rest_in_doubt(owed)
            elif isinstance(stored, NotReady):
                # It is owed still; the others of its counter sequence do not wait for it.
                slot.aside = True
                self._rest_one(slot, _ASIDE_REST_S)
                self._enqueue(key)
            elif stored is None or not stored.vend.delivery.owed:
                self._forget(owed)
                self._enqueue(key)
            else:
                self._under_way += 1
                queue.task = tasks.create_task(self._deliver(queue, slot, stored, epoch))
                # Not in the task: one that is cancelled before its first step runs no line of its own.
                queue.task.add_done_callback(partial(self._freed, key, queue))

    async def _vends(self, owed: list[Owed]) -> list[StoredVend | NotReady | None]:
        """Return the vend of each delivery; those committed here lately are known without asking the ledger.

        If one from memory is older than it looks, the compare of the first write tells.
        """
        known = [self._answers.fresh((pending.participant_id, pending.transaction_id)) for pending in owed]
        fresh = [stored if stored is not None and stored.vend.delivery.owed else None for stored in known]
        missing = [one for one, stored in zip(owed, fresh, strict=True) if stored is None]
        read = iter(await self._outbox.read(missing) if missing else ())
        return [stored if stored is not None else next(read) for stored in fresh]

    async def _deliver(self, queue: SequenceQueue, slot: Slot, stored: StoredVend, epoch: int) -> None:
        """Make one attempt, and see to what follows from it."""
        owed, slot.tried = slot.owed, True
        emptied, failed = slot.box.emptied, False
        try:
            slot.carriers = self._attempt.carriers(stored.vend)
            end = await self._attempt(
                stored,
                shard=owed.shard,
                epoch=epoch,
                ours=lambda: self._ownership.epoch(owed.shard) == epoch,
                mailbox=slot.box,
            )
        except NotReady:
            # The meter's record is set aside.
            end = Aside(_ASIDE_REST_S)
        except Exception:
            # One delivery that cannot be made here must not take the others with it, nor one node after the other.
            log.exception("an attempt failed as none should", extra={"meter_id": owed.meter_id, "shard": owed.shard})
            end, failed = Later(_BUG_REST_S), True
        finally:
            self._answers.doubt((owed.participant_id, owed.transaction_id))
        queue.parked = end if isinstance(end, Parked) else None
        match end:
            case Done(done):
                self._answers.remember(done)
                self._end(owed, done.vend.delivery.state)
            case Later(delay_s) | Aside(delay_s):
                slot.aside = isinstance(end, Aside)
                # News that the attempt left unread would be left unread again, at full speed.
                came_since = bool(slot.box) and slot.box.emptied > emptied and not failed
                self._rest_one(slot, 0.0 if came_since else delay_s)
            case Parked():
                self._back_off(owed, _PARKED_AT_MOST_S)
            case None:
                self._back_off(owed, _READ_AGAIN_AFTER_S)

    def _end(self, owed: Owed, state: DeliveryState) -> None:
        if state is DeliveryState.APPLIED:
            self._applied[(_key(owed), owed.counter)] = None
            if len(self._applied) > _APPLIED_MAX:
                self._applied.popitem(last=False)
        self._forget(owed)

    def _forget(self, owed: Owed) -> None:
        """Remove what is owed no more, unless another vend has its place: a counter given back is told anew."""
        queue = self._queues.get(_key(owed))
        slot = None if queue is None else queue.slots.get(owed.counter)
        if slot is not None and slot.owed == owed:
            self._remove(_key(owed), owed.counter)

    def _freed(self, key: _Key, queue: SequenceQueue, _: asyncio.Task[None]) -> None:
        """Queue the next delivery of the counter sequence, however the last attempt has ended."""
        self._under_way -= 1
        queue.task = None
        self._drop_if_empty(key)
        self._enqueue(key)
        if self._ready:
            self._work.set()

    def _add(self, owed: Owed) -> None:
        key = _key(owed)
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = SequenceQueue()
            self._of_meter.setdefault(key[0], []).append(key)
            self._of_shard.setdefault(self._ownership.shard_of(key[0]), {})[key] = None
        slot = queue.slots.get(owed.counter)
        if slot is None or slot.owed != owed:
            # Another vend has the place of one that has ended: its counter was given back, and told anew.
            if slot is not None and slot.resting is not None:
                slot.resting.cancel()
            queue.slots[owed.counter] = Slot(owed)

    def _queues_of(self, shard: int) -> list[_Key]:
        return self._oldest_first(self._of_shard.get(shard, ()))

    def _oldest_first(self, keys: Iterable[_Key]) -> list[_Key]:
        """Return counter sequences by the instant at which the oldest delivery in each was asked for."""
        return sorted(keys, key=lambda key: self._queues[key].since)

    def _enqueue(self, key: _Key) -> None:
        """Queue the counter sequence, unless it is queued, has a delivery in flight, or all its deliveries rest."""
        queue = self._queues.get(key)
        if queue is None or queue.waiting or queue.task is not None or queue.resting is not None:
            return
        if self._next(queue) is None:
            return
        queue.waiting = True
        self._ready.append(key)
        self._work.set()

    def _back_off(self, owed: Owed, delay_s: float) -> None:
        """Send nothing of the counter sequence for `delay_s` seconds."""
        key = _key(owed)
        queue = self._queues.get(key)
        if queue is not None and queue.resting is None:
            queue.resting = asyncio.get_running_loop().call_later(delay_s, self._resume, key, owed.counter)

    def _rest_one(self, slot: Slot, delay_s: float) -> None:
        """Send one delivery no sooner than in `delay_s` seconds; the others of its counter sequence go on."""
        if slot.resting is None:
            key, counter = _key(slot.owed), slot.owed.counter
            slot.resting = asyncio.get_running_loop().call_later(delay_s, self._resume, key, counter)

    def _resume(self, key: _Key, counter: int | None = None) -> None:
        """End the rest of a counter sequence, and of its delivery with `counter`; None: of all its deliveries."""
        queue = self._queues.get(key)
        if queue is None:
            return
        woken = queue.slots.values() if counter is None else filter(None, (queue.slots.get(counter),))
        for waiting in (queue, *woken):
            if waiting.resting is not None:
                waiting.resting.cancel()
                waiting.resting = None
        self._enqueue(key)

    def _stop(self, key: _Key) -> None:
        """Cancel the attempt of a counter sequence whose shard this node no longer owns."""
        queue = self._queues[key]
        queue.parked = None
        if queue.task is not None:
            queue.task.cancel()

    def _remove(self, key: _Key, counter: int) -> None:
        queue = self._queues.get(key)
        slot = None if queue is None else queue.slots.pop(counter, None)
        if slot is not None and slot.resting is not None:
            slot.resting.cancel()
        self._drop_if_empty(key)
        self._enqueue(key)

    def _drop_if_empty(self, key: _Key) -> None:
        queue = self._queues.get(key)
        if queue is None or queue.slots or queue.task is not None:
            return
        if queue.resting is not None:
            queue.resting.cancel()
        del self._queues[key]
        of_shard = self._of_shard[self._ownership.shard_of(key[0])]
        del of_shard[key]
        if not of_shard:
            del self._of_shard[self._ownership.shard_of(key[0])]
        others = self._of_meter[key[0]]
        others.remove(key)
        if not others:
            del self._of_meter[key[0]]


def _key(owed: Owed | Removed) -> _Key:
    return owed.meter_id, owed.originator_id


async def _can_be_asked(head_end: HeadEnd) -> bool:
    """Return whether a head end tells where a message stands; true if it cannot say: an attempt will see."""
    try:
        return (await head_end.capabilities()).status_by_message_id
    except HeadEndUnavailable:
        return True


def _decides(event: HeadEndEvent) -> bool:
    """Return whether a resting delivery should look at `event` at once; the rest can wait for its next attempt."""
    match event:
        case Alert(alert_code=code):
            return code == CREDIT_ADDED_LOCALLY
        case GivenUp():
            return False
        case _:
            return True
