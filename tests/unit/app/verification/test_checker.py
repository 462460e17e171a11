"""The checker on histories small enough to see through: every rule has one that breaks it, and one that does not."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.verification.call_checks import final, linearizable
from app.verification.call_log import FENCED, IF_FIRST, Call, History, read_history
from app.verification.checker import Run, check_run
from app.verification.observed_run import TimeOff
from cluster.audit.change_feed import (
    CodeSeen,
    CounterSeen,
    LedgerEvent,
    OwnerGone,
    OwnerSeen,
    RefusalSeen,
    VendGone,
)
from cluster.membership.placement import shard_of
from core.domain.effective_dated import Ms
from core.domain.participant import ParticipantId
from core.domain.refusal import ClosedRefusal
from tests.support.runs import (
    SHARDS,
    call_for,
    credit,
    good,
    market,
    new_vend,
    owed,
    rewritten,
    run_of,
    seen,
    sell,
    sent,
)
from tests.support.vends import ORIGINATOR, vend

pytestmark = [pytest.mark.slow]


def _call(began: float, ended: float | None, outcome: str = "ok", **facts: object) -> Call:
    chosen = {"caller": "till", "participant": "psp", "transaction_id": "id", "content": "p", "amount_pence": 100}
    told = {"digest": "d" if outcome == "ok" else ""}
    return Call(began=began, ended=ended, outcome=outcome, **(chosen | told | facts))  # type: ignore[arg-type]


REUSED = "TRANSACTION_ID_REUSED"


@pytest.mark.parametrize(
    ("calls", "explained"),
    [
        ([_call(0, 1), _call(2, 3)], True),
        ([_call(0, 1), _call(2, 3, digest="other")], False),
        ([_call(0, 2), _call(1, 3, digest="other")], False),
        ([_call(0, None, "unknown"), _call(2, 3)], True),
        ([_call(0, None, "unknown", amount_pence=5), _call(2, 3)], True),
        ([_call(0, 1), _call(2, 3, amount_pence=5)], False),
        ([_call(0, 1), _call(2, 3, "refused", amount_pence=5, reason=REUSED)], True),
        ([_call(0, 1, "refused", amount_pence=5, reason=REUSED), _call(2, 3)], False),
        ([_call(0, 4, "refused", amount_pence=5, reason=REUSED), _call(2, 3)], True),
        ([_call(0, 1, "refused", reason="PAN_BLOCKED"), _call(2, 3)], True),
        # An unknown call may take effect late, but not before it began.
        ([_call(0, 1, "refused", amount_pence=5, reason=REUSED), _call(2, None, "unknown")], False),
    ],
)
def test_calls_of_one_id_are_explained_by_some_order_or_are_not(calls: list[Call], *, explained: bool) -> None:
    assert linearizable(calls) is explained
    assert _searched(calls) is explained


def _searched(calls: list[Call]) -> bool:
    """Wing and Gong's search over every order: slow, and obviously right."""
    done_by = [float("inf") if call.ended is None or call.outcome == "unknown" else call.ended for call in calls]
    everything = frozenset(index for index, call in enumerate(calls) if call.outcome != "unknown")
    stack: list[tuple[frozenset[int], int | None]] = [(frozenset(), None)]
    visited = set(stack)
    while stack:
        taken, first = stack.pop()
        if everything <= taken:
            return True
        rest = [index for index in range(len(calls)) if index not in taken]
        horizon = min(done_by[index] for index in rest)
        for index in rest:
            if calls[index].began <= horizon and (after := _next(calls, index, first)) is not None:
                state = taken | {index}, after[0]
                if state not in visited:
                    visited.add(state)
                    stack.append(state)
    return False


def _next(calls: list[Call], index: int, first: int | None) -> tuple[int | None] | None:
    call = calls[index]
    same = first is not None and (call.content, call.amount_pence) == (calls[first].content, calls[first].amount_pence)
    if call.outcome == "refused":
        return (first,) if call.reason != REUSED or (first is not None and not same) else None
    if first is None:
        return (index,)
    if call.outcome == "unknown":
        return (first,)
    digests = {one.digest for one in calls if one.outcome == "ok"}
    return (first,) if same and len(digests) == 1 else None


