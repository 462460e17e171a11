"""The delivery worker and a head end that was away: what waits is counted, and goes out in order when it is back."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any, cast

import pytest

from cluster.membership.placement import shard_of
from core.delivery.attempt import Aside, AttemptEnd, Later
from core.delivery.observations import Mailbox
from core.delivery.origins import Origins, Received
from core.delivery.outcomes import CREDIT_ADDED_LOCALLY, DUPLICATE_UTRN
from core.delivery.waiting import Parked, ParkedAt, parked_by_head_end
from core.delivery.worker import DeliveryWorker
from core.domain.delivery import DeliveryState
from core.domain.errors import HeadEndUnavailable, NotReady
from core.domain.message_id import message_id
from core.domain.meter import MeterId
from core.domain.transaction_id import TransactionId
from core.domain.utrn import Counter
from core.domain.vend import Vend
from core.issuing.config import DeliveryConfig
from core.ports.head_end import Alert, Answer, AnswerKind, Capabilities, GivenUp, HeadEnd, HeadEndEvent, StreamRestored
from core.ports.ledger import StoredVend
from core.ports.outbox import Listing, Outbox, OutboxEvent, Owed
from core.ports.ownership import Gained, OwnershipChange
from tests.support.answers import memory
from tests.support.origins import RANDOM_PART, at_head_end
from tests.support.owed import deaf_recorder
from tests.support.patience import PATIENCE_S
from tests.support.vends import HEAD_END, NOW, ORIGINATOR, PSP_ID, new_id, vend

SHARDS = 8
MANY = 3000
AT_ONCE = 50


class AllOwned:
    """Owns every shard."""

    def shard_of(self, meter_id: MeterId) -> int:
        return shard_of(meter_id, SHARDS)

    def epoch(self, shard: int) -> int | None:
        return 1

    async def changes(self) -> AsyncIterator[OwnershipChange]:
        for shard in range(SHARDS):
            yield Gained(shard, 1)
        await asyncio.Event().wait()


@dataclass
class Backlog:
    """An outbox that owes one code to each of many meters, asked for one after the other, in no order of their ids."""

    meters: dict[MeterId, int]

    async def watch(self) -> AsyncIterator[OutboxEvent]:
        # Every shard is gained before.
        for _ in range(2 * SHARDS):
            await asyncio.sleep(0)
        yield Listing(tuple(self._owed(meter_id, since) for meter_id, since in self.meters.items()))
        await asyncio.Event().wait()

    async def read(self, owed: Sequence[Owed]) -> Sequence[StoredVend | None]:
        return [StoredVend(vend=self._vend(one), revision=1) for one in owed]

    async def case_count(self) -> int:
        return 0

    def _owed(self, meter_id: MeterId, since: int) -> Owed:
        return Owed(
            shard=shard_of(meter_id, SHARDS), meter_id=meter_id, counter=Counter(1), originator_id=ORIGINATOR,
            participant_id=PSP_ID, transaction_id=TransactionId(f"{since:032d}"), since=since,
        )  # fmt: skip

    def _vend(self, owed: Owed) -> Any:
        made = vend(1, owed.meter_id)
        return made.with_delivery(made.delivery if made.delivery.owed else made.delivery.queue(NOW))


@dataclass
class Attempts:
    """Attempts that find the head end away until it is back; then each is under way for a moment."""

    back: bool = False
    parked: int = 0
    under_way: int = 0
    most: int = 0
    order: list[MeterId] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    origins: Origins = field(default_factory=at_head_end)

    def carriers(self, _: Vend) -> frozenset[str]:
        return frozenset({HEAD_END})

    async def __call__(self, stored: StoredVend, *, mailbox: Mailbox, **_: object) -> AttemptEnd | None:
        meter_id = stored.vend.meter_id
        while await mailbox.get(0) is not None:
            pass
        self.changed.set()
        if not self.back:
            self.parked += 1
            return Parked(HEAD_END, NOW + timedelta(seconds=self.parked))
        self.order.append(meter_id)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0)
        self.under_way -= 1
        return Later(3600.0)

    async def until(self, holds: Any) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                self.changed.clear()
                await self.changed.wait()


class Returning:
    """A head end's stream, which says when it is back; or breaks in a way that none should."""

    def __init__(self, *, can_be_asked: bool = True, reached: bool = True) -> None:
        self.events_to_come: asyncio.Queue[HeadEndEvent | Exception] = asyncio.Queue()
        self._can_be_asked = can_be_asked
        self._reached = reached

    async def capabilities(self) -> Capabilities:
        if not self._reached:
            raise HeadEndUnavailable("not reached yet")
        return Capabilities(
            name="returning", dedupes_by_message_id=True, status_by_message_id=self._can_be_asked,
            alerts_name_counter=True, in_flight_max=MANY,
        )  # fmt: skip

    async def events(self) -> AsyncIterator[HeadEndEvent]:
        while True:
            event = await self.events_to_come.get()
            if isinstance(event, Exception):
                raise event
            yield event


