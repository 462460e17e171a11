"""Recorder: what a meter says of a counter reaches the counter's vend, whether its delivery is owed or not.

Head ends number what they tell, and the ledger keeps, for each shard, up to which number it is recorded: what is held
of one shard's meters keeps no other shard's number back. Whoever owns the shard reads on from there: nothing is dropped
where too much comes at once, and what came while nobody owned the shard, or between hearing and writing, is read again
by the next owner. Every write is safe to repeat.
"""

import asyncio
import contextlib
import logging
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NoReturn, Protocol

from core.delivery.duplicate_proof import SpentHere
from core.delivery.origins import NEVER_SENT, Origins, Received
from core.delivery.outcomes import CREDIT_ALERTS, DUPLICATE_UTRN
from core.domain.delivery import Delivery, DeliveryState
from core.domain.errors import DeliveryChanged, Deposed, HeadEndUnavailable, LedgerUnavailable, NotReady, UtrnError
from core.domain.invariant import InvariantBroken
from core.domain.message_id import parse_message_id
from core.domain.meter import MeterId, OriginatorId
from core.domain.record import ReadSet
from core.domain.utrn import Counter as UtrnCounter
from core.domain.utrn import duplicate_proves_credit
from core.issuing.recent_vends import RecentVends, key_of
from core.metrics import told_now
from core.ports.clock import Clock
from core.ports.head_end import Alert, Answer, AnswerKind, HeadEnd, Numbered
from core.ports.ledger import StoredVend
from core.ports.outbox import Code, DeliveryChange, Outbox
from core.ports.ownership import Ownership

log = logging.getLogger(__name__)


class Hand(Enum):
    """Where a code's delivery is at this node: nobody's, owed and not tried here yet, being tried, or applied here."""

    FREE = auto()
    WAITS = auto()
    TRIED = auto()
    APPLIED = auto()


class Deliveries(Protocol):
    """The deliveries that this node works on."""

    def hand(self, meter_id: MeterId, originator_id: OriginatorId, counter: UtrnCounter) -> Hand:
        """Return where the delivery of a code is."""
        ...

    def take_news(self, received: Received) -> None:
        """Give an alert that names a code to the code's delivery."""
        ...


_WAITING_MAX = 256
_AT_ONCE = 32
_AGAIN_S = 0.5
_ASIDE_AGAIN_S = 30.0
_SAVE_EVERY_S = 5.0
_LOOK_EVERY_S = 0.25
# Longer than an attempt takes to write what it has heard.
_HELD_AT_MOST_S = 5.0
_HELD_MAX = 1_000
_LOOKED_AT_MAX = 10_000
_COUNT_EVERY_S = 30.0
_RACES_MAX = 5


@dataclass(frozen=True, slots=True)
class _Named:
    """A meter's word on one code: credited, or a duplicate."""

    meter_id: MeterId
    originator_id: OriginatorId
    counter: UtrnCounter
    duplicate: bool
    event: Answer | Alert


