"""Reminders: at which instants which meters must be looked at again. A million of them may wait for one midnight."""

import heapq

from core.domain.effective_dated import Ms
from core.domain.meter import MeterId

Reminder = tuple[Ms, MeterId]
_AT_ONCE = 1000


class Reminders:
    """Kept in order of their instants; to ask whether one is due costs nothing while none is."""

    def __init__(self) -> None:
        # With the revision of each one's key.
        self._there: dict[Reminder, int] = {}
        self._in_order: list[Reminder] = []

    def add(self, reminder: Reminder, revision: int = 0) -> None:
        """Add a reminder, whose key is at `revision`."""
        known = reminder in self._there
        self._there[reminder] = revision
        if not known:
            heapq.heappush(self._in_order, reminder)

    def discard(self, reminder: Reminder) -> None:
        """Remove a reminder, if it is there."""
        # It leaves the order when its turn comes.
        self._there.pop(reminder, None)

    def names(self) -> list[str]:
        """Return every reminder as its key spells it."""
        return [f"{at:013d}/{meter_id}" for at, meter_id in self._there]

    def revision_of(self, name: str) -> int:
        """Return the revision of a reminder's key; 0 if it is not there."""
        at, _, meter_id = name.partition("/")
        return self._there.get((Ms(int(at)), MeterId(meter_id)), 0) if at.isdecimal() else 0

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
