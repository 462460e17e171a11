"""Rules of the market that are no row of the decision table: terms, two people's credit, what is not sent any more."""

from dataclasses import replace
from typing import Any, cast

import pytest

from cluster.config import EtcdConfig
from cluster.etcd.client import EtcdClient
from core.credit.goodwill_credit import CreditQuery
from core.delivery.attempt import Aside, Done
from core.delivery.guard import DeliveryGuard
from core.domain.appointment import Appointment, Appointments, AppointmentState
from core.domain.authorization import Question, authorize
from core.domain.delivery import DeliveryReason, DeliveryState
from core.domain.effective_dated import Ms, ms_of
from core.domain.errors import (
    AmountOutOfLimits,
    ChangePending,
    DailyLimit,
    RecordChanged,
    RecordExists,
    TwoPeopleNeeded,
    UtrnError,
)
from core.domain.goodwill_credit import (
    CreditDay,
    CreditReason,
    CreditRequest,
    CreditState,
    check_approver,
    check_asked,
    count_in,
)
from core.domain.meter import Custody, Meter, Pan, PanAssignment, PaymentMode, Registration, Settings
from core.domain.money import Pence
from core.domain.participant import CreditRule, Limit, ParticipantId, Profile, SellingModel
from core.domain.vend import Operation
from core.ports.head_end import Answer, AnswerKind, MessageState
from tests.fakes.clock import HandClock
from tests.fakes.etcd import FakeEtcd
from tests.support.etcd import Store
from tests.support.market import MemoryRegistry
from tests.support.market_node import GAINING, GAINING_ID, OPERATOR, MarketNode, as_, put_all
from tests.support.origins import told
from tests.support.owed import OwedDelivery, id_of
from tests.support.vends import (
    APPOINTMENT,
    APPOINTMENTS,
    HEAD_END,
    NOW,
    PSP,
    PSP_ID,
    SUPPLIER,
    SUPPLIER_ID,
    TERMS,
    always,
    card,
    identity_history,
    market,
    meter,
    new_id,
    new_meter_id,
    vend,
)  # fmt: skip

AT = ms_of(NOW)
PAN = Pan("9" * 19)
CONFIG = EtcdConfig(endpoints=("fake:1",))


def _appointment(appointment_id: str = "corner", **changes: Any) -> Appointment:
    return replace(APPOINTMENT, terms=replace(TERMS, appointment_id=appointment_id, **changes))


# What a supplier has signed.


def _of_one_meter(*appointments: Appointment, profile: Profile | None = None) -> MemoryRegistry:
    only = meter(new_meter_id())
    registry = market(only, pans={PAN: only.meter_id})
    registry.appointed[(SUPPLIER_ID, PSP_ID)] = replace(APPOINTMENTS, all=appointments)
    if profile is not None:
        registry.participants[SUPPLIER_ID] = replace(SUPPLIER, profiles=always(profile))
    return registry


def _ruled(
    registry: MemoryRegistry, at: int, *, pence: int = 1000, channel: int = 3, act: Operation = Operation.TOP_UP
) -> str:
    decision = authorize(registry, Question(caller=PSP, operation=act, pan=PAN, amount=pence, channel=channel), Ms(at))
    return decision.refusals[0].reason if decision.refusals else "allowed"