class Recorder:
    """Records what meters say of codes, for the shards this node owns.

    For people: `counts` says what came of it, `open_cases` how many codes wait for their supplier, of all suppliers.
    """

    def __init__(
        self,
        *,
        outbox: Outbox,
        ownership: Ownership,
        head_ends: Mapping[str, HeadEnd],
        answers: RecentVends,
        clock: Clock,
        origins: Origins,
        spent_here: SpentHere = lambda *_: (True, ()),
    ) -> None:
        self._outbox = outbox
        self._ownership = ownership
        self._head_ends = head_ends
        self._answers = answers
        self._clock = clock
        self._origins = origins
        self.spent_here = spent_here
        self._ours: dict[int, int] = {}
        self._gained = {name: asyncio.Event() for name in head_ends}
        self._deliveries: Deliveries | None = None
        self._readings: dict[str, _Reading] = {}
        self.counts: Counter[str] = Counter()
        self.open_cases = 0
        # How many events wait for a record that is set aside, and for how many seconds the longest has; 0 if none.
        self.waiting_for_records = (0, 0.0)

    def waiting_now(self) -> tuple[int, float]:
        """Return `waiting_for_records` as it is now, counted from when this node last began to read the events."""
        since = [at for reading in self._readings.values() for at in reading.aside.values()]
        return len(since), self._clock.monotonic() - min(since) if since else 0.0

    def gained(self, shard: int, epoch: int) -> None:
        """Read what the shard's meters have said since its last owner left off."""
        self._ours[shard] = epoch
        for gained in self._gained.values():
            gained.set()

    def lost(self, shard: int) -> None:
        """Leave the shard's alerts to its next owner."""
        self._ours.pop(shard, None)

    async def run(self, deliveries: Deliveries | None = None) -> NoReturn:
        """Record for ever; what is being tried here is left to its own attempt, and looked at after it."""
        self._deliveries = deliveries
        async with asyncio.TaskGroup() as tasks:
            for name, head_end in self._head_ends.items():
                tasks.create_task(self._follow(name, head_end))
            await self._count_cases()
        raise InvariantBroken("the recorder never ends by itself")

    async def _count_cases(self) -> NoReturn:
        """Count the codes that wait for their supplier, now and then: an alarm hangs on it."""
        while True:
            try:
                self.open_cases = await self._outbox.case_count()
            except UtrnError as error:
                log.info("open cases are not counted now", extra={"error": error.message})
            self.waiting_for_records = waiting, longest_s = self.waiting_now()
            if waiting:
                told = {"events": waiting, "longest_s": round(longest_s)}
                log.warning("what meters said of codes waits for records that are set aside", extra=told)
            await asyncio.sleep(_COUNT_EVERY_S)

    async def _follow(self, name: str, head_end: HeadEnd) -> NoReturn:
        """Read a head end's alerts, and begin anew where a shard was gained that is behind."""
        gained = self._gained[name]
        while True:
            await gained.wait()
            gained.clear()
            reading = self._readings[name] = _Reading(name, dict(self._ours))
            try:
                heard = await self._outbox.heard(list(reading.shards), name)
                reading.begin(heard)
                if None in heard:
                    # Another node, or an operator, may know how far it is recorded: those shards alone wait for that.
                    asyncio.get_running_loop().call_later(_ASIDE_AGAIN_S, gained.set)
                await self._read(head_end, reading, gained)
            except* (HeadEndUnavailable, UtrnError) as errors:
                log.info("what meters say is read again", extra={"head_end": name, "error": repr(errors)})
                gained.set()
                await asyncio.sleep(_AGAIN_S)
            except* Exception:
                log.exception("a head end's events were not understood; read again", extra={"head_end": name})
                gained.set()
                await asyncio.sleep(_AGAIN_S)

    async def _read(self, head_end: HeadEnd, reading: "_Reading", gained: asyncio.Event) -> None:
        """Return when a shard was gained; what waits between reading and writing holds the head end back."""
        if not reading.shards:
            return
        waiting: asyncio.Queue[Numbered] = asyncio.Queue(maxsize=_WAITING_MAX)
        async with asyncio.TaskGroup() as tasks:
            working = [
                tasks.create_task(_pour(head_end, min(reading.saved.values()), waiting)),
                tasks.create_task(self._drain(waiting, reading)),
            ]
            await gained.wait()
            for task in working:
                task.cancel()

    async def _drain(self, waiting: asyncio.Queue[Numbered], reading: "_Reading") -> NoReturn:
        """Write down what is heard, some at a time, so that they share a commit; then how far that goes."""
        saved_at = self._clock.monotonic()
        while True:
            some = await _some(waiting, _LOOK_EVERY_S if reading.held else None)
            self._check_order(reading, some)
            said = self._new(some, reading)
            async with asyncio.TaskGroup() as tasks:
                for named, sequence in (said | self._released(reading)).items():
                    tasks.create_task(self._record(named, sequence, reading))
            # What was told of a counter before it was issued must not be read again after it was.
            if self._clock.monotonic() - saved_at >= _SAVE_EVERY_S or reading.too_early:
                reading.too_early = False
                saved_at = self._clock.monotonic()
                await self._save(reading)

    def _new(self, some: Sequence[Numbered], reading: "_Reading") -> dict[_Named, int]:
        """Return what is said of codes, by the number of the event, but for what its shard has written down already.

        The reading begins with the shard that is furthest behind. What was told before a counter was issued is written
        down for its own shard, and must not be believed when it is read again for another one.
        """
        found = dict[_Named, int]()
        for message in reversed(some):
            named = _named(message)
            if named is None or message.sequence <= reading.saved.get(self._ownership.shard_of(named.meter_id), 0):
                continue
            found[named] = message.sequence
        return found

    def _released(self, reading: "_Reading") -> dict[_Named, int]:
        """Return what was left to attempts that have ended otherwise than with the credit, or take too long."""
        now, found = self._clock.monotonic(), dict[_Named, int]()
        for named, (sequence, since) in list(reading.held.items()):
            hand = self._hand(named)
            if hand is Hand.TRIED and now - since < _HELD_AT_MOST_S:
                continue
            del reading.held[named]
            if hand is not Hand.APPLIED:
                found[named] = sequence
        return found

    def _hand(self, said: _Named) -> Hand:
        if self._deliveries is None:
            return Hand.FREE
        return self._deliveries.hand(said.meter_id, said.originator_id, said.counter)

    def _left_to_its_attempt(self, said: _Named, sequence: int, reading: "_Reading") -> bool:
        """Return whether there is nothing to write now: the credit is written, or the code's attempt is at work on it.

        What is left to an attempt is held until it has ended, and what is recorded ends before it: the attempt may end
        by something else that it heard first.
        """
        hand = self._hand(said)
        if hand is not Hand.TRIED or said in reading.looked_at or len(reading.held) >= _HELD_MAX:
            return hand is Hand.APPLIED
        reading.looked_at[said] = None
        if len(reading.looked_at) > _LOOKED_AT_MAX:
            reading.looked_at.popitem(last=False)
        reading.held[said] = (sequence, self._clock.monotonic())
        if isinstance(said.event, Alert) and self._deliveries is not None:
            self._deliveries.take_news(Received(reading.head_end, said.event))
        return True

    def _check_order(self, reading: "_Reading", some: Sequence[Numbered]) -> None:
        """Begin to count anew where the head end has."""
        for numbered in some:
            if numbered.sequence < reading.at:
                self.counts["began_anew"] += 1
                if told_now(self.counts["began_anew"]):
                    log.error("a head end counts its events anew", extra={"head_end": reading.head_end})
                reading.saved = dict.fromkeys(reading.saved, 0)
                # By the new count nothing is written down before what is still held of the old one.
                reading.held = {named: (0, since) for named, (_, since) in reading.held.items()}
            reading.at = numbered.sequence

    async def _save(self, reading: "_Reading") -> None:
        """Record how far everything is written down, for each shard that is still ours: up to what is held of it."""
        places = dict.fromkeys(reading.shards, reading.at)
        for named, (sequence, _) in reading.held.items():
            shard = self._ownership.shard_of(named.meter_id)
            if shard in places:
                places[shard] = min(places[shard], sequence - 1)

        async def save(shard: int, epoch: int) -> None:
            sequence = places[shard]
            try:
                await self._outbox.note_heard(shard=shard, epoch=epoch, head_end=reading.head_end, sequence=sequence)
            except Deposed:
                reading.shards.pop(shard, None)
            else:
                reading.saved[shard] = sequence

        async with asyncio.TaskGroup() as tasks:
            for shard, epoch in list(reading.shards.items()):
                if self._ours.get(shard) == epoch and reading.saved[shard] < places[shard]:
                    tasks.create_task(save(shard, epoch))

    async def _record(self, said: _Named, sequence: int, reading: "_Reading") -> None:
        """Write down what a meter said, or hold it; its shard's next owner hears again what is not written down."""
        try:
            await self._record_or_hold(said, sequence, reading)
        finally:
            if said not in reading.held:
                reading.aside.pop(said, None)

    async def _record_or_hold(self, said: _Named, sequence: int, reading: "_Reading") -> None:
        shard = self._ownership.shard_of(said.meter_id)
        while (epoch := reading.shards.get(shard)) is not None:
            if self._ours.get(shard) != epoch:
                reading.shards.pop(shard)
                return
            if self._left_to_its_attempt(said, sequence, reading):
                return
            if self._ownership.epoch(shard) == epoch:
                try:
                    await self._write(said, shard, epoch, reading)
                except Deposed:
                    reading.shards.pop(shard, None)
                    return
                except NotReady as error:
                    # A record of this meter is set aside. What other meters say does not wait for it.
                    reading.aside.setdefault(said, self._clock.monotonic())
                    if len(reading.held) < _HELD_MAX:
                        reading.held[said] = (sequence, self._clock.monotonic())
                        return
                    log.warning("what a meter said of a code is not recorded yet", extra={"error": error.message})
                except UtrnError as error:
                    told = {"meter_id": said.meter_id, "error": error.message}
                    log.warning("what a meter said of a code is not recorded yet", extra=told)
                except Exception:
                    # No record, and no mistake of ours about one, may hold up what the other meters say.
                    self.counts["not_understood"] += 1
                    log.exception("what a meter said of a code is set aside", extra={"meter_id": said.meter_id})
                    return
                else:
                    return
            await asyncio.sleep(_AGAIN_S)

    async def _write(self, said: _Named, shard: int, epoch: int, reading: "_Reading") -> None:
        for _ in range(_RACES_MAX):
            code = await self._outbox.code(said.originator_id, said.meter_id, said.counter)
            known_by = await self._known_by(said, code, reading.head_end)
            if known_by is None:
                return
            if said.counter > code.sequence.last_issued:
                self._never_issued(said, code)
                reading.too_early = True
                return
            delivery, read_set = self._after(said, code, epoch)
            if code.stored is None or delivery is None or delivery == code.stored.vend.delivery:
                await self._outbox.note_applied(
                    shard=shard, epoch=epoch, originator_id=said.originator_id, meter_id=said.meter_id,
                    counter=said.counter,
                )  # fmt: skip
                return
            change = DeliveryChange(
                shard=shard, epoch=epoch, stored=code.stored, delivery=delivery, read_set=read_set or known_by
            )
            (outcome,) = await self._outbox.write([change])
            if isinstance(outcome, StoredVend):
                self._tell(code.stored, outcome)
                return
            if not isinstance(outcome, DeliveryChanged):
                raise outcome
            # The vend has moved on, or the meter's record is another one than this node's copy has.
            await self._origins.read_again(said.meter_id)
        raise LedgerUnavailable("others keep writing a vend that a meter speaks of")

    async def _known_by(self, said: _Named, code: Code, head_end: str) -> ReadSet | None:
        """Return by which records a head end can know what it says of a code; None if it cannot, and is set aside."""
        vend = None if code.stored is None else code.stored.vend
        if isinstance(said.event, Alert):
            return await self._origins.alerts_surely(head_end, said.meter_id, vend)
        if vend is None:
            self._origins.set_aside.record(head_end, NEVER_SENT)
            return None
        return () if self._origins.answers(head_end, said.event.message_id, vend) else None

    def _after(self, said: _Named, code: Code, epoch: int) -> tuple[Delivery | None, ReadSet]:
        """Return what the delivery is after what the meter said, and by which records; None without a vend."""
        if code.stored is None:
            return None, ()
        delivery, now = code.stored.vend.delivery, self._clock.now()
        if not said.duplicate:
            return delivery.credit(now, epoch), ()
        spent_here, read_set = self.spent_here(said.meter_id, said.originator_id)
        # The sequence was read after the meter had spoken.
        if spent_here and duplicate_proves_credit(said.counter, code.sequence.last_issued):
            return delivery.credit(now, epoch), read_set
        # While it is owed, its own attempts may learn more.
        return delivery if delivery.owed else delivery.dispute(now, epoch), read_set

    def _never_issued(self, said: _Named, code: Code) -> None:
        """Change nothing: nothing that comes from outside says what was issued. Loud where only this service issues."""
        spent_here, _ = self.spent_here(said.meter_id, said.originator_id)
        extra = {"meter_id": said.meter_id, "counter": said.counter, "last_issued": code.sequence.last_issued}
        if spent_here:
            self.counts["never_issued"] += 1
            if told_now(self.counts["never_issued"]):
                log.error("a meter names a counter that was never issued", extra=extra)
        else:
            self.counts["issued_elsewhere"] += 1
            if told_now(self.counts["issued_elsewhere"]):
                log.info("a meter names a counter of another generator", extra=extra)

    def _tell(self, before: StoredVend, after: StoredVend) -> None:
        self._answers.doubt(key_of(after.vend.sale))
        was, now = before.vend.delivery.state, after.vend.delivery.state
        self.counts[now.name.lower()] += 1
        extra = {"meter_id": after.vend.meter_id, "was": was.name, "now": now.name}
        if was is DeliveryState.REFUSED and now is DeliveryState.APPLIED:
            self.counts["credited_after_refusal"] += 1
            log.error("a code was credited whose delivery had been refused: its seller must know", extra=extra)
        elif now is DeliveryState.NEEDS_CHECK:
            log.warning("a meter calls a code a duplicate, and that proves nothing: an open case", extra=extra)
        else:
            log.info("a meter says that a code is credited", extra=extra)


