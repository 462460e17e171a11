"""One attempt, where no process drill can look: what lies between the write and the send, and what is not believed."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from core.delivery.attempt import Aside, Done, Later
from core.delivery.origins import Received
from core.delivery.outcomes import CREDIT_ADDED_LOCALLY
from core.delivery.waiting import Parked
from core.domain.delivery import Delivery, DeliveryReason, DeliveryState
from core.domain.effective_dated import ms_of
from core.domain.errors import HeadEndRefused, HeadEndStale, HeadEndUnavailable
from core.issuing.config import DeliveryConfig
from core.ports.head_end import AddCredit, Alert, Answer, AnswerKind, MessageState, StreamRestored
from core.ports.ledger import StoredVend
from core.ports.outbox import DeliveryChange, WriteOutcome
from tests.support.market_node import as_
from tests.support.origins import told
from tests.support.owed import OwedDelivery, id_of
from tests.support.vends import HEAD_END, SUPPLIER

_GIVE_UP_S = 2 * 86_400


class Between:
    """An outbox between whose first write and the answer to it something happens."""

    def __init__(self, work: OwedDelivery, happens: object) -> None:
        self._inner, self._happens = work.outbox, happens

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    async def write(self, changes: Sequence[DeliveryChange]) -> Sequence[WriteOutcome]:
        outcomes = await self._inner.write(changes)
        happens, self._happens = self._happens, None
        if happens is not None:
            await happens()  # type: ignore[operator]
        return outcomes


async def test_a_code_goes_out_with_its_owners_epoch_and_an_instant_after_which_it_may_not() -> None:
    work = OwedDelivery()
    async with work.owed(attempts=0):
        began = work.node.clock.now()
        await work.attempt()
        stored = await work.read()
    (sent,) = work.head_end.sent
    assert (sent.message_id, sent.owner_epoch) == (stored.vend.message_id, work.epoch)
    assert sent.not_after == began + timedelta(milliseconds=work.config.send_within_ms)


@pytest.mark.parametrize(
    ("late_s", "known_s", "sent"), [(9.0, 0.0, 1), (18.0, 18.0, 1), (59.0, 59.0, 1), (18.0, 0.0, 0)]
)
async def test_cluster_time_that_is_a_little_late_makes_no_send_stale(late_s: float, known_s: float, sent: int) -> None:
    """A head end judges by its own clock, which is right. The last case is the control."""
    work = OwedDelivery()
    work.utc_ahead = timedelta(seconds=known_s)
    work.head_end.utc = lambda: work.node.clock.now() + timedelta(seconds=late_s)
    async with work.owed(attempts=0):
        await work.attempt()
    assert len(work.head_end.sent) == sent


@pytest.mark.parametrize(("stood_still_s", "sent"), [(0.999, 1), (1.0, 0), (60.0, 0)])
async def test_a_node_that_stood_still_between_write_and_send_does_not_send(stood_still_s: float, sent: int) -> None:
    work = OwedDelivery(DeliveryConfig(answer_wait_ms=50, send_within_ms=1000))

    async def stand_still() -> None:
        work.node.clock.advance(stood_still_s)

    async with work.owed(attempts=0):
        work.outbox = Between(work, stand_still)  # type: ignore[assignment]
        end, delivery = await work.attempt()
    assert len(work.head_end.sent) == sent
    assert isinstance(end, Later)
    assert (delivery.state, delivery.attempts) == (DeliveryState.UNKNOWN if sent else DeliveryState.SENT, 1)


async def test_a_node_whose_shard_may_have_gone_to_another_between_write_and_send_does_not_send() -> None:
    work = OwedDelivery()

    async def lose() -> None:
        work.ours = False

    async with work.owed(attempts=0):
        work.outbox = Between(work, lose)  # type: ignore[assignment]
        end, delivery = await work.attempt()
        assert (work.head_end.sent, delivery.state, type(end)) == ([], DeliveryState.SENT, Later)
        work.ours, work.stored = True, replace(work.stored, vend=work.stored.vend.with_delivery(delivery))
        found = await work.node.ledger.find(work.stored.vend.sale.participant_id, work.stored.vend.sale.transaction_id)
        assert isinstance(found, StoredVend)
        work.stored = found
        await work.attempt()
    assert len(work.head_end.sent) == 1, "the control: once it is surely its own again, it sends"


async def test_a_change_of_supplier_heard_of_between_write_and_send_stops_the_send() -> None:
    work = OwedDelivery()
    async with work.owed(attempts=0):
        work.outbox = Between(work, work.change_of_supplier)  # type: ignore[assignment]
        end, delivery = await work.attempt()
    assert (work.head_end.sent, delivery.state, type(end)) == ([], DeliveryState.SENT, Later)


@pytest.mark.parametrize("attempts", [0, 1])
async def test_a_head_end_that_was_away_past_the_give_up_time_is_sent_the_code_first(attempts: int) -> None:
    """With one attempt: its send met a head end that was going away, and took nothing."""
    work = OwedDelivery()
    async with work.owed(attempts=attempts):
        work.head_end.available = False
        work.node.clock.advance(_GIVE_UP_S)
        end, delivery = await work.attempt()
        assert isinstance(end, Parked)
        assert end.head_end == HEAD_END
        assert delivery.owed, "what waits for a head end is not given up"
        work.head_end.available = True
        end, delivery = await work.attempt()
    assert len(work.head_end.sent) == 1
    assert isinstance(end, Done)
    assert (delivery.state, delivery.attempts) == (DeliveryState.ENTER_BY_HAND, attempts + 1)
    assert delivery.reason is DeliveryReason.NO_ANSWER


@pytest.mark.parametrize("error", [HeadEndUnavailable("UNAVAILABLE"), HeadEndStale("TOO_LATE")])
async def test_a_code_that_the_head_end_does_not_take_is_never_given_up(error: Exception) -> None:
    work = OwedDelivery(DeliveryConfig(answer_wait_ms=50, attempts_max=2))

    async def refuse(message: AddCredit) -> None:
        raise error

    work.head_end.send = refuse  # type: ignore[method-assign]
    async with work.owed(attempts=0):
        work.node.clock.advance(_GIVE_UP_S)
        for _ in range(4):
            end, delivery = await work.attempt()
            found = await work.node.ledger.find(
                work.stored.vend.sale.participant_id, work.stored.vend.sale.transaction_id
            )
            assert isinstance(found, StoredVend)
            work.stored = found
            assert (type(end), delivery.state) == (Later, DeliveryState.SENT)


@pytest.mark.parametrize("kind", list(AnswerKind))
async def test_an_answer_to_a_message_never_sent_is_set_aside_and_the_code_is_sent(kind: AnswerKind) -> None:
    work = OwedDelivery()
    async with work.owed(attempts=0) as stored:
        work.mailbox.put(told(Answer(message_id=id_of(stored.vend), kind=kind)))
        _, delivery = await work.attempt()
    assert len(work.head_end.sent) == 1
    assert delivery.state is DeliveryState.UNKNOWN
    assert work.set_aside.counts == {(HEAD_END, "answer to a message never sent"): 1}


async def test_an_answer_that_comes_between_write_and_send_is_none_to_that_send() -> None:
    work = OwedDelivery()

    async def lie() -> None:
        work.mailbox.put(told(Answer(message_id=id_of(work.stored.vend), kind=AnswerKind.APPLIED)))

    async with work.owed(attempts=0):
        work.outbox = Between(work, lie)  # type: ignore[assignment]
        _, delivery = await work.attempt()
    assert (len(work.head_end.sent), delivery.state) == (1, DeliveryState.UNKNOWN)


async def test_a_code_keyed_in_before_it_was_sent_is_not_sent() -> None:
    """The control of the above: the meter's own alert names the code, and needs no message."""
    work = OwedDelivery()
    async with work.owed(attempts=0) as stored:
        vend = stored.vend
        work.mailbox.put(told(
            Alert(
                meter_id=vend.meter_id, alert_code=CREDIT_ADDED_LOCALLY, originator_id=vend.originator_id,
                counter=vend.counter,
            )))  # fmt: skip
        _, delivery = await work.attempt()
    assert (work.head_end.sent, delivery.state) == ([], DeliveryState.APPLIED)