@pytest.mark.parametrize(
    ("terms", "pence", "channel", "at", "wanted"),
    [
        # Channels: none named is all of them; a question without a channel is about none.
        ({}, 1000, 5, 0, "allowed"),
        ({"channels": frozenset({3})}, 1000, 3, 0, "allowed"),
        ({"channels": frozenset({3, 4})}, 1000, 4, 0, "allowed"),
        ({"channels": frozenset({3, 4})}, 1000, 5, 0, "CHANNEL_NOT_ALLOWED"),
        ({"channels": frozenset({3})}, 1000, 0, 0, "allowed"),
        # Amounts: both bounds are inside; a question without an amount is about none.
        ({"min_pence": 500}, 499, 3, 0, "AMOUNT_OUT_OF_LIMITS"),
        ({"min_pence": 500}, 500, 3, 0, "allowed"),
        ({"max_pence": 2000}, 2000, 3, 0, "allowed"),
        ({"max_pence": 2000}, 2001, 3, 0, "AMOUNT_OUT_OF_LIMITS"),
        ({"min_pence": 500, "max_pence": 500}, 500, 3, 0, "allowed"),
        ({"min_pence": 500}, 0, 3, 0, "allowed"),
        # Dates: the first millisecond is inside, the last one named is not.
        ({"since": Ms(AT)}, 1000, 3, -1, "NOT_APPOINTED"),
        ({"since": Ms(AT)}, 1000, 3, 0, "allowed"),
        ({"until": Ms(AT)}, 1000, 3, -1, "allowed"),
        ({"until": Ms(AT)}, 1000, 3, 0, "NOT_APPOINTED"),
        # Whoever is not appointed is told nothing of terms; of two objections the channel's comes first.
        ({"until": Ms(AT), "channels": frozenset({3})}, 1000, 4, 0, "NOT_APPOINTED"),
        ({"max_pence": 500, "channels": frozenset({3})}, 1000, 4, 0, "CHANNEL_NOT_ALLOWED"),
    ],
)
def test_what_an_appointment_covers(terms: dict[str, Any], pence: int, channel: int, at: int, wanted: str) -> None:
    registry = _of_one_meter(_appointment(**terms))
    assert _ruled(registry, AT + at, pence=pence, channel=channel) == wanted


def test_the_end_of_an_appointment_bounds_the_sale() -> None:
    registry = _of_one_meter(_appointment(until=Ms(AT + 7)))
    question = Question(caller=PSP, operation=Operation.TOP_UP, pan=PAN, amount=1000, channel=3)
    permit = authorize(registry, question, AT).permit
    assert permit is not None
    assert permit.until == AT + 7, "a sale that waits past it must not be dated after it"


@pytest.mark.parametrize(
    ("pence", "wanted"),
    [
        (499, "AMOUNT_OUT_OF_LIMITS appointment"), (500, "AMOUNT_OUT_OF_LIMITS supplier"),
        (599, "AMOUNT_OUT_OF_LIMITS supplier"), (600, "allowed"), (700, "allowed"),
        (701, "AMOUNT_OUT_OF_LIMITS supplier"), (801, "AMOUNT_OUT_OF_LIMITS appointment"),
    ],
)  # fmt: skip
def test_of_the_appointment_s_limits_and_the_supplier_s_the_narrower_holds(pence: int, wanted: str) -> None:
    profile = Profile(
        selling_model=SellingModel.PSP_ISSUES_AND_DELIVERS, limits=(Limit(channel=0, min_pence=600, max_pence=700),)
    )
    registry = _of_one_meter(_appointment(min_pence=500, max_pence=800), profile=profile)
    decision = authorize(
        registry, Question(caller=PSP, operation=Operation.TOP_UP, pan=PAN, amount=pence, channel=3), AT
    )
    told = [f"{refusal.reason} {refusal.facts['limit_of']}" for refusal in decision.refusals]
    assert (told or ["allowed"]) == [wanted]


def test_an_appointment_does_not_bind_the_supplier_itself() -> None:
    registry = _of_one_meter(_appointment(channels=frozenset({4}), max_pence=5))
    question = Question(caller=SUPPLIER, operation=Operation.TOP_UP, pan=PAN, amount=1000, channel=3)
    assert not authorize(registry, question, AT).refusals


# One appointment at a time.