@asynccontextmanager
async def working(backlog: Backlog, attempts: Attempts, head_end: Returning) -> AsyncIterator[DeliveryWorker]:
    head_ends = cast("Mapping[str, HeadEnd]", {HEAD_END: head_end})
    worker = DeliveryWorker(
        outbox=cast("Outbox", backlog), ownership=AllOwned(), head_ends=head_ends, answers=memory(),
        attempt=cast("Any", attempts), config=DeliveryConfig(in_flight_max=AT_ONCE),
        recorder=deaf_recorder(cast("Outbox", backlog), AllOwned()),
    )  # fmt: skip
    running = asyncio.create_task(worker.run())  # noqa: TID251
    try:
        yield worker
    finally:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running


def _backlog(count: int = MANY) -> Backlog:
    # The order of the ids is not that of waiting.
    return Backlog({MeterId(f"00db12{(at * 7919) % 10**9:010x}"): at for at in range(1, count + 1)})


async def test_thousands_that_waited_for_a_head_end_go_out_longest_waiting_first_and_bounded() -> None:
    backlog, attempts, head_end = _backlog(), Attempts(), Returning()
    async with working(backlog, attempts, head_end) as worker:
        await attempts.until(lambda: attempts.parked == MANY)
        await asyncio.sleep(0)
        assert worker.parked() == {HEAD_END: ParkedAt(MANY, NOW + timedelta(seconds=1))}
        attempts.back = True
        head_end.events_to_come.put_nowait(StreamRestored())
        await attempts.until(lambda: len(attempts.order) == MANY)
    assert attempts.order == sorted(backlog.meters, key=backlog.meters.__getitem__)
    assert AT_ONCE // 2 < attempts.most <= AT_ONCE + 64, "a read of at most 64 goes out at once"


def test_what_waits_is_counted_by_head_end_with_the_oldest() -> None:
    long_ago = NOW - timedelta(hours=1)
    sequences = [
        (Parked("a", NOW), 2),
        (Parked("a", long_ago), 1),
        (Parked("b", NOW), 4),
        (None, 9),
        (Parked("c", NOW), 0),
    ]
    assert parked_by_head_end(sequences) == {"a": ParkedAt(3, long_ago), "b": ParkedAt(4, NOW)}


async def test_a_head_end_whose_events_raise_what_none_should_is_heard_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.delivery.worker._STREAM_AGAIN_S", 0.0)
    backlog, attempts, head_end = _backlog(3), Attempts(), Returning()
    async with working(backlog, attempts, head_end):
        await attempts.until(lambda: attempts.parked == 3)
        attempts.back = True
        head_end.events_to_come.put_nowait(UnicodeDecodeError("utf-8", b"\xff", 0, 1, "from a stranger"))
        head_end.events_to_come.put_nowait(StreamRestored())
        await attempts.until(lambda: len(attempts.order) == 3)


async def test_an_attempt_that_raises_what_none_should_rests_and_the_others_go_on() -> None:
    backlog, attempts, head_end = _backlog(3), Attempts(back=True), Returning()
    first = next(iter(backlog.meters))
    raised: list[MeterId] = []

    class Raising(Attempts):
        async def __call__(self, stored: StoredVend, *, mailbox: Mailbox, **_: object) -> AttemptEnd | None:
            if stored.vend.meter_id == first:
                raised.append(first)
                raise KeyError("a bug")
            return await super().__call__(stored, mailbox=mailbox)

    attempts = Raising(back=True)
    async with working(backlog, attempts, head_end):
        await attempts.until(lambda: len(attempts.order) == 2)
    assert raised == [first]


