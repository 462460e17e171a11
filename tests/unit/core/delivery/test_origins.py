"""Whose word counts: a head end speaks for the meters registered to it, and for what went out through it."""

from dataclasses import replace

import pytest

from core.delivery.attempt import Done
from core.delivery.origins import ANOTHERS_MESSAGE, ANOTHERS_METER, NEVER_SENT, WRONG_ID, Origins
from core.delivery.outcomes import CREDIT_ADDED_LOCALLY
from core.domain.delivery import DeliveryState
from core.domain.message_id import message_id, new_random_part
from core.domain.vend import Vend
from core.ports.head_end import Alert, Answer, AnswerKind, GivenUp, HeadEndEvent, StreamRestored
from tests.support.market_node import MarketNode, as_
from tests.support.origins import at_head_end, sent, told
from tests.support.owed import OwedDelivery
from tests.support.vends import HEAD_END, NOW, SUPPLIER, new_meter_id, vend

HOSTILE = "another"


def _alert(of: Vend, *, named: bool = True) -> Alert:
    return Alert(
        meter_id=of.meter_id, alert_code=CREDIT_ADDED_LOCALLY, originator_id=of.originator_id if named else None,
        counter=of.counter if named else None,
    )  # fmt: skip


def _applied(of: Vend) -> Answer:
    return Answer(message_id=of.message_id, kind=AnswerKind.APPLIED)


def _guessed(of: Vend) -> Answer:
    guess = message_id(of.originator_id, of.meter_id, of.counter, new_random_part())
    return Answer(message_id=guess, kind=AnswerKind.APPLIED)


@pytest.mark.parametrize("attempts", [0, 1])
@pytest.mark.parametrize("event", [_guessed, _alert], ids=["answer", "alert"])
async def test_a_head_end_closes_no_delivery_of_anothers_meter(attempts: int, event: object) -> None:
    work = OwedDelivery()
    async with work.owed(attempts=attempts) as stored:
        work.mailbox.put(told(event(stored.vend), by=HOSTILE))  # type: ignore[operator]
        _, delivery = await work.attempt()
    assert (len(work.head_end.sent), delivery.state) == (1, DeliveryState.UNKNOWN)
    assert sum(count for (name, _), count in work.set_aside.counts.items() if name == HOSTILE) == 1


