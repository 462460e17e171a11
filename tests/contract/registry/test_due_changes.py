"""The market over the fake and over a real etcd: changes of hands, requests racing them, and what a lost fence does."""

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from datetime import timedelta

import pytest

from cluster.etcd import preconditions
from core.credit.goodwill_credit import CreditQuery
from core.domain.effective_dated import Ms, ms_of
from core.domain.errors import (
    ChangePending,
    CounterElsewhere,
    DailyLimit,
    DateInPast,
    NotAppointed,
    PanBlocked,
    PanNotCurrent,
    RecordChanged,
    RecordExists,
    RoleNotAllowed,
    SupplierInactive,
    TwoPeopleNeeded,
    UtrnError,
)
from core.domain.goodwill_credit import CreditReason, CreditRequest, CreditState
from core.domain.meter import Custody, Meter, Pan, PanForm, PanRecord
from core.domain.money import Pence
from core.domain.participant import CreditRule, ParticipantStatus, Profile, Role, SellingModel
from core.domain.record import Kind, Ref
from core.domain.registration_change import ChangeKind, RegistrationChange
from core.domain.vend import Channel, Operation, Sale, Vend
from core.issuing.recent_vends import Issued
from core.ports.ledger import StoredVend
from core.ports.registry import RegistryWrite
from core.registry.counter_transfer import ExternallyIssued, HandOver
from core.registry.participants import NewParticipant
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.market_node import GAINING, GAINING_ID, OPERATOR, MarketNode, as_, at, open_market
from tests.support.patience import PATIENCE_S
from tests.support.vends import ORIGINATOR, PSP, PSP_ID, SUPPLIER, SUPPLIER_ID, new_id, new_meter_id, utrn


@pytest.fixture
def nodes(store: Store) -> tuple[MarketNode, MarketNode]:
    """Two nodes over one etcd; the second one's clock is 40 ms slow."""
    one = MarketNode(store, HandClock())
    two = MarketNode(store, HandClock(one.clock.now() - timedelta(milliseconds=40)))
    return one, two


# The race.


async def outcome(asked: Awaitable[Issued]) -> Issued | UtrnError:
    """Return what a request came to."""
    try:
        return await asked
    except UtrnError as error:
        return error


async def _sell_while_the_supplier_changes(node: MarketNode) -> Issued | UtrnError:
    """Sell at a node whose copy of the registry is that of a moment before the change."""
    ((meter_id, pan),) = await open_market(node)
    other = MarketNode(node.store, node.clock)
    async with node.running(following=False):
        await other.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, None)
        return await outcome(node.sell(PSP, pan))


async def test_an_issue_never_commits_on_a_registration_that_ended_before_it(store: Store) -> None:
    node = MarketNode(store, HandClock())
    assert isinstance(await _sell_while_the_supplier_changes(node), NotAppointed)
    assert [decision.outcome for decision in node.audit_log.decisions] == ["allowed", "NOT_APPOINTED"]