async def test_a_shard_that_is_gained_or_lost_costs_no_look_at_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at all that is owed, for each shard, held the loop that renews the lease: every shard was lost again."""
    backlog, attempts, head_end = _backlog(2000), Attempts(), Returning()
    async with working(backlog, attempts, head_end) as worker:
        await attempts.until(lambda: attempts.parked == 2000)
        looked = 0

        def counted(meter_id: MeterId) -> int:
            nonlocal looked
            looked += 1
            return shard_of(meter_id, SHARDS)

        monkeypatch.setattr(AllOwned, "shard_of", staticmethod(counted))
        found = [key for shard in range(SHARDS) for key in worker._queues_of(shard)]
        assert (len(found), len(set(found))) == (2000, 2000)
        assert sum(worker.owed_by_shard().values()) == 2000
        assert looked == 0


async def test_a_code_told_anew_under_a_counter_that_was_given_back_keeps_its_place() -> None:
    backlog, attempts, head_end = _backlog(1), Attempts(), Returning()
    async with working(backlog, attempts, head_end) as worker:
        await attempts.until(lambda: attempts.parked == 1)
        (queue,) = worker._queues.values()
        ((counter, slot),) = queue.slots.items()
        old, new = slot.owed, replace(slot.owed, transaction_id=new_id(), since=99)
        # Listed anew after a watch that was compacted: the old one has ended meanwhile.
        worker._take_listing((new,))
        assert queue.slots[counter].owed == new
        # The answer to the old one's last write comes late.
        worker._end(old, DeliveryState.REFUSED)
        assert queue.slots[counter].owed == new
        worker._end(new, DeliveryState.REFUSED)
        assert counter not in queue.slots


async def test_a_vend_that_is_set_aside_stays_owed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record is put right, or a newer node reads it: a delivery that was forgotten would be made by nobody."""
    asked = asyncio.Event()

    async def read(_: Backlog, owed: Sequence[Owed]) -> Sequence[NotReady]:
        asked.set()
        return [NotReady("set aside") for _ in owed]

    monkeypatch.setattr(Backlog, "read", read)
    backlog, attempts, head_end = _backlog(1), Attempts(), Returning()
    async with working(backlog, attempts, head_end) as worker:
        async with asyncio.timeout(PATIENCE_S):
            await asked.wait()
        await asyncio.sleep(0)
        assert (sum(worker.owed_by_shard().values()), attempts.parked) == (1, 0)


class Unread(Attempts):
    """Attempts that end before they look at their news, as those do for which a head end has no room."""

    def __init__(self, end: AttemptEnd | Exception) -> None:
        super().__init__(back=True)
        self.end = end

    async def __call__(self, stored: StoredVend, **_: object) -> AttemptEnd | None:
        self.order.append(stored.vend.meter_id)
        self.changed.set()
        if isinstance(self.end, Exception):
            raise self.end
        return self.end


@pytest.mark.parametrize("end", [Later(3600.0), Aside(3600.0), KeyError("a bug")], ids=["later", "aside", "bug"])
async def test_news_that_an_attempt_leaves_unread_does_not_start_it_again_at_once(end: AttemptEnd | Exception) -> None:
    """After each break of a head end's stream thousands of attempts a second took the loop that sells."""
    backlog, attempts, head_end = _backlog(20), Unread(end), Returning()
    async with working(backlog, attempts, head_end):
        await attempts.until(lambda: len(attempts.order) == 20)
        head_end.events_to_come.put_nowait(StreamRestored())
        await attempts.until(lambda: len(attempts.order) == 40)
        for _ in range(200):
            await asyncio.sleep(0)
    assert len(attempts.order) == 40


@pytest.mark.parametrize(
    ("can_be_asked", "reached", "tried"), [(True, True, 2), (False, True, 1), (False, False, 2)],
    ids=["can be asked", "cannot be asked", "nobody knows"],
)  # fmt: skip
async def test_after_a_break_only_a_head_end_that_can_be_asked_is_turned_to_at_once(
    can_be_asked: bool, reached: bool, tried: int
) -> None:
    """All that an attempt can do at another one is to send again: each break sent every code that waited."""
    backlog, attempts = _backlog(20), Attempts(back=True)
    head_end = Returning(can_be_asked=can_be_asked, reached=reached)
    async with working(backlog, attempts, head_end) as worker:
        await attempts.until(lambda: len(attempts.order) == 20)
        await _until_all_rest(worker)
        head_end.events_to_come.put_nowait(StreamRestored())
        slots = [slot for queue in worker._queues.values() for slot in queue.slots.values()]
        if tried == 2:
            await attempts.until(lambda: len(attempts.order) == 40)
        else:
            await _until(lambda: all(slot.box for slot in slots))
            for _ in range(200):
                await asyncio.sleep(0)
    assert len(attempts.order) == 20 * tried


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def _until_all_rest(worker: DeliveryWorker) -> None:
    await _until(lambda: not worker.under_way and not worker._ready)


