"""ClockWatch: may this node's wall clock be relied on? A node whose clock has jumped must not judge the age of ids.

A step is seen at once, because the monotonic clock does not step with it. It is believed only if the peers' clocks
agree with it; alone, a node believes its clock after a while, since nobody can say better.
"""

import asyncio
import logging
import statistics
from collections.abc import Callable, Sequence
from typing import NoReturn

from core.ports.clock import Clock

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.1


class ClockWatch:
    """Compares the wall clock with the monotonic one, and with the peers' wall clocks."""

    def __init__(
        self,
        clock: Clock,
        peers_ahead_s: Callable[[], Sequence[float]],
        *,
        step_s: float = 5.0,
        apart_s: float = 60.0,
        alone_s: float = 30.0,
    ) -> None:
        """Take the clock and how far ahead each peer's is, in seconds.

        Args:
            clock: This node's.
            peers_ahead_s: Seconds by which each peer heard of late is ahead of this node; negative if behind.
            step_s: Seconds of a change that is a step and no slewing.
            apart_s: Seconds from the middle of all nodes' clocks that are too many.
            alone_s: Seconds after which a step is believed that no peer can judge.
        """
        self._clock = clock
        self._peers_ahead_s = peers_ahead_s
        self._step_s = step_s
        self._apart_s = apart_s
        self._alone_s = alone_s
        self._offset = self._now_offset()
        self._stepped_at: float | None = None

    @property
    def sane(self) -> bool:
        """True if ages reckoned by this clock may be relied on now."""
        return abs(self._now_offset() - self._offset) < self._step_s and self._agrees()

    async def run(self) -> NoReturn:
        """Follow slewing, and judge steps, for ever."""
        while True:
            self.look()
            await asyncio.sleep(_LOOK_EVERY_S)

    def look(self) -> None:
        """Take one look."""
        offset = self._now_offset()
        if abs(offset - self._offset) < self._step_s:
            self._offset, self._stepped_at = offset, None
            return
        now = self._clock.monotonic()
        if self._stepped_at is None:
            self._stepped_at = now
            log.warning("the wall clock has stepped", extra={"seconds": round(offset - self._offset, 3)})
        alone = not self._peers_ahead_s() and now - self._stepped_at > self._alone_s
        if alone or (self._peers_ahead_s() and self._agrees()):
            log.warning("the step of the wall clock is believed", extra={"alone": alone})
            self._offset, self._stepped_at = offset, None

    def _agrees(self) -> bool:
        """Return whether this clock is near the middle of all clocks, its own among them."""
        ahead = self._peers_ahead_s()
        return not ahead or abs(statistics.median([0.0, *ahead])) < self._apart_s

    def _now_offset(self) -> float:
        return self._clock.now().timestamp() - self._clock.monotonic()
