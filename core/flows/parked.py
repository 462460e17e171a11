"""What waits for a head end that is away, or that is not configured here: how much, and for how long."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

_COUNTED_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Parked:
    """A delivery waits until `head_end` is back; it was asked for at `since`."""

    head_end: str
    since: datetime


@dataclass(frozen=True, slots=True)
class ParkedAt:
    """How many deliveries wait for a head end, and when the one that has waited longest was asked for."""

    count: int
    oldest: datetime


class ParkedCount:
    """Counts once a second, however often it is asked: there may be a hundred thousand."""

    def __init__(self) -> None:
        self._counted_at = float("-inf")
        self._found: dict[str, ParkedAt] = {}

    def by_head_end(self, lanes: Iterable[tuple[Parked | None, int]]) -> Mapping[str, ParkedAt]:
        """Return what waits for each head end.

        Args:
            lanes: Of each counter sequence what its first delivery waits for, None for nothing, and how many it owes.
        """
        now = asyncio.get_running_loop().time()
        if now - self._counted_at >= _COUNTED_EVERY_S:
            self._counted_at, self._found = now, {}
            for parked, owed in lanes:
                if parked is not None and owed:
                    there = self._found.get(parked.head_end, ParkedAt(0, parked.since))
                    self._found[parked.head_end] = ParkedAt(there.count + owed, min(there.oldest, parked.since))
        return self._found
