"""The market where it is thin: what reviews found, over the fake and over a real etcd."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest
from etcdpb import rpc_pb2 as etcd
from utrn.v1 import registry_service_pb2 as pb

from cluster.etcd import ops, preconditions
from cluster.etcd.keys import Keys
from cluster.ledger.outbox import EtcdOutbox
from cluster.membership.placement import shard_of
from cluster.timekeeping.fence import TimeFence
from core.api.registry_servicer import RegistryServicer
from core.delivery.guard import DeliveryGuard
from core.domain.appointment import Appointments, AppointmentState
from core.domain.delivery import DeliveryState
from core.domain.effective_dated import Ms, ms_of
from core.domain.errors import (
    AmountOutOfLimits,
    BadField,
    CallerSuspended,
    ChangePending,
    CounterElsewhere,
    DeliveryChanged,
    HistoryFull,
    NotAppointed,
    NotReady,
    NotYours,
    RecordChanged,
    RegistryMoved,
)
from core.domain.goodwill_credit import CreditReason, CreditRequest
from core.domain.meter import Custody, Meter, MeterCapabilities, Pan, PanForm, PanRecord, PaymentMode, Settings
from core.domain.money import Pence
from core.domain.participant import CreditRule, Participant, ParticipantId, Profile, SellingModel
from core.domain.record import Kind, Ref
from core.domain.registration_change import ChangeKind
from core.domain.vend import Channel, Operation, Sale
from core.ports.ledger import StoredVend
from core.ports.outbox import DeliveryChange
from core.ports.registry import RegistryWrite
from core.registry.counter_transfer import ExternallyIssued, HandOver
from core.registry.due_change_runner import DueChangeRunner
from core.registry.meters import new_meter
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.head_ends import HEAD_END
from tests.support.market_node import GAINING, GAINING_ID, OPERATOR, MarketNode, as_, at, open_market, put_all
from tests.support.origins import RANDOM_PART
from tests.support.patience import PATIENCE_S
from tests.support.vends import (
    APPOINTMENTS,
    PSP,
    PSP_ID,
    SUPPLIER,
    SUPPLIER_ID,
    card,
    meter,
    new_id,
    new_meter_id,
    utrn,
)


@pytest.fixture
def node(store: Store) -> MarketNode:
    return MarketNode(store, HandClock())


# What is stored.


async def test_a_model_of_any_name_can_be_sold_to_and_its_vends_be_read(node: MarketNode) -> None:
    await open_market(node)
    can = MeterCapabilities(schemes=frozenset({"gbcs"}))
    await node.parties.set_model(as_(OPERATOR), "Landis & Gyr", "E470 100%@1", can, None)
    one = replace(meter(new_meter_id()), make="Landis & Gyr", model="E470 100%@1")
    pan = Pan("9826000000000000777")
    await put_all(node, [new_meter(one, SUPPLIER, one.effective_through), card(pan, one.meter_id)])
    async with node.running():
        issued = await node.sell(PSP, pan)
        again = MarketNode(node.store, node.clock)
        async with again.running():
            replayed = await again.sell(PSP, pan, transaction_id=issued.stored.vend.sale.transaction_id)
    assert replayed.stored.vend == issued.stored.vend
    assert Ref(Kind.MODEL, "Landis & Gyr/E470 100%@1") in dict(replayed.stored.vend.authorization.read_set)


async def test_after_a_change_of_supplier_both_sides_may_owe_the_same_counter(node: MarketNode) -> None:
    ((meter_id, pan),) = await open_market(node)
    new_pan = Pan("9826999999999999999")
    async with node.running():
        old = (await node.sell(PSP, pan)).stored
        done = await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, None)
        await node.pans.give(as_(GAINING), new_pan, PanForm.VIRTUAL, meter_id, None)
        await node.seen(meter_id, done.revision)
        async with asyncio.timeout(PATIENCE_S):
            while node.registry.card(new_pan) is None:  # noqa: ASYNC110  # the copy is asked
                await asyncio.sleep(0.001)
        new = (await node.sell(GAINING, new_pan)).stored
    assert (old.vend.counter, new.vend.counter) == (1, 1)
    assert len(await node.records.owed(meter_id)) == 2
    shard, epoch = shard_of(meter_id, node.store.config.shards), await _own(node, meter_id)
    outbox = EtcdOutbox(node.store.client, node.store.config, node.clock)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(outbox.run())
        closed = old.vend.delivery.close(DeliveryState.REFUSED, old.vend.delivery.reason, node.clock.now(), epoch)
        (told,) = await outbox.write([DeliveryChange(shard=shard, epoch=epoch, stored=old, delivery=closed)])
        running.cancel()
    assert isinstance(told, StoredVend)
    (owed,) = await node.records.owed(meter_id)
    assert owed.transaction_id == new.vend.sale.transaction_id, "closing the old one leaves the new one owed"


async def _own(node: MarketNode, meter_id: str) -> int:
    key = Keys(node.store.config.prefix).shard(shard_of(cast("Any", meter_id), node.store.config.shards))
    return (await node.store.client.txn(etcd.TxnRequest(success=[ops.put(key, b"node")]))).header.revision


async def test_a_code_is_not_sent_on_what_a_copy_believed_a_moment_ago(node: MarketNode) -> None:
    """The write before a send compares the meter: a node whose copy has fallen behind sends nothing."""
    ((meter_id, pan),) = await open_market(node)
    async with node.running():
        sold = (await node.sell(PSP, pan)).stored
    lapse = DeliveryGuard(registry=node.registry)
    reason, read_set = lapse(sold.vend)
    assert reason is None
    await node.meters.change_tenant(as_(SUPPLIER), meter_id, None, 1)
    shard, epoch = shard_of(meter_id, node.store.config.shards), await _own(node, meter_id)
    outbox = EtcdOutbox(node.store.client, node.store.config, node.clock)
    sent = sold.vend.delivery.send(node.clock.now(), epoch, head_end=HEAD_END, random_part=RANDOM_PART)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(outbox.run())
        change = DeliveryChange(shard=shard, epoch=epoch, stored=sold, delivery=sent, read_set=read_set)
        (fenced,) = await outbox.write([change])
        (bare,) = await outbox.write([replace(change, read_set=())])
        running.cancel()
    assert isinstance(fenced, DeliveryChanged)
    assert isinstance(bare, StoredVend), "the control: without the compare the code goes to the new tenant's meter"


def test_a_node_that_still_reads_its_registry_sends_nothing(store: Store) -> None:
    node = MarketNode(store, HandClock())
    with pytest.raises(NotReady):
        DeliveryGuard(registry=node.registry)(cast("Any", None))


# Clocks that differ.


async def test_an_appointment_ended_by_a_fast_node_has_ended_for_a_slow_one(node: MarketNode) -> None:
    ((_, pan),) = await open_market(node)
    slow = MarketNode(node.store, HandClock(node.clock.now() - timedelta(milliseconds=300)))
    known = await node.records.read(Appointments, SUPPLIER_ID, PSP_ID)
    assert known is not None
    pair, revision = known
    ended = replace(
        pair.all[0],
        states=pair.all[0].states.change(AppointmentState.ENDED, since=None, now=ms_of(node.clock.now()), by="x"),
    )
    write = RegistryWrite(
        expect=[(Ref(Kind.APPOINTMENT, f"{SUPPLIER_ID}/{PSP_ID}"), revision)], put=[pair.replace(ended)]
    )
    assert await node.records.write(write) is not None
    async with slow.running():
        for _ in range(3):
            with pytest.raises(NotAppointed):
                await slow.sell(PSP, pan)
            slow.clock.advance(0.2)
    assert APPOINTMENTS.all[0].state is AppointmentState.ACCEPTED


async def test_a_node_that_is_wrong_about_the_time_changes_nothing(
    node: MarketNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its copy says that a change is due, and its clock that it is too; the ledger's time has not come to it."""
    ((meter_id, _),) = await open_market(node)
    due = Ms(at(node, 864_000))
    await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, due)
    await TimeFence(node.store.client, Keys(node.store.config.prefix), node.clock).reach(ms_of(node.clock.now()))
    wrong = MarketNode(node.store, HandClock(node.clock.now() + timedelta(days=30)))
    wrong.records._fence = TimeFence(node.store.client, Keys(node.store.config.prefix), node.clock)
    with pytest.raises(NotReady):
        await wrong.turn(meter_id)
    with pytest.raises(NotReady):
        await wrong.meters.end(as_(OPERATOR), meter_id, None)
    # Not even one that does not ask first: the write preconditions.
    monkeypatch.setattr(wrong.records._fence, "reach", _asks_nobody)
    with pytest.raises(RegistryMoved):
        await wrong.turn(meter_id)
    known = await node.records.read(Meter, meter_id)
    assert known is not None
    assert known.record.effective_through < due
    assert (await node.meters.cancel(as_(OPERATOR), meter_id, registration=True)).changed