async def test_without_the_compare_it_does(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control: take the fence away, and the old supplier's code is committed after the change."""
    monkeypatch.setattr(preconditions, "authorizing_record_unmoved", lambda _key, _revision: [])
    issued = await _sell_while_the_supplier_changes(MarketNode(store, HandClock()))
    assert isinstance(issued, Issued)
    assert issued.stored.vend.supplier_id == SUPPLIER_ID


@pytest.mark.parametrize("seed", range(4))
async def test_at_the_instant_every_code_is_on_its_own_side(nodes: tuple[MarketNode, MarketNode], seed: int) -> None:
    """Requests of both suppliers race a change recorded for later, at two nodes whose clocks differ by 40 ms."""
    fast, slow = nodes
    ((meter_id, pan),) = await open_market(fast)
    new_pan = Pan("9826999999999999999")
    instant = at(fast, 0.1)
    await fast.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, Ms(instant))
    await fast.pans.give(as_(GAINING), new_pan, PanForm.VIRTUAL, meter_id, Ms(instant))
    issued: list[Issued] = []
    refused: set[str] = set()

    async def ask(node: MarketNode, *, old: bool) -> None:
        came = await outcome(node.sell(PSP, pan) if old else node.sell(GAINING, new_pan))
        if isinstance(came, Issued):
            issued.append(came)
        else:
            refused.add(came.reason)

    async with fast.running(), slow.running():
        for step in range(40):
            async with asyncio.TaskGroup() as tasks:
                for node in nodes:
                    tasks.create_task(ask(node, old=True))
                    tasks.create_task(ask(node, old=False))
                    if (step + seed) % 2:
                        node.clock.advance(0.005)
            if not (step + seed) % 2:
                for node in nodes:
                    node.clock.advance(0.005)
    assert refused <= {"NOT_APPOINTED", "PAN_UNKNOWN", "PAN_NOT_CURRENT", "REGISTRY_MOVED"}
    ((change,), _) = await fast.view.changes(as_(OPERATOR), SUPPLIER_ID)
    turned = await fast.records.read(RegistrationChange, SUPPLIER_ID, f"{change.at:013d}", meter_id)
    assert turned is not None
    vends = [one.stored for one in issued]
    assert {stored.vend.supplier_id for stored in vends} == {SUPPLIER_ID, GAINING_ID}
    for stored in vends:
        before = stored.vend.supplier_id == SUPPLIER_ID
        assert (stored.revision < turned.revision) == before, "the ledger's order decides"
        assert (ms_of(stored.vend.issued_at) < instant) == before, "and no code is dated on the other side"
    assert {stored.vend.originator_id for stored in vends} == {ORIGINATOR, "90b3d51f30010009"}
    for supplier_id in (SUPPLIER_ID, GAINING_ID):
        counters = sorted(stored.vend.counter for stored in vends if stored.vend.supplier_id == supplier_id)
        assert counters == list(range(1, len(counters) + 1)), "each supplier has its own sequence, and it is dense"
    assert change.last_issued == sum(stored.vend.supplier_id == SUPPLIER_ID for stored in vends)


async def test_a_change_of_hands_tells_what_was_under_way_and_for_whom(store: Store) -> None:
    node = MarketNode(store, HandClock())
    ((meter_id, pan),) = await open_market(node)
    async with node.running():
        sold = [(await node.sell(PSP, pan)).stored.vend for _ in range(3)]
        await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, None)
    ((change,), _) = await node.view.changes(as_(SUPPLIER), SUPPLIER_ID)
    assert (change.kinds, change.responsible, change.supplier_after) == (
        (ChangeKind.SUPPLIER,), SUPPLIER_ID, GAINING_ID,
    )  # fmt: skip
    assert (change.last_issued, change.unspent) == (3, 3)
    assert [one.transaction_id for one in change.in_flight] == [vend.sale.transaction_id for vend in sold]
    assert await node.view.changes(as_(GAINING), GAINING_ID) == ([], ""), "they are not the gaining one's to mend"


async def test_a_change_can_be_cancelled_until_its_instant(store: Store) -> None:
    node = MarketNode(store, HandClock())
    ((meter_id, pan),) = await open_market(node)
    since = Ms(at(node, 3600))
    await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, since)
    again = await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, since)
    assert not again.changed
    with pytest.raises((ChangePending, RecordChanged)):
        await node.meters.end(as_(SUPPLIER), meter_id, None)
    await node.meters.cancel(as_(OPERATOR), meter_id, registration=True)
    node.clock.advance(7200)
    async with node.running():
        assert (await node.sell(PSP, pan)).stored.vend.supplier_id == SUPPLIER_ID
    assert node.registry.due_by(Ms(at(node, 10**6))) == [], "its reminder is gone with it"


async def test_a_change_of_tenancy_ends_the_old_card_and_holds_nothing_of_the_new_tenant(store: Store) -> None:
    node = MarketNode(store, HandClock())
    ((meter_id, old),) = await open_market(node)
    new = Pan("9826000000000000777")
    await node.meters.change_tenant(as_(SUPPLIER), meter_id, None, 1)
    assert not (await node.meters.change_tenant(as_(SUPPLIER), meter_id, None, 1)).changed, "one move, one change"
    node.clock.advance(1)
    await node.pans.give(as_(SUPPLIER), new, PanForm.APP, meter_id, None)
    async with node.running():
        with pytest.raises(PanNotCurrent):
            await node.sell(PSP, old)
        assert (await node.sell(PSP, new)).stored.vend.tenancy == 2


