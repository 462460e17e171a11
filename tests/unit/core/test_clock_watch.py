"""When a node may judge the age of an id by its own clock."""

from datetime import timedelta

from core.flows.clock_watch import ClockWatch
from tests.fakes.clock import HandClock


class SteppingClock(HandClock):
    """A clock whose wall time can be set without the monotonic one."""

    def step(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)


def test_a_clock_that_goes_on_is_sane_and_one_that_slews_too() -> None:
    clock = SteppingClock()
    watch = ClockWatch(clock, lambda: [0.1, -0.2])
    for _ in range(1000):
        clock.advance(0.1)
        clock.step(0.004)
        watch.look()
        assert watch.sane


def test_a_step_is_in_doubt_at_once_until_the_peers_agree_with_it() -> None:
    clock, ahead = SteppingClock(), [0.0, 0.0]
    watch = ClockWatch(clock, lambda: ahead)
    clock.step(-3600)
    assert not watch.sane, "before anybody has looked"
    ahead[:] = [3600.0, 3600.0]
    for _ in range(1000):
        clock.advance(0.1)
        watch.look()
        assert not watch.sane
    ahead[:] = [0.0, 0.0]
    watch.look()
    assert watch.sane, "the time daemon has set every clock: they agree"


def test_a_clock_that_was_wrong_from_the_start_is_found_out_by_its_peers() -> None:
    watch = ClockWatch(SteppingClock(), lambda: [900.0, 901.0])
    assert not watch.sane


def test_one_wrong_peer_of_two_does_not_outvote_this_node() -> None:
    watch = ClockWatch(SteppingClock(), lambda: [3600.0, 0.0])
    assert watch.sane


def test_alone_a_step_is_believed_after_a_while() -> None:
    clock = SteppingClock()
    watch = ClockWatch(clock, list, alone_s=30.0)
    clock.step(120)
    seen = []
    for _ in range(320):
        clock.advance(0.1)
        watch.look()
        seen.append(watch.sane)
    assert (seen[0], seen[290], seen[-1]) == (False, False, True)