async def test_without_the_time_compare_a_node_that_is_wrong_about_the_time_changes_it_for_good(
    node: MarketNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    ((meter_id, _),) = await open_market(node)
    due = Ms(at(node, 864_000))
    await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, due)
    wrong = MarketNode(node.store, HandClock(node.clock.now() + timedelta(days=30)))
    monkeypatch.setattr(wrong.records._fence, "reach", _asks_nobody)
    monkeypatch.setattr(preconditions, "time_reached", lambda *_: [])
    assert await wrong.turn(meter_id) is not None
    known = await node.records.read(Meter, meter_id)
    assert known is not None
    assert known.record.effective_through == due


async def _asks_nobody(_: Ms) -> None:
    return


# Whose time it is.


async def test_a_supplier_changes_its_own_time_and_no_other(node: MarketNode) -> None:
    ((meter_id, _),) = await open_market(node)
    instant = Ms(at(node, 60))
    await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, instant)
    for later in (instant, Ms(instant + 5)):
        with pytest.raises(NotYours):
            await node.meters.change(as_(SUPPLIER), meter_id, _in_credit, later)
    with pytest.raises(NotYours):
        await node.meters.end(as_(SUPPLIER), meter_id, Ms(instant + 1))
    with pytest.raises(ChangePending):
        await node.meters.end(as_(SUPPLIER), meter_id, None)
    with pytest.raises(NotYours):
        await node.meters.change(as_(GAINING), meter_id, _in_credit, None)
    theirs = Settings(head_end="gaining-head-end")
    await node.meters.change(as_(GAINING), meter_id, lambda one: replace(one, head_end=theirs.head_end), instant)
    await node.meters.change(as_(SUPPLIER), meter_id, _in_credit, None)
    known = await node.records.read(Meter, meter_id)
    assert known is not None
    told = [(period.value.head_end, period.value.payment_mode) for period in known.record.settings.periods[-2:]]
    assert told == [("sandbox", PaymentMode.CREDIT), ("gaining-head-end", PaymentMode.PREPAYMENT)]
    with pytest.raises(NotYours):
        await node.meters.cancel(as_(SUPPLIER), meter_id, registration=False)
    assert (await node.meters.cancel(as_(GAINING), meter_id, registration=False)).changed


