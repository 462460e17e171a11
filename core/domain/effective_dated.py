"""EffectiveDated: what was true from when to when. Only the future can be changed; what has begun is never rewritten.

Instants are whole milliseconds since 1970 (UTC). A period holds from `since`, inclusive, to `until`, exclusive.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Generic, NamedTuple, NewType, TypeVar

from core.domain.errors import ChangePending, DateInPast, DatesReversed, HistoryFull, NothingToEnd

Ms = NewType("Ms", int)
T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# A record with its history must stay far below what one write to the ledger takes, so that what is urgent always fits.
PERIODS_MAX = 1000
NEVER = Ms(0)
FAR_FUTURE = Ms(2**53)


def ms_of(instant: datetime) -> Ms:
    """Return an aware datetime as milliseconds, rounded down."""
    past = instant - _EPOCH
    return Ms((past.days * 86_400 + past.seconds) * 1000 + past.microseconds // 1000)


def instant_of(ms: int) -> datetime:
    """Return milliseconds as a datetime in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC)


class Period(NamedTuple, Generic[T]):
    """One value and when it holds; `until` None is open. Who said so, and when, is kept with it."""

    value: T
    since: Ms
    until: Ms | None
    recorded_at: Ms
    recorded_by: str


class EffectiveDated(NamedTuple, Generic[T]):
    """Periods of one thing, oldest first, never overlapping. A gap is only where somebody ended one.

    Tuples, because every request decodes some: they are made in a third of the time of a frozen dataclass.
    """

    periods: tuple[Period[T], ...] = ()

    def at(self, at: Ms) -> Period[T] | None:
        """Return the period that holds at that instant."""
        for period in reversed(self.periods):
            if period.since <= at:
                return period if period.until is None or at < period.until else None
        return None

    def begun_by(self, at: Ms) -> Period[T] | None:
        """Return the period that began last up to that instant, whether it has ended since or not."""
        return next((period for period in reversed(self.periods) if period.since <= at), None)

    def as_recorded_at(self, at: Ms) -> Period[T] | None:
        """Return what this service went by at that instant: not what was only recorded later."""
        period = self.at(at)
        return period if period is not None and period.recorded_at <= at else None

    def effective_now(self, now: Ms) -> Ms:
        """Return `now`, but never before anything of this was recorded: this clock may be behind the writer's."""
        return max(now, *(period.recorded_at for period in self.periods)) if self.periods else now

    @property
    def last(self) -> Period[T] | None:
        """The latest period, which may lie in the future."""
        return self.periods[-1] if self.periods else None

    def change(self, value: T, *, since: Ms | None, now: Ms, by: str) -> "EffectiveDated[T]":
        """Return this timeline with `value` from `since` on; None: from now on.

        Raises:
            DateInPast: `since` has passed; what has begun is not rewritten.
            ChangePending: a later change, or an end, is recorded already.
            HistoryFull: it has been changed too often.
        """
        last = self.last
        if last is None:
            return begin(value, since=since, now=now, by=by)
        self._check_room()
        now = self.effective_now(now)
        start = self._begin(since, now)
        if last.until is None:
            last = last._replace(until=start)
        elif last.until > now:
            raise _pending(last)
        # At once is when it was recorded: whoever reads it goes by it, however slow their clock is.
        recorded_at = start if since is None else now
        return EffectiveDated((*self.periods[:-1], last, Period(value, start, None, recorded_at, by)))

    def put(self, value: T, *, since: Ms | None, now: Ms, by: str) -> "EffectiveDated[T]":
        """Return this timeline with `value` from `since` on, as `change`; the same one if it is so already.

        At once brings forward what is recorded for later with the same value.
        """
        last, now = self.last, self.effective_now(now)
        if last is not None and last.value == value and last.until is None:
            if since == last.since or (since is None and last.since <= now):
                return self
            if since is None and len(self.periods) == 1:
                return begin(value, since=None, now=now, by=by)
            if since is None:
                return self.cancel(now=now).change(value, since=None, now=now, by=by)
        return self.change(value, since=since, now=now, by=by)

    def adjust(self, change: Callable[[T], T], *, now: Ms, by: str, before: Ms = FAR_FUTURE) -> "EffectiveDated[T]":
        """Return this timeline with `change` made at once to what holds, and to what is recorded to follow.

        What begins at `before` or later is left as it is. Dates stay as they are: a card is blocked, or a threshold
        set, without waiting for a change that is recorded for later. Where nothing differs, the timeline is the same.

        Raises:
            NothingToEnd: nothing holds, and nothing follows.
            ChangePending: what follows begins within this very millisecond; repeat.
        """
        now = self.effective_now(now)
        kept = [period for period in self.periods if period.until is not None and period.until <= now]
        rest = self.periods[len(kept) :]
        if not rest:
            raise NothingToEnd("it has ended, and nothing is recorded to follow")
        self._check_room()
        for period in rest:
            value = change(period.value) if period.since < before else period.value
            if value == period.value:
                kept.append(period)
            elif period.since > now:
                kept.append(period._replace(value=value, recorded_at=now, recorded_by=by))
            else:
                # Two changes within one millisecond keep their order.
                start = Ms(max(now, period.since + 1))
                if period.until is not None and start >= period.until:
                    raise _pending(rest[-1])
                kept += [period._replace(until=start), Period(value, start, period.until, start, by)]
        return EffectiveDated(tuple(kept))

    def end(self, *, at: Ms | None, now: Ms) -> "EffectiveDated[T]":
        """Return this timeline with its open period ended at `at`; None: now.

        Raises:
            DateInPast, ChangePending: as `change`.
            NothingToEnd: nothing is open.
        """
        last = self.last
        if last is None or last.until is not None:
            raise NothingToEnd("it has ended already, or never began")
        return EffectiveDated((*self.periods[:-1], last._replace(until=self._begin(at, self.effective_now(now)))))

    def cancel(self, *, now: Ms) -> "EffectiveDated[T]":
        """Return this timeline without its last change, which has not begun; the period before it is open again.

        Raises:
            NothingToEnd: no change is waiting for its instant.
        """
        last, now = self.last, self.effective_now(now)
        if last is not None and last.until is not None and last.until > now:
            return EffectiveDated((*self.periods[:-1], last._replace(until=None)))
        if last is not None and last.since > now and len(self.periods) > 1:
            before = self.periods[-2]
            joined = before._replace(until=None) if before.until == last.since else before
            return EffectiveDated((*self.periods[:-2], joined))
        raise NothingToEnd("no change is waiting for its instant")

    def _check_room(self) -> None:
        if len(self.periods) >= PERIODS_MAX:
            raise HistoryFull("no more changes of this record can be kept; tell the operator", periods_max=PERIODS_MAX)

    def _begin(self, since: Ms | None, now: Ms) -> Ms:
        """Return when a change takes place, after everything that has begun."""
        last = self.periods[-1]
        newest = last.since if last.until is None or last.until > now else last.until - 1
        if since is None:
            if last.since > now or (last.until is not None and last.until > now):
                raise _pending(last)
            # Two changes within one millisecond keep their order.
            return Ms(max(now, newest + 1))
        if since < now:
            raise DateInPast(
                "the date has passed, and what has begun is not rewritten; leave it out for at once",
                asked_ms=since,
                now_ms=now,
            )
        if since <= last.since:
            if since == last.since == now:
                return Ms(since + 1)
            raise _pending(last)
        return since