async def test_a_code_keyed_in_between_write_and_send_is_not_sent() -> None:
    work = OwedDelivery()

    async def key_in() -> None:
        vend = work.stored.vend
        work.mailbox.put(told(
            Alert(
                meter_id=vend.meter_id, alert_code=CREDIT_ADDED_LOCALLY, originator_id=vend.originator_id,
                counter=vend.counter,
            )))  # fmt: skip

    async with work.owed(attempts=0):
        work.outbox = Between(work, key_in)  # type: ignore[assignment]
        end, delivery = await work.attempt()
    assert isinstance(end, Done)
    assert (work.head_end.sent, delivery.state) == ([], DeliveryState.APPLIED)


async def test_a_delivery_follows_its_meter_to_another_head_end() -> None:
    """A head end's name was mistyped, or the meter was migrated, after the code was sold."""
    work = OwedDelivery()
    async with work.owed(attempts=0):
        done = await work.node.meters.change(
            as_(SUPPLIER), work.meter_id, lambda one: replace(one, head_end="elsewhere"), None
        )
        await work.node.seen(work.meter_id, done.revision)
        end, _ = await work.attempt()
        assert isinstance(end, Parked)
        assert end.head_end == "elsewhere"
        done = await work.node.meters.change(
            as_(SUPPLIER), work.meter_id, lambda one: replace(one, head_end=HEAD_END), None
        )
        await work.node.seen(work.meter_id, done.revision)
        await work.attempt()
    assert len(work.head_end.sent) == 1


