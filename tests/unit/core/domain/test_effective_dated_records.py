"""Appointments and meters under any sequence of changes: no overlap, no gap unless said, history never rewritten."""

import asyncio
import itertools
from collections.abc import Coroutine
from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cluster.codec.registry import record_of
from cluster.config import EtcdConfig
from cluster.etcd.client import EtcdClient
from cluster.etcd.keys import Keys
from core.domain.appointment import Appointment, Appointments, AppointmentState
from core.domain.effective_dated import EffectiveDated, Ms, Period, begin, ms_of
from core.domain.errors import ChangePending, Refused, RegistryMoved
from core.domain.meter import Custody, Meter, MeterId, PaymentMode
from core.domain.participant import ParticipantId, SupplierKey
from core.domain.record import Kind
from core.domain.registration_change import ChangeKind, RegistrationChange
from core.registry.counter_transfer import HandOver
from tests.fakes.clock import HandClock
from tests.fakes.etcd import FakeEtcd
from tests.support.etcd import Store
from tests.support.market_node import GAINING, GAINING_ID, OPERATOR, MarketNode, as_, open_market, put_all
from tests.support.vends import APPOINTMENT, NOW, POINT, PSP_ID, SUPPLIER_ID, TERMS, identity_history

pytestmark = [pytest.mark.slow]

# Appointments.

_S = AppointmentState
_NEXT = {
    _S.PROPOSED: [_S.ACCEPTED, _S.ENDED],
    _S.ACCEPTED: [_S.SUSPENDED, _S.ENDED],
    _S.SUSPENDED: [_S.ACCEPTED, _S.ENDED],
    _S.ENDED: [],
}


class AppointmentsMachine(RuleBasedStateMachine):
    """Appointments of one PSP by one supplier: proposed for any dates, moved from state to state, by a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000
        self.every = Appointments(supplier_id=SUPPLIER_ID, psp_id=PSP_ID)
        self.seen: dict[str, tuple[Period[AppointmentState], ...]] = {}
        self.past: dict[int, str | None] = {}

    @rule(by=st.integers(0, 50))
    def time_goes_on(self, by: int) -> None:
        for instant in range(self.now, self.now + by):
            self.past[instant] = self._in_force(instant)
        self.now += by

    @rule(since=st.integers(-60, 120), length=st.one_of(st.none(), st.integers(1, 100)))
    def propose(self, since: int, length: int | None) -> None:
        begins = self.now + since
        ends = None if length is None else begins + length
        name = f"a{len(self.every.all)}"
        new = Appointment(
            terms=replace(TERMS, appointment_id=name, since=Ms(begins), until=None if ends is None else Ms(ends)),
            evidence=APPOINTMENT.evidence,
            states=begin(_S.PROPOSED, since=None, now=Ms(self.now), by="supplier"),
        )
        taken = any(
            _covers(one, instant) for one in self._open() for instant in _edges(one, new) if _covers(new, instant)
        )
        try:
            self.every = self.every.add(new)
        except ChangePending:
            assert taken
        else:
            assert not taken

    @rule(which=st.integers(0, 1000), to=st.integers(0, 1))
    def move(self, which: int, to: int) -> None:
        choices = [(one, _NEXT[one.state][to]) for one in self._open()]
        if choices:
            one, state = choices[which % len(choices)]
            states = one.states.change(state, since=None, now=Ms(self.now), by="someone")
            self.every = self.every.replace(replace(one, states=states))

    @invariant()
    def no_two_that_have_not_ended_cover_one_instant(self) -> None:
        still = self._open()
        for one in still:
            for other in still:
                if one is not other:
                    assert not _meet(one, other)

    @invariant()
    def whoever_is_in_force_is_accepted_and_within_its_dates(self) -> None:
        for instant in (self.now, *(edge for one in self._open() for edge in _edges(one, one))):
            found = self.every.in_force_at(Ms(instant))
            if found is not None:
                period = found.states.at(Ms(instant))
                assert period is not None
                assert (period.value, _covers(found, instant)) == (_S.ACCEPTED, True)

    @invariant()
    def the_history_of_states_only_grows(self) -> None:
        for one in self.every.all:
            before, now = self.seen.get(one.terms.appointment_id, ()), one.states.periods
            assert now[: max(0, len(before) - 1)] == before[:-1]
            for old, new in zip(before[-1:], now[len(before) - 1 :], strict=False):
                assert new._replace(until=None) == old, "a period is closed, and nothing else of it changes"
            for old, new in itertools.pairwise(now):
                assert old.until == new.since, "there is no instant without a state"
            self.seen[one.terms.appointment_id] = now

    @invariant()
    def who_was_in_force_then_does_not_change(self) -> None:
        for instant, name in list(self.past.items())[-100:]:
            assert self._in_force(instant) == name

    def _open(self) -> list[Appointment]:
        return [one for one in self.every.all if one.state is not _S.ENDED]

    def _in_force(self, instant: int) -> str | None:
        found = self.every.in_force_at(Ms(instant))
        return None if found is None else found.terms.appointment_id


def _covers(appointment: Appointment, instant: int) -> bool:
    return appointment.terms.since <= instant and (appointment.terms.until is None or instant < appointment.terms.until)


def _meet(appointment: Appointment, other: Appointment) -> bool:
    return any(_covers(appointment, instant) and _covers(other, instant) for instant in _edges(appointment, other))


def _edges(*appointments: Appointment) -> list[int]:
    """Where two spans meet, one begins: the beginnings are enough, and the last instant before an end."""
    return [
        edge
        for appointment in appointments
        for edge in (appointment.terms.since, (appointment.terms.until or appointment.terms.since + 1) - 1)
    ]


TestAppointments = AppointmentsMachine.TestCase


# A meter, its two timelines, and its turns.

CONFIG = EtcdConfig(endpoints=("fake:1",))
THIRD_ID = ParticipantId("supplier-third")
THIRD = replace(
    GAINING, participant_id=THIRD_ID, identity_history=identity_history("Third", "third"),
    supplier_key=SupplierKey(originator_id="90b3d51f30010007", key_id="01", public_point=POINT),
)  # fmt: skip
SKEW_MS = 50


class Op(NamedTuple):
    """What somebody asks for at one of the nodes. `since` is milliseconds from that node's now; None for at once."""

    node: int
    what: str
    since: int | None
    which: int