def _in_credit(settings: Settings) -> Settings:
    return replace(settings, payment_mode=PaymentMode.CREDIT)


async def test_a_supplier_that_was_sees_its_own_time_of_a_meter(node: MarketNode) -> None:
    ((meter_id, _), (other, _)) = await open_market(node, 2)
    node.clock.advance(1)
    await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, None)
    node.clock.advance(1)
    await node.meters.change(as_(GAINING), meter_id, _in_credit, None)
    seen = await node.view.meter(as_(SUPPLIER), meter_id)
    assert [period.value.supplier_id for period in seen.registrations.periods] == [SUPPLIER_ID]
    assert [period.value.payment_mode for period in seen.settings.periods] == [PaymentMode.PREPAYMENT]
    assert (await node.view.sellers(as_(SUPPLIER), meter_id, None, None)).sellers == ()
    found, after = await node.view.meters(as_(GAINING), "", 1)
    assert ([one.meter_id for one in found], after) == ([meter_id], ""), "others' meters are not told one by one"
    assert other not in {one.meter_id for one in found}
    with pytest.raises(NotYours):
        await node.view.meter(as_(GAINING), other)


# Whose counters they are.


async def test_a_supplier_that_comes_back_finds_its_counters_in_the_hands_it_left_them_in(node: MarketNode) -> None:
    ((meter_id, pan),) = await open_market(node)
    async with node.running():
        for _ in range(3):
            await node.sell(PSP, pan)
        out = HandOver(meter_id=meter_id, custody_before=Custody.CENTRAL, custody=Custody.SUPPLIER)
        await node.hand_over(as_(SUPPLIER), out)
        await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, None)
        back = await node.meters.change_supplier(as_(OPERATOR), meter_id, GAINING_ID, SUPPLIER_ID, None)
        await node.seen(meter_id, back.revision)
        with pytest.raises(CounterElsewhere):
            await node.sell(PSP, pan)
        told = HandOver(
            meter_id=meter_id,
            custody_before=Custody.SUPPLIER,
            custody=Custody.CENTRAL,
            last_issued=40,
            highest_applied=40,
        )
        done = await node.hand_over(as_(SUPPLIER), told)
        await node.seen(meter_id, done.changed.written.revision)
        assert (await node.sell(PSP, pan)).stored.vend.counter == 41
    with pytest.raises(BadField):
        await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, SUPPLIER_ID, None)