async def test_an_exchanged_meter_takes_its_pans_along(store: Store) -> None:
    node = MarketNode(store, HandClock())
    ((meter_id, pan),) = await open_market(node)
    known = await node.records.read(Meter, meter_id)
    assert known is not None
    new = replace(known.record, meter_id=new_meter_id())
    assert (await node.exchange(as_(SUPPLIER), meter_id, new, [pan])).changed
    assert not (await node.exchange(as_(SUPPLIER), meter_id, new, [pan])).changed, "asked again, done once"
    node.clock.advance(1)
    async with node.running():
        assert (await node.sell(PSP, pan)).stored.vend.meter_id == new.meter_id
    ((change,), _) = await node.view.changes(as_(SUPPLIER), SUPPLIER_ID)
    assert (change.meter_id, change.kinds) == (meter_id, (ChangeKind.METER_REMOVED,))


# Hand-overs: one owner of a counter sequence.


async def test_counters_go_to_the_suppliers_generator_and_come_back_without_a_clash(store: Store) -> None:
    node = MarketNode(store, HandClock())
    ((meter_id, pan),) = await open_market(node)
    out = HandOver(meter_id=meter_id, custody_before=Custody.CENTRAL, custody=Custody.SUPPLIER)
    back = HandOver(
        meter_id=meter_id, custody_before=Custody.SUPPLIER, custody=Custody.CENTRAL, last_issued=5, highest_applied=4
    )
    async with node.running():
        assert (await node.sell(PSP, pan)).stored.vend.counter == 1
        told = await node.hand_over(as_(SUPPLIER), out)
        assert told.changed.note is not None
        assert told.changed.note.last_issued == 1, "the supplier's generator goes on from here"
        await node.seen(meter_id, told.changed.written.revision)
        with pytest.raises(CounterElsewhere):
            await node.sell(PSP, pan)
        theirs = Sale(
            participant_id=SUPPLIER_ID, transaction_id=new_id(), operation=Operation.EXTERNALLY_ISSUED, pan=pan,
            amount=Pence(1000), channel=Channel.ONLINE, code=(utrn(2), 2),  # type: ignore[arg-type]
        )  # fmt: skip
        assert (await node.issue(as_(SUPPLIER), theirs, time_left_s=None)).stored.vend.counter == 2
        node.clock.advance(1)
        done = await node.hand_over(as_(SUPPLIER), back)
        assert not (await node.hand_over(as_(SUPPLIER), back)).changed.written.changed
        await node.seen(meter_id, done.changed.written.revision)
        assert (await node.sell(PSP, pan)).stored.vend.counter == 6, "no counter of theirs is used again"


async def test_counters_told_too_low_are_refused(store: Store) -> None:
    node = MarketNode(store, HandClock())
    ((meter_id, pan),) = await open_market(node)
    async with node.running():
        for _ in range(3):
            await node.sell(PSP, pan)
    out = HandOver(meter_id=meter_id, custody_before=Custody.CENTRAL, custody=Custody.SUPPLIER)
    await node.hand_over(as_(SUPPLIER), out)
    node.clock.advance(1)
    back = replace(out, custody_before=Custody.SUPPLIER, custody=Custody.CENTRAL, last_issued=2)
    with pytest.raises(UtrnError, match="spent counters up to 3"):
        await node.hand_over(as_(SUPPLIER), back)