WHAT = (
    "supplier",
    "supplier",
    "tenant",
    "tenant",
    "mode",
    "hand over",
    "end",
    "cancel supplier",
    "cancel settings",
    "turn",
)
OPS = st.builds(
    Op,
    node=st.integers(0, 1),
    what=st.sampled_from(WHAT),
    since=st.one_of(st.none(), st.integers(0, 9), st.integers(10, 150), st.integers(-5, 20)),
    which=st.integers(0, 2),
)


class MeterMachine(RuleBasedStateMachine):
    """One meter, changed and turned at two nodes whose clocks are up to 50 ms before or behind the true time.

    What the ledger holds after every write is judged by its history: version after version of the meter, and the notes
    that were written with each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.etcd = FakeEtcd()
        store = Store(cast("EtcdClient", self.etcd), CONFIG)
        self.nodes = [MarketNode(store, HandClock()) for _ in range(2)]
        self.keys = Keys(CONFIG.prefix)
        self.now_ms, self.skews, self.pace = ms_of(NOW), [0, 0], 0
        ((self.meter_id, _),) = self.runner.run(open_market(self.nodes[0]))
        self.runner.run(put_all(self.nodes[0], [THIRD]))
        self.heard = 0
        self.versions: list[Meter] = []
        self.ends: set[int] = set()
        self.past: dict[int, tuple[object, object]] = {}
        self.take_history_in()
        self.etcd.before_txn = self.time_goes_on_under_way

    def teardown(self) -> None:
        self.runner.close()

    @rule(node=st.integers(0, 1), left=st.integers(-2, 5))
    def an_instant_is_near(self, node: int, left: int) -> None:
        """So many milliseconds are left, at one of the nodes, of what waits next."""
        meter = self.versions[-1]
        waits = [instant for instant in meter.instants() if instant > meter.effective_through]
        if waits:
            self.time_goes_on(max(0, min(waits) - left - self.skews[node] - self.now_ms))

    @rule(by=st.integers(0, 120))
    def time_goes_on(self, by: int) -> None:
        for instant in range(self.now_ms - SKEW_MS, self.now_ms - SKEW_MS + by):
            # No clock is behind this instant any more: nothing that is recorded from now on may reach it.
            self.past[instant] = self._known_at(instant)
        self.now_ms = Ms(self.now_ms + by)
        self._set_clocks()

    def time_goes_on_under_way(self) -> None:
        self.now_ms = Ms(self.now_ms + self.pace)
        self._set_clocks()

    @rule(pace=st.integers(0, 3))
    def the_ledger_takes_its_time(self, pace: int) -> None:
        self.pace = pace

    @rule(node=st.integers(0, 1), skew=st.integers(-SKEW_MS, SKEW_MS))
    def a_clock_steps(self, node: int, skew: int) -> None:
        self.skews[node] = skew
        self._set_clocks()

    @rule(op=OPS)
    def somebody_asks(self, op: Op) -> None:
        self.runner.run(self._do(op))

    @rule(one=OPS, other=OPS)
    def two_ask_at_once(self, one: Op, other: Op) -> None:
        async def both() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._do(one))
                tasks.create_task(self._do(other))

        self.runner.run(both())

    @invariant()
    def the_ledger_is_right(self) -> None:
        self.take_history_in()
        self.look_at_reminders()
        for instant in list(self.past)[-300:]:
            assert self._known_at(instant) == self.past[instant], "what was known then does not change"

    def take_history_in(self) -> None:
        """Judge every version of the meter that was written since, with the notes of the same write."""
        events = self.etcd.history[self.heard :]
        self.heard = len(self.etcd.history)
        key, room = self.keys.record(Kind.METER, self.meter_id), self.keys.records(Kind.CHANGE)
        for _, written in itertools.groupby((event.kv for event in events), lambda kv: kv.mod_revision):
            kvs = list(written)
            meters = [record_of(Kind.METER, kv.value) for kv in kvs if kv.key == key]
            notes = [record_of(Kind.CHANGE, kv.value) for kv in kvs if kv.key.startswith(room)]
            assert all(kv.version == 1 for kv in kvs if kv.key.startswith(room)), "no note is written over another"
            for meter in meters:
                self._judge(cast("Meter", meter), [cast("RegistrationChange", note) for note in notes])
            assert meters or not notes, "a note comes with the change that it is about"

    def look_at_reminders(self) -> None:
        """Every change that waits has its reminder, and nothing else has."""
        prefix = self.keys.records(Kind.DUE)
        reminders = {int(key.removeprefix(prefix).split(b"/")[0]) for key in self.etcd.keys if key.startswith(prefix)}
        meter = self.versions[-1]
        assert reminders == {instant for instant in meter.instants() if instant > meter.effective_through}

    def _judge(self, new: Meter, notes: list[RegistrationChange]) -> None:
        if self.versions:
            self._judge_change(self.versions[-1], new, notes)
        self.versions.append(new)
        # An end is said where a registration has one that nothing follows; it stays said when something follows later.
        last = new.registrations.periods[-1]
        if last.until is not None:
            self.ends.add(last.until)
        _look_at_order(new.registrations, self.ends)
        _look_at_order(new.settings, set())
        for instant in range(max(new.effective_through - 200, *(self.past or [0])), new.effective_through + 1):
            self.past.setdefault(instant, (_value(new.registrations, instant), _value(new.settings, instant)))

    def _judge_change(self, old: Meter, new: Meter, notes: list[RegistrationChange]) -> None:
        assert new.effective_through >= old.effective_through, "what was carried out stays carried out"
        for instant in (
            one for one in (*old.instants(), *new.instants(), old.effective_through) if one <= old.effective_through
        ):
            assert _stands(old, instant) == _stands(new, instant), "what was carried out is not rewritten"
        was, now = _stands(new, old.effective_through), _stands(new, new.effective_through)
        kinds = _differences(was, now)
        if not kinds or was[0] is None:
            assert notes == [], "nothing changed, or nobody answers for it"
            return
        (note,) = notes
        assert (note.at, set(note.kinds), note.meter_id) == (new.effective_through, kinds, self.meter_id)
        assert note.responsible == was[0].supplier_id
        assert note.supplier_after == (None if now[0] is None else now[0].supplier_id)

    def _known_at(self, instant: int) -> tuple[object, object]:
        meter = self.versions[-1]
        return _value(meter.registrations, instant), _value(meter.settings, instant)

    def _set_clocks(self) -> None:
        for node, skew in zip(self.nodes, self.skews, strict=True):
            ahead = timedelta(milliseconds=self.now_ms + skew) - timedelta(milliseconds=ms_of(node.clock.now()))
            node.clock.advance(ahead.total_seconds())

    async def _do(self, op: Op) -> None:
        """Do what is asked; a refusal is an answer, everything else a failure."""
        node = self.nodes[op.node]
        known = await node.records.read(Meter, self.meter_id)
        assert known is not None
        try:
            await self._asked(node, known.record, op)
        except (Refused, RegistryMoved):
            return

    def _asked(self, node: MarketNode, meter: Meter, op: Op) -> Coroutine[Any, Any, object]:
        operator, meter_id = as_(OPERATOR), self.meter_id
        since = None if op.since is None else Ms(ms_of(node.clock.now()) + op.since)
        whose, settings_last = meter.registrations.periods[-1].value, meter.settings.periods[-1].value
        match op.what:
            case "supplier":
                others = [one for one in (SUPPLIER_ID, GAINING_ID, THIRD_ID) if one != whose.supplier_id]
                gaining = others[op.which % 2]
                return node.meters.change_supplier(operator, meter_id, whose.supplier_id, gaining, since)
            case "tenant":
                return node.meters.change_tenant(operator, meter_id, since, settings_last.tenancy)
            case "mode":
                mode = PaymentMode.CREDIT if op.which else PaymentMode.PREPAYMENT
                return node.meters.change(operator, meter_id, lambda one: replace(one, payment_mode=mode), since)
            case "hand over":
                return node.hand_over(operator, _hand_over(meter, meter_id, ms_of(node.clock.now()), op.which))
            case "end":
                return node.meters.end(operator, meter_id, since)
            case "turn":
                return node.turn(meter_id)
            case _:
                return node.meters.cancel(operator, meter_id, registration=op.what == "cancel supplier")


def _hand_over(meter: Meter, meter_id: MeterId, now: Ms, which: int) -> HandOver:
    holds = meter.registrations.at(max(now, meter.effective_through)) or meter.registrations.periods[-1]
    before, after = holds.value.custody, [Custody.CENTRAL, Custody.SUPPLIER, Custody.SMSO][which]
    smso = Custody.SMSO in (before, after)
    return HandOver(
        meter_id=meter_id, custody_before=before, custody=after,
        settings=(lambda one: replace(one, enrolled=after is not Custody.SMSO)) if smso else None,
    )  # fmt: skip


def _look_at_order(timeline: EffectiveDated[Any], may_end: set[int]) -> None:
    for one, following in itertools.pairwise(timeline.periods):
        assert one.until is not None
        assert one.since < one.until <= following.since, "periods never overlap"
        assert one.until == following.since or one.until in may_end, "a gap is only where somebody ended one"


def _value(timeline: EffectiveDated[Any], instant: int) -> object:
    """What was gone by at an instant."""
    known = timeline.as_recorded_at(Ms(instant))
    return None if known is None else known.value


def _stands(meter: Meter, instant: int) -> tuple[Any, Any]:
    whose, how = meter.registrations.at(Ms(instant)), meter.settings.at(Ms(instant))
    return None if whose is None else whose.value, None if how is None else how.value


def _differences(was: tuple[Any, Any], now: tuple[Any, Any]) -> set[ChangeKind]:
    kinds = set()
    if was[0] is not None and now[0] is None:
        kinds.add(ChangeKind.METER_REMOVED)
    if was[0] is not None and now[0] is not None:
        if was[0].supplier_id != now[0].supplier_id:
            kinds.add(ChangeKind.SUPPLIER)
        if was[0].custody != now[0].custody:
            kinds.add(ChangeKind.CUSTODY)
    for name, kind in (
        ("tenancy", ChangeKind.TENANCY), ("payment_mode", ChangeKind.PAYMENT_MODE), ("enrolled", ChangeKind.ENROLMENT),
    ):  # fmt: skip
        if getattr(was[1], name) != getattr(now[1], name):
            kinds.add(kind)
    return kinds


MeterMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)
TestMeter = MeterMachine.TestCase