def _sold(node: MarketNode, pan: Pan, counter: int, by: ParticipantId = PSP_ID) -> ExternallyIssued:
    sale = Sale(
        participant_id=by, transaction_id=new_id(node.clock.now()), operation=Operation.EXTERNALLY_ISSUED, pan=pan,
        amount=Pence(1000), channel=Channel.ONLINE, code=(utrn(counter), counter),  # type: ignore[arg-type]
    )  # fmt: skip
    return ExternallyIssued(sale=sale, issued_at=node.clock.now(), deliver=True)


async def test_codes_that_are_handed_over_can_have_been_sold_as_they_are_told(node: MarketNode) -> None:
    ((meter_id, pan), (_, foreign)) = await open_market(node, 2)
    async with node.running():
        await node.sell(PSP, pan)
    out = HandOver(meter_id=meter_id, custody_before=Custody.CENTRAL, custody=Custody.SUPPLIER)
    await node.hand_over(as_(SUPPLIER), out)
    back = replace(out, custody_before=Custody.SUPPLIER, custody=Custody.CENTRAL, last_issued=9)
    wrong = {
        "codes.participant_id": _sold(node, pan, 5, ParticipantId("psp-nobody")),
        "codes.pan": _sold(node, foreign, 5),
        "this service has spent counters up to 1": _sold(node, pan, 1),
        "codes.issued_at": replace(_sold(node, pan, 5), issued_at=node.clock.now() - timedelta(days=400)),
        "codes.utrn_counter": _sold(node, pan, 10),
    }
    for says, code in wrong.items():
        with pytest.raises(BadField, match=says):
            await node.hand_over(as_(SUPPLIER), replace(back, codes=(code,)))
    with pytest.raises(BadField, match="told once"):
        await node.hand_over(as_(SUPPLIER), replace(back, codes=(_sold(node, pan, 5), _sold(node, pan, 5))))
    done = await node.hand_over(as_(SUPPLIER), replace(back, codes=(_sold(node, pan, 5),)))
    assert done.changed.written.changed
    assert [one.counter for one in await node.records.owed(meter_id)] == [1, 5]


async def test_a_hand_over_never_lowers_what_is_known_to_be_applied(node: MarketNode) -> None:
    ((meter_id, pan),) = await open_market(node)
    async with node.running():
        for _ in range(7):
            await node.sell(PSP, pan)
    out = HandOver(meter_id=meter_id, custody_before=Custody.CENTRAL, custody=Custody.SUPPLIER)
    await node.hand_over(as_(SUPPLIER), out)
    originator = SUPPLIER.supplier_key
    assert originator is not None
    epoch = await _own(node, meter_id)
    outbox = EtcdOutbox(node.store.client, node.store.config, node.clock)
    sequence, raised = node.records.sequence, asyncio.Event()

    async def overtaken(originator_id: Any, of_meter: Any) -> Any:
        """Read the sequence, and have an alert raise what is applied before it is written."""
        state = await sequence(originator_id, of_meter)
        if not raised.is_set():
            raised.set()
            await outbox.note_applied(
                shard=shard_of(meter_id, node.store.config.shards), epoch=epoch, originator_id=originator_id,
                meter_id=meter_id, counter=cast("Any", 7),
            )  # fmt: skip
        return state

    node.records.sequence = overtaken  # type: ignore[method-assign,assignment]
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(outbox.run())
        back = replace(out, custody_before=Custody.SUPPLIER, custody=Custody.CENTRAL, last_issued=9, highest_applied=2)
        await node.hand_over(as_(SUPPLIER), back)
        running.cancel()
    state = await sequence(cast("Any", originator.originator_id), meter_id)
    assert (state.last_issued, state.highest_applied) == (9, 7)


# At once, and for how long.