_DAY = 86_400_000


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        ((0, 10), (10, 20), False),
        ((10, 20), (0, 10), False),
        ((0, 10), (12, 20), False),
        ((0, 10), (9, 20), True),
        ((9, 20), (0, 10), True),
        ((0, 10), (2, 3), True),
        ((2, 3), (0, 10), True),
        ((0, 10), (0, 10), True),
        ((0, None), (10, 20), True),
        ((0, 10), (5, None), True),
        ((0, 10), (10, None), False),
        ((10, None), (0, None), True),
    ],
)
@pytest.mark.parametrize("state", AppointmentState)
def test_two_appointments_that_have_not_ended_never_overlap(
    first: tuple[int, int | None], second: tuple[int, int | None], refused: bool, state: AppointmentState
) -> None:
    def lasting(name: str, days: tuple[int, int | None]) -> Appointment:
        until = None if days[1] is None else Ms(AT + days[1] * _DAY)
        return _appointment(name, since=Ms(AT + days[0] * _DAY), until=until)

    one = replace(lasting("one", first), states=always(state))
    there, new = Appointments(supplier_id=SUPPLIER_ID, psp_id=PSP_ID).add(one), lasting("two", second)
    if refused and state is not AppointmentState.ENDED:
        with pytest.raises(ChangePending) as told:
            there.add(new)
        assert told.value.facts == {"appointment_id": "one"}
    else:
        assert there.add(new).all == (one, new)


def test_of_two_consecutive_appointments_each_holds_on_its_own_side() -> None:
    registry = _of_one_meter(
        _appointment("first", until=Ms(AT), channels=frozenset({3})),
        _appointment("second", since=Ms(AT), channels=frozenset({4})),
    )
    assert [_ruled(registry, AT - 1, channel=channel) for channel in (3, 4)] == ["allowed", "CHANNEL_NOT_ALLOWED"]
    assert [_ruled(registry, AT, channel=channel) for channel in (3, 4)] == ["CHANNEL_NOT_ALLOWED", "allowed"]


# Credit without payment.

ASKER, COLLEAGUE, THIRD = (f"spiffe://utrn/participant/gaining-{name}" for name in ("one", "two", "three"))
RULE = CreditRule(each_max_pence=1000, day_max_pence=1500)


@pytest.mark.parametrize(
    ("approvers", "approver", "wanted"),
    [
        (set(), COLLEAGUE, "allowed"),
        (set(), ASKER, "TWO_PEOPLE_NEEDED"),
        ({COLLEAGUE}, COLLEAGUE, "allowed"),
        ({COLLEAGUE}, THIRD, "TWO_PEOPLE_NEEDED"),
        ({ASKER}, ASKER, "TWO_PEOPLE_NEEDED"),
        ({ASKER, COLLEAGUE}, ASKER, "TWO_PEOPLE_NEEDED"),
        ({COLLEAGUE}, "", "TWO_PEOPLE_NEEDED"),
    ],
)
def test_who_may_approve(approvers: set[str], approver: str, wanted: str) -> None:
    rule = replace(RULE, approvers=frozenset(approvers))
    assert _came(lambda: check_approver(rule, ASKER, approver)) == wanted


@pytest.mark.parametrize(
    ("each_max", "pence", "wanted"),
    [(1000, 1000, "allowed"), (1000, 1001, "AMOUNT_OUT_OF_LIMITS"), (0, 1, "AMOUNT_OUT_OF_LIMITS")],
)
def test_how_much_may_be_given_at_once(each_max: int, pence: int, wanted: str) -> None:
    assert _came(lambda: check_asked(replace(RULE, each_max_pence=each_max), Pence(pence))) == wanted


@pytest.mark.parametrize(
    ("day_max", "given", "pence", "wanted"),
    [
        (1500, 0, 1500, "allowed"), (1500, 1000, 500, "allowed"), (1500, 1000, 501, "DAILY_LIMIT"),
        (1500, 1500, 1, "DAILY_LIMIT"), (0, 0, 1, "DAILY_LIMIT"),
        # A limit that was lowered below what has been given leaves nothing, and never less than nothing.
        (500, 1000, 1, "DAILY_LIMIT"),
    ],
)  # fmt: skip
def test_how_much_may_be_given_in_a_day(day_max: int, given: int, pence: int, wanted: str) -> None:
    rule, day = replace(RULE, day_max_pence=day_max), CreditDay(supplier_id=GAINING_ID, day="2026-11-24")
    day = replace(day, count=2, total_pence=given)
    if wanted == "allowed":
        assert count_in(rule, day, Pence(pence)) == replace(day, count=3, total_pence=given + pence)
        return
    with pytest.raises(DailyLimit) as refused:
        count_in(rule, day, Pence(pence))
    assert int(refused.value.facts["left_pence"]) == max(0, day_max - given)