async def test_a_meter_is_enrolled_from_an_smso_with_its_open_sale_and_backed_out_again(store: Store) -> None:
    node = MarketNode(store, HandClock())
    ((meter_id, pan),) = await open_market(node)
    smso = HandOver(
        meter_id=meter_id, custody_before=Custody.CENTRAL, custody=Custody.SMSO,
        settings=lambda one: replace(one, enrolled=False),
    )  # fmt: skip
    await node.hand_over(as_(OPERATOR), smso)
    with pytest.raises(RoleNotAllowed):
        await node.hand_over(as_(SUPPLIER), replace(smso, custody=Custody.CENTRAL, custody_before=Custody.SMSO))
    open_sale = Sale(
        participant_id=PSP_ID, transaction_id=new_id(), operation=Operation.EXTERNALLY_ISSUED, pan=pan,
        amount=Pence(1000), channel=Channel.ONLINE, code=(utrn(40), 40),  # type: ignore[arg-type]
    )  # fmt: skip
    enrol = HandOver(
        meter_id=meter_id, custody_before=Custody.SMSO, custody=Custody.CENTRAL, last_issued=41, highest_applied=39,
        codes=(ExternallyIssued(sale=open_sale, issued_at=node.clock.now(), deliver=True),),
        settings=lambda one: replace(one, enrolled=True),
    )  # fmt: skip
    async with node.running():
        node.clock.advance(1)
        done = await node.hand_over(as_(OPERATOR), enrol)
        await node.seen(meter_id, done.changed.written.revision)
        assert [one.counter for one in await node.records.owed(meter_id)] == [40], (
            "the open sale is delivered from here"
        )
        assert (await node.sell(PSP, pan)).stored.vend.counter == 42
        node.clock.advance(1)
        out = await node.hand_over(as_(OPERATOR), smso)
        assert out.changed.note is not None
        told = (out.changed.note.last_issued, len(out.changed.note.in_flight))
        assert told == (42, 2), "everything the SMSO must know"
        assert sorted(code.counter for code in out.open_codes) == [40, 42], "with the digits of what it is to send now"
        assert {code.utrn for code in out.open_codes} == {vend.utrn for vend in await _vends(node, out.open_codes)}
        again = await node.hand_over(as_(OPERATOR), smso)
        assert (again.changed.written.changed, again.open_codes) == (False, out.open_codes)
        await node.seen(meter_id, out.changed.written.revision)
        with pytest.raises(UtrnError) as refused:
            await node.sell(PSP, pan)
        assert refused.value.reason == "METER_NOT_ENROLLED"


async def _vends(node: MarketNode, codes: tuple[Vend, ...]) -> list[Vend]:
    found = [await node.ledger.find(code.sale.participant_id, code.sale.transaction_id) for code in codes]
    return [one.vend for one in found if isinstance(one, StoredVend)]


# Uniqueness and lost races.


async def test_names_certificates_and_originators_belong_to_one_participant(store: Store) -> None:
    node = MarketNode(store, HandClock())
    first = NewParticipant(participant_id=PSP_ID, role=Role.PSP, name="A", identities=("spiffe://a",))
    assert (await node.parties.add(as_(OPERATOR), first)).changed
    assert not (await node.parties.add(as_(OPERATOR), first)).changed
    with pytest.raises(RecordExists):
        await node.parties.add(as_(OPERATOR), replace(first, name="B"))
    with pytest.raises(RecordExists):
        await node.parties.add(as_(OPERATOR), replace(first, participant_id=GAINING_ID))
    await node.parties.set_identities(as_(OPERATOR), PSP_ID, "A", ("spiffe://b",))
    freed = replace(first, participant_id=GAINING_ID)
    assert (await node.parties.add(as_(OPERATOR), freed)).changed, "a certificate given up can be used by another"
    with pytest.raises(RoleNotAllowed):
        await node.parties.add(as_(SUPPLIER), replace(first, participant_id=GAINING_ID))


async def test_a_pan_moved_twice_in_a_second_from_two_nodes_moves_once(nodes: tuple[MarketNode, MarketNode]) -> None:
    (first, pan), (second, _), (third, _) = await open_market(nodes[0], meters=3)
    moves = await asyncio.gather(  # noqa: TID251  # both outcomes are looked at
        nodes[0].pans.repoint(as_(SUPPLIER), pan, first, second, None),
        nodes[1].pans.repoint(as_(SUPPLIER), pan, first, third, None),
        return_exceptions=True,
    )
    lost = [move for move in moves if isinstance(move, BaseException)]
    assert len(lost) == 1
    assert isinstance(lost[0], RecordChanged)
    known = await nodes[0].records.read(PanRecord, pan)
    assert known is not None
    assert len(known.record.uses.periods) == 2


async def test_a_lost_card_is_replaced_once_and_keeps_its_history(store: Store) -> None:
    node = MarketNode(store, HandClock())
    ((_, lost),) = await open_market(node)
    new, other = Pan("9826000000000000001"), Pan("9826000000000000002")
    await node.pans.replace_lost(as_(SUPPLIER), lost, new, PanForm.VIRTUAL)
    assert not (await node.pans.replace_lost(as_(SUPPLIER), lost, new, PanForm.VIRTUAL)).changed
    with pytest.raises(RecordChanged):
        await node.pans.replace_lost(as_(SUPPLIER), lost, other, PanForm.VIRTUAL)
    node.clock.advance(1)
    async with node.running():
        with pytest.raises(PanBlocked):
            await node.sell(PSP, lost)
        await node.sell(PSP, new)