async def test_a_profile_chosen_at_once_is_in_force_although_it_waited(node: MarketNode) -> None:
    ((_, pan),) = await open_market(node)
    chosen = Profile(selling_model=SellingModel.SUPPLIER_ONLY)
    await node.parties.set_profile(as_(SUPPLIER), SUPPLIER_ID, chosen, Ms(at(node, 600)))
    assert (await node.parties.set_profile(as_(SUPPLIER), SUPPLIER_ID, chosen, None)).changed
    async with node.running():
        with pytest.raises(NotAppointed):
            await node.sell(PSP, pan)
    with pytest.raises(HistoryFull):
        await _choose_profiles(node, 200)
    known = await node.records.read(Participant, SUPPLIER_ID)
    assert known is not None
    assert len(known.record.profiles.periods) == 100


async def _choose_profiles(node: MarketNode, many: int) -> None:
    for number in range(many):
        each = Profile(credit=CreditRule(each_max_pence=number + 1))
        await node.parties.set_profile(as_(SUPPLIER), SUPPLIER_ID, each, None)


async def test_credit_is_approved_by_the_rule_of_the_moment_it_is_approved(node: MarketNode) -> None:
    ((meter_id, _),) = await open_market(node)
    pan = Pan("9826999999999999999")
    await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, None)
    await node.pans.give(as_(GAINING), pan, PanForm.VIRTUAL, meter_id, None)
    rule = CreditRule(each_max_pence=5000, day_max_pence=9000)
    await node.parties.set_profile(as_(GAINING), GAINING_ID, Profile(credit=rule), None)
    async with node.running():
        asked = await node.credit.ask(
            as_(GAINING),
            CreditRequest(
                supplier_id=GAINING_ID, transaction_id=new_id(node.clock.now()), pan=pan, amount=Pence(5000),
                reason=CreditReason.GOODWILL, note="", asked_by=GAINING.identities[0], asked_at=ms_of(node.clock.now()),
            ),
        )  # fmt: skip
        lower = Profile(credit=replace(rule, each_max_pence=100))
        await node.parties.set_profile(as_(GAINING), GAINING_ID, lower, None)
        with pytest.raises(AmountOutOfLimits):
            await node.credit.decide(as_(GAINING, 1), asked.transaction_id, approve=True, time_left_s=None)


async def test_a_meter_exchange_brings_no_old_card_to_life(node: MarketNode) -> None:
    ((meter_id, pan),) = await open_market(node)
    await node.meters.change_tenant(as_(SUPPLIER), meter_id, None, 1)
    mine = Pan("9826888888888888888")
    await node.pans.give(as_(SUPPLIER), mine, PanForm.PLASTIC, meter_id, None)
    fresh = meter(new_meter_id())
    with pytest.raises(RecordChanged):
        await node.exchange(as_(SUPPLIER), meter_id, fresh, [mine, pan])
    assert (await node.exchange(as_(SUPPLIER), meter_id, fresh, [mine])).changed
    known = await node.records.read(PanRecord, mine)
    assert known is not None
    assert known.record.uses.periods[-1].value.meter_id == fresh.meter_id


# Lists, loads, reminders.


async def test_changes_of_one_millisecond_are_all_listed(node: MarketNode) -> None:
    made = await open_market(node, 7)
    instant = Ms(at(node, 60))
    for meter_id, _ in made:
        await node.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, instant)
    node.clock.advance(61)
    for meter_id, _ in made:
        await node.turn(meter_id)
    seen: list[str] = []
    after = ""
    while True:
        found, after = await node.view.changes(as_(SUPPLIER), SUPPLIER_ID, after=after, limit=3)
        seen += [change.meter_id for change in found]
        if not after:
            break
    assert sorted(seen) == sorted(meter_id for meter_id, _ in made)
    (later, _) = await node.view.changes(as_(SUPPLIER), SUPPLIER_ID, since=Ms(instant + 1))
    assert later == []


async def test_a_page_that_begins_before_ones_own_shows_ones_own(node: MarketNode) -> None:
    await open_market(node)
    await put_all(node, [replace(APPOINTMENTS, supplier_id=GAINING_ID)])
    for after in ("", "a", "supplier-gaining/a"):
        (mine, _) = await node.view.appointments(as_(SUPPLIER), None, after)
        assert len(mine) == 1, after
        (changes, _) = await node.view.changes(as_(SUPPLIER), SUPPLIER_ID, after=f"../{after}")
        assert changes == []
    ref = Ref(Kind.APPOINTMENT, f"{GAINING_ID}/{PSP_ID}")
    assert (await node.records.read_many([ref]))[0] is not None
    listed = await node.records.list_records(Appointments, SUPPLIER_ID, after="a")
    assert {stored.record.supplier_id for stored in listed} == {SUPPLIER_ID}, "another supplier's lie before one's own"