@pytest.mark.parametrize(("wants", "sent"), [(2, 0), (3, 1), (0, 1)], ids=["full", "room for one", "no limit"])
async def test_a_head_end_gets_no_more_at_once_than_it_wants(wants: int, sent: int) -> None:
    work = OwedDelivery()
    work.head_end.in_flight_max = wants
    work.in_flight[HEAD_END] = 2
    async with work.owed(attempts=0):
        end, delivery = await work.attempt()
        assert len(work.head_end.sent) == sent
        assert isinstance(end, Later)
        assert delivery.attempts == sent, "a delivery that waits for room has lost no attempt"
    assert work.in_flight[HEAD_END] == 2


@pytest.mark.parametrize("away", [False, True], ids=["no room", "away"])
async def test_an_answer_that_is_here_decides_whether_or_not_the_head_end_has_room(away: bool) -> None:
    """It was left unread for as long as the head end was full: the seller was not told what the meter had said."""
    work = OwedDelivery()
    work.head_end.in_flight_max = work.in_flight[HEAD_END] = 2
    work.head_end.available = not away
    async with work.owed(attempts=1) as stored:
        work.mailbox.put(told(Answer(message_id=stored.vend.message_id, kind=AnswerKind.APPLIED)))
        end, delivery = await work.attempt()
    assert isinstance(end, Done)
    assert (delivery.state, work.head_end.sent, work.in_flight[HEAD_END]) == (DeliveryState.APPLIED, [], 2)