_CALLS = st.lists(
    st.builds(
        lambda began, lasts, outcome, amount, digest, reason: _call(
            began,
            None if outcome == "unknown" else began + lasts,
            outcome,
            amount_pence=amount,
            digest=digest if outcome == "ok" else "",
            reason=reason if outcome == "refused" else "",
        ),
        st.integers(0, 6),
        st.integers(1, 4),
        st.sampled_from(["ok", "ok", "refused", "unknown"]),
        st.sampled_from([100, 200]),
        st.sampled_from(["d", "d", "d", "e"]),
        st.sampled_from([REUSED, "PAN_BLOCKED"]),
    ),
    max_size=6,
)


@settings(max_examples=1500, deadline=None)
@given(_CALLS)
def test_the_short_way_says_what_a_search_over_every_order_says(calls: list[Call]) -> None:
    assert linearizable(calls) is _searched(calls)


def _fired(run: Run) -> set[int]:
    return {finding.invariant for finding in check_run(run)}


def test_a_run_in_which_all_went_well_has_no_findings() -> None:
    _, run = good()
    assert check_run(run) == []


def test_each_broken_promise_is_found_under_its_number() -> None:
    stored, run = good()
    other = replace(stored, utrn=vend(1, stored.meter_id, pence=1100).utrn)
    second = vend(1, stored.meter_id)
    begun = list(run.ledger)
    later = replace(stored, issued_at=stored.issued_at + timedelta(seconds=1))
    assert 1 in _fired(replace(run, ledger=[*begun, LedgerEvent(99, seen(later))]))
    assert 2 in _fired(replace(run, ledger=[*begun, LedgerEvent(99, seen(second, created=True))]))
    fell = [LedgerEvent(number, CounterSeen(ORIGINATOR, stored.meter_id, last)) for number, last in ((98, 3), (99, 2))]
    assert 2 in _fired(replace(run, ledger=[*begun, *fell]))
    assert {3, 4} <= _fired(replace(run, calls=[call_for(other)]))
    assert 3 in _fired(replace(run, ledger=[]))
    deleted = VendGone((stored.sale.participant_id, stored.sale.transaction_id))
    assert 3 in _fired(replace(run, ledger=[*begun, LedgerEvent(99, deleted)]))
    assert 4 in _fired(replace(run, credits=[credit(other)]))
    assert 4 in _fired(replace(run, logs=[f"sent {stored.utrn} to a meter"]))
    assert 4 in _fired(replace(run, logs=[f"raw 123{stored.utrn}99 of a meter"]))
    assert 4 not in _fired(replace(run, logs=["sent 12345678901234567890 to a meter"]))
    assert 6 in _fired(replace(run, credits=[credit(stored), credit(stored)]))
    assert 6 in _fired(replace(run, credits=[])), "applied in the ledger, and never at the meter"
    assert 7 in _fired(replace(run, window_s=10.0, id_age_s={stored.sale.transaction_id: 11.0}))
    # Time began late, and no node could know: by it the id was younger.
    for ahead_s, fired in ((-2.0, False), (-0.5, True), (2.0, True)):
        off = [TimeOff(revision=1, ahead_s=ahead_s)]
        old = replace(run, window_s=10.0, id_age_s={stored.sale.transaction_id: 11.0}, times_off=off)
        assert (7 in _fired(old)) is fired
    assert 8 in _fired(replace(run, not_authentic=1))
    assert 9 in _fired(replace(run, free_shards=1))
    assert 10 in _fired(replace(run, overloaded_without_delay=1))
    assert 11 in _fired(replace(run, leases=1))


def test_two_participants_with_the_same_id_made_two_sales() -> None:
    stored, run = good()
    theirs = call_for(stored, participant="psp-other", digest="theirs", utrn="", outcome="unknown")
    assert check_run(replace(run, calls=[*run.calls, theirs])) == []
    answered = call_for(stored, participant="psp-other", digest="theirs")
    found = [str(one) for one in check_run(replace(run, calls=[*run.calls, answered]))]
    assert found == [f"INV-3: {stored.sale.transaction_id} was answered and is not in the ledger"]