async def test_a_reminder_left_behind_is_taken_away(node: MarketNode) -> None:
    ((meter_id, _),) = await open_market(node)
    await node.records.write(RegistryWrite(expect=[], put=[], due=[(Ms(at(node, -5)), meter_id)]))
    keeper = DueChangeRunner(due_by=node.registry.due_by, turn=node.turn, clock=node.clock, random=random.Random(1))
    async with node.running(), asyncio.timeout(PATIENCE_S):
        assert node.registry.due_by(ms_of(node.clock.now()))
        running = asyncio.get_running_loop().create_task(keeper.run())
        while node.registry.due_by(ms_of(node.clock.now())):  # noqa: ASYNC110  # the copy is asked
            await asyncio.sleep(0.01)
        running.cancel()


async def test_a_change_made_while_another_came_due_leaves_no_reminder(node: MarketNode) -> None:
    ((meter_id, _),) = await open_market(node)
    await node.meters.change_tenant(as_(SUPPLIER), meter_id, Ms(at(node, 10)), 1)
    turn = node.meters.turn
    read = node.records.read

    async def late(kind: Any, *ids: str) -> Any:
        found = await read(kind, *ids)
        if kind is Meter:
            # The instant passes between the look for what is due and the change.
            node.clock.advance(10)
        return found

    node.records.read = late  # type: ignore[method-assign]
    await node.meters.change(as_(OPERATOR), meter_id, _in_credit, None)
    node.records.read = read  # type: ignore[method-assign]
    assert await turn(meter_id) is None
    async with node.running():
        assert node.registry.due_by(Ms(2**52)) == []
    ((one, *_), _) = await node.view.changes(as_(SUPPLIER), SUPPLIER_ID)
    assert ChangeKind.TENANCY in one.kinds


async def test_a_load_is_authenticated_part_by_part(node: MarketNode) -> None:
    await open_market(node)
    callers: list[Participant | None] = [OPERATOR, None]

    def authenticate(_: object) -> Any:
        caller = callers.pop(0)
        if caller is None:
            raise CallerSuspended("this participant is suspended")
        return as_(caller)

    servicer = RegistryServicer(
        authenticate=cast("Any", authenticate), load=node.load(b""), clock=node.clock, pan_rule=cast("Any", None)
    )
    loads = servicer.LoadRecords(_parts(["x"], ["y"]), cast("Any", None))
    assert (await anext(loads)).last_line == 1
    with pytest.raises(CallerSuspended):
        await anext(loads)
    assert [(decision.act, decision.subject, decision.outcome) for decision in node.audit_log.decisions] == [
        ("LoadRecords", "lines 1 to 1", "allowed")
    ]


async def _parts(*parts: Sequence[str]) -> AsyncIterator[pb.LoadRecordsRequest]:
    for number, lines in enumerate(parts, start=1):
        yield pb.LoadRecordsRequest(first_line=number, lines=lines)


async def test_thirty_codes_of_as_many_sellers_and_pans_are_handed_over_in_one_write(node: MarketNode) -> None:
    """The most that a request may hold fits into what etcd takes in one transaction."""
    ((meter_id, _),) = await open_market(node)
    out = HandOver(meter_id=meter_id, custody_before=Custody.CENTRAL, custody=Custody.SUPPLIER)
    await node.hand_over(as_(SUPPLIER), out)
    codes = []
    for number in range(1, 31):
        seller, own = ParticipantId(f"psp-{number:03d}"), Pan(f"98261{number:014d}")
        appointed = Appointments(supplier_id=SUPPLIER_ID, psp_id=seller)
        assert await node.records.write(RegistryWrite(put=[appointed, card(own, meter_id)])) is not None
        codes.append(_sold(node, own, counter=number, by=seller))
    node.clock.advance(1)
    back = HandOver(
        meter_id=meter_id, custody_before=Custody.SUPPLIER, custody=Custody.CENTRAL, last_issued=30, codes=tuple(codes)
    )  # fmt: skip
    assert (await node.hand_over(as_(SUPPLIER), back)).changed.written.changed