@dataclass(slots=True)
class _Reading:
    """One run through what a head end tells: for which shards, each under its epoch, and how far each is recorded."""

    head_end: str
    shards: dict[int, int]
    saved: dict[int, int] = field(default_factory=dict)
    at: int = 0
    too_early: bool = False
    # What is left to attempts: the number of the event, and since when. And what was, once: it is not left twice.
    held: dict[_Named, tuple[int, float]] = field(default_factory=dict)
    looked_at: OrderedDict[_Named, None] = field(default_factory=OrderedDict)
    # What waits for a record that is set aside, and since when.
    aside: dict[_Named, float] = field(default_factory=dict)

    def begin(self, heard: Sequence[int | None]) -> None:
        """Begin where the shards are recorded; leave out those of which that is not known."""
        self.saved = {shard: one for shard, one in zip(self.shards, heard, strict=True) if one is not None}
        self.shards = {shard: epoch for shard, epoch in self.shards.items() if shard in self.saved}
        self.at = min(self.saved.values(), default=0)


async def _some(waiting: asyncio.Queue[Numbered], timeout_s: float | None) -> list[Numbered]:
    """Return what waits, at least one unless none comes in time, at most so many as are recorded at once."""
    some: list[Numbered] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            some.append(await waiting.get())
    while not waiting.empty() and len(some) < _AT_ONCE:
        some.append(waiting.get_nowait())
    return some


async def _pour(head_end: HeadEnd, after: int, waiting: asyncio.Queue[Numbered]) -> None:
    async for numbered in head_end.said(after):
        await waiting.put(numbered)


def _named(numbered: Numbered) -> _Named | None:
    """Return what the event says of one code, if it does, and if that may be news after its delivery has ended."""
    match numbered.said:
        case Alert(alert_code=code, counter=counter, originator_id=originator_id) as alert:
            if code in CREDIT_ALERTS and counter is not None and originator_id is not None:
                return _Named(alert.meter_id, originator_id, counter, code == DUPLICATE_UTRN, alert)
        case Answer(kind=AnswerKind.APPLIED | AnswerKind.DUPLICATE) as answer:
            code_sent = parse_message_id(answer.message_id)
            if code_sent is not None:
                originator_id, meter_id, counter = code_sent
                return _Named(meter_id, originator_id, counter, answer.kind is AnswerKind.DUPLICATE, answer)
    return None
