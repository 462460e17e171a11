"""Effective dating: no overlap, no gap unless said, and what has begun is never rewritten."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core.domain.effective_dated import PERIODS_MAX, EffectiveDated, Ms, begin, check_dates
from core.domain.errors import ChangePending, DateInPast, DatesReversed, HistoryFull, NothingToEnd, Refused

pytestmark = [pytest.mark.slow]


@dataclass
class _Said:
    """What was asked for and granted, told by hand: the value at every instant from then on."""

    since: int
    value: int | None


class TimelineMachine(RuleBasedStateMachine):
    """Changes, ends and cancels at a clock that only goes on, beside a plain list of what holds from when on."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000
        self.value = 0
        self.timeline: EffectiveDated[int] = begin(0, since=None, now=Ms(1000), by="first")
        self.said = [_Said(1000, 0)]
        self.past: dict[int, int | None] = {}

    @rule(by=st.integers(0, 50))
    def time_goes_on(self, by: int) -> None:
        self._go_on(by)

    def _go_on(self, by: int) -> None:
        for instant in range(self.now, self.now + by):
            self.past[instant] = self._said_at(instant)
        self.now += by

    @rule(since=st.one_of(st.none(), st.integers(-60, 120)))
    def change(self, since: int | None) -> None:
        self.value += 1
        asked = None if since is None else Ms(self.now + since)
        try:
            self.timeline = self.timeline.change(self.value, since=asked, now=Ms(self.now), by="someone")
        except (DateInPast, ChangePending):
            return
        period = self.timeline.last
        assert period is not None
        assert asked is None or period.since in (asked, asked + 1)
        if self.said[-1].since == period.since:
            # What begins at the very instant of an end takes the end's place.
            self.said.pop()
        self.said.append(_Said(period.since, self.value))
        self._hear()

    @rule()
    def adjust(self) -> None:
        """Everything that holds or follows, a thousand more, from now on; dates as they are."""
        try:
            self.timeline = self.timeline.adjust(lambda one: one + 1000, now=Ms(self.now), by="someone")
        except (ChangePending, NothingToEnd):
            return
        holds = self.timeline.at(Ms(self.now)) or self.timeline.at(Ms(self.now + 1))
        before = [one for one in self.said if one.since <= self.now]
        follow = [one for one in self.said if one.since > self.now]
        for one in follow:
            one.value = None if one.value is None else one.value + 1000
        if before and before[-1].value is not None and holds is not None:
            changed = _Said(max(self.now, before[-1].since + 1), before[-1].value + 1000)
            self.said = [*before, changed, *follow]
        self._hear()

    @rule(at=st.one_of(st.none(), st.integers(-60, 120)))
    def end(self, at: int | None) -> None:
        try:
            self.timeline = self.timeline.end(at=None if at is None else Ms(self.now + at), now=Ms(self.now))
        except (DateInPast, ChangePending, NothingToEnd):
            return
        period = self.timeline.last
        assert period is not None
        assert period.until is not None
        self.said.append(_Said(period.until, None))

    @precondition(lambda self: self.said[-1].since > self.now and len(self.said) > 1)
    @rule()
    def cancel(self) -> None:
        self.timeline = self.timeline.cancel(now=Ms(self.now))
        self.said.pop()

    @precondition(lambda self: self.said[-1].since <= self.now)
    @rule()
    def nothing_waits_to_be_cancelled(self) -> None:
        with pytest.raises(NothingToEnd):
            self.timeline.cancel(now=Ms(self.now))

    @invariant()
    def periods_are_in_order_and_never_overlap(self) -> None:
        for one, next_one in zip(self.timeline.periods, self.timeline.periods[1:], strict=False):
            assert one.until is not None
            assert one.since < one.until <= next_one.since

    @invariant()
    def what_holds_is_what_was_said_and_gaps_are_where_they_were_said(self) -> None:
        for instant in {self.now, *(one.since for one in self.said), *(one.since - 1 for one in self.said)}:
            held = self.timeline.at(Ms(instant))
            assert (None if held is None else held.value) == self._said_at(instant)

    @invariant()
    def the_past_is_never_rewritten(self) -> None:
        for instant, value in list(self.past.items())[-100:]:
            held = self.timeline.as_recorded_at(Ms(instant))
            assert (None if held is None else held.value) == value

    def _hear(self) -> None:
        """Two changes within one millisecond: the second one is recorded a millisecond later, and the clock with it."""
        self._go_on(self.timeline.effective_now(Ms(self.now)) - self.now)

    def _said_at(self, instant: int) -> int | None:
        held = [one for one in self.said if one.since <= instant]
        return held[-1].value if held else None


