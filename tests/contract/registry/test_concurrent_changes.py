"""Requests at two nodes race a change of the market: every code lies on its own side of the write that is the change.

The nodes' clocks are 40 ms apart. What is recorded for later is carried out by whoever needs it first, or by nobody's
need at all (DueChangeRunner); what is done at once is done in the middle of the race. Over the fake and a real etcd.
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest

from cluster.etcd import preconditions
from core.domain.appointment import Appointments
from core.domain.effective_dated import NEVER, Ms, ms_of
from core.domain.errors import RecordChanged, UtrnError
from core.domain.meter import Custody, Meter, MeterId, Pan, PanForm, PaymentMode, Settings
from core.domain.money import Pence
from core.domain.participant import Participant
from core.domain.registration_change import ChangeKind, RegistrationChange
from core.domain.utrn import Counter as UtrnCounter
from core.domain.vend import Channel, Operation, Sale
from core.issuing.recent_vends import Issued
from core.ports.ledger import StoredVend
from core.registry import due_change_runner
from core.registry.appointments import Appoint
from core.registry.counter_transfer import HandOver
from core.registry.due_change_runner import DueChangeRunner
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.market_node import GAINING_ID, OPERATOR, MarketNode, as_, at, no_authority, open_market
from tests.support.patience import PATIENCE_S
from tests.support.vends import PSP, PSP_ID, SUPPLIER, SUPPLIER_ID, meter, new_id, new_meter_id, utrn

SKEW_MS = 40
STEPS = 24
# In the middle: of the race, and of the time that passes in it.
CHANGE_AT_STEP, STEP_S = STEPS // 2, 0.01
NEW_PAN = Pan("9826999999999999999")
_counters = itertools.count(200)


@dataclass(frozen=True)
class Where:
    """The meter of a race, its card, and the instant for which a change is recorded."""

    meter_id: MeterId
    pan: Pan
    instant: Ms


# Asks a node for a code, with the next one of these.
Ask = Callable[[MarketNode, Where], Awaitable[Issued]]
# Makes the change; answers the revision of its write, and its instant, if it takes place with this call.
Change = Callable[[MarketNode, Where], Awaitable[tuple[int, Ms] | None]]


@dataclass(frozen=True)
class Race:
    """A change, who may sell before it, who may after it, and what the others are refused for."""

    name: str
    change: Change
    before: Ask
    refused: set[str]
    after: Ask | None = None
    at_once: bool = False


def _by(who: Participant, pan: Pan | None = None) -> Ask:
    """Sell as `who`, to a PAN or to the meter's card."""
    return lambda node, where: node.sell(who, pan or where.pan)


# What changes.


async def _tenancy(node: MarketNode, where: Where) -> None:
    await node.meters.change_tenant(as_(SUPPLIER), where.meter_id, where.instant, 1)
    await node.pans.give(as_(SUPPLIER), NEW_PAN, PanForm.VIRTUAL, where.meter_id, where.instant)


async def _credit_mode(node: MarketNode, where: Where) -> None:
    def to_credit(settings: Settings) -> Settings:
        return replace(settings, payment_mode=PaymentMode.CREDIT)

    await node.meters.change(as_(SUPPLIER), where.meter_id, to_credit, where.instant)


async def _end(node: MarketNode, where: Where) -> None:
    await node.meters.end(as_(SUPPLIER), where.meter_id, where.instant)


async def _exchange(node: MarketNode, where: Where) -> tuple[int, Ms]:
    new = meter(new_meter_id())
    while True:
        try:
            done = await node.exchange(as_(SUPPLIER), where.meter_id, new, [where.pan])
        except RecordChanged:
            # A sale came in between: as the reason says, look again, and repeat what is still right.
            continue
        return done.revision, await _turned_at(node, where.meter_id)


async def _hand_over(node: MarketNode, where: Where) -> tuple[int, Ms]:
    out = HandOver(meter_id=where.meter_id, custody_before=Custody.CENTRAL, custody=Custody.SUPPLIER)
    done = await node.hand_over(as_(SUPPLIER), out)
    return done.changed.written.revision, await _turned_at(node, where.meter_id)


async def _suspend(node: MarketNode, _: Where) -> tuple[int, Ms]:
    appoint = Appoint(store=node.records, clock=node.clock, authority=no_authority)
    done = await appoint.suspend(as_(SUPPLIER), SUPPLIER_ID, PSP_ID, "corner", suspended=True)
    known = await node.records.read(Appointments, SUPPLIER_ID, PSP_ID)
    assert known is not None
    return done.revision, known.record.all[0].states.periods[-1].since


async def _turned_at(node: MarketNode, meter_id: MeterId) -> Ms:
    known = await node.records.read(Meter, meter_id)
    assert known is not None
    return known.record.effective_through