def test_a_record_that_does_not_agree_with_its_key_is_found() -> None:
    stored, run = good()
    other = ParticipantId("psp-other"), stored.sale.transaction_id
    wrong = rewritten(run.ledger, lambda one: replace(one, key=other))
    assert 1 in _fired(replace(run, ledger=wrong))


def test_more_of_a_vend_than_its_delivery_never_changes() -> None:
    stored, run = good()
    renamed = replace(stored, sale=replace(stored.sale, reference=replace(stored.sale.reference, outlet_id="other")))
    assert 1 in _fired(replace(run, ledger=[*run.ledger, LedgerEvent(99, seen(renamed))]))


@pytest.mark.parametrize(
    ("refusals", "sold_after"),
    [
        ([call_for(new_vend(), 0, 1, "refused", reason="PAN_BLOCKED", final=IF_FIRST)], True),
        ([call_for(new_vend(), 0, 1, "refused", reason="PAN_BLOCKED", final=FENCED, repeat=True)], True),
        ([call_for(new_vend(), 0, 1, "refused", reason="PAN_BLOCKED", final=FENCED, amount_pence=5)], True),
        # What is not final says nothing of the sale.
        ([call_for(new_vend(), 0, 1, "refused", reason="PAN_BLOCKED")], False),
        ([call_for(new_vend(), 0, 1, "unknown", reason="UNAVAILABLE"),
          call_for(new_vend(), 2, 3, "refused", reason="PAN_BLOCKED", final=IF_FIRST)], False),
        # Nor does the refusal of another sale under the same id.
        ([call_for(new_vend(), 0, 1, "refused", reason="PAN_BLOCKED", final=IF_FIRST, amount_pence=5)], False),
    ],
)  # fmt: skip
def test_what_was_refused_for_good_is_never_sold(refusals: list[Call], *, sold_after: bool) -> None:
    stored, run = good()
    told = call_for(stored)
    refused = [replace(refusal, transaction_id=told.transaction_id, content=told.content) for refusal in refusals]
    assert (7 in _fired(replace(run, calls=refused))) is sold_after
    # Asked for anew, it may be sold, unless its id is closed.
    later = replace(told, began=10, ended=11)
    fenced = any(one.final == FENCED for one in refused)
    assert (7 in _fired(replace(run, calls=[*refused, later]))) is fenced


def test_a_repeat_is_never_refused_as_if_it_were_the_first_attempt() -> None:
    _, run = good()
    first = _call(0, 1, "refused", reason="PAN_BLOCKED", final=IF_FIRST, transaction_id="other")
    assert check_run(replace(run, calls=[*run.calls, first])) == []
    assert 7 in _fired(replace(run, calls=[*run.calls, replace(first, repeat=True)]))


def test_an_id_that_is_closed_stays_closed() -> None:
    stored, run = good()
    key = stored.sale.participant_id, stored.sale.transaction_id
    refusal = ClosedRefusal(
        participant_id=key[0], transaction_id=key[1], reason="PAN_BLOCKED", message="no", refused_at=Ms(1)
    )
    closed = RefusalSeen(refusal, created=True, key=key)
    assert 7 in _fired(replace(run, ledger=[*run.ledger, LedgerEvent(99, closed)])), "closed over a vend"
    assert 7 in _fired(replace(run, ledger=[LedgerEvent(0, closed), *run.ledger])), "sold under a closed id"
    other = RefusalSeen(replace(refusal, reason="PAN_UNKNOWN"), created=False, key=key)
    only = replace(run, calls=[], credits=[], ledger=[LedgerEvent(1, closed), LedgerEvent(2, other)])
    assert _fired(only) == {7}, "closed anew"
    told = call_for(stored, 0, 1, "refused", reason="PAN_BLOCKED", final=FENCED, repeat=True)
    kept = replace(run, calls=[told], credits=[], ledger=[LedgerEvent(1, closed)])
    assert check_run(kept) == []
    assert _fired(replace(kept, ledger=[])) == {3}, "said to be closed, and not in the ledger"