async def test_a_meters_record_that_is_set_aside_is_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    backlog, attempts, head_end = _backlog(1), Attempts(), Returning()
    asked: list[Vend] = []

    def carriers(vend: Vend) -> frozenset[str]:
        asked.append(vend)
        attempts.changed.set()
        raise NotReady("the meter's record is set aside")

    attempts.carriers = carriers  # type: ignore[assignment,method-assign]
    async with working(backlog, attempts, head_end) as worker:
        await attempts.until(lambda: asked)
        for _ in range(50):
            await asyncio.sleep(0)
        assert (len(asked), sum(worker.owed_by_shard().values())) == (1, 1)
    assert "as none should" not in caplog.text


async def test_news_that_comes_after_an_attempt_has_read_its_own_is_looked_at_at_once() -> None:
    """It has rested for nothing else: an answer that came a moment late is not left for the back-off."""
    backlog, head_end = _backlog(1), Returning()

    class Late(Attempts):
        async def __call__(self, stored: StoredVend, *, mailbox: Mailbox, **_: object) -> AttemptEnd | None:
            while await mailbox.get(0) is not None:
                pass
            self.order.append(stored.vend.meter_id)
            self.changed.set()
            if len(self.order) == 1:
                mailbox.put(Received(HEAD_END, StreamRestored()))
            return Later(3600.0)

    attempts = Late(back=True)
    async with working(backlog, attempts, head_end):
        await attempts.until(lambda: len(attempts.order) == 2)


def _answer(vend: Vend) -> HeadEndEvent:
    return Answer(
        message_id=message_id(vend.originator_id, vend.meter_id, vend.counter, RANDOM_PART), kind=AnswerKind.APPLIED
    )


def _alert(vend: Vend, code: int = CREDIT_ADDED_LOCALLY) -> HeadEndEvent:
    return Alert(meter_id=vend.meter_id, alert_code=code, originator_id=vend.originator_id, counter=vend.counter)


def _given_up(vend: Vend) -> HeadEndEvent:
    return GivenUp(
        message_id=message_id(vend.originator_id, vend.meter_id, vend.counter, RANDOM_PART), maybe_applied=True
    )


@pytest.mark.parametrize(
    ("event", "wakes"),
    [(_answer, True), (_alert, True), (_given_up, False), (partial(_alert, code=DUPLICATE_UTRN), False)],
    ids=["answer", "credited", "given up", "duplicate"],
)
async def test_news_that_decides_ends_the_rest_of_its_delivery_and_of_no_other(
    event: Callable[[Vend], HeadEndEvent], wakes: bool
) -> None:
    """In production a back-off lasts up to an hour: so long the seller was not told what the meter had answered."""
    backlog, attempts, head_end = _backlog(3), Attempts(back=True), Returning()
    async with working(backlog, attempts, head_end) as worker:
        await attempts.until(lambda: len(attempts.order) == 3)
        await _until_all_rest(worker)
        (key, queue), *_ = worker._queues.items()
        (slot,) = queue.slots.values()
        head_end.events_to_come.put_nowait(event(backlog._vend(slot.owed)))
        if wakes:
            await attempts.until(lambda: len(attempts.order) == 4)
        else:
            await _until(lambda: bool(slot.box))
        for _ in range(200):
            await asyncio.sleep(0)
    assert attempts.order[3:] == ([key[0]] if wakes else [])


async def test_what_is_owed_longest_and_waits_for_no_head_end_is_told() -> None:
    backlog, attempts, head_end = _backlog(3), Attempts(), Returning()
    async with working(backlog, attempts, head_end) as worker:
        await attempts.until(lambda: attempts.parked == 3)
        assert worker.longest_owed_s() == 0.0, "what waits for a head end is told of by parked()"
        attempts.back = True
        head_end.events_to_come.put_nowait(StreamRestored())
        await attempts.until(lambda: len(attempts.order) == 3)
        for age_s, queue in zip((10.0, 7200.0, 30.0), worker._queues.values(), strict=True):
            (slot,) = queue.slots.values()
            slot.first_heard_at -= age_s
        await asyncio.sleep(0)
        assert 7200.0 <= worker.longest_owed_s() < 7200.0 + PATIENCE_S