async def _deliver_externally_issued(node: MarketNode, where: Where) -> Issued:
    """Have a code delivered that the supplier's own generator has made, each under the next of its counters."""
    counter = UtrnCounter(next(_counters))
    sale = Sale(
        participant_id=SUPPLIER_ID, transaction_id=new_id(node.clock.now()), operation=Operation.EXTERNALLY_ISSUED,
        pan=where.pan, amount=Pence(1000), channel=Channel.ONLINE, code=(utrn(counter), counter),
    )  # fmt: skip
    return await node.issue(as_(SUPPLIER), sale, time_left_s=None)


RACES = [
    Race(
        "change of tenancy", _tenancy, before=_by(PSP), after=_by(PSP, NEW_PAN),
        refused={"PAN_NOT_CURRENT", "PAN_UNKNOWN"},
    ),
    Race("credit mode", _credit_mode, before=_by(PSP), refused={"METER_IN_CREDIT_MODE"}),
    Race("end of the meter", _end, before=_by(PSP), refused={"METER_UNKNOWN"}),
    Race("meter exchange", _exchange, before=_by(PSP), after=_by(PSP), refused=set(), at_once=True),
    Race(
        "hand-over to the supplier", _hand_over, before=_by(PSP), after=_deliver_externally_issued,
        refused={"COUNTER_ELSEWHERE", "COUNTER_HERE"}, at_once=True,
    ),
    Race("suspended appointment", _suspend, before=_by(PSP), refused={"NOT_APPOINTED"}, at_once=True),
]  # fmt: skip
BY_NAME = {race.name: race for race in RACES}


@dataclass
class Came:
    """What came of a race: every code by the side its asker is on, every reason, and the write that was the change.

    `counted` is how many codes of the side before the change's note knows of; None where there is no note.
    `shared_ms` says that both sides may be dated in the millisecond of the change: it was done at once within it.
    """

    before: list[StoredVend] = field(default_factory=list)
    after: list[StoredVend] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)
    revision: int = 0
    instant: Ms = NEVER
    counted: int | None = None
    shared_ms: bool = False

    def on_the_wrong_side(self) -> Iterator[str]:
        """Every code that lies where it must not."""
        for one, early in [(one, True) for one in self.before] + [(one, False) for one in self.after]:
            dated = ms_of(one.vend.issued_at)
            if (one.revision < self.revision) is not early:
                yield f"written at {one.revision}, the change at {self.revision}"
            late = dated > self.instant if self.shared_ms else dated >= self.instant
            if late if early else dated < self.instant:
                yield f"dated {dated}, the change {self.instant}"


async def run_race(race: Race, store: Store, seed: int, *, following: bool = True) -> Came:
    """Have both nodes asked for both sides' codes, again and again, while the change takes place."""
    fast = MarketNode(store, HandClock())
    slow = MarketNode(store, HandClock(fast.clock.now() - timedelta(milliseconds=SKEW_MS)))
    ((meter_id, pan),) = await open_market(fast)
    where = Where(meter_id, pan, Ms(at(fast, CHANGE_AT_STEP * STEP_S)))
    came = Came(shared_ms=race.at_once)
    if not race.at_once:
        await race.change(fast, where)

    async def ask(node: MarketNode, asked: Ask, codes: list[StoredVend]) -> None:
        try:
            codes.append((await asked(node, where)).stored)
        except UtrnError as error:
            came.refused.add(error.reason)

    async def change() -> None:
        done = await race.change(fast, where)
        assert done is not None
        came.revision, came.instant = done

    chance = random.Random(seed)
    async with AsyncExitStack() as stack:
        for node in (fast, slow):
            await stack.enter_async_context(node.running(following=following))
        for step in range(STEPS):
            asks = [(node, race.before, came.before) for node in (fast, slow)]
            asks += [(node, race.after, came.after) for node in (fast, slow) if race.after is not None]
            chance.shuffle(asks)
            changes_now = race.at_once and step == CHANGE_AT_STEP
            async with asyncio.TaskGroup() as tasks:
                for number, one in enumerate(asks):
                    tasks.create_task(ask(*one))
                    if changes_now and number == seed % len(asks):
                        tasks.create_task(change())
            for node in (fast, slow):
                node.clock.advance(STEP_S)
        await fast.turn(meter_id)
        await _look_at_note(fast, race, where, came)
    if race.name == "meter exchange":
        _tell_meters_apart(came, meter_id)
    return came


async def _look_at_note(node: MarketNode, race: Race, where: Where, came: Came) -> None:
    """Find the one note of the change, which was written with it."""
    notes, _ = await node.view.changes(as_(OPERATOR), SUPPLIER_ID)
    if not notes:
        return
    (change,) = notes
    note = await node.records.read(RegistrationChange, SUPPLIER_ID, f"{change.at:013d}", where.meter_id)
    assert note is not None
    came.counted = change.last_issued
    if not race.at_once:
        came.revision, came.instant = note.revision, change.at
    assert (note.revision, change.at) == (came.revision, came.instant)


def _tell_meters_apart(came: Came, old: MeterId) -> None:
    """One card stands for both meters, one after the other: the code's meter says on which side it is."""
    every = came.before + came.after
    came.before = [one for one in every if one.vend.meter_id == old]
    came.after = [one for one in every if one.vend.meter_id != old]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", BY_NAME)
