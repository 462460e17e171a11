"""Stage times: how long each stage of a vend takes, as histograms in memory; one list of names, used everywhere."""

import asyncio
import logging
import math
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn

log = logging.getLogger(__name__)

_BUCKETS_PER_DOUBLING = 8
_LEAST_S = 1e-6
# Up to 67 s: longer than any deadline.
_DOUBLINGS_SHOWN = 26
_LOOP_LOOK_S = 0.05


class Stage(StrEnum):
    """A stage of a vend whose duration is recorded."""

    WAIT = "wait"
    SIGN = "sign"
    COMMIT = "commit"
    ISSUE = "issue"
    SEND = "send"
    ANSWER = "answer"
    DELIVER = "deliver"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSummary:
    """How long a stage took. Quantiles are within 5 % (the width of a bucket)."""

    count: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class StageTimes:
    """Records durations; costs under a microsecond and a fixed amount of memory."""

    def __init__(self) -> None:
        self._buckets: dict[Stage, dict[int, int]] = {stage: {} for stage in Stage}
        self._max_s: dict[Stage, float] = dict.fromkeys(Stage, 0.0)
        self._sum_s: dict[Stage, float] = dict.fromkeys(Stage, 0.0)

    def record(self, stage: Stage, seconds: float) -> None:
        """Add one duration of `stage`."""
        bucket = int(math.log2(max(seconds, _LEAST_S) / _LEAST_S) * _BUCKETS_PER_DOUBLING)
        buckets = self._buckets[stage]
        buckets[bucket] = buckets.get(bucket, 0) + 1
        self._sum_s[stage] += seconds
        if seconds > self._max_s[stage]:
            self._max_s[stage] = seconds

    def histogram(self, stage: Stage) -> tuple[list[tuple[float, int]], int, float]:
        """Return a stage's durations: (upper bound in s, how many are not above it) by doublings, count, sum in s."""
        counts: dict[int, int] = {}
        for bucket, count in self._buckets[stage].items():
            doubling = bucket // _BUCKETS_PER_DOUBLING
            counts[doubling] = counts.get(doubling, 0) + count
        bounds: list[tuple[float, int]] = []
        below = 0
        for doubling in range(_DOUBLINGS_SHOWN):
            below += counts.get(doubling, 0)
            bounds.append((_LEAST_S * float(2 ** (doubling + 1)), below))
        return bounds, sum(counts.values()), self._sum_s[stage]

    def summary(self) -> dict[Stage, StageSummary]:
        """Return what was recorded, for the stages that have anything."""
        return {stage: self._summary(stage) for stage in Stage if self._buckets[stage]}

    def _summary(self, stage: Stage) -> StageSummary:
        return StageSummary(
            count=sum(self._buckets[stage].values()),
            p50_ms=self._quantile_ms(stage, 0.50),
            p99_ms=self._quantile_ms(stage, 0.99),
            max_ms=round(self._max_s[stage] * 1000, 3),
        )

    def _quantile_ms(self, stage: Stage, share: float) -> float:
        buckets = self._buckets[stage]
        still = share * sum(buckets.values())
        for bucket in sorted(buckets):
            still -= buckets[bucket]
            if still <= 0:
                middle = (bucket + 0.5) / _BUCKETS_PER_DOUBLING
                return round(_LEAST_S * float(2**middle) * 1000, 3)
        return 0.0


class LoopDelay:
    """How late the event loop is: the highest delay seen of late, fading by a tenth with every look."""

    def __init__(self) -> None:
        self.seconds = 0.0

    async def run(self) -> NoReturn:
        """Look for ever."""
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(_LOOP_LOOK_S)
            self.seconds = max(loop.time() - before - _LOOP_LOOK_S, 0.9 * self.seconds)


class SetAside:
    """Counts what head ends said that was not believed, and what they refused as stale; each power of two is logged.

    `why` is one of a few fixed words: it labels a metric, and nothing that a head end sent gets into a log.
    """

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def record(self, head_end: str, why: str) -> None:
        """Count one of `head_end`."""
        self.counts[head_end, why] += 1
        count = self.counts[head_end, why]
        if told_now(count):
            log.warning("set aside what a head end said", extra={"head_end": head_end, "why": why, "times": count})


def told_now(count: int) -> bool:
    """Return whether the `count`th of what a stranger can cause at will is logged: each power of two is."""
    return count & (count - 1) == 0