TestTimeline = TimelineMachine.TestCase


def test_what_was_recorded_later_was_not_known_before() -> None:
    known = begin("old", since=Ms(10), now=Ms(500), by="load")
    assert known.at(Ms(100)) is not None
    assert known.as_recorded_at(Ms(100)) is None, "nobody could go by it before it was recorded"
    assert known.as_recorded_at(Ms(500)) is not None


@given(st.integers(0, 100), st.integers(0, 100))
def test_reversed_dates_are_named(since: int, until: int) -> None:
    if until > since:
        check_dates(Ms(since), Ms(until))
    else:
        with pytest.raises(DatesReversed):
            check_dates(Ms(since), Ms(until))


def test_what_is_so_already_changes_nothing_and_at_once_brings_forward_what_waits() -> None:
    one = begin("a", since=None, now=Ms(5), by="x")
    assert one.put("a", since=None, now=Ms(9), by="x") == one
    waits = one.change("b", since=Ms(90), now=Ms(10), by="x")
    assert waits.put("b", since=Ms(90), now=Ms(20), by="x") == waits
    forward = waits.put("b", since=None, now=Ms(20), by="x")
    assert [(period.value, period.since, period.until) for period in forward.periods] == [("a", 5, 20), ("b", 20, None)]
    with pytest.raises(ChangePending):
        waits.put("c", since=None, now=Ms(20), by="x")


def test_an_end_that_waits_is_not_lost_behind_a_change() -> None:
    ends = begin("a", since=None, now=Ms(5), by="x").end(at=Ms(90), now=Ms(10))
    with pytest.raises(ChangePending):
        ends.change("b", since=Ms(90), now=Ms(20), by="x")
    assert ends.cancel(now=Ms(20)).at(Ms(100)) is not None


def test_what_another_node_recorded_at_once_holds_though_this_clock_is_slow() -> None:
    fast = begin("a", since=None, now=Ms(5), by="x").change("b", since=None, now=Ms(1000), by="fast")
    assert fast.effective_now(Ms(700)) == 1000
    with pytest.raises(NothingToEnd):
        fast.cancel(now=Ms(700))
    slow = fast.change("c", since=None, now=Ms(700), by="slow")
    assert [(period.value, period.since) for period in slow.periods] == [("a", 5), ("b", 1000), ("c", 1001)]


def test_a_history_has_an_end() -> None:
    one = begin(0, since=None, now=Ms(5), by="x")
    for number in range(1, PERIODS_MAX):
        one = one.change(number, since=None, now=Ms(5), by="x")
    with pytest.raises(HistoryFull):
        one.change(-1, since=None, now=Ms(5), by="x")


def test_two_changes_within_a_millisecond_keep_their_order() -> None:
    one = begin("a", since=None, now=Ms(5), by="x").change("b", since=None, now=Ms(5), by="x")
    two = one.change("c", since=None, now=Ms(6), by="x")
    assert [(period.value, period.since) for period in two.periods] == [("a", 5), ("b", 6), ("c", 7)]


def test_an_adjustment_reaches_what_waits_and_keeps_its_date() -> None:
    one = begin("a", since=None, now=Ms(5), by="x").change("b", since=Ms(90), now=Ms(10), by="x")
    two = one.adjust(lambda value: value + "!", now=Ms(20), by="y")
    assert [(period.value, period.since, period.until) for period in two.periods] == [
        ("a", 5, 20), ("a!", 20, 90), ("b!", 90, None),
    ]  # fmt: skip
    assert two.adjust(lambda value: value, now=Ms(30), by="y") == two
    assert two.cancel(now=Ms(30)).at(Ms(100)) == two.periods[1]._replace(until=None)


def test_a_date_that_has_passed_says_what_time_it_is_here() -> None:
    with pytest.raises(DateInPast) as refused:
        begin("a", since=None, now=Ms(5), by="x").change("b", since=Ms(90), now=Ms(100), by="x")
    assert isinstance(refused.value, Refused)
    assert refused.value.facts == {"asked_ms": "90", "now_ms": "100"}
