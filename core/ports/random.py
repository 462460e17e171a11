"""Random: chance, from a seed in tests."""

from typing import Protocol


class Random(Protocol):
    """Random numbers for the core: random.Random fits."""

    def uniform(self, a: float, b: float, /) -> float:
        """Return a number between `a` and `b`."""
        ...