def _came(call: Any) -> str:
    try:
        call()
    except UtrnError as error:
        return error.reason
    return "allowed"


async def _credit_market(rule: CreditRule) -> MarketNode:
    """A node with a supplier of three people and one meter with a card."""
    node = MarketNode(Store(cast("EtcdClient", FakeEtcd()), CONFIG), HandClock())
    supplier = replace(
        GAINING,
        identity_history=identity_history("Gaining", "gaining-one", "gaining-two", "gaining-three"),
        profiles=always(Profile(credit=rule)),
    )
    one = replace(meter(new_meter_id()), registrations=always(Registration(supplier_id=GAINING_ID)))
    use = PanAssignment(meter_id=one.meter_id, supplier_id=GAINING_ID)
    await put_all(node, [supplier, OPERATOR, one, replace(card(PAN, one.meter_id), uses=always(use))])
    return node


def _person(number: int) -> Any:
    supplier = replace(
        GAINING, identity_history=identity_history("Gaining", "gaining-one", "gaining-two", "gaining-three")
    )
    return as_(supplier, number)


def _asked(node: MarketNode, pence: int = 1000) -> CreditRequest:
    return CreditRequest(
        supplier_id=GAINING_ID, transaction_id=new_id(node.clock.now()), pan=PAN, amount=Pence(pence),
        reason=CreditReason.GOODWILL, note="", asked_by=ASKER, asked_at=ms_of(node.clock.now()),
    )  # fmt: skip


async def test_a_rejected_request_gives_nothing_counts_nothing_and_stays_rejected() -> None:
    node = await _credit_market(RULE)
    async with node.running():
        asked = await node.credit.ask(_person(0), _asked(node))
        with pytest.raises(TwoPeopleNeeded):
            await node.credit.decide(_person(0), asked.transaction_id, approve=False, time_left_s=None)
        for _ in range(2):
            decided, code = await node.credit.decide(_person(1), asked.transaction_id, approve=False, time_left_s=None)
            assert (decided.state, decided.decided_by, code) == (CreditState.REJECTED, COLLEAGUE, None)
        with pytest.raises(RecordChanged):
            await node.credit.decide(_person(2), asked.transaction_id, approve=True, time_left_s=None)
    assert await node.ledger.find(GAINING_ID, asked.transaction_id) is None
    report = await node.credit.report(_person(0), GAINING_ID, CreditQuery())
    assert (report.total.count, report.total.total_pence) == (0, 0)
    assert [request.state for request in report.requests] == [CreditState.REJECTED], "reported all the same"


async def test_an_approved_request_is_not_rejected_any_more() -> None:
    node = await _credit_market(RULE)
    async with node.running():
        asked = await node.credit.ask(_person(0), _asked(node))
        await node.credit.decide(_person(1), asked.transaction_id, approve=True, time_left_s=None)
        with pytest.raises(RecordChanged):
            await node.credit.decide(_person(2), asked.transaction_id, approve=False, time_left_s=None)


async def test_only_the_profile_s_approvers_approve_and_the_profile_is_that_of_the_decision() -> None:
    node = await _credit_market(replace(RULE, approvers=frozenset({THIRD})))
    async with node.running():
        asked = await node.credit.ask(_person(0), _asked(node))
        with pytest.raises(TwoPeopleNeeded):
            await node.credit.decide(_person(1), asked.transaction_id, approve=True, time_left_s=None)
        await node.parties.set_profile(_person(0), GAINING_ID, Profile(credit=RULE), None)
        node.clock.advance(1)
        _, code = await node.credit.decide(_person(1), asked.transaction_id, approve=True, time_left_s=None)
        assert code is not None


async def test_what_is_above_the_limits_is_refused_when_asked_and_when_decided() -> None:
    node = await _credit_market(RULE)
    async with node.running():
        with pytest.raises(AmountOutOfLimits):
            await node.credit.ask(_person(0), _asked(node, 1001))
        asked = [await node.credit.ask(_person(0), _asked(node, 800)) for _ in range(2)]
        await node.credit.decide(_person(1), asked[0].transaction_id, approve=True, time_left_s=None)
        with pytest.raises(DailyLimit):
            await node.credit.decide(_person(1), asked[1].transaction_id, approve=True, time_left_s=None)
        waiting = await node.credit.report(_person(0), GAINING_ID, CreditQuery(waiting_only=True))
        assert [request.transaction_id for request in waiting.requests] == [asked[1].transaction_id], (
            "nothing is half-decided"
        )
        assert waiting.total.total_pence == 800


