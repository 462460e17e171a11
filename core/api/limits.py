"""CallerLimits: how much of a node one participant may have at once, so that no flood of one is an outage of others."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from core.api.access import Access
from core.domain.errors import Overloaded

_T = TypeVar("_T")
_R = TypeVar("_R")
# So many seconds' worth of refusals may come at once.
_BURST_S: Final = 20.0
# What a request takes that is under way as a whole, and how many of one caller may take longer at once.
_SOON_S: Final = 0.25
_LATE_S: Final = 0.05
_SLOW_MAX: Final = 32
# The most that one conversion works before others have their turn.
_SLICE_S: Final = 0.005


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class CallerLimits:
    """Counts per participant. What is over a limit is refused as OVERLOADED: nothing was done, ask again later."""

    def __init__(self, *, calls_max: int, watches_max: int, refusals_per_s: float) -> None:
        """Set the most calls and watches under way of one participant, and its refusals a second; 0 refusals: any."""
        self._calls_max = calls_max
        self._watches_max = watches_max
        self._refusals_per_s = refusals_per_s
        self._under_way: Counter[tuple[str, str]] = Counter()
        self._refused: dict[str, _Bucket] = {}
        self._slow: Counter[str] = Counter()

    def arriving(self, caller: str, within_s: float) -> AbstractAsyncContextManager[object]:
        """Return the context in which a request of this caller arrives; see Arriving."""
        return Arriving(self._slow, caller, within_s)

    @contextmanager
    def under_way(self, caller: str, method: str, access: Access) -> Iterator[None]:
        """Count a call as under way while the context lasts.

        Raises:
            Overloaded: the caller has too many, or too many of its calls were refused lately.
        """
        group, most = ("", self._calls_max)
        if access.lasts:
            group, most = "lasts", self._watches_max
        elif access.at_once_max:
            group, most = method, access.at_once_max
        else:
            self._check_refusals(caller)
        key = (caller, group)
        if self._under_way[key] >= most:
            raise Overloaded(f"{most} such calls of this caller are under way here; ask again when one is answered")
        self._under_way[key] += 1
        try:
            yield
        finally:
            self._under_way[key] -= 1
            if not self._under_way[key]:
                del self._under_way[key]

    def turned_away(self, caller: str) -> None:
        """Count a call that is refused for who makes it, before anything is read of it.

        Raises:
            Overloaded: so many were lately; nobody is told why, and no line is written.
        """
        self._check_refusals(caller)
        self.refused(caller)

    def refused(self, caller: str) -> None:
        """Count a refusal. Many cost a read of the ledger, and whoever guesses ids or PANs gets nothing else."""
        if self._refusals_per_s:
            self._bucket(caller).tokens -= 1

    def _check_refusals(self, caller: str) -> None:
        if caller not in self._refused:
            return
        bucket = self._bucket(caller)
        if bucket.tokens < 0:
            raise Overloaded("too many calls of this caller were refused lately; ask again, and look at why")
        if bucket.tokens >= self._refusals_per_s * _BURST_S:
            del self._refused[caller]

    def _bucket(self, caller: str) -> _Bucket:
        now, most = asyncio.get_running_loop().time(), self._refusals_per_s * _BURST_S
        bucket = self._refused.setdefault(caller, _Bucket(most, now))
        bucket.tokens = min(most, bucket.tokens + (now - bucket.at) * self._refusals_per_s)
        bucket.at = now
        return bucket


class Arriving:
    """The context in which one request of a caller arrives.

    gRPC keeps what has arrived of a request, up to `api.message_bytes_max`, for as long as somebody waits for the rest:
    a caller that sends a thousand requests but for their last byte would have it keep two gigabytes. An honest request
    is there whole when it is asked for; of those that are not, a few may take their time.
    """

    def __init__(self, slow: Counter[str], caller: str, within_s: float) -> None:
        """Set the count of slow requests by caller, the caller, and the seconds that a slow request may take."""
        self._slow = slow
        self._caller = caller
        self._within_s = within_s
        # One timer for a request that comes at once, as nearly all do: it gets its limit when it is slow.
        self._limit = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None
        self._counted = self._too_many = False

    async def __aenter__(self) -> None:
        """Begin to wait."""
        await self._limit.__aenter__()
        self._look_soon()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """End to wait.

        Raises:
            Overloaded: it did not come soon, and neither did others of this caller.
            TimeoutError: it has not come in time.
        """
        if self._timer is not None:
            self._timer.cancel()
        if self._counted:
            self._slow[self._caller] -= 1
            if not self._slow[self._caller]:
                del self._slow[self._caller]
        try:
            await self._limit.__aexit__(kind, error, trace)
        except TimeoutError:
            if not self._too_many:
                raise
            told = f"{_SLOW_MAX} requests of this caller are under way and do not end; ask again"
            raise Overloaded(told) from None

    def _look_soon(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_SOON_S, self._not_soon, loop.time() + _SOON_S)

    def _not_soon(self, due: float) -> None:
        now = asyncio.get_running_loop().time()
        if now > due + _LATE_S:
            # This node is late: what has arrived meanwhile has its turn first.
            self._look_soon()
        elif self._slow[self._caller] < _SLOW_MAX:
            self._slow[self._caller] += 1
            self._counted = True
            self._limit.reschedule(now + self._within_s - _SOON_S)
        else:
            self._too_many = True
            self._limit.reschedule(now)


async def in_slices(items: Iterable[_T], convert: Callable[[_T], _R]) -> list[_R]:
    """Return every item converted; others have their turn every few milliseconds."""
    return [item async for item in _in_slices(items, convert)]


async def _in_slices(items: Iterable[_T], convert: Callable[[_T], _R]) -> AsyncIterator[_R]:
    loop = asyncio.get_running_loop()
    until = loop.time() + _SLICE_S
    for item in items:
        yield convert(item)
        if loop.time() > until:
            await asyncio.sleep(0)
            until = loop.time() + _SLICE_S
