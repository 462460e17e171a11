"""Clock: wall time and steady time; tests drive it by hand."""

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the time. Nothing in core asks the operating system."""

    def now(self) -> datetime:
        """Return the wall time, aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds of a clock that never goes back; only differences mean anything."""
        ...