async def test_every_code_lies_on_its_own_side_of_the_change(store: Store, name: str, seed: int) -> None:
    race = BY_NAME[name]
    came = await run_race(race, store, seed)
    assert list(came.on_the_wrong_side()) == []
    assert came.refused <= race.refused | {"REGISTRY_MOVED"}
    assert race.refused <= came.refused, "the change took place in the race"
    assert came.before, "there were sales before it"
    assert came.after or race.after is None, "and after it"
    assert came.counted == (None if name == "suspended appointment" else len(came.before)), "the note knows of them"
    for codes in (came.before, came.after):
        counters = sorted(code.vend.counter for code in codes)
        assert len(set(counters)) == len(counters)


@pytest.mark.parametrize("name", [race.name for race in RACES if race.after is None or not race.at_once])
async def test_nodes_that_hear_nothing_of_the_change_commit_nothing_after_it(store: Store, name: str) -> None:
    """Their copies stay as they were: only the compare in each sale's own transaction tells."""
    came = await run_race(BY_NAME[name], store, 0, following=False)
    assert list(came.on_the_wrong_side()) == []
    assert came.before


@pytest.mark.parametrize("name", ["change of tenancy", "suspended appointment"])
async def test_without_the_compare_codes_lie_on_the_wrong_side(
    store: Store, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The positive control: the same races without the fence, which is a double one where the change was recorded."""
    monkeypatch.setattr(preconditions, "authorizing_record_unmoved", lambda _key, _revision: [])
    monkeypatch.setattr(preconditions, "time_before", lambda _key, _at: [])
    came = await run_race(BY_NAME[name], store, 0, following=False)
    assert list(came.on_the_wrong_side())


# Nobody asks.


@pytest.mark.parametrize("keepers", [1, 2])
async def test_a_change_that_nobody_needs_takes_place_by_the_clock(
    store: Store, monkeypatch: pytest.MonkeyPatch, keepers: int
) -> None:
    monkeypatch.setattr(due_change_runner, "_LOOK_EVERY_S", 0.01)
    nodes = [MarketNode(store, HandClock()) for _ in range(keepers)]
    first = nodes[0]
    ((meter_id, _),) = await open_market(first)
    before = await _turned_at(first, meter_id)
    instant = Ms(at(first, 60))
    await first.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, instant)
    async with AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node.running())
        looks: Counter[int] = Counter()
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        running = [tasks.create_task(_keeper(node, looks, number).run()) for number, node in enumerate(nodes)]
        for node in nodes:
            node.clock.advance(59.999)
        looks.clear()
        async with asyncio.timeout(PATIENCE_S):
            while len(looks) < keepers or min(looks.values()) < 5:  # noqa: ASYNC110  # the looks are counted
                await asyncio.sleep(0.005)
        assert await _turned_at(first, meter_id) == before, "many looks, and not one of them too early"
        for node in nodes:
            node.clock.advance(0.001)
        async with asyncio.timeout(PATIENCE_S):
            while await _waits(first, meter_id, instant):  # noqa: ASYNC110  # the ledger and the copy are asked
                await asyncio.sleep(0.005)
        for one in running:
            one.cancel()
    (note,), _ = await first.view.changes(as_(OPERATOR), SUPPLIER_ID)
    assert (note.at, note.carried_out_at, note.kinds) == (instant, instant, (ChangeKind.SUPPLIER,))


async def _waits(node: MarketNode, meter_id: MeterId, instant: Ms) -> bool:
    """Return whether a change waits: by the ledger, or by its reminder in the copy."""
    return bool(node.registry.due_by(instant)) or await _turned_at(node, meter_id) < instant


def _keeper(node: MarketNode, looks: Counter[int], number: int) -> DueChangeRunner:
    """A node's keeper, whose looks are counted."""

    def due_by(now: Ms) -> list[tuple[Ms, MeterId]]:
        looks[number] += 1
        return node.registry.due_by(now)

    return DueChangeRunner(due_by=due_by, turn=node.turn, clock=node.clock, random=random.Random(number))


async def test_no_code_of_the_side_before_is_dated_after_a_change_made_at_once(store: Store) -> None:
    fast = MarketNode(store, HandClock())
    slow = MarketNode(store, HandClock(fast.clock.now() - timedelta(milliseconds=SKEW_MS)))
    ((meter_id, pan),) = await open_market(fast)
    async with fast.running():
        vend = (await fast.sell(PSP, pan)).stored.vend
    await slow.meters.change_supplier(as_(OPERATOR), meter_id, SUPPLIER_ID, GAINING_ID, None)
    (change,), _ = await fast.view.changes(as_(OPERATOR), SUPPLIER_ID)
    assert change.last_issued == 1, "the code lies before the change in the ledger"
    assert ms_of(vend.issued_at) < change.at, (
        "docs/authorization.md: none is dated on the other side, whatever a clock says"
    )
    sellers = await fast.view.sellers(as_(OPERATOR), meter_id, None, ms_of(vend.issued_at))
    assert vend.sale.participant_id in {seller.participant_id for seller in sellers.sellers}
