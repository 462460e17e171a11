"""What a meter's *duplicate* is worth, and whose task it is where it is worth nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from utrn.v1 import top_up_service_pb2 as top_up_pb

from core.api.authenticate import Authenticate
from core.api.top_up_servicer import TopUpServicer
from core.delivery import duplicate_proof
from core.delivery.attempt import Done
from core.delivery.duplicate_proof import CustodyOf
from core.domain.delivery import Delivery, DeliveryReason, DeliveryState
from core.domain.effective_dated import Ms, ms_of
from core.domain.errors import BadField, CodeTooFarBehind, NotYours, RecordChanged, RoleNotAllowed
from core.domain.meter import Custody, OriginatorId, Registration
from core.domain.participant import Participant, ParticipantId, Role
from core.domain.utrn import COUNTER_CACHE, Counter, duplicate_proves_credit
from core.domain.vend import Operation
from core.issuing.config import DeliveryConfig
from core.ports.head_end import Answer, AnswerKind
from core.ports.ledger import StoredVend
from tests.support.market import MemoryRegistry
from tests.support.market_node import GAINING_ID, OPERATOR, as_
from tests.support.origins import told
from tests.support.owed import OwedDelivery, id_of
from tests.support.servicers import calling, certificate_of, servicers
from tests.support.vends import NOW, ORIGINATOR, PSP, PSP_ID, SUPPLIER, SUPPLIER_ID, always, meter, new_meter_id

CHECK = (DeliveryState.NEEDS_CHECK, DeliveryReason.DUPLICATE_UNPROVEN)
ALREADY = (DeliveryState.APPLIED, DeliveryReason.ALREADY_CREDITED)


@pytest.mark.parametrize(("newer", "proves"), [(0, True), (COUNTER_CACHE - 1, True), (COUNTER_CACHE, False)])
def test_a_duplicate_proves_as_much_as_the_meter_remembers(newer: int, proves: bool) -> None:
    assert duplicate_proves_credit(Counter(7), 7 + newer) is proves


@asynccontextmanager
async def _answered(newer: int, *kinds: AnswerKind) -> AsyncIterator[tuple[OwedDelivery, Delivery]]:
    """A code with so many newer ones, of which the meter says this; and its delivery after one more attempt."""
    work = OwedDelivery(DeliveryConfig(answer_wait_ms=5_000, explain_wait_ms=20))
    async with work.owed(attempts=1) as stored:
        for _ in range(newer):
            await work.node.sell(PSP, stored.vend.sale.pan)
        for kind in kinds:
            work.mailbox.put(told(Answer(message_id=id_of(stored.vend), kind=kind)))
        end, delivery = await work.attempt()
        assert isinstance(end, Done)
        yield work, delivery


@pytest.mark.parametrize(("newer", "told"), [(COUNTER_CACHE - 1, ALREADY), (COUNTER_CACHE, CHECK)])
async def test_a_duplicate_ends_a_delivery_as_it_proves(newer: int, told: tuple[DeliveryState, DeliveryReason]) -> None:
    async with _answered(newer, AnswerKind.DUPLICATE) as (work, delivery):
        assert (delivery.state, delivery.reason) == told
        assert await work.outbox.case_count() == (told is CHECK)


async def test_without_the_rule_a_code_that_was_never_credited_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicate_proof, "duplicate_proves_credit", lambda *_: True)
    async with _answered(COUNTER_CACHE, AnswerKind.DUPLICATE) as (_, delivery):
        assert (delivery.state, delivery.reason) == ALREADY


async def test_an_answer_that_credits_outweighs_a_duplicate_that_proves_nothing() -> None:
    async with _answered(COUNTER_CACHE, AnswerKind.DUPLICATE, AnswerKind.APPLIED) as (_, delivery):
        assert (delivery.state, delivery.reason) == (DeliveryState.APPLIED, DeliveryReason.CREDITED)


@pytest.mark.parametrize("credited", [True, False])
async def test_a_case_is_listed_for_its_supplier_and_settled_by_it_once(credited: bool) -> None:
    async with _answered(COUNTER_CACHE, AnswerKind.DUPLICATE) as (work, _):
        cases, transaction_id = work.node.cases, work.stored.vend.sale.transaction_id
        (vends, more) = await cases.list_page(as_(SUPPLIER), SUPPLIER_ID, after="", limit=10)
        assert ([vend.sale.transaction_id for vend in vends], more) == ([transaction_id], "")
        with pytest.raises(NotYours):
            await cases.list_page(as_(SUPPLIER), GAINING_ID, after="", limit=10)
        with pytest.raises(RoleNotAllowed):
            await cases.settle(as_(PSP), PSP_ID, transaction_id, credited=credited)
        settled = await cases.settle(as_(SUPPLIER), PSP_ID, transaction_id, credited=credited)
        assert settled.state is (DeliveryState.APPLIED if credited else DeliveryState.REFUSED)
        assert settled.reason is DeliveryReason.CHECKED_BY_SUPPLIER
        assert await cases.settle(as_(SUPPLIER), PSP_ID, transaction_id, credited=credited) == settled
        with pytest.raises(RecordChanged):
            await cases.settle(as_(SUPPLIER), PSP_ID, transaction_id, credited=not credited)
        assert (await cases.list_page(as_(SUPPLIER), SUPPLIER_ID, after="", limit=10))[0] == []


async def test_a_code_whose_answer_could_prove_nothing_is_not_sent_and_its_seller_is_told() -> None:
    work = OwedDelivery()
    async with work.owed(attempts=0) as first:
        pan = first.vend.sale.pan
        old = (await work.node.sell(PSP, pan, operation=Operation.ISSUE)).stored
        near = (await work.node.sell(PSP, pan, operation=Operation.ISSUE)).stored
        for _ in range(COUNTER_CACHE - 1):
            await work.node.sell(PSP, pan)
        with pytest.raises(CodeTooFarBehind) as refused:
            await work.node.send(as_(PSP), PSP_ID, old.vend.sale.transaction_id)
        assert refused.value.facts == {"utrn_counter": "2", "last_issued": "102"}
        found = await work.node.ledger.find(PSP_ID, old.vend.sale.transaction_id)
        assert isinstance(found, StoredVend)
        assert found.vend.delivery.state is DeliveryState.NOT_REQUESTED
        sent = await work.node.send(as_(PSP), PSP_ID, near.vend.sale.transaction_id)
        assert sent.delivery.state is DeliveryState.QUEUED


SEQUENCES = [
    ("ours", ORIGINATOR, [(SUPPLIER_ID, Custody.CENTRAL)], True),
    ("the supplier's own", ORIGINATOR, [(SUPPLIER_ID, Custody.SUPPLIER)], False),
    ("an SMSO's", ORIGINATOR, [(SUPPLIER_ID, Custody.SMSO)], False),
    ("handed to us", ORIGINATOR, [(SUPPLIER_ID, Custody.SUPPLIER), (SUPPLIER_ID, Custody.CENTRAL)], True),
    ("ours before another", ORIGINATOR, [(SUPPLIER_ID, Custody.CENTRAL), (GAINING_ID, Custody.SUPPLIER)], True),
    ("nobody's we know", OriginatorId("00" * 8), [(SUPPLIER_ID, Custody.CENTRAL)], False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("originator", "hands", "ours"), [row[1:] for row in SEQUENCES], ids=[row[0] for row in SEQUENCES]
)
def test_whose_counters_a_sequence_spends(
    originator: OriginatorId, hands: list[tuple[str, Custody]], ours: bool
) -> None:
    one = meter(new_meter_id())
    whose = always(Registration(supplier_id=hands[0][0], custody=hands[0][1]))  # type: ignore[arg-type]
    for step, (supplier, custody) in enumerate(hands[1:], 1):
        since = Ms(ms_of(NOW) - 1000 + step)
        value = Registration(supplier_id=supplier, custody=custody)  # type: ignore[arg-type]
        whose = whose.change(value, since=since, now=since, by="test")
    one = replace(one, registrations=whose, effective_through=ms_of(NOW))
    registry = MemoryRegistry(participants={SUPPLIER_ID: SUPPLIER}, meters={one.meter_id: one})
    found, read_set = CustodyOf(registry=registry)(one.meter_id, originator)
    assert (found, len(read_set)) == (ours, 1)
    assert CustodyOf(registry=registry)(new_meter_id(), originator)[0] is False


HELPDESK = replace(OPERATOR, participant_id=ParticipantId("helpdesk"), role=Role.HELPDESK)


def _servicer(work: OwedDelivery, who: Participant) -> TopUpServicer:
    known = MemoryRegistry(participants={who.participant_id: who})
    return replace(servicers(work.node).top_up, authenticate=Authenticate(known, certificate_of))


@pytest.mark.parametrize(("who", "digits"), [(SUPPLIER, True), (HELPDESK, False), (OPERATOR, False)])
async def test_the_digits_of_an_open_case_are_for_its_supplier_alone(who: Participant, digits: bool) -> None:
    async with _answered(COUNTER_CACHE, AnswerKind.DUPLICATE) as (work, _):
        request = top_up_pb.ListOpenCasesRequest(supplier_id=SUPPLIER_ID)
        (case,) = (await _servicer(work, who).ListOpenCases(request, calling(who))).vends
        assert case.code.transaction_id == work.stored.vend.sale.transaction_id
        assert (work.stored.vend.utrn in str(case), bool(case.code.utrn_printed)) == (digits, digits)


async def test_a_case_is_not_settled_by_a_field_that_was_left_out() -> None:
    async with _answered(COUNTER_CACHE, AnswerKind.DUPLICATE) as (work, _):
        transaction_id = work.stored.vend.sale.transaction_id
        request = top_up_pb.SettleDeliveryRequest(participant_id=PSP_ID, transaction_id=transaction_id)
        with pytest.raises(BadField, match="credited"):
            await _servicer(work, SUPPLIER).SettleDelivery(request, calling(SUPPLIER))
        assert len((await work.node.cases.list_page(as_(SUPPLIER), SUPPLIER_ID, after="", limit=10))[0]) == 1
