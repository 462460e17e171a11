"""SystemClock: the Clock port over the operating system; the only place that asks it for the time."""

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from core.ports.clock import Clock

# Linux's monotonic clock stands still while the machine sleeps; a node that wakes would believe in a lease long gone.
_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SystemClock:
    """The real time. Its `now` is the wall clock: for logs, tools, and what works before cluster time is known."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""
        return datetime.now(tz=UTC)  # noqa: TID251  # the one place where the ban ends

    def wall(self) -> datetime:
        """Return the same."""
        return self.now()

    def monotonic(self) -> float:
        """Return seconds of a clock that never goes back, and counts sleep."""
        return time.clock_gettime(_STEADY)


if TYPE_CHECKING:
    _: type[Clock] = SystemClock