class AsOf:
    """One instant at which several things are looked up, and until when everything found holds.

    `now` may be moved on while nothing was looked up that it would change. `until` is FAR_FUTURE if nothing ends.
    """

    __slots__ = ("now", "until")

    def __init__(self, now: Ms) -> None:
        self.now = now
        self.until = FAR_FUTURE

    def value(self, timeline: EffectiveDated[T]) -> T | None:
        """Return what holds now; `until` falls to its end, or to whatever is recorded to follow.

        Never as of before a period was recorded: what was suspended at once by another node is suspended, even where
        this node's clock is a little slow.
        """
        now = self.now
        if timeline.periods:
            last = timeline.periods[-1]
            if last.since <= now and last.until is None:
                return last.value
        now = timeline.effective_now(now)
        for period in reversed(timeline.periods):
            if period.since <= now:
                if period.until is None:
                    return period.value
                if now < period.until:
                    self.hold_until(period.until)
                    return period.value
                return None
            self.hold_until(period.since)
        return None

    def hold_until(self, until: Ms | None) -> None:
        """Shorten the answer's validity to `until`; None shortens nothing."""
        if until is not None and until < self.until:
            self.until = until


def begin(value: T, *, since: Ms | None, now: Ms, by: str) -> EffectiveDated[T]:
    """Return the timeline of a thing that is new here.

    Its first period may begin in the past: it says since when the thing is known elsewhere.
    """
    return EffectiveDated((Period(value, now if since is None else since, None, now, by),))


def _pending(last: Period[T]) -> ChangePending:
    at = last.since if last.until is None else max(last.since, last.until)
    return ChangePending("a change is recorded for a later instant; cancel it first, or wait for it", pending_ms=at)


def check_dates(since: Ms | None, until: Ms | None) -> None:
    """Return if the dates are in order; raise DatesReversed if not."""
    if since is not None and until is not None and until <= since:
        raise DatesReversed("the end must be after the beginning", since_ms=since, until_ms=until)