def test_every_vend_is_committed_with_the_entry_of_its_counter() -> None:
    stored, run = good()
    without = [one for one in run.ledger if not isinstance(one.change, CodeSeen)]
    assert _fired(replace(run, ledger=without)) == {2}
    key = ParticipantId("psp-other"), stored.sale.transaction_id
    stolen = LedgerEvent(99, CodeSeen(stored.originator_id, stored.meter_id, stored.counter, key))
    assert 2 in _fired(replace(run, ledger=[*run.ledger, stolen]))


def test_what_was_answered_is_never_refused_later() -> None:
    stored, run = good()
    refused = call_for(stored, 2, 3, "refused", reason="NOT_APPOINTED", final=IF_FIRST, repeat=True)
    assert 7 in _fired(replace(run, calls=[*run.calls, refused]))
    other = call_for(stored, 2, 3, "refused", reason=REUSED, final=FENCED, amount_pence=stored.sale.amount + 1)
    assert check_run(replace(run, calls=[*run.calls, other])) == []


def test_a_refusal_of_a_first_attempt_is_final_only_if_nothing_of_its_id_is_under_way() -> None:
    refused = _call(2, 3, "refused", final=IF_FIRST)
    assert final(refused, [refused])
    assert final(refused, [refused, _call(4, 5)])
    assert not final(refused, [refused, _call(0, None, "unknown")])
    assert not final(refused, [refused, _call(2.5, 5)])
    assert not final(replace(refused, repeat=True), [refused])
    assert final(replace(refused, repeat=True, final=FENCED), [refused, _call(0, 9)])


def test_a_write_carries_the_epoch_of_its_own_shard() -> None:
    stored = new_vend()
    own = shard_of(stored.meter_id, SHARDS)
    other = (own + 1) % SHARDS
    for owners, fired in (
        ([], False),
        ([OwnerGone(own)], True),
        ([OwnerGone(own), OwnerSeen(own, "node-b", 98)], True),
        # Another shard's epoch lives; it is not the one that fences this meter.
        ([OwnerGone(own), OwnerSeen(own, "node-b", 98), OwnerSeen(other, "node-a", 10)], True),
        ([OwnerSeen(other, "node-b", 98)], False),
    ):
        story = market(stored)
        known = sell(story, stored)
        story.tell(*owners)
        story.tell(seen(sent(known)))
        found = {one.invariant for one in check_run(replace(run_of(story, known, credited=False), settled=False))}
        assert (5 in found) is fired, owners


def test_a_shard_that_is_owned_twice_is_found() -> None:
    stored, run = good()
    twice = LedgerEvent(99, OwnerSeen(shard_of(stored.meter_id, SHARDS), "node-b", 99))
    assert 5 in _fired(replace(run, ledger=[*run.ledger, twice]))


def test_what_is_owed_when_all_is_over_is_found() -> None:
    stored = new_vend()
    story = market(stored)
    stored = sell(story, stored)
    run = run_of(story, stored, credited=False)
    assert _fired(run) == {9}
    assert check_run(replace(run, settled=False)) == []
    assert owed(stored) in [event.change for event in story.events]


def test_a_history_is_read_back_as_it_was_also_after_a_crash(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    history = History(file)
    first = history.begin("till-1", ("psp", "id-1"), "p", 100, repeat=False, at=1.0)
    history.begin("till-2", ("psp", "id-2"), "p", 200, repeat=True, at=2.0)
    history.answered(first, utrn="7" * 20, content=b"all", replayed=False, at=3.0)
    refused = history.begin("till-3", ("psp", "id-1"), "p", 101, repeat=False, at=4.0)
    history.refused(refused, REUSED, final=FENCED, at=5.0)
    history.close()
    assert read_history(file) == history.calls
    assert [call.outcome for call in history.calls] == ["ok", "unknown", "refused"]
