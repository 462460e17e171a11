"""Reminders: the same as a plain set, looked through; only faster."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.registry.due_queue import Reminders
from core.domain.effective_dated import Ms
from core.domain.meter import MeterId

_ONE = st.tuples(st.integers(0, 20).map(Ms), st.sampled_from("abc").map(MeterId))


@given(st.lists(st.tuples(st.sampled_from(["add", "discard", "ask"]), _ONE)))
def test_what_is_due_is_what_a_set_would_say(steps: list[tuple[str, tuple[Ms, MeterId]]]) -> None:
    reminders, plain = Reminders(), set[tuple[Ms, MeterId]]()
    for step, one in steps:
        if step == "add":
            reminders.add(one)
            plain.add(one)
        elif step == "discard":
            reminders.discard(one)
            plain.discard(one)
        assert reminders.due_by(one[0]) == sorted(other for other in plain if other[0] <= one[0])


def test_many_come_a_thousand_at_a_time_earliest_first() -> None:
    reminders = Reminders()
    for number in range(2500):
        reminders.add((Ms(5000 - number), MeterId("m")))
    first = reminders.due_by(Ms(9000))
    assert (len(first), first[0][0], first[-1][0]) == (1000, 2501, 3500)
    for one in first:
        reminders.discard(one)
    assert reminders.due_by(Ms(9000))[0][0] == 3501
