"""How load comes: steady, as an evening's peak, or as a storm of retries. Users by the second, and who they are."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A course of load.

    Attributes:
        users: At its highest.
        seconds: How long it lasts unless told otherwise.
        kinds: Names of the user classes that take part.
        course: Share of the users at each share of the time, straight lines between.
    """

    users: int
    seconds: int
    kinds: tuple[str, ...]
    course: tuple[tuple[float, float], ...]

    def users_at(self, share: float) -> int:
        """Return how many users there are when `share` of the time (0 to 1) has passed."""
        for (begins, low), (ends, high) in zip(self.course, self.course[1:], strict=False):
            if begins <= share <= ends:
                return round(self.users * (low + (high - low) * (share - begins) / (ends - begins)))
        return 0


SHAPES: Mapping[str, Shape] = {
    "steady": Shape(60, 60, ("Till", "App", "StatusPoller"), ((0.0, 0.2), (0.1, 1.0), (1.0, 1.0))),
    "peak": Shape(
        160, 75, ("Till", "App", "StatusPoller"), ((0.0, 0.1), (0.3, 1.0), (0.8, 1.0), (0.95, 0.2), (1.0, 0.2))
    ),
    "retry-storm": Shape(
        80, 60, ("Till", "Impatient", "StatusPoller"), ((0.0, 0.1), (0.2, 0.1), (0.25, 1.0), (0.8, 1.0), (1.0, 0.1))
    ),
}
