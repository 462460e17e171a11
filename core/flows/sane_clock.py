"""SaneClock: the wall clock for whoever dates what is kept; it says nothing while it cannot be relied on."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from core.domain.errors import NotReady
from core.ports.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class SaneClock:
    """A Clock for the registry. A node whose clock has jumped would carry tomorrow's changes out today, for good."""

    clock: Clock
    sane: Callable[[], bool]

    def now(self) -> datetime:
        """Return the time, in UTC; judged before and after it was read.

        Raises:
            NotReady: ask another node.
        """
        sane, now = self.sane(), self.clock.now()
        if not sane or not self.sane():
            raise NotReady("this node's clock cannot be relied on; ask another")
        return now

    def monotonic(self) -> float:
        """Return seconds that only go on."""
        return self.clock.monotonic()
