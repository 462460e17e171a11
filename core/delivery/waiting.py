"""What waits for a head end that is away, or that is not configured here: how much, and for how long."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime


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


def parked_by_head_end(sequences: Iterable[tuple[Parked | None, int]]) -> dict[str, ParkedAt]:
    """Return what waits for each head end.

    Args:
        sequences: Of each counter sequence what its first delivery waits for, None for nothing, and how many it owes.
    """
    found: dict[str, ParkedAt] = {}
    for parked, owed in sequences:
        if parked is not None and owed:
            there = found.get(parked.head_end, ParkedAt(0, parked.since))
            found[parked.head_end] = ParkedAt(there.count + owed, min(there.oldest, parked.since))
    return found
