"""HandClock: time that moves only when told to."""

from datetime import UTC, datetime, timedelta


class HandClock:
    """A Clock driven by hand."""

    def __init__(self, now: datetime = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)) -> None:
        self._now = now
        self.wall_off: timedelta | None = None
        self._monotonic = 1000.0

    def now(self) -> datetime:
        return self._now

    def wall(self) -> datetime:
        return self._now if self.wall_off is None else self._now + self.wall_off

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)
        self._monotonic += seconds