async def test_an_effective_date_made_by_a_slow_clock_is_named(nodes: tuple[MarketNode, MarketNode]) -> None:
    ((meter_id, _),) = await open_market(nodes[0])
    late = Ms(ms_of(nodes[1].clock.now()))
    with pytest.raises(DateInPast) as refused:
        await nodes[0].meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, late)
    assert set(refused.value.facts) == {"asked_ms", "now_ms"}
    known = await nodes[0].records.read(Meter, meter_id)
    assert known is not None
    assert len(known.record.registrations.periods) == 1, "nothing is half-applied"


# Who could sell, then.


async def test_who_could_sell_at_an_instant_has_one_answer_for_ever(store: Store) -> None:
    node = MarketNode(store, HandClock())
    ((meter_id, _),) = await open_market(node)
    then = Ms(at(node, 0))
    node.clock.advance(60)
    await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, None)
    node.clock.advance(60)
    was = await node.view.sellers(as_(OPERATOR), meter_id, None, then)
    now = await node.view.sellers(as_(OPERATOR), meter_id, None, None)
    assert [seller.participant_id for seller in was.sellers] == [SUPPLIER_ID, PSP_ID]
    assert [seller.participant_id for seller in now.sellers] == [GAINING_ID]
    with pytest.raises(UtrnError):
        await node.view.sellers(as_(PSP), meter_id, None, None)


# Credit without payment.


def _asked(node: MarketNode, pan: Pan, pence: int) -> CreditRequest:
    return CreditRequest(
        supplier_id=GAINING_ID, transaction_id=new_id(node.clock.now()), pan=pan, amount=Pence(pence),
        reason=CreditReason.EMERGENCY, note="", asked_by=GAINING.identities[0], asked_at=ms_of(node.clock.now()),
    )  # fmt: skip


async def _credit_market(node: MarketNode) -> Pan:
    ((meter_id, _),) = await open_market(node)
    rule = CreditRule(each_max_pence=1000, day_max_pence=1500)
    await node.parties.set_profile(as_(GAINING), GAINING_ID, Profile(credit=rule), None)
    await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, None)
    node.clock.advance(1)
    pan = Pan("9826111111111111111")
    await node.pans.give(as_(GAINING), pan, PanForm.VIRTUAL, meter_id, None)
    node.clock.advance(1)
    return pan


async def test_credit_takes_two_people_and_is_counted_against_the_day(store: Store) -> None:
    node = MarketNode(store, HandClock())
    pan = await _credit_market(node)
    one, two = as_(GAINING, 0), as_(GAINING, 1)
    async with node.running():
        asked = await node.credit.ask(one, _asked(node, pan, 1000))
        with pytest.raises(TwoPeopleNeeded):
            await node.credit.decide(one, asked.transaction_id, approve=True, time_left_s=None)
        _, given = await node.credit.decide(two, asked.transaction_id, approve=True, time_left_s=None)
        assert given is not None
        assert (given.stored.vend.sale.operation, given.stored.vend.sale.channel) == (
            Operation.CREDIT, Channel.NOT_PAID,
        )  # fmt: skip
        # Asking again, by whoever, answers the same code.
        _, again = await node.credit.decide(one, asked.transaction_id, approve=True, time_left_s=None)
        assert again is not None
        assert (again.stored.vend.utrn, again.replayed) == (given.stored.vend.utrn, True)
        more = await node.credit.ask(one, _asked(node, pan, 600))
        with pytest.raises(DailyLimit) as refused:
            await node.credit.decide(two, more.transaction_id, approve=True, time_left_s=None)
        assert refused.value.facts["left_pence"] == "500"
        node.clock.advance(24 * 3600)
        _, tomorrow = await node.credit.decide(two, more.transaction_id, approve=True, time_left_s=None)
        assert tomorrow is not None
    day = (await node.credit.report(one, GAINING_ID, CreditQuery())).total
    assert (day.count, day.total_pence) == (1, 600)


