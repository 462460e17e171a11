"""The checker's rules for the market: what was sold, sent and changed, held against the ledger's records of then."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar

import pytest

from app.verification.checker import Run, Taken, check_run
from app.verification.observed_run import TimeOff
from cluster.audit.change_feed import LedgerEvent, RecordGone, RecordSeen, VendSeen
from core.domain.appointment import Appointments, AppointmentState
from core.domain.effective_dated import EffectiveDated, Ms, ms_of
from core.domain.meter import Custody, Meter, PanAssignment, PanRecord, PanStatus, PaymentMode, Registration
from core.domain.participant import Participant, ParticipantId, ParticipantStatus, Profile, SellingModel
from core.domain.vend import Vend
from core.ports.registry import RegistryRecord
from tests.support.runs import code, good, market, new_vend, ref_of, rewritten, run_of, seen, sell, sent
from tests.support.vends import (
    APPOINTMENT,
    APPOINTMENTS,
    KEY,
    LONG_AGO,
    NOW,
    PSP,
    PSP_ID,
    SUPPLIER,
    SUPPLIER_ID,
    TERMS,
    card,
    meter,
    with_authorization,
)

AT = ms_of(NOW)
SOUTH = ParticipantId("supplier-south")
_T = TypeVar("_T")
_Changed = Callable[[Meter, PanRecord], RegistryRecord]


def _fired(run: Run) -> set[int]:
    return {finding.invariant for finding in check_run(run)}


def _now(timeline: EffectiveDated[_T], value: _T) -> EffectiveDated[_T]:
    return timeline.adjust(lambda _: value, now=AT, by="test")


def _registered(known: Meter, value: Registration, *, since: Ms = AT, effective_through: Ms = AT) -> Meter:
    changed = known.registrations.change(value, since=since, now=AT, by="test")
    return replace(known, registrations=changed, effective_through=effective_through)


def _settings(known: Meter, **facts: object) -> Meter:
    value = replace(known.settings.periods[-1].value, **facts)  # type: ignore[arg-type]
    return replace(known, settings=_now(known.settings, value))


def _used(known: PanRecord, **facts: object) -> PanRecord:
    value: PanAssignment = replace(known.uses.periods[-1].value, **facts)  # type: ignore[arg-type]
    return replace(known, uses=_now(known.uses, value))


def _with_status(known: Participant, status: ParticipantStatus) -> Participant:
    return replace(known, statuses=_now(known.statuses, status))


def _appointed(**facts: object) -> Appointments:
    one = replace(APPOINTMENT, terms=replace(TERMS, **facts))  # type: ignore[arg-type]
    return replace(APPOINTMENTS, all=(one,))


def _suspended() -> Appointments:
    states = _now(APPOINTMENT.states, AppointmentState.SUSPENDED)
    return replace(APPOINTMENTS, all=(replace(APPOINTMENT, states=states),))


_WRONG: list[tuple[str, _Changed]] = [
    ("in other hands", lambda one, _: _registered(one, Registration(supplier_id=SOUTH))),
    ("was due", lambda one, _: _registered(one, Registration(supplier_id=SUPPLIER_ID), effective_through=LONG_AGO)),
    ("in other hands", lambda one, _: _settings(one, tenancy=2)),
    ("counters", lambda one, _: _registered(one, Registration(supplier_id=SUPPLIER_ID, custody=Custody.SMSO))),
    ("nobody supplied", lambda one, _: replace(one, registrations=one.registrations.end(at=None, now=AT))),
    ("prepayment", lambda one, _: _settings(one, payment_mode=PaymentMode.CREDIT)),
    ("prepayment", lambda one, _: _settings(one, enrolled=False)),
    ("amount", lambda one, _: _settings(one, max_credit_pence=5)),
    ("blocked", lambda _, one: _used(one, status=PanStatus.BLOCKED)),
    ("another meter", lambda _, one: _used(one, meter_id="00db12ffffffffff")),
    ("another meter", lambda _, one: _used(one, tenancy=2)),
    ("stood for nothing", lambda _, one: replace(one, uses=one.uses.end(at=None, now=AT))),
    ("supplier was not active", lambda *_: _with_status(SUPPLIER, ParticipantStatus.SUSPENDED)),
    ("seller was not active", lambda *_: _with_status(PSP, ParticipantStatus.SUSPENDED)),
    ("originator", lambda *_: replace(SUPPLIER, supplier_key=replace(KEY, originator_id="90b3d51f30010009"))),
    (
        "no PSP",
        lambda *_: replace(
            SUPPLIER, profiles=_now(SUPPLIER.profiles, Profile(selling_model=SellingModel.SUPPLIER_ONLY))
        ),
    ),
    ("not appointed", lambda *_: _suspended()),
    ("not appointed", lambda *_: _appointed(until=AT)),
    ("not appointed", lambda *_: _appointed(since=Ms(AT + 60_000))),
    ("outside", lambda *_: _appointed(max_pence=5)),
]


@pytest.mark.parametrize(("why", "changed"), _WRONG, ids=[f"{index}-{why}" for index, (why, _) in enumerate(_WRONG)])
def test_what_was_sold_was_allowed_by_the_records_of_then(why: str, changed: _Changed) -> None:
    stored = new_vend()
    story = market(stored)
    record = changed(meter(stored.meter_id), card(stored.sale.pan, stored.meter_id))
    story.tell(RecordSeen(ref_of(record), record))
    known = sell(story, stored)
    told = [str(one) for one in check_run(replace(run_of(story, known, credited=False), settled=False))]
    assert [one for one in told if "INV-14" in one and why in one], told


@pytest.mark.parametrize(("why", "changed"), _WRONG, ids=[f"{index}-{why}" for index, (why, _) in enumerate(_WRONG)])
def test_what_changes_later_or_in_the_ledger_before_is_no_fault_of_a_sale(why: str, changed: _Changed) -> None:
    stored, run = good()
    record = changed(meter(stored.meter_id), card(stored.sale.pan, stored.meter_id))
    assert why
    assert (
        check_run(replace(run, ledger=[*run.ledger, LedgerEvent(99, RecordSeen(ref_of(record), record), 99.0)])) == []
    )


def test_every_record_a_sale_was_based_on_was_in_force_at_its_revision() -> None:
    plain = new_vend()
    for record in (SUPPLIER, PSP, APPOINTMENTS, meter(plain.meter_id), card(plain.sale.pan, plain.meter_id)):
        story = market(plain)
        before = sell(market(plain), plain).authorization.read_set
        # Written again: the same content, another revision.
        story.tell(RecordSeen(ref_of(record), record))
        moved = with_authorization(sell(story, plain), read_set=before)
        ledger = rewritten(story.events, lambda one, moved=moved: replace(one, vend=moved))  # type: ignore[misc]
        run = replace(run_of(story, moved, credited=False), settled=False, ledger=ledger)
        assert _fired(run) == {14}, record
    story = market(plain)
    story.tell(RecordGone(ref_of(card(plain.sale.pan, plain.meter_id))))
    assert 14 in _fired(replace(run_of(story, sell(story, plain), credited=False), settled=False))


def test_a_sale_names_what_it_was_based_on() -> None:
    _, run = good()
    bare = rewritten(run.ledger, lambda one: replace(one, vend=with_authorization(one.vend, read_set=())))
    assert _fired(replace(run, ledger=bare)) == {14}
    taken_over = rewritten(bare, lambda one: replace(one, vend=with_authorization(one.vend, rule="handed over")))
    assert check_run(replace(run, ledger=taken_over)) == []


@pytest.mark.parametrize(("moved", "fired"), [(True, True), (False, False)])
def test_nothing_is_sent_to_a_meter_that_has_changed_hands(*, moved: bool, fired: bool) -> None:
    stored = new_vend()
    story = market(stored)
    known = sell(story, stored)
    if moved:
        after = _registered(meter(stored.meter_id), Registration(supplier_id=SOUTH))
        story.tell(RecordSeen(ref_of(after), after))
    story.tell(seen(sent(known)))
    run = replace(run_of(story, known, credited=False), settled=False)
    assert (14 in _fired(run)) is fired


def test_no_head_end_takes_over_what_was_sold_for_the_side_before() -> None:
    stored, run = good()
    gone = _registered(meter(stored.meter_id), Registration(supplier_id=SOUTH))
    back = replace(meter(stored.meter_id), effective_through=AT)
    changed = LedgerEvent(90, RecordSeen(ref_of(gone), gone), 90.0)
    again = LedgerEvent(100, RecordSeen(ref_of(gone), back), 100.0)
    for at, ledger, fired in (
        (80.0, [changed], False),
        (99.0, [changed], False),
        (101.0, [changed], True),
        (101.0, [changed, again], False),
        (130.0, [changed, again], False),
    ):
        taken = [Taken(at=at, code=code(stored))]
        found = _fired(replace(run, ledger=[*run.ledger, *ledger], taken=taken, send_within_s=10.0))
        assert (14 in found) is fired, at


def test_no_head_end_takes_over_what_the_ledger_does_not_know_as_sent() -> None:
    stored, run = good()
    (sent_at,) = (one.heard_at for one in run.ledger if one.change == seen(sent(_as_sold(run))))
    for at, fired in ((sent_at - 0.5, True), (sent_at, False)):
        assert (13 in _fired(replace(run, taken=[Taken(at=at, code=code(stored))]))) is fired
    assert 13 in _fired(replace(run, taken=[Taken(at=99.0, code=code(stored)._replace(counter=7))]))


def _as_sold(run: Run) -> Vend:
    return next(one.change.vend for one in run.ledger if isinstance(one.change, VendSeen))


def test_no_change_of_a_meter_is_carried_out_before_its_time() -> None:
    stored, run = good()
    due = Ms(AT + 3_600_000)
    for heard_at, effective_through, fired in ((20.0, due, True), (3600.0, due, False), (20.0, LONG_AGO, False)):
        after = _registered(
            meter(stored.meter_id), Registration(supplier_id=SOUTH), since=due, effective_through=effective_through
        )
        later = LedgerEvent(99, RecordSeen(ref_of(after), after), heard_at)
        assert (14 in _fired(replace(run, ledger=[*run.ledger, later]))) is fired
        assert check_run(replace(run, ledger=[*run.ledger, later], began=None)) == []
    assert run.began is not None
    ahead = replace(run, began=run.began - timedelta(seconds=1))
    assert check_run(ahead) == []
    assert stored.sale.participant_id == PSP_ID


@pytest.mark.parametrize(
    ("off", "fired"),
    [
        # Nobody could know better, before the change.
        (TimeOff(revision=98, ahead_s=3600.0), False),
        (TimeOff(revision=98, ahead_s=3000.0), True),
        # The change came first.
        (TimeOff(revision=99, ahead_s=3600.0), True),
        (TimeOff(revision=98, ahead_s=3600.0, known_to=("node-a",)), True),
    ],
)
def test_time_that_begins_by_wrong_clocks_excuses_only_what_nobody_could_know(off: TimeOff, *, fired: bool) -> None:
    stored, run = good()
    due = Ms(AT + 3_600_000)
    after = _registered(meter(stored.meter_id), Registration(supplier_id=SOUTH), since=due, effective_through=due)
    later = LedgerEvent(99, RecordSeen(ref_of(after), after), 20.0)
    assert (14 in _fired(replace(run, ledger=[*run.ledger, later], times_off=[off]))) is fired


@pytest.mark.parametrize(("dated_s", "fired"), [(10, False), (9, True)])
def test_a_change_at_once_is_dated_after_a_code_whose_node_was_ahead(dated_s: int, *, fired: bool) -> None:
    stored, run = good()
    due = Ms(AT + 10_001)
    after = _registered(meter(stored.meter_id), Registration(supplier_id=SOUTH), since=due, effective_through=due)
    sold = replace(stored, issued_at=NOW + timedelta(seconds=dated_s))
    ledger = [
        replace(event, change=replace(event.change, vend=sold)) if isinstance(event.change, VendSeen) else event
        for event in run.ledger
    ]
    later = LedgerEvent(99, RecordSeen(ref_of(after), after), 2.0)
    told = [str(finding) for finding in check_run(replace(run, ledger=[*ledger, later]))]
    assert any("s early" in finding for finding in told) is fired


def test_a_step_of_time_that_a_node_knew_better_is_a_fault_by_itself() -> None:
    _, run = good()
    assert 14 in _fired(replace(run, times_off=[TimeOff(revision=3, ahead_s=3600.0, known_to=("node-a",))]))