async def test_a_request_is_asked_once_and_its_content_is_fixed() -> None:
    node = await _credit_market(RULE)
    async with node.running():
        asked = _asked(node)
        assert await node.credit.ask(_person(0), asked) == asked
        assert await node.credit.ask(_person(0), asked) == asked
        with pytest.raises(RecordExists):
            await node.credit.ask(_person(0), replace(asked, amount=Pence(999)))


# What is not sent any more.


def _sold_meter(**settings: Any) -> Meter:
    return meter(new_meter_id(), settings=Settings(head_end=HEAD_END, **settings))


def _whose(one: Meter, supplier_id: ParticipantId, custody: Custody = Custody.CENTRAL) -> Meter:
    return replace(one, registrations=always(Registration(supplier_id=supplier_id, custody=custody)))


def _changing(one: Meter, since: int) -> Meter:
    registration = Registration(supplier_id=GAINING_ID)
    return replace(one, registrations=one.registrations.change(registration, since=Ms(since), now=AT, by="op"))


LAPSES: list[tuple[str, Meter, int, DeliveryReason | None]] = [
    ("as sold", _sold_meter(), 0, None),
    ("in credit mode since", _sold_meter(payment_mode=PaymentMode.CREDIT), 0, None),
    ("with its supplier's generator since", _whose(_sold_meter(), SUPPLIER_ID, Custody.SUPPLIER), 0, None),
    ("another supplier's", _whose(_sold_meter(), GAINING_ID), 0, DeliveryReason.SUPPLIER_CHANGED),
    ("another tenant's", _sold_meter(tenancy=2), 0, DeliveryReason.TENANCY_CHANGED),
    (
        "another supplier's and tenant's", _whose(_sold_meter(tenancy=2), GAINING_ID), 0,
        DeliveryReason.SUPPLIER_CHANGED,
    ),
    ("with an SMSO", _whose(_sold_meter(), SUPPLIER_ID, Custody.SMSO), 0, DeliveryReason.METER_REMOVED),
    ("with an SMSO and another's", _whose(_sold_meter(), GAINING_ID, Custody.SMSO), 0, DeliveryReason.METER_REMOVED),
    (
        "ended", replace(_sold_meter(), registrations=_sold_meter().registrations.end(at=AT, now=AT)), 0,
        DeliveryReason.METER_REMOVED,
    ),
    # Whatever a clock says: what the ledger has not carried out has not happened.
    ("changing later, not carried out", _changing(_sold_meter(), AT + 50), 49, None),
    ("changing later, carried out", _changing(_sold_meter(), AT + 50), 50, DeliveryReason.SUPPLIER_CHANGED),
]  # fmt: skip


@pytest.mark.parametrize(("one", "done_ms", "wanted"), [row[1:] for row in LAPSES], ids=[row[0] for row in LAPSES])
def test_why_a_code_is_not_sent_any_more(one: Meter, done_ms: int, wanted: DeliveryReason | None) -> None:
    one = replace(one, effective_through=Ms(AT + done_ms))
    registry = MemoryRegistry(meters={one.meter_id: one})
    reason, _ = DeliveryGuard(registry=registry)(vend(1, one.meter_id))
    assert reason is wanted


def test_a_code_is_not_sent_to_a_meter_that_is_not_registered() -> None:
    reason, _ = DeliveryGuard(registry=MemoryRegistry())(vend(1, new_meter_id()))
    assert reason is DeliveryReason.METER_REMOVED


def _answer(work: OwedDelivery, kind: AnswerKind) -> Answer:
    return Answer(message_id=id_of(work.stored.vend), kind=kind)


