"""The pictures of docs/concepts.md show what the code does."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

import pytest

from core.domain.appointment import AppointmentState
from core.domain.delivery import CLOSED, Delivery, DeliveryReason, DeliveryState
from core.domain.invariant import InvariantBroken
from core.domain.meter import Custody

PAGE = (Path(__file__).parents[4] / "docs" / "concepts.md").read_text()
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _arrows(title: str) -> set[tuple[str, str]]:
    """Return the arrows of the picture under a title, without those from the start."""
    section = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\s*(\w+) --> (\w+)", section, re.MULTILINE))


def _moves(state: DeliveryState) -> set[DeliveryState]:
    """Return where a delivery can go from a state, by every method that moves it."""
    before, found = Delivery(state=state), set[DeliveryState]()
    ways: list[Callable[[], Delivery]] = [
        lambda: before.queue(NOW),
        lambda: before.send(NOW, 1, head_end="smso", random_part="r"),
        lambda: before.mark_outcome_unknown(1),
        lambda: before.credit(NOW, 1),
        lambda: before.dispute(NOW, 1),
        lambda: before.settle(NOW, credited=True),
        lambda: before.settle(NOW, credited=False),
        *(lambda end=end: before.close(end, DeliveryReason.NONE, NOW, 1) for end in CLOSED),
    ]
    for way in ways:
        try:
            after = way()
        except InvariantBroken:
            continue
        if after is not before:
            found.add(after.state)
    return found


def test_the_picture_of_a_delivery_has_every_move_and_no_other() -> None:
    assert _arrows("A delivery") == {(state.name, to.name) for state in DeliveryState for to in _moves(state)}


@pytest.mark.parametrize(
    ("title", "states"), [("An appointment", AppointmentState), ("A meter's registration", Custody)]
)
def test_the_other_pictures_have_every_state(title: str, states: type[Enum]) -> None:
    assert {name for arrow in _arrows(title) for name in arrow if name.isupper()} == {state.name for state in states}