async def test_it_would_without_the_look_at_who_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control."""
    monkeypatch.setattr(Origins, "alerts", lambda *_, **__: ())
    work = OwedDelivery()
    async with work.owed(attempts=1) as stored:
        work.mailbox.put(told(_alert(stored.vend), by=HOSTILE))
        end, delivery = await work.attempt()
    assert isinstance(end, Done)
    assert (work.head_end.sent, delivery.state) == ([], DeliveryState.APPLIED)


async def test_an_answer_under_a_guessed_id_moves_nothing() -> None:
    work = OwedDelivery()
    async with work.owed(attempts=1) as stored:
        work.mailbox.put(told(_guessed(stored.vend)))
        _, delivery = await work.attempt()
    assert (len(work.head_end.sent), delivery.state) == (1, DeliveryState.UNKNOWN)
    assert work.set_aside.counts == {(HEAD_END, WRONG_ID): 1}


async def test_the_id_is_the_same_at_every_attempt_and_whoever_takes_over_knows_it() -> None:
    work = OwedDelivery()
    async with work.owed(attempts=0):
        await work.attempt()
        work.stored = await work.read()
        await work.attempt()
    first, second = work.head_end.sent
    assert first.message_id == second.message_id == work.stored.vend.message_id


async def test_an_answer_under_the_id_that_was_sent_ends_the_delivery() -> None:
    """The control of all above."""
    work = OwedDelivery()
    async with work.owed(attempts=1) as stored:
        work.mailbox.put(told(_applied(stored.vend)))
        end, delivery = await work.attempt()
    assert isinstance(end, Done)
    assert (work.head_end.sent, delivery.state) == ([], DeliveryState.APPLIED)


ODD: list[tuple[str, str, bool, str]] = [
    ("never sent", HEAD_END, False, NEVER_SENT),
    ("carried by another", HOSTILE, True, ANOTHERS_MESSAGE),
]


@pytest.mark.parametrize(("by", "was_sent", "why"), [row[1:] for row in ODD], ids=[row[0] for row in ODD])
def test_a_head_end_that_did_not_carry_the_message_answers_nothing(by: str, was_sent: bool, why: str) -> None:
    origins, one = at_head_end(), vend(1, new_meter_id())
    if was_sent:
        one = one.with_delivery(sent(one.delivery, 1))
    assert not origins.answers(by, one.message_id or _guessed(one).message_id, one)
    assert origins.set_aside.counts == {(by, why): 1}


def test_a_head_end_that_carried_the_message_answers_it_wherever_the_meter_is_now() -> None:
    one = vend(1, new_meter_id())
    one = one.with_delivery(sent(one.delivery, 1))
    moved = at_head_end(name="elsewhere")
    assert moved.answers(HEAD_END, one.message_id, one)
    assert moved.alerts(HEAD_END, one, named=True) == ()
    assert moved.alerts(HEAD_END, one, named=False) is None, "an alert without a name may be of any code"


@pytest.mark.parametrize(("name", "believed"), [(HEAD_END, True), (HOSTILE, False)])
async def test_the_last_head_end_of_a_meter_out_of_service_tells_what_it_credited(name: str, believed: bool) -> None:
    """A code may have been keyed in before the meter was taken away, and be heard of after."""
    work = OwedDelivery()
    async with work.owed(attempts=0) as stored:
        ended = await MarketNode(work.node.store, work.node.clock).meters.end(as_(SUPPLIER), work.meter_id, None)
        await work.node.seen(work.meter_id, ended.revision)
        origins = Origins.by(work.meters, work.set_aside)
        assert (origins.alerts(name, stored.vend, named=True) is not None) is believed
        assert (await origins.alerts_surely(name, work.meter_id, None) is not None) is believed


def test_a_delivery_remembers_the_newest_head_ends_that_had_it() -> None:
    delivery = vend(1, new_meter_id()).delivery
    for number in [*range(12), 5]:
        delivery = delivery.send(NOW, 1, head_end=f"head-end-{number}", random_part=f"{number:032x}")
    assert delivery.head_ends == tuple(f"head-end-{number}" for number in (4, 6, 7, 8, 9, 10, 11, 5))
    assert delivery.random_part == "0" * 32, "that of the first send"


async def test_an_alert_of_anothers_meter_moves_nothing() -> None:
    reads = list[str]()

    async def read(meter_id: str) -> None:
        reads.append(meter_id)

    origins = replace(at_head_end(), read_again=read)
    one = vend(1, new_meter_id())
    assert await origins.alerts_surely(HOSTILE, one.meter_id, one) is None
    assert origins.set_aside.counts == {(HOSTILE, ANOTHERS_METER): 1}
    assert reads == [one.meter_id], "the copy may be behind: the ledger was asked"
    assert await origins.alerts_surely(HEAD_END, one.meter_id, one) == ()


@pytest.mark.parametrize(
    "event", [GivenUp(message_id="x", maybe_applied=True), StreamRestored()], ids=["given up", "restored"]
)
async def test_what_another_head_end_tells_hurries_no_delivery(event: HeadEndEvent) -> None:
    """One that flaps would otherwise use up the attempts of the others' deliveries."""
    work = OwedDelivery()
    async with work.owed(attempts=1) as stored:
        work.mailbox.put(told(event, by=HOSTILE))
        work.mailbox.put(told(_applied(stored.vend)))
        _, delivery = await work.attempt()
    assert delivery.state is DeliveryState.APPLIED


def test_no_head_end_pushes_out_what_another_one_told() -> None:
    work = OwedDelivery()
    honest = told(StreamRestored())
    work.mailbox.put(honest)
    for _ in range(10_000):
        work.mailbox.put(told(StreamRestored(), by=HOSTILE))
    assert list(work.mailbox._news).count(honest) == 1
    assert len(work.mailbox._news) == 65
