"""SystemClock: the Clock port over the operating system; the only place that asks it for the time."""

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from core.ports.clock import Clock


class SystemClock:
    """The real time."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""
        return datetime.now(tz=UTC)  # noqa: TID251  # the one place where the ban ends

    def monotonic(self) -> float:
        """Return seconds of a clock that never goes back."""
        return time.monotonic()


if TYPE_CHECKING:
    _: type[Clock] = SystemClock