async def test_a_code_that_has_lapsed_and_was_never_sent_is_refused_with_the_reason() -> None:
    work = OwedDelivery()
    async with work.owed(attempts=0):
        await work.change_of_supplier()
        end, delivery = await work.attempt()
    assert isinstance(end, Done)
    assert (delivery.state, delivery.reason) == (DeliveryState.REFUSED, DeliveryReason.SUPPLIER_CHANGED)
    assert (work.head_end.sent, work.head_end.asked, delivery.attempts) == ([], [], 0)
    assert await work.node.records.owed(work.meter_id) == [], "nothing is owed any more"


KNOWN: list[tuple[str, AnswerKind | MessageState, DeliveryState]] = [
    ("not known", MessageState.NOT_KNOWN, DeliveryState.UNKNOWN),
    ("in flight", MessageState.IN_FLIGHT, DeliveryState.UNKNOWN),
    ("failed for now", AnswerKind.TEMPORARY_FAILURE, DeliveryState.UNKNOWN),
    ("unexplained", AnswerKind.UNEXPLAINED, DeliveryState.UNKNOWN),
    ("applied", AnswerKind.APPLIED, DeliveryState.APPLIED),
    ("credited before", AnswerKind.DUPLICATE, DeliveryState.APPLIED),
    ("full", AnswerKind.MAX_BALANCE, DeliveryState.REFUSED),
]


@pytest.mark.parametrize(("knows", "state"), [row[1:] for row in KNOWN], ids=[row[0] for row in KNOWN])
async def test_a_code_that_has_lapsed_after_it_was_sent_is_asked_about_and_never_sent_again(
    knows: AnswerKind | MessageState, state: DeliveryState
) -> None:
    work = OwedDelivery()
    async with work.owed(attempts=2):
        await work.change_of_supplier()
        work.head_end.knows = knows if isinstance(knows, MessageState) else _answer(work, knows)
        end, delivery = await work.attempt()
    assert (delivery.state, delivery.attempts) == (state, 2)
    assert isinstance(end, Aside if state is DeliveryState.UNKNOWN else Done)
    assert (len(work.head_end.asked), work.head_end.sent) == (1, [])


async def test_late_news_of_a_lapsed_code_is_heard_first() -> None:
    work = OwedDelivery()
    async with work.owed(attempts=1):
        await work.change_of_supplier()
        work.mailbox.put(told(_answer(work, AnswerKind.APPLIED)))
        end, delivery = await work.attempt()
    assert isinstance(end, Done)
    assert (delivery.state, work.head_end.sent) == (DeliveryState.APPLIED, [])


async def test_a_lapsed_code_about_which_nobody_can_be_asked_waits_and_is_given_up_in_the_end() -> None:
    work = OwedDelivery()
    work.head_end.can_be_asked = False
    async with work.owed(attempts=2):
        await work.change_of_supplier()
        end, _ = await work.attempt()
        assert isinstance(end, Aside)
        work.node.clock.advance(86_400)
        end, delivery = await work.attempt()
    assert isinstance(end, Done)
    # No consumer can enter it, the meter has other keys; whether it was credited is its supplier's to find out.
    assert (delivery.state, delivery.reason) == (DeliveryState.NEEDS_CHECK, DeliveryReason.SUPPLIER_CHANGED)
    assert work.head_end.sent == []


async def test_without_a_change_of_hands_the_same_attempts_send() -> None:
    """The positive control: what is not sent above is sent here, under the same message id."""
    for attempts in (0, 2):
        work = OwedDelivery()
        async with work.owed(attempts=attempts):
            await work.attempt()
            assert [one.message_id for one in work.head_end.sent] == [(await work.read()).vend.message_id]


async def test_a_node_whose_copy_has_fallen_behind_sends_nothing() -> None:
    """It believes that the meter is still the old supplier's; the ledger does not."""
    work = OwedDelivery()
    async with work.owed(attempts=0, following=False):
        other = MarketNode(work.node.store, work.node.clock)
        await other.meters.change_supplier(as_(OPERATOR), work.meter_id, SUPPLIER_ID, GAINING_ID, None)
        end, delivery = await work.attempt()
    assert (end, delivery.state, work.head_end.sent) == (None, DeliveryState.QUEUED, [])