@pytest.mark.parametrize("attempts", [0, 1, 3])
async def test_a_repeat_that_the_head_end_refuses_says_nothing_of_an_earlier_send(
    attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meter may have been credited by a send whose answer was lost: money given back would be lost."""
    work = OwedDelivery()

    async def refuse(_: AddCredit) -> None:
        raise HeadEndRefused("not authorized for this meter now")

    monkeypatch.setattr(work.head_end, "send", refuse)
    async with work.owed(attempts=attempts):
        end, delivery = await work.attempt()
    if attempts:
        assert isinstance(end, Aside)
        assert delivery.state is DeliveryState.UNKNOWN
    else:
        assert (delivery.state, delivery.reason) == (DeliveryState.REFUSED, DeliveryReason.HEAD_END_REFUSED)


async def test_in_the_end_it_is_somebodys_task(monkeypatch: pytest.MonkeyPatch) -> None:
    work = OwedDelivery(DeliveryConfig(answer_wait_ms=50, attempts_max=2))

    async def refuse(_: AddCredit) -> None:
        raise HeadEndRefused("not authorized for this meter now")

    monkeypatch.setattr(work.head_end, "send", refuse)
    async with work.owed(attempts=1):
        _, delivery = await work.attempt()
    assert (delivery.state, delivery.reason) == (DeliveryState.NEEDS_CHECK, DeliveryReason.HEAD_END_REFUSED)


async def test_what_was_never_sent_and_may_not_be_any_more_does_not_wait_for_its_head_end() -> None:
    """The head end of the supplier before is away for good; whoever sold the code is told that it came to nothing."""
    work = OwedDelivery()
    async with work.owed(attempts=0):
        work.head_end.available = False
        end, _ = await work.attempt()
        assert isinstance(end, Parked)
        await work.change_of_supplier()
        end, delivery = await work.attempt()
        assert isinstance(end, Done)
        assert (delivery.state, delivery.reason) == (DeliveryState.REFUSED, DeliveryReason.SUPPLIER_CHANGED)


async def test_what_was_never_sent_and_may_not_be_any_more_needs_no_room_at_its_head_end() -> None:
    work = OwedDelivery()
    work.head_end.in_flight_max = work.in_flight[HEAD_END] = 2
    async with work.owed(attempts=0):
        await work.change_of_supplier()
        _, delivery = await work.attempt()
    assert (delivery.state, delivery.reason) == (DeliveryState.REFUSED, DeliveryReason.SUPPLIER_CHANGED)


async def test_what_was_sent_once_waits_for_its_head_end_to_be_asked() -> None:
    work = OwedDelivery()
    async with work.owed(attempts=1):
        work.head_end.available = False
        await work.change_of_supplier()
        end, delivery = await work.attempt()
        assert isinstance(end, Parked)
        assert delivery.owed


async def test_a_stream_that_breaks_again_and_again_uses_up_no_attempts() -> None:
    """The head end has the code on its way; each break cost a send, and twelve of them the delivery."""
    work = OwedDelivery(DeliveryConfig(answer_wait_ms=60_000, attempts_max=2))
    work.head_end.knows = MessageState.IN_FLIGHT
    async with work.owed(attempts=0):
        for _ in range(5):
            end, delivery = await _cut_short(work)
            assert isinstance(end, Later)
    assert (len(work.head_end.sent), delivery.attempts, delivery.owed) == (1, 1, True)


async def test_a_send_whose_wait_a_break_cut_short_is_not_the_last() -> None:
    work = OwedDelivery(DeliveryConfig(answer_wait_ms=60_000, attempts_max=1))
    async with work.owed(attempts=0):
        end, delivery = await _cut_short(work)
    assert isinstance(end, Later)
    assert (delivery.state, delivery.attempts) == (DeliveryState.UNKNOWN, 1)


async def _cut_short(work: OwedDelivery) -> tuple[object, Delivery]:
    """Make an attempt whose wait for an answer a break of the head end's stream cuts short."""
    task = asyncio.get_running_loop().create_task(work.attempt())
    await work.listening()
    work.mailbox.put(Received(HEAD_END, StreamRestored()))
    end, delivery = await task
    if delivery.owed:
        work.stored = await work.read()
    return end, delivery


async def test_sends_that_breaks_cut_short_are_not_among_those_after_which_a_code_is_given_up() -> None:
    """A head end that cannot be asked is sent the code again: twelve breaks left nothing to the one send that waits."""
    config = DeliveryConfig(answer_wait_ms=60_000, attempts_max=2)
    work = OwedDelivery(config)
    work.head_end.can_be_asked = False
    async with work.owed(attempts=0):
        for _ in range(5):
            await _cut_short(work)
        work.config = replace(config, answer_wait_ms=50)
        first, delivery = await work.attempt()
        assert (type(first), delivery.state, delivery.attempts) == (Later, DeliveryState.UNKNOWN, 6)
        work.stored = await work.read()
        _, delivery = await work.attempt()
    assert (delivery.state, delivery.attempts) == (DeliveryState.ENTER_BY_HAND, 7), "the control: two had their time"


@pytest.mark.parametrize("attempts_max", [1, 9], ids=["sent often enough", "not so often"])
async def test_a_code_on_its_way_behind_a_stream_that_breaks_for_ever_is_given_up_in_time(attempts_max: int) -> None:
    """By the ledger's time: that a break cut the wait short says nothing of the number of sends."""
    work = OwedDelivery(DeliveryConfig(answer_wait_ms=60_000, attempts_max=attempts_max))
    work.head_end.knows = MessageState.IN_FLIGHT
    async with work.owed(attempts=1) as stored:
        end, delivery = await _cut_short(work)
        assert (type(end), delivery.owed) == (Later, True)
        work.node.clock.advance(_GIVE_UP_S)
        work.outbox = noting = Noting(work)  # type: ignore[assignment]
        _, delivery = await _cut_short(work)
    assert (work.head_end.sent, delivery.state) == ([], DeliveryState.ENTER_BY_HAND)
    queued_at = stored.vend.delivery.queued_at
    assert queued_at is not None
    assert noting.changes[-1].not_before == ms_of(queued_at + timedelta(seconds=work.config.give_up_after_s))


async def test_a_code_that_may_not_be_sent_any_more_holds_no_newer_one_behind_a_stream_that_breaks() -> None:
    work = OwedDelivery(DeliveryConfig(answer_wait_ms=60_000))
    work.head_end.knows = MessageState.IN_FLIGHT
    async with work.owed(attempts=1):
        await work.change_of_supplier()
        end, delivery = await _cut_short(work)
    assert (type(end), delivery.owed, work.head_end.sent) == (Aside, True, [])


@pytest.mark.parametrize("attempts", [0, 1, 2])
async def test_only_the_refusal_of_a_first_send_ends_the_wait(attempts: int) -> None:
    """After several sends it may be the answer to an earlier one, and the credit of the last is still to come."""
    work = OwedDelivery(DeliveryConfig(answer_wait_ms=60_000, explain_wait_ms=60_000, attempts_max=9))
    work.head_end.can_be_asked = False
    async with work.owed(attempts=attempts) as stored:
        task = asyncio.get_running_loop().create_task(work.attempt())
        await work.listening()
        named = (await work.read()).vend.message_id
        work.mailbox.put(Received(HEAD_END, Answer(message_id=named, kind=AnswerKind.MAX_BALANCE)))
        work.mailbox.put(Received(HEAD_END, Answer(message_id=named, kind=AnswerKind.APPLIED)))
        _, delivery = await task
    assert stored.vend.sale.amount
    assert delivery.state is (DeliveryState.APPLIED if attempts else DeliveryState.REFUSED)


@pytest.mark.parametrize("late", [False, True], ids=["at once", "after the time for an answer"])
async def test_a_refusal_after_a_break_leaves_the_last_of_several_sends_time_to_credit(late: bool) -> None:
    """It came between two attempts, and ended the delivery as REFUSED while the last send was on its way."""
    work = OwedDelivery(DeliveryConfig(answer_wait_ms=60_000, explain_wait_ms=60_000))
    work.head_end.can_be_asked = False
    async with work.owed(attempts=1) as stored:
        await _cut_short(work)
        named = stored.vend.message_id
        work.mailbox.put(told(Answer(message_id=named, kind=AnswerKind.MAX_BALANCE)))
        work.node.clock.advance(60 if late else 59)
        task = asyncio.get_running_loop().create_task(work.attempt())
        if not late:
            await work.listening()
            work.mailbox.put(told(Answer(message_id=named, kind=AnswerKind.APPLIED)))
        _, delivery = await task
    assert (len(work.head_end.sent), delivery.attempts) == (1, 2)
    assert delivery.state is (DeliveryState.REFUSED if late else DeliveryState.APPLIED)


class Noting:
    """An outbox that keeps what is asked of it."""

    def __init__(self, work: OwedDelivery) -> None:
        self._inner = work.outbox
        self.changes: list[DeliveryChange] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    async def write(self, changes: Sequence[DeliveryChange]) -> Sequence[WriteOutcome]:
        self.changes += changes
        return await self._inner.write(changes)


async def test_what_becomes_somebodys_task_by_the_time_is_bound_to_the_time_of_the_ledger() -> None:
    """A case cannot be taken back: no clock of one node alone opens it."""
    work = OwedDelivery()
    async with work.owed(attempts=1) as stored:
        await work.change_of_supplier()
        work.node.clock.advance(_GIVE_UP_S)
        work.outbox = noting = Noting(work)  # type: ignore[assignment]
        _, delivery = await work.attempt()
    assert delivery.state is DeliveryState.NEEDS_CHECK
    queued_at = stored.vend.delivery.queued_at
    assert queued_at is not None
    assert noting.changes[-1].not_before == ms_of(queued_at + timedelta(seconds=work.config.give_up_after_s))
