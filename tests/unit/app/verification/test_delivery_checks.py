"""The checker's rules for deliveries: who writes them, what each end needs, and that none is forgotten."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from app.verification.checker import GiveUp, Run, Said, check_run
from cluster.audit.change_feed import (
    AppliedSeen,
    Change,
    CounterSeen,
    LedgerEvent,
    OwedGone,
    OwedSeen,
    RecordSeen,
    VendSeen,
)
from core.domain.delivery import DeliveryReason, DeliveryState
from core.domain.effective_dated import Ms, ms_of
from core.domain.meter import Registration
from core.domain.participant import ParticipantId
from core.domain.vend import Operation, Vend
from tests.support.runs import (
    EPOCH,
    Story,
    applied,
    closed,
    code,
    good,
    market,
    new_vend,
    paid_off,
    ref_of,
    run_of,
    seen,
    sell,
    sent,
    with_delivery,
)
from tests.support.vends import NOW, ORIGINATOR, meter

BY_HAND, REFUSED = DeliveryState.ENTER_BY_HAND, DeliveryState.REFUSED
R = DeliveryReason


def _fired(run: Run) -> set[int]:
    return {finding.invariant for finding in check_run(run)}


def _ended(sends: int, state: DeliveryState, reason: DeliveryReason, after_s: float = 1.0) -> tuple[Story, Vend]:
    """A vend that was sent so often and ended so, so many seconds after it was asked for."""
    stored = new_vend()
    story = market(stored)
    stored = now = sell(story, stored)
    for _ in range(sends):
        story.tell(seen(now := sent(now)))
    ended = with_delivery(closed(now, state, reason), closed_at=NOW + timedelta(seconds=after_s))
    story.revision = max(story.revision, int(after_s))
    story.tell(seen(ended), paid_off(stored))
    return story, ended


@pytest.mark.parametrize(
    ("sends", "state", "reason", "after_s", "allowed"),
    [
        (0, BY_HAND, R.NO_ANSWER, 1, False),
        (0, BY_HAND, R.NO_ANSWER, 1000, False),
        (1, BY_HAND, R.NO_ANSWER, 1, False),
        (1, BY_HAND, R.NO_ANSWER, 99, False),
        (1, BY_HAND, R.NO_ANSWER, 120, True),
        (3, BY_HAND, R.NO_ANSWER, 1, True),
        (2, BY_HAND, R.UNEXPLAINED, 1, False),
        (0, REFUSED, R.MAX_BALANCE, 1, False),
        (1, REFUSED, R.MAX_BALANCE, 1, True),
        (1, REFUSED, R.MAX_CREDIT, 1, False),
        (0, REFUSED, R.HEAD_END_REFUSED, 1, False),
        (0, REFUSED, R.SUPPLIER_CHANGED, 1, False),
        (0, REFUSED, R.TENANCY_CHANGED, 1, False),
        (0, REFUSED, R.METER_REMOVED, 1, False),
    ],
)
def test_every_end_has_a_cause(
    sends: int, state: DeliveryState, reason: DeliveryReason, after_s: float, *, allowed: bool
) -> None:
    story, ended = _ended(sends, state, reason, after_s)
    said = Said(refusals={(code(ended), R.MAX_BALANCE)})
    run = replace(run_of(story, ended, credited=False), said=said)
    assert _fired(run) == (set() if allowed else {13})


def test_a_delivery_is_not_given_up_by_a_clock_that_is_ahead() -> None:
    story, ended = _ended(1, BY_HAND, R.NO_ANSWER, after_s=120)
    run = run_of(story, ended, credited=False)
    assert check_run(run) == []
    # The ledger heard of it seconds after it was asked for, whatever its writer's clock said.
    early = [one if one.change != seen(ended) else replace(one, heard_at=20.0) for one in run.ledger]
    assert _fired(replace(run, ledger=early)) == {13}
    assert check_run(replace(run, ledger=early, give_up=GiveUp(attempts_max=1, after_s=100))) == []


def _lapsed(change: Callable[[Story, Vend], None], sends: int = 0) -> Run:
    stored = new_vend()
    story = market(stored)
    now = sell(story, stored)
    for _ in range(sends):
        story.tell(seen(now := sent(now)))
    change(story, now)
    story.tell(seen(ended := closed(now, REFUSED, R.SUPPLIER_CHANGED)), paid_off(now))
    return run_of(story, ended, credited=False)


def _moved_to_another(story: Story, stored: Vend, *, in_s: float = 0) -> None:
    known = meter(stored.meter_id)
    gained = known.registrations.change(
        Registration(supplier_id=ParticipantId("supplier-south")),
        since=Ms(ms_of(NOW) + int(in_s * 1000)),
        now=ms_of(NOW),
        by="test",
    )
    effective_through = ms_of(NOW) if in_s == 0 else known.effective_through
    after = replace(known, registrations=gained, effective_through=effective_through)
    story.tell(RecordSeen(ref_of(after), after))


def test_a_code_lapses_only_after_a_change_that_the_ledger_has() -> None:
    assert check_run(_lapsed(_moved_to_another)) == []
    assert _fired(_lapsed(lambda *_: None)) == {13}
    assert _fired(_lapsed(lambda story, stored: _moved_to_another(story, stored, in_s=3600))) == {13}
    assert _fired(_lapsed(_moved_to_another, sends=1)) == {13}, "what was sent may have been credited"


@pytest.mark.parametrize(
    "states",
    [
        [DeliveryState.UNKNOWN, DeliveryState.QUEUED],
        [DeliveryState.APPLIED, DeliveryState.UNKNOWN],
        [DeliveryState.APPLIED, DeliveryState.SENT],
        [DeliveryState.NOT_REQUESTED],
    ],
)
def test_a_delivery_goes_only_where_it_may_go(states: list[DeliveryState]) -> None:
    stored = new_vend()
    story = market(stored)
    now = sell(story, stored)
    for state in states:
        story.tell(seen(now := with_delivery(now, state=state, epoch=EPOCH)))
    assert 13 in _fired(run_of(story, now, credited=False))


def test_a_send_is_counted_once_and_nothing_else_is() -> None:
    stored = new_vend()
    for attempts, state, fired in ((1, DeliveryState.SENT, False), (2, DeliveryState.SENT, True),
                                   (1, DeliveryState.UNKNOWN, True)):  # fmt: skip
        story = market(stored)
        known = sell(story, stored)
        story.tell(
            seen(with_delivery(known, attempts=attempts, state=state, epoch=EPOCH, first_sent_at=NOW, last_sent_at=NOW))
        )
        run = replace(run_of(story, known, credited=False), settled=False)
        assert (13 in _fired(run)) is fired


def test_a_vend_begins_owed_or_not_asked_for() -> None:
    stored = new_vend(operation=Operation.ISSUE)
    story = market(stored)
    known = sell(story, stored)
    assert check_run(run_of(story, known, credited=False)) == []
    story = market(stored)
    born_applied = with_delivery(stored, state=DeliveryState.APPLIED, reason=R.CREDITED)
    sell(story, born_applied)
    assert 13 in _fired(run_of(story, born_applied))


def _without(run: Run, kind: type[Change]) -> list[LedgerEvent]:
    return [one for one in run.ledger if not isinstance(one.change, kind)]


def test_the_outbox_holds_what_is_owed_and_nothing_else() -> None:
    stored, run = good()
    assert _fired(replace(run, ledger=_without(run, OwedSeen))) == {13}, "owed, and nowhere to be found"
    assert _fired(replace(run, ledger=_without(run, OwedGone))) == {13}, "done, and still in the outbox"
    assert 13 in _fired(replace(run, ledger=_without(run, VendSeen))), "in the outbox without its vend"
    for change in (
        {"shard": 99},
        {"vend": ("psp-other", stored.sale.transaction_id)},
        {"counter": stored.counter + 1},
    ):
        moved = [
            replace(one, change=replace(one.change, **change)) if isinstance(one.change, OwedSeen) else one
            for one in run.ledger
        ]
        assert 13 in _fired(replace(run, ledger=moved)), change
    late = [replace(one, revision=one.revision + 1) if isinstance(one.change, OwedSeen) else one for one in run.ledger]
    assert 13 in _fired(replace(run, ledger=sorted(late, key=lambda one: one.revision))), "in a write of its own"


def test_what_is_known_to_be_applied_was_issued_and_credited_and_only_rises() -> None:
    stored, run = good()
    issued = LedgerEvent(90, CounterSeen(ORIGINATOR, stored.meter_id, 7))
    for highest, fired in ((1, False), (8, True), (1001, True), (0, True), (5, True)):
        after = LedgerEvent(91, AppliedSeen(ORIGINATOR, stored.meter_id, highest))
        assert (12 in _fired(replace(run, ledger=[*run.ledger, issued, after]))) is fired, highest
    told = Said(credited={code(stored), code(stored)._replace(counter=5)})
    alert = LedgerEvent(91, AppliedSeen(ORIGINATOR, stored.meter_id, 5))
    assert check_run(replace(run, said=told, ledger=[*run.ledger, issued, alert])) == []
    handed_over = [LedgerEvent(92, CounterSeen(ORIGINATOR, stored.meter_id, 9)),
                   LedgerEvent(92, AppliedSeen(ORIGINATOR, stored.meter_id, 8))]  # fmt: skip
    assert check_run(replace(run, ledger=[*run.ledger, *handed_over])) == []


def test_an_alert_for_a_counter_that_was_never_issued_moves_nothing() -> None:
    stored, run = good()
    told = Said(credited={code(stored), code(stored)._replace(counter=4_294_967_295)})
    alert = LedgerEvent(91, AppliedSeen(ORIGINATOR, stored.meter_id, 4_294_967_295))
    assert _fired(replace(run, said=told, ledger=[*run.ledger, alert])) == {12}


def test_a_duplicate_is_no_proof_that_a_code_was_credited() -> None:
    stored = new_vend()
    story = market(stored)
    known = sell(story, stored)
    story.tell(seen(now := sent(known)))
    done = closed(now, DeliveryState.APPLIED, R.ALREADY_CREDITED)
    story.tell(seen(done), paid_off(known), AppliedSeen(ORIGINATOR, stored.meter_id, stored.counter))
    run = replace(run_of(story, done, credited=False), said=Said(credited={code(done)}))
    assert _fired(run) == {6}


@pytest.mark.parametrize("operation", [Operation.ISSUE, Operation.TOP_UP])
def test_a_code_credited_by_hand_is_told_by_its_vend(operation: Operation) -> None:
    stored = new_vend(operation=operation)
    story = market(stored)
    known = sell(story, stored)
    if operation is Operation.TOP_UP:
        for _ in range(3):
            story.tell(seen(known := sent(known)))
        story.tell(seen(known := closed(known, BY_HAND, R.NO_ANSWER)), paid_off(stored))
    run = run_of(story, known)
    assert _fired(run) == {15}
    assert check_run(replace(run, settled=False)) == []
    assert check_run(replace(run, said=Said())) == [], "if nobody told"
    told = with_delivery(known, state=DeliveryState.APPLIED, reason=R.ALREADY_CREDITED, closed_at=NOW, epoch=EPOCH)
    story.tell(seen(told))
    assert check_run(replace(run, ledger=story.events)) == []


def test_applied_names_how_it_came_to_be() -> None:
    stored = new_vend()
    story = market(stored)
    known = sell(story, stored)
    story.tell(seen(now := sent(known)))
    story.tell(seen(with_delivery(applied(now), state=REFUSED)), paid_off(known))
    assert 13 in _fired(run_of(story, known))
