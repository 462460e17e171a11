"""What is urgent works at once, although a change waits for its instant; over the fake and over a real etcd."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest

from core.credit.goodwill_credit import CreditQuery
from core.domain.effective_dated import Ms, ms_of
from core.domain.errors import BadField, NothingToEnd, NotYours, RecordExists, RoleNotAllowed, UtrnError
from core.domain.goodwill_credit import CreditDay, CreditReason, CreditRequest, CreditState, day_of
from core.domain.meter import (
    Custody,
    Meter,
    MeterCapabilities,
    MeterId,
    OriginatorId,
    Pan,
    PanForm,
    PanRecord,
    PanStatus,
    PaymentMode,
)
from core.domain.money import Pence
from core.domain.participant import Participant, ParticipantId, ParticipantStatus, Profile, Role, SellingModel
from core.domain.registration_change import ChangeKind, RegistrationChange
from core.domain.vend import Channel, Operation, Sale
from core.ports.registry import RegistryWrite
from core.registry.counter_transfer import ExternallyIssued, HandOver
from core.registry.meters import new_meter
from core.registry.participants import NewParticipant
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.market_node import GAINING, GAINING_ID, OPERATOR, MarketNode, as_, at, open_market, put_all
from tests.support.patience import PATIENCE_S
from tests.support.vends import ORIGINATOR, PSP, PSP_ID, SUPPLIER, SUPPLIER_ID, card, meter, new_id, new_meter_id, utrn

LATER_S = 60
NEW_PAN = Pan("9826999999999999999")


@pytest.fixture
def node(store: Store) -> MarketNode:
    return MarketNode(store, HandClock())


@dataclass(frozen=True)
class Sold:
    """What a sale came to: the meter and the supplier it was sold for, or the reason it was refused for."""

    meter_id: MeterId | None = None
    supplier_id: ParticipantId | None = None
    refused: str = ""


async def sold(node: MarketNode, who: Participant, pan: Pan) -> Sold:
    """Sell at a node that has just read the registry, by the same clock."""
    fresh = MarketNode(node.store, node.clock)
    async with fresh.running():
        try:
            vend = (await fresh.sell(who, pan)).stored.vend
        except UtrnError as error:
            return Sold(refused=error.reason)
    return Sold(vend.meter_id, vend.supplier_id)


def to(meter_id: MeterId, supplier_id: ParticipantId = SUPPLIER_ID) -> Sold:
    """What a sale for a meter comes to."""
    return Sold(meter_id, supplier_id)


def later(node: MarketNode) -> Ms:
    """The instant for which the tests record their changes."""
    return Ms(at(node, LATER_S))


def past_it(node: MarketNode) -> None:
    """Let the instant pass."""
    node.clock.advance(LATER_S + 1)


async def card_of(node: MarketNode, pan: Pan) -> PanRecord:
    known = await node.records.read(PanRecord, pan)
    assert known is not None
    return known.record


async def meter_of(node: MarketNode, meter_id: MeterId) -> Meter:
    known = await node.records.read(Meter, meter_id)
    assert known is not None
    return known.record


# Cards.


async def test_a_block_holds_before_and_after_a_repointing_that_waits(node: MarketNode) -> None:
    (first, pan), (second, _) = await open_market(node, 2)
    await node.pans.repoint(as_(SUPPLIER), pan, first, second, later(node))
    assert (await node.pans.block(as_(SUPPLIER), pan, blocked=True)).changed
    assert not (await node.pans.block(as_(SUPPLIER), pan, blocked=True)).changed
    assert (await sold(node, PSP, pan)).refused == "PAN_BLOCKED"
    past_it(node)
    assert (await sold(node, PSP, pan)).refused == "PAN_BLOCKED"
    await node.pans.block(as_(SUPPLIER), pan, blocked=False)
    node.clock.advance(1)
    assert await sold(node, PSP, pan) == to(second), "the re-pointing took place under the block"


async def test_a_block_is_lifted_at_once_and_the_repointing_still_takes_place(node: MarketNode) -> None:
    (first, pan), (second, _) = await open_market(node, 2)
    await node.pans.block(as_(SUPPLIER), pan, blocked=True)
    node.clock.advance(1)
    await node.pans.repoint(as_(SUPPLIER), pan, first, second, later(node))
    await node.pans.block(as_(SUPPLIER), pan, blocked=False)
    node.clock.advance(1)
    assert await sold(node, PSP, pan) == to(first)
    past_it(node)
    assert await sold(node, PSP, pan) == to(second)


async def test_the_losing_suppliers_block_of_a_card_that_will_be_adopted_holds_on_both_sides(node: MarketNode) -> None:
    ((meter_id, pan),) = await open_market(node)
    await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, later(node))
    await node.pans.repoint(as_(OPERATOR), pan, meter_id, meter_id, later(node))
    await node.pans.block(as_(SUPPLIER), pan, blocked=True)
    assert (await sold(node, SUPPLIER, pan)).refused == "PAN_BLOCKED"
    past_it(node)
    assert (await sold(node, GAINING, pan)).refused == "PAN_BLOCKED", "who found it does not buy with it after all"
    with pytest.raises(NotYours):
        await node.pans.block(as_(SUPPLIER), pan, blocked=False)
    await node.pans.block(as_(GAINING), pan, blocked=False)
    node.clock.advance(1)
    assert await sold(node, GAINING, pan) == to(meter_id, GAINING_ID)


async def test_a_lost_card_is_replaced_while_a_repointing_waits_and_the_new_one_stands_for_both(
    node: MarketNode,
) -> None:
    (first, lost), (second, _) = await open_market(node, 2)
    await node.pans.repoint(as_(SUPPLIER), lost, first, second, later(node))
    await node.pans.replace_lost(as_(SUPPLIER), lost, NEW_PAN, PanForm.PLASTIC)
    node.clock.advance(1)
    assert [await sold(node, PSP, pan) for pan in (lost, NEW_PAN)] == [Sold(refused="PAN_BLOCKED"), to(first)]
    past_it(node)
    assert [await sold(node, PSP, pan) for pan in (lost, NEW_PAN)] == [Sold(refused="PAN_BLOCKED"), to(second)]


async def test_a_card_given_by_a_node_whose_clock_is_ahead_is_replaced_at_once_by_one_behind(node: MarketNode) -> None:
    ((meter_id, _),) = await open_market(node)
    given = Pan("9826888888888888888")
    node.clock.advance(2)
    await node.pans.give(as_(SUPPLIER), given, PanForm.PLASTIC, meter_id, None)
    node.clock.advance(-2)
    assert (await node.pans.replace_lost(as_(SUPPLIER), given, NEW_PAN, PanForm.PLASTIC)).changed
    node.clock.advance(2.001)
    assert [await sold(node, PSP, pan) for pan in (given, NEW_PAN)] == [Sold(refused="PAN_BLOCKED"), to(meter_id)]


async def test_repointing_a_blocked_card_keeps_the_block(node: MarketNode) -> None:
    (first, pan), (second, _) = await open_market(node, 2)
    await node.pans.block(as_(SUPPLIER), pan, blocked=True)
    node.clock.advance(1)
    await node.pans.repoint(as_(SUPPLIER), pan, first, second, None)
    node.clock.advance(1)
    assert (await sold(node, PSP, pan)).refused == "PAN_BLOCKED"
    assert [period.value.status for period in (await card_of(node, pan)).uses.periods] == [
        PanStatus.ACTIVE, PanStatus.BLOCKED, PanStatus.BLOCKED,
    ]  # fmt: skip
    await node.pans.block(as_(SUPPLIER), pan, blocked=False)
    node.clock.advance(1)
    assert await sold(node, PSP, pan) == to(second)


async def test_what_a_card_was_going_to_stand_for_can_be_cancelled(node: MarketNode) -> None:
    (first, pan), (second, _) = await open_market(node, 2)
    await node.pans.repoint(as_(SUPPLIER), pan, first, second, later(node))
    with pytest.raises(NotYours):
        await node.pans.cancel(as_(GAINING), pan)
    assert (await node.pans.cancel(as_(SUPPLIER), pan)).changed
    with pytest.raises(NothingToEnd):
        await node.pans.cancel(as_(SUPPLIER), pan)
    past_it(node)
    assert await sold(node, PSP, pan) == to(first)


async def test_a_card_given_before_a_recorded_change_of_tenancy_is_the_present_tenants(node: MarketNode) -> None:
    ((meter_id, _),) = await open_market(node)
    theirs = Pan("9826888888888888888")
    await node.meters.change_tenant(as_(SUPPLIER), meter_id, later(node), 1)
    await node.pans.give(as_(SUPPLIER), NEW_PAN, PanForm.APP, meter_id, None)
    await node.pans.give(as_(SUPPLIER), theirs, PanForm.APP, meter_id, later(node))
    node.clock.advance(1)
    assert [await sold(node, PSP, pan) for pan in (NEW_PAN, theirs)] == [to(meter_id), Sold(refused="PAN_UNKNOWN")]
    past_it(node)
    assert [await sold(node, PSP, pan) for pan in (NEW_PAN, theirs)] == [Sold(refused="PAN_NOT_CURRENT"), to(meter_id)]


# Settings, and who spends the counters.


async def test_settings_changed_at_once_stay_changed_when_a_change_of_tenancy_takes_place(node: MarketNode) -> None:
    ((meter_id, pan),) = await open_market(node)
    theirs = Pan("9826888888888888888")
    await node.meters.change_tenant(as_(SUPPLIER), meter_id, later(node), 1)
    await node.pans.give(as_(SUPPLIER), theirs, PanForm.APP, meter_id, later(node))
    await node.meters.change(as_(SUPPLIER), meter_id, lambda one: replace(one, max_credit_pence=500), None)
    node.clock.advance(1)
    assert (await sold(node, PSP, pan)).refused == "ABOVE_MAX_CREDIT"
    await node.meters.change(
        as_(SUPPLIER), meter_id, lambda one: replace(one, max_credit_pence=0, payment_mode=PaymentMode.CREDIT), None
    )
    node.clock.advance(1)
    assert (await sold(node, PSP, pan)).refused == "METER_IN_CREDIT_MODE"
    past_it(node)
    assert (await sold(node, PSP, theirs)).refused == "METER_IN_CREDIT_MODE"
    assert (await sold(node, PSP, pan)).refused == "PAN_NOT_CURRENT", "and the tenancy changed at its instant"
    notes, _ = await node.view.changes(as_(SUPPLIER), SUPPLIER_ID)
    assert [note.kinds for note in notes] == [(ChangeKind.PAYMENT_MODE,), (ChangeKind.TENANCY,)]


def _out(meter_id: MeterId, custody: Custody, before: Custody = Custody.CENTRAL) -> HandOver:
    smso = Custody.SMSO in (custody, before)
    return HandOver(
        meter_id=meter_id, custody_before=before, custody=custody,
        settings=(lambda one: replace(one, enrolled=custody is not Custody.SMSO)) if smso else None,
    )  # fmt: skip


async def test_a_hand_over_to_the_supplier_leaves_the_gaining_suppliers_custody_alone(node: MarketNode) -> None:
    ((meter_id, pan),) = await open_market(node)
    await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, later(node))
    await node.pans.give(as_(GAINING), NEW_PAN, PanForm.VIRTUAL, meter_id, later(node))
    assert (await node.hand_over(as_(SUPPLIER), _out(meter_id, Custody.SUPPLIER))).changed.written.changed
    node.clock.advance(1)
    assert (await sold(node, PSP, pan)).refused == "COUNTER_ELSEWHERE"
    past_it(node)
    assert await sold(node, GAINING, NEW_PAN) == to(meter_id, GAINING_ID), "its counters are this service's"
    (first, second), _ = await node.view.changes(as_(SUPPLIER), SUPPLIER_ID)
    assert [first.kinds, set(second.kinds)] == [(ChangeKind.CUSTODY,), {ChangeKind.SUPPLIER, ChangeKind.CUSTODY}]


async def test_a_hand_over_to_an_smso_takes_the_change_that_waits_along(node: MarketNode) -> None:
    ((meter_id, pan),) = await open_market(node)
    await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, later(node))
    await node.pans.give(as_(GAINING), NEW_PAN, PanForm.VIRTUAL, meter_id, later(node))
    await node.hand_over(as_(OPERATOR), _out(meter_id, Custody.SMSO))
    node.clock.advance(1)
    assert (await sold(node, PSP, pan)).refused == "METER_NOT_ENROLLED"
    past_it(node)
    assert (await sold(node, GAINING, NEW_PAN)).refused == "METER_NOT_ENROLLED"
    custodies = [period.value.custody for period in (await meter_of(node, meter_id)).registrations.periods]
    assert custodies == [Custody.CENTRAL, Custody.SMSO, Custody.SMSO]


async def test_a_meter_at_an_smso_changes_supplier_there_and_can_be_enrolled_after(node: MarketNode) -> None:
    ((meter_id, _),) = await open_market(node)
    await node.hand_over(as_(OPERATOR), _out(meter_id, Custody.SMSO))
    node.clock.advance(1)
    await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, None)
    node.clock.advance(1)
    await node.pans.give(as_(GAINING), NEW_PAN, PanForm.VIRTUAL, meter_id, None)
    node.clock.advance(1)
    assert (await meter_of(node, meter_id)).registrations.periods[-1].value.custody is Custody.SMSO
    assert (await sold(node, GAINING, NEW_PAN)).refused == "METER_NOT_ENROLLED"
    enrol = replace(_out(meter_id, Custody.CENTRAL, Custody.SMSO), last_issued=12, highest_applied=12)
    assert (await node.hand_over(as_(OPERATOR), enrol)).changed.written.changed
    node.clock.advance(1)
    assert await sold(node, GAINING, NEW_PAN) == to(meter_id, GAINING_ID)
    key = GAINING.supplier_key
    assert key is not None
    sequence = await node.records.sequence(OriginatorId(key.originator_id), meter_id)
    assert sequence.last_issued == 13, "the gaining supplier's sequence goes on where the SMSO left it"
    assert (await node.records.sequence(ORIGINATOR, meter_id)).last_issued == 0


# Profiles and participants.


async def test_a_profile_that_waits_can_be_cancelled_and_one_chosen_at_once_holds(node: MarketNode) -> None:
    ((meter_id, pan),) = await open_market(node)
    off = Profile(selling_model=SellingModel.SUPPLIER_ONLY)
    await node.parties.set_profile(as_(SUPPLIER), SUPPLIER_ID, off, later(node))
    with pytest.raises(NotYours):
        await node.parties.cancel_profile(as_(GAINING), SUPPLIER_ID)
    assert (await node.parties.cancel_profile(as_(SUPPLIER), SUPPLIER_ID)).changed
    with pytest.raises(NothingToEnd):
        await node.parties.cancel_profile(as_(SUPPLIER), SUPPLIER_ID)
    past_it(node)
    assert await sold(node, PSP, pan) == to(meter_id)
    await node.parties.set_profile(as_(SUPPLIER), SUPPLIER_ID, off, None)
    node.clock.advance(1)
    assert (await sold(node, PSP, pan)).refused == "NOT_APPOINTED"


async def test_whoever_leaves_gives_its_certificates_up_and_another_is_known_by_them(node: MarketNode) -> None:
    await open_market(node)
    shared = "spiffe://utrn/participant/psp-first"
    first = NewParticipant(participant_id=ParticipantId("psp-first"), role=Role.PSP, name="First", identities=(shared,))
    second = replace(first, participant_id=ParticipantId("psp-second"), name="Second")
    async with node.running():
        await node.parties.add(as_(OPERATOR), first)
        with pytest.raises(RecordExists):
            await node.parties.add(as_(OPERATOR), second)
        await node.parties.set_status(as_(OPERATOR), first.participant_id, ParticipantStatus.LEFT)
        assert (await node.parties.add(as_(OPERATOR), second)).changed
        await _heard(node, second.participant_id)
        _is_known_by(node, shared, second.participant_id)
    # And at a node that starts now, and reads them in the order of their names.
    fresh = MarketNode(node.store, node.clock)
    async with fresh.running():
        _is_known_by(fresh, shared, second.participant_id)
    left = await node.records.read(Participant, first.participant_id)
    assert left is not None
    assert [period.value.identities for period in left.record.identity_history.periods] == [(shared,)], (
        "what it had is history"
    )


async def _heard(node: MarketNode, participant_id: ParticipantId) -> None:
    """Return when the copy knows a participant."""
    async with asyncio.timeout(PATIENCE_S):
        while node.registry.participant(participant_id) is None:  # noqa: ASYNC110  # the copy is asked
            await asyncio.sleep(0.001)


def _is_known_by(node: MarketNode, identity: str, participant_id: ParticipantId) -> None:
    found = node.registry.caller(identity)
    assert found is not None
    assert found.participant_id == participant_id


# Codes that are handed over.


def _sold_elsewhere(node: MarketNode, pan: Pan, counter: int, **sale: Any) -> ExternallyIssued:
    return ExternallyIssued(
        sale=Sale(
            **{
                "participant_id": PSP_ID, "transaction_id": new_id(node.clock.now()), "pan": pan,
                "operation": Operation.EXTERNALLY_ISSUED, "amount": Pence(1000), "channel": Channel.ONLINE,
                "code": (utrn(counter), counter), **sale,
            }
        ),
        issued_at=node.clock.now(),
        deliver=True,
    )  # fmt: skip


# Told: last_issued 40, highest_applied 30.
@pytest.mark.parametrize(
    ("counters", "custody", "field"),
    [
        ([41], Custody.CENTRAL, "codes.utrn_counter"),
        ([30], Custody.CENTRAL, "codes.utrn_counter"),
        ([1], Custody.CENTRAL, "codes.utrn_counter"),
        ([31, 35, 41], Custody.CENTRAL, "codes.utrn_counter"),
        ([33, 33], Custody.CENTRAL, "codes"),
        ([33], Custody.SUPPLIER, "codes"),
    ],
)
async def test_codes_that_cannot_be_are_not_handed_over_and_nothing_is_written(
    node: MarketNode, counters: Sequence[int], custody: Custody, field: str
) -> None:
    ((meter_id, pan),) = await open_market(node)
    await node.hand_over(as_(OPERATOR), _out(meter_id, Custody.SMSO))
    node.clock.advance(1)
    codes = tuple(_sold_elsewhere(node, pan, counter) for counter in counters)
    await _refused_and_nothing_written(node, meter_id, custody, codes, field)


async def test_one_sale_is_handed_over_once(node: MarketNode) -> None:
    ((meter_id, pan),) = await open_market(node)
    await node.hand_over(as_(OPERATOR), _out(meter_id, Custody.SMSO))
    node.clock.advance(1)
    twice = new_id(node.clock.now())
    codes = tuple(_sold_elsewhere(node, pan, counter, transaction_id=twice) for counter in (33, 34))
    await _refused_and_nothing_written(node, meter_id, Custody.CENTRAL, codes, "codes")


async def _refused_and_nothing_written(
    node: MarketNode, meter_id: MeterId, custody: Custody, codes: tuple[ExternallyIssued, ...], field: str
) -> None:
    before = await node.records.read(Meter, meter_id)
    enrol = replace(_out(meter_id, custody, Custody.SMSO), last_issued=40, highest_applied=30, codes=codes)
    with pytest.raises(BadField) as refused:
        await node.hand_over(as_(OPERATOR), enrol)
    assert refused.value.field == field
    assert await node.records.read(Meter, meter_id) == before
    assert (await node.records.sequence(ORIGINATOR, meter_id)).revision == 0
    assert await node.records.owed(meter_id) == []
    for code in codes:
        assert await node.ledger.find(PSP_ID, code.sale.transaction_id) is None


async def test_codes_within_what_is_told_are_handed_over(node: MarketNode) -> None:
    """The control of the table above: its meter, its counters told, and codes at both ends."""
    ((meter_id, pan),) = await open_market(node)
    await node.hand_over(as_(OPERATOR), _out(meter_id, Custody.SMSO))
    node.clock.advance(1)
    codes = tuple(_sold_elsewhere(node, pan, counter) for counter in (31, 40))
    enrol = replace(_out(meter_id, Custody.CENTRAL, Custody.SMSO), last_issued=40, highest_applied=30, codes=codes)
    assert (await node.hand_over(as_(OPERATOR), enrol)).changed.written.changed
    assert [one.counter for one in await node.records.owed(meter_id)] == [31, 40]


# One change, one note.


@pytest.mark.parametrize("fast_first", [True, False])
async def test_two_changes_at_nodes_whose_clocks_are_apart_each_have_a_note_of_their_own(
    node: MarketNode, *, fast_first: bool
) -> None:
    ((meter_id, _),) = await open_market(node)
    slow = MarketNode(node.store, HandClock(node.clock.now() - timedelta(milliseconds=40)))
    one, other = (node, slow) if fast_first else (slow, node)
    await one.meters.change_tenant(as_(SUPPLIER), meter_id, None, 1)
    await other.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, None)
    await one.meters.change_tenant(as_(GAINING), meter_id, None, 2)
    told = [
        note for supplier_id in (SUPPLIER_ID, GAINING_ID)
        for note in (await node.view.changes(as_(OPERATOR), supplier_id))[0]
    ]  # fmt: skip
    assert [note.kinds for note in told] == [(ChangeKind.TENANCY,), (ChangeKind.SUPPLIER,), (ChangeKind.TENANCY,)]
    assert [note.responsible for note in told] == [SUPPLIER_ID, SUPPLIER_ID, GAINING_ID]
    instants = [note.at for note in told]
    assert instants == sorted(set(instants)), "each at an instant of its own, in the order in which they were asked for"
    meter = await meter_of(node, meter_id)
    assert meter.effective_through == instants[-1]


# Lists that go on.


def _credit(node: MarketNode, number: int, state: CreditState) -> CreditRequest:
    asked_at = ms_of(node.clock.now() + timedelta(seconds=number))
    approved = state is CreditState.APPROVED
    return CreditRequest(
        supplier_id=GAINING_ID, transaction_id=new_id(node.clock.now() + timedelta(seconds=number)), pan=NEW_PAN,
        amount=Pence(100), reason=CreditReason.EMERGENCY, note="", asked_by=GAINING.identities[0], asked_at=asked_at,
        state=state, decided_by=GAINING.identities[1] if approved else "", decided_at=asked_at if approved else None,
        day=day_of(asked_at) if approved else "",
    )  # fmt: skip


async def test_credit_is_reported_page_by_page(node: MarketNode) -> None:
    """More than two pages of one supplier: some of the day, some of the day before, some that wait since."""
    await open_market(node)
    yesterday, today = (day_of(Ms(at(node, shift))) for shift in (-86_400, 0))
    every = [_credit(node, number - 86_400, CreditState.APPROVED) for number in range(700)]
    every += [_credit(node, number - 80_000, CreditState.WAITING) for number in range(500)]
    every += [_credit(node, number, CreditState.APPROVED) for number in range(900)]
    every += [_credit(node, number + 1000, CreditState.WAITING) for number in range(400)]
    for start in range(0, len(every), 100):
        await node.records.write(RegistryWrite(expect=[], put=every[start : start + 100]))
    totals = [CreditDay(supplier_id=GAINING_ID, day=yesterday, count=700, total_pence=70_000)]
    totals.append(CreditDay(supplier_id=GAINING_ID, day=today, count=900, total_pence=90_000))
    await node.records.write(RegistryWrite(expect=[], put=totals))
    node.clock.advance(3600)
    for asked, wanted, total in (
        (CreditQuery(), every[1200:], 900),
        (CreditQuery(day=today), every[1200:], 900),
        (CreditQuery(day=yesterday), every[:1200], 700),
        (CreditQuery(day="2026-01-01"), [], 0),
        (CreditQuery(waiting_only=True), [one for one in every if one.state is CreditState.WAITING], 900),
    ):
        told: list[CreditRequest] = []
        pages = 0
        query = asked
        while True:
            report = await node.credit.report(as_(GAINING), GAINING_ID, query)
            assert report.total.count == total, "the totals are those of the day, on every page"
            told += report.requests
            pages += 1
            if not report.next_key:
                break
            query = replace(query, after=report.next_key)
        assert told == wanted, asked
        assert pages > 1 or not wanted


async def test_changes_of_one_millisecond_are_paged_without_one_lost_or_told_twice(node: MarketNode) -> None:
    await open_market(node)
    instant = Ms(at(node, 0))
    notes = [
        RegistrationChange(
            meter_id=new_meter_id(), at=Ms(instant + number // 10), carried_out_at=instant,
            kinds=(ChangeKind.SUPPLIER,), responsible=SUPPLIER_ID, supplier_after=GAINING_ID, originator_id=None,
            last_issued=0, highest_applied=0, in_flight=(),
        )
        for number in range(30)
    ]  # fmt: skip
    await node.records.write(RegistryWrite(expect=[], put=notes))
    for limit in (1, 7, 10, 30, 31):
        told: list[RegistrationChange] = []
        after = ""
        while True:
            page, after = await node.view.changes(as_(SUPPLIER), SUPPLIER_ID, after=after, limit=limit)
            told += page
            if not after:
                break
            assert len(page) == limit
        assert told == notes
    from_the_second, _ = await node.view.changes(as_(SUPPLIER), SUPPLIER_ID, since=Ms(instant + 1))
    assert from_the_second == notes[10:]


async def _adopted_later(node: MarketNode) -> tuple[MeterId, Pan]:
    ((meter_id, pan),) = await open_market(node)
    await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, later(node))
    await node.pans.repoint(as_(OPERATOR), pan, meter_id, meter_id, later(node))
    return meter_id, pan


async def test_the_gaining_supplier_does_not_lift_the_losing_ones_block_before_the_instant(node: MarketNode) -> None:
    _, pan = await _adopted_later(node)
    await node.pans.block(as_(SUPPLIER), pan, blocked=True)
    node.clock.advance(1)
    with pytest.raises(NotYours):
        await node.pans.block(as_(GAINING), pan, blocked=False)
    assert (await sold(node, SUPPLIER, pan)).refused == "PAN_BLOCKED"


async def test_the_gaining_supplier_does_not_block_or_replace_a_card_before_the_instant(node: MarketNode) -> None:
    meter_id, pan = await _adopted_later(node)
    with pytest.raises(NotYours):
        await node.pans.block(as_(GAINING), pan, blocked=True)
    with pytest.raises(NotYours):
        await node.pans.replace_lost(as_(GAINING), pan, NEW_PAN, PanForm.PLASTIC)
    node.clock.advance(1)
    assert await sold(node, SUPPLIER, pan) == to(meter_id)


async def test_a_change_of_tenancy_that_waits_goes_along_with_an_exchanged_meter(node: MarketNode) -> None:
    ((meter_id, pan),) = await open_market(node)
    await node.meters.change_tenant(as_(SUPPLIER), meter_id, later(node), 1)
    new = meter(new_meter_id())
    assert (await node.exchange(as_(SUPPLIER), meter_id, new, [pan])).changed
    node.clock.advance(1)
    assert await sold(node, PSP, pan) == to(new.meter_id)
    past_it(node)
    assert (await sold(node, PSP, pan)).refused == "PAN_NOT_CURRENT", "the tenant has moved out"


async def test_who_could_sell_looks_at_what_the_model_can(node: MarketNode) -> None:
    await open_market(node)
    one = replace(meter(new_meter_id()), make="Acme", model="X1")
    await put_all(node, [new_meter(one, SUPPLIER, one.effective_through), card(NEW_PAN, one.meter_id)])
    can = MeterCapabilities(schemes=frozenset({"gbcs"}), central_issue=False)
    await node.parties.set_model(as_(OPERATOR), "Acme", "X1", can, None)
    node.clock.advance(1)
    assert (await sold(node, SUPPLIER, NEW_PAN)).refused == "NOT_SUPPORTED_BY_METER"
    found = await node.view.sellers(as_(OPERATOR), None, NEW_PAN, None)
    assert not any(seller.may_issue for seller in found.sellers)


async def test_a_card_of_a_meter_that_is_gone_can_be_pointed_to_another(node: MarketNode) -> None:
    (gone, pan), (other, _) = await open_market(node, 2)
    await node.meters.end(as_(SUPPLIER), gone, None)
    node.clock.advance(1)
    with pytest.raises(NotYours):
        await node.pans.repoint(as_(GAINING), pan, gone, other, None)
    assert (await node.pans.repoint(as_(SUPPLIER), pan, gone, other, None)).changed
    node.clock.advance(1)
    assert await sold(node, PSP, pan) == to(other)


async def test_who_records_an_end_can_cancel_it_and_a_change_of_supplier_is_the_operators(node: MarketNode) -> None:
    ((meter_id, pan),) = await open_market(node)
    await node.meters.end(as_(SUPPLIER), meter_id, later(node))
    assert (await node.meters.cancel(as_(SUPPLIER), meter_id, registration=True)).changed
    await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, later(node))
    for who in (SUPPLIER, GAINING):
        with pytest.raises(RoleNotAllowed):
            await node.meters.cancel(as_(who), meter_id, registration=True)
    assert (await node.meters.cancel(as_(OPERATOR), meter_id, registration=True)).changed
    past_it(node)
    assert await sold(node, PSP, pan) == to(meter_id)