@pytest.mark.parametrize("other_pence", [1000, 600])
async def test_of_two_requests_of_one_id_at_once_one_is_kept(store: Store, other_pence: int) -> None:
    node = MarketNode(store, HandClock())
    pan = await _credit_market(node)
    first = _asked(node, pan, 1000)
    second = replace(first, amount=Pence(other_pence), asked_by=GAINING.identities[1])

    async def ask(number: int, one: CreditRequest) -> CreditRequest | RecordExists:
        try:
            return await node.credit.ask(as_(GAINING, number), one)
        except RecordExists as error:
            return error

    async with node.running(), asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(ask(number, one)) for number, one in enumerate((first, second))]
    known = await node.records.read(CreditRequest, GAINING_ID, first.transaction_id)
    assert known is not None
    came = [task.result() for task in asking]
    assert [isinstance(one, RecordExists) for one in came].count(True) == (0 if other_pence == first.amount else 1)
    assert {one for one in came if isinstance(one, CreditRequest)} == {known.record}


async def test_a_psp_can_never_give_credit(store: Store) -> None:
    node = MarketNode(store, HandClock())
    pan = await _credit_market(node)
    async with node.running():
        with pytest.raises(RoleNotAllowed):
            await node.credit.ask(as_(PSP), replace(_asked(node, pan, 100), supplier_id=PSP_ID))
        with pytest.raises(RoleNotAllowed):
            await node.credit.decide(as_(PSP), new_id(), approve=True, time_left_s=None)


async def _approved(node: MarketNode, asked: CreditRequest) -> bool:
    known = await node.records.read(CreditRequest, GAINING_ID, asked.transaction_id)
    return known is not None and known.record.state is CreditState.APPROVED


async def test_credit_approved_by_a_node_that_died_before_issuing_is_issued_once_by_another(store: Store) -> None:
    node = MarketNode(store, HandClock())
    pan = await _credit_market(node)
    # The line does not run: the node dies between the approval and the commit of the code.
    async with node.running(committing=False), asyncio.TaskGroup() as tasks:
        asked = await node.credit.ask(as_(GAINING, 0), _asked(node, pan, 1000))
        dying = tasks.create_task(
            node.credit.decide(as_(GAINING, 1), asked.transaction_id, approve=True, time_left_s=None)
        )
        async with asyncio.timeout(PATIENCE_S):
            while not await _approved(node, asked):  # noqa: ASYNC110  # the ledger is asked
                await asyncio.sleep(0.001)
        dying.cancel()
    other = MarketNode(store, node.clock)
    async with other.running():
        _, given = await other.credit.decide(as_(GAINING, 1), asked.transaction_id, approve=True, time_left_s=None)
    assert given is not None
    day = (await other.credit.report(as_(GAINING), GAINING_ID, CreditQuery())).total
    assert (day.count, day.total_pence) == (1, 1000), "counted once"


# Suspension, at once.


async def test_a_suspended_supplier_and_a_withdrawn_profile_refuse_at_once(store: Store) -> None:
    node = MarketNode(store, HandClock())
    ((_, pan),) = await open_market(node)
    other = MarketNode(store, node.clock)
    async with node.running(following=False):
        await node.sell(PSP, pan)
        node.clock.advance(1)
        await other.parties.set_profile(
            as_(SUPPLIER), SUPPLIER_ID, Profile(selling_model=SellingModel.SUPPLIER_ONLY), None
        )
        node.clock.advance(1)
        assert isinstance(await outcome(node.sell(PSP, pan)), NotAppointed)
        await node.sell(SUPPLIER, pan)
        await other.parties.set_status(as_(OPERATOR), SUPPLIER_ID, ParticipantStatus.SUSPENDED)
        node.clock.advance(1)
        assert isinstance(await outcome(node.sell(SUPPLIER, pan)), SupplierInactive)


async def test_a_write_on_what_has_moved_writes_nothing(store: Store) -> None:
    node = MarketNode(store, HandClock())
    ((_, pan),) = await open_market(node)
    known = await node.records.read(PanRecord, pan)
    assert known is not None
    ref = Ref(Kind.PAN, pan)
    changed = replace(known.record, form=PanForm.APP)
    assert await node.records.write(RegistryWrite(expect=[(ref, known.revision)], put=[changed])) is not None
    assert await node.records.write(RegistryWrite(expect=[(ref, known.revision)], put=[known.record])) is None
    after = await node.records.read(PanRecord, pan)
    assert after is not None
    assert after.record == changed
