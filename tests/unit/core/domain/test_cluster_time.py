"""Cluster time without any I/O: who is believed, how fast it may run, and when it may be set forward."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.domain.cluster_time import (
    Act,
    Doubt,
    Plan,
    Received,
    Sight,
    TimeKeeper,
    TimeRule,
    agreed,
    start,
    utc_ahead_ms,
)
from core.domain.effective_dated import Ms

RULE = TimeRule()
T = Ms(1_795_000_000_000)
HOUR = 3_600_000
NODES = ("a", "b", "c")


def sight(
    *walls: int | None, times: tuple[int | None, ...] = (), alive: str = "abc", known: tuple[str, ...] = NODES
) -> Sight:
    """What node a sees: wall clocks of a, b, c so many ms from T, None for one not heard; what b and c know."""
    told = times or tuple(None for wall in walls[1:] if wall is not None)
    return Sight(
        heard={},
        walls={node: Ms(T + wall) for node, wall in zip(NODES, walls, strict=False) if wall is not None},
        times={
            node: None if time is None else Ms(T + time)
            for node, time in zip([one for one in NODES[1:] if one in alive], told, strict=False)
        },
        alive=tuple(alive),
        known=known,
    )


def keeper(*, established: bool = True) -> TimeKeeper:
    made = TimeKeeper(RULE)
    made.receive(Received(T, 7, 100.0), moved=established)
    return made


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        (sight(0, 5, 9), 5),
        (sight(0, 5, HOUR), 0),
        (sight(HOUR, 5, 9), 5),
        (sight(0, 120_000, None), None),
        (sight(0, 120_000, HOUR), None),
        (sight(0, None, None), None),
        (sight(0, None, None, known=("a",)), 0),
        # Two majorities: the earlier one.
        (sight(0, 9_000, 18_000), 0),
        # A node that should not be there has no say.
        (sight(0, HOUR, HOUR, known=("a",)), 0),
    ],
)
def test_only_a_majority_of_who_should_be_there_that_agrees_is_believed(seen: Sight, wanted: int | None) -> None:
    assert agreed(seen, RULE.agree_ms) == (None if wanted is None else T + wanted)


def test_it_goes_on_by_the_monotonic_clock_and_never_back() -> None:
    one = keeper()
    assert one.tell(101.5) == T + 1500
    # The ledger's instant is behind what was told, and was so before: it stands still.
    one.receive(Received(Ms(T + 1000), 8, 101.5), moved=True)
    one.receive(Received(Ms(T + 1100), 9, 101.6), moved=True)
    assert (one.tell(101.6), one.tell(101.7), one.tell(102.1)) == (T + 1500, T + 1500, T + 1600)
    # An older one is not taken.
    one.receive(Received(Ms(T + 9000), 6, 101.0), moved=True)
    assert one.tell(102.2) == T + 1700


def test_an_instant_received_late_by_a_process_that_stood_still_makes_nobody_late() -> None:
    one = keeper()
    assert one.tell(104.0) == T + 4000
    for revision, instant in enumerate((1000, 2000, 3000), start=8):
        one.receive(Received(Ms(T + instant), revision, 104.0), moved=True)
        assert one.known(104.0), "they had waited, and come in a burst"
    one.receive(Received(Ms(T + 4000), 11, 104.01), moved=True)
    assert one.estimate(104.5) == T + 4490


def test_a_small_leap_is_corrected_by_the_second_instant() -> None:
    one = keeper()
    assert one.tell(105.0) == T + 5000
    one.receive(Received(Ms(T + 1000), 8, 105.0), moved=True)
    assert one.estimate(106.0) == T + 6000, "it may have come late"
    one.receive(Received(Ms(T + 2000), 9, 106.0), moved=True)
    assert (one.estimate(106.0), one.known(106.0)) == (T + 2000, False)


def test_a_node_knows_the_time_only_once_it_has_seen_it_move() -> None:
    one = keeper(established=False)
    assert (one.tell(101.0), one.known(101.0), one.estimate(101.0)) == (None, False, T + 1000)
    one.receive(Received(Ms(T + 1200), 8, 101.0), moved=True)
    assert (one.tell(101.0), one.known(101.0)) == (T + 1200, True)


def test_a_node_whose_monotonic_clock_has_jumped_stands_aside_alone() -> None:
    one = keeper()
    assert one.tell(100.0 + 3600) == T + HOUR
    # Its own write fails, because the others have moved the instant: so it hears of it.
    one.receive(Received(Ms(T + 1000), 8, 3700.1), moved=True)
    assert (one.tell(3700.2), one.known(3700.2)) == (None, False)
    assert one.known(3700.1 + 3599 + RULE.ahead_ms / 1000)


@pytest.mark.parametrize(
    ("off_ms", "wanted"),
    [(0, 1000), (500, 1100), (50, 1050), (-800, 250), (-50, 950), (60_000, 1100), (-60_000, 250)],
)
def test_it_is_drawn_along_slowly(off_ms: int, wanted: int) -> None:
    assert keeper().advance(101.0, Ms(T + 1000 + off_ms)) == Plan(Act.CARRY_ON, Ms(T + wanted))


@pytest.mark.parametrize("off_ms", [60_001, -60_001, HOUR, -HOUR, 48 * HOUR, -48 * HOUR])
def test_a_large_disagreement_is_never_believed_while_somebody_carries_the_time(off_ms: int) -> None:
    assert keeper().advance(101.0, Ms(T + 1000 + off_ms)) == Plan(Act.CARRY_ON, Ms(T + 1000))


def test_without_a_majority_it_goes_on_undrawn() -> None:
    assert keeper().advance(101.0, None) == Plan(Act.CARRY_ON, Ms(T + 1000))


def test_a_gap_is_closed_by_a_majority_and_only_forward() -> None:
    one = keeper()
    one.doubt = Doubt.GAP
    assert one.advance(101.0, None).doubt is Doubt.GAP
    assert one.advance(101.0, Ms(T + 8 * HOUR)) == Plan(Act.SET, Ms(T + 8 * HOUR))
    # At once, however short it was.
    assert one.advance(101.0, Ms(T + 19_000)) == Plan(Act.SET, Ms(T + 19_000))
    assert one.advance(101.0, Ms(T - 19_000)) == Plan(Act.CARRY_ON, Ms(T + 250))
    assert one.advance(101.0, Ms(T - HOUR)) == Plan(Act.CARRY_ON, Ms(T + 1000), Doubt.GAP)
    assert one.advance(101.0, Ms(T + 1000)) == Plan(Act.CARRY_ON, Ms(T + 1000))
    assert one.advance(101.0, Ms(T + RULE.step_max_ms + 2000)) == Plan(Act.CARRY_ON, Ms(T + 1000), Doubt.GAP)


def test_on_an_operators_word_it_runs_slowly_until_the_wall_clocks_have_come_up() -> None:
    one = keeper()
    one.doubt = Doubt.AHEAD
    assert one.advance(101.0, Ms(T - HOUR)) == Plan(Act.CARRY_ON, Ms(T + 250), Doubt.AHEAD)
    assert one.advance(101.0, Ms(T + HOUR)) == Plan(Act.CARRY_ON, Ms(T + 1000), Doubt.AHEAD)
    assert one.advance(101.0, Ms(T - 59_000)) == Plan(Act.CARRY_ON, Ms(T + 250))


def test_after_a_long_silence_one_jumped_monotonic_clock_of_several_is_outvoted() -> None:
    peers = [Ms(T + 600_000), Ms(T + 600_010)]
    assert keeper().advance(100.0 + 4200, None, peers).instant == T + 600_010
    # Of two, the earlier.
    assert keeper().advance(100.0 + 4200, None, peers[:1]).instant == T + 600_000
    assert keeper().advance(100.0 + 600, None).instant == T + 600_000


@pytest.mark.parametrize("leap_s", [2.1, 5.0, 9.0, 3600.0])
def test_an_instant_that_looks_late_after_a_leap_is_not_counted_from_earlier_by_a_node_that_writes(
    leap_s: float,
) -> None:
    one = keeper()
    at = 101.0 + leap_s
    one.receive(Received(Ms(T + 1000), 8, at), moved=True)
    assert one.silence_s(at) == 0
    assert one.advance(at + 1.5, None).instant == T + 2500
    writable = one.writable(at + 1.5)
    assert writable is None or writable <= T + 2500 + RULE.ahead_ms // 2


def test_without_a_peer_a_leap_is_held_against_the_wall_clocks_where_they_are_not_behind_the_ledger() -> None:
    assert keeper().advance(108.0, Ms(T + 1000)).instant == T + 1000
    # Clocks that have stepped back say nothing of how long it was.
    assert keeper().advance(108.0, Ms(T - HOUR)).instant == T + 8000
    # Where somebody was heard, it is that, not the wall clocks.
    assert keeper().advance(108.0, Ms(T + 8000), [Ms(T + 1000)]).instant == T + 1200


def test_a_node_that_has_not_heard_the_ledger_for_two_seconds_is_to_ask_before_it_writes() -> None:
    one = keeper()
    assert one.writable(101.9) == T + 1900
    assert one.writable(102.1) is None


@pytest.mark.parametrize(
    ("wall_off_ms", "agreed_off_ms", "doubt", "wanted"),
    [
        (0, 0, Doubt.NONE, 0),
        # A little late by whoever can tell, up to what is alarmed about.
        (18_000, 18_000, Doubt.NONE, 18_000),
        (60_000, None, Doubt.NONE, 60_000),
        (-18_000, -18_000, Doubt.NONE, 0),
        # This node's clock is off, and a majority says so; or it alone says what nobody would believe.
        (HOUR, 40, Doubt.NONE, 40),
        (HOUR, -40, Doubt.NONE, 0),
        (HOUR, None, Doubt.NONE, 0),
        (HOUR, HOUR, Doubt.NONE, 0),
        (HOUR, None, Doubt.AHEAD, 0),
        # All were down for hours, and the first is up alone: it is late, and delivers.
        (8 * HOUR, None, Doubt.GAP, 8 * HOUR),
        (RULE.step_max_ms + 1, None, Doubt.GAP, 0),
    ],
)
def test_an_instant_for_others_is_moved_out_by_what_cluster_time_may_be_late(
    wall_off_ms: int, agreed_off_ms: int | None, doubt: Doubt, wanted: int
) -> None:
    assert utc_ahead_ms(RULE, wall_off_ms, agreed_off_ms, doubt) == wanted


# A node that has just started.


@pytest.mark.parametrize(
    ("seen", "ledger", "watched_s", "wanted"),
    [
        # It looks for a second, and for five while somebody is alive who has not been heard.
        (sight(HOUR, HOUR, HOUR), 0, 0.9, Plan(Act.WAIT)),
        (sight(HOUR, HOUR, None), 0, 4.9, Plan(Act.WAIT)),
        # All were away for an hour: a majority sets it forward.
        (sight(HOUR, HOUR, HOUR), 0, 1.0, Plan(Act.SET, Ms(T + HOUR))),
        (sight(HOUR, HOUR, None, alive="ab"), 0, 1.0, Plan(Act.SET, Ms(T + HOUR))),
        (sight(HOUR, HOUR, 9 * HOUR), 0, 1.0, Plan(Act.SET, Ms(T + HOUR))),
        # One an hour ahead that has heard nobody, or whom nobody agrees with: it goes on from the ledger's instant.
        (sight(HOUR, None, None, alive="a"), 0, 4.9, Plan(Act.WAIT)),
        (sight(HOUR, None, None, alive="a"), 0, 5.0, Plan(Act.CARRY_ON, T, Doubt.GAP)),
        (sight(HOUR, 0, None, alive="ab"), 0, 5.0, Plan(Act.CARRY_ON, T, Doubt.GAP)),
        # It was a moment only: seconds matter as well to those who compare with their own clocks.
        (sight(30_000, 30_000, 30_000), 0, 1.0, Plan(Act.SET, Ms(T + 30_000))),
        (sight(2, 3, 4), 0, 1.0, Plan(Act.SET, Ms(T + 3))),
        (sight(-30_000, -30_000, -30_000), 0, 1.0, Plan(Act.CARRY_ON, T)),
        (sight(30_000, None, None, alive="a"), 0, 5.0, Plan(Act.CARRY_ON, T, Doubt.GAP)),
        # Clocks that were reset, or have never been set: nobody knows how long it was.
        (sight(-HOUR, -HOUR, -HOUR), 0, 5.0, Plan(Act.CARRY_ON, T, Doubt.GAP)),
        (sight(31 * 24 * HOUR, 31 * 24 * HOUR, 31 * 24 * HOUR), 0, 5.0, Plan(Act.CARRY_ON, T, Doubt.GAP)),
        # Somebody knows the time, and does not reach the ledger: it is asked, not the wall clocks.
        (sight(HOUR, HOUR, HOUR, times=(700, None)), 0, 4.9, Plan(Act.WAIT)),
        (sight(HOUR, HOUR, HOUR, times=(700, None)), 0, 5.0, Plan(Act.SET, Ms(T + 700))),
        # The first start ever.
        (sight(0, 0, 0), None, 1.0, Plan(Act.SET, T)),
        (sight(0, None, None, alive="a", known=("a",)), None, 1.0, Plan(Act.SET, T)),
        (sight(0, HOUR, None, alive="ab"), None, 60.0, Plan(Act.WAIT)),
    ],
)
def test_what_a_node_does_that_does_not_see_the_time_move(
    seen: Sight, ledger: int | None, watched_s: float, wanted: Plan
) -> None:
    now = None if ledger is None else Ms(T + ledger)
    assert start(RULE, seen, now, me="a", watched_s=watched_s) == wanted


def test_a_gap_stays_open_for_a_node_that_takes_the_time_from_those_who_carry_it() -> None:
    seen = sight(HOUR, HOUR, HOUR, times=(700, None))
    assert start(RULE, seen, T, me="a", watched_s=5.0, doubt=Doubt.GAP) == Plan(Act.SET, Ms(T + 700), Doubt.GAP)


@pytest.mark.parametrize("walls", [-2 * HOUR, 26 * HOUR - RULE.step_max_ms, None])
def test_what_an_operator_has_said_outlives_a_start_of_all_nodes(walls: int | None) -> None:
    """Were it a gap, the next step of the wall clocks would be believed, hours at once."""
    seen = sight(walls, walls, walls) if walls is not None else sight(0, None, None, alive="a")
    plan = start(RULE, seen, T, me="a", watched_s=5.0, doubt=Doubt.AHEAD)
    assert plan == Plan(Act.CARRY_ON, T, Doubt.AHEAD)
    one = keeper()
    one.doubt = plan.doubt
    assert one.advance(101.0, Ms(T + 26 * HOUR)).instant == T + 1000


def test_an_operators_word_ends_where_the_wall_clocks_have_come_up_during_a_stop_of_all_nodes() -> None:
    assert start(RULE, sight(HOUR, HOUR, HOUR), T, me="a", watched_s=5.0, doubt=Doubt.AHEAD) == Plan(
        Act.SET, Ms(T + HOUR)
    )


_OFFS = st.integers(min_value=-3 * 24 * HOUR, max_value=3 * 24 * HOUR)


@given(
    steps=st.lists(
        st.tuples(st.floats(0.001, 30.0), st.one_of(st.none(), _OFFS), st.sampled_from(Doubt)), min_size=1, max_size=40
    )
)
def test_whatever_wall_clocks_do_it_only_rises_and_runs_within_its_bounds(
    steps: list[tuple[float, int | None, Doubt]],
) -> None:
    one, at, told = keeper(), 100.0, T
    for revision, (elapsed_s, off_ms, doubt) in enumerate(steps, start=8):
        at += elapsed_s
        one.doubt = doubt
        now = one.tell(at)
        assert now is not None
        assert now >= told
        told = now
        assert one.last is not None
        before, plan = one.last.instant, one.advance(at, None if off_ms is None else Ms(now + off_ms))
        passed_ms = (at - one.last.at) * 1000
        if plan.act is Act.SET:
            assert doubt is Doubt.GAP
        else:
            slowest, fastest = passed_ms * (1 - RULE.back_share), passed_ms * (1 + RULE.forward_share)
            assert slowest - 2 <= plan.instant - before <= fastest + 2
        if plan.instant > before:
            one.receive(Received(plan.instant, revision, at), moved=True)


@given(wall=_OFFS, other=_OFFS, third=_OFFS, seconds=st.integers(1, 600))
def test_one_wall_clock_moves_nothing_by_itself(wall: int, other: int, third: int, seconds: int) -> None:
    """Two clocks that tell the truth hold whatever the third says; without a majority nothing is drawn at all."""
    one = keeper()
    for tick in range(1, seconds + 1):
        truth = tick * 1000
        seen = sight(truth + wall, truth, truth)
        plan = one.advance(100.0 + tick, agreed(seen, RULE.agree_ms))
        assert abs(plan.instant - T - truth) <= RULE.agree_ms
        one.receive(Received(plan.instant, 7 + tick, 100.0 + tick), moved=True)
        if tick > 20:
            break
    apart = sight(wall, other, third)
    if agreed(apart, RULE.agree_ms) is None:
        assert keeper().advance(101.0, agreed(apart, RULE.agree_ms)).instant == T + 1000


def test_without_the_bound_a_majority_that_has_stepped_is_believed() -> None:
    """The control: were every agreed reading drawn after, an hour's step would take the cluster along."""
    loose = TimeKeeper(replace(RULE, off_ms=48 * HOUR))
    loose.receive(Received(T, 7, 100.0), moved=True)
    assert loose.advance(101.0, Ms(T + HOUR)).instant > T + 1000
    assert keeper().advance(101.0, Ms(T + HOUR)).instant == T + 1000
