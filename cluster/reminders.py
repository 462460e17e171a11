"""Reminders: at which instants which meters must be looked at again. A million of them may wait for one midnight."""

import heapq

from core.domain.meter import MeterId
from core.domain.timeline import Ms

Reminder = tuple[Ms, MeterId]
_AT_ONCE = 1000


class Reminders:
    """Kept in order of their instants; to ask whether one is due costs nothing while none is."""

    def __init__(self) -> None:
        self._there: set[Reminder] = set()
        self._in_order: list[Reminder] = []

    def add(self, one: Reminder) -> None:
        """Add a reminder."""
        if one not in self._there:
            self._there.add(one)
            heapq.heappush(self._in_order, one)

    def discard(self, one: Reminder) -> None:
        """Take a reminder away, if it is there."""
        # It leaves the order when its turn comes.
        self._there.discard(one)

    def due_by(self, now: Ms) -> list[Reminder]:
        """Return the earliest reminders up to `now`, in order; at most a thousand at a time."""
        due: list[Reminder] = []
        while self._in_order and self._in_order[0][0] <= now and len(due) < _AT_ONCE:
            one = heapq.heappop(self._in_order)
            if one in self._there:
                due.append(one)
        for one in due:
            heapq.heappush(self._in_order, one)
        # One that was taken away and added again stands in the order twice.
        return list(dict.fromkeys(due))
