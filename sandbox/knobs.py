"""Knobs: how badly the head end and its WAN behave, and the chance by which they do."""

import hashlib
import math
import random
from collections.abc import Sequence
from typing import TypeVar

from utrn.sandbox.v1 import sandbox_pb2 as pb

_T = TypeVar("_T")

DEFAULTS = pb.Knobs(
    latency_median_ms=20.0,
    latency_sigma=0.5,
    loss_before=0.0,
    loss_after=0.0,
    duplicate_commands=0.0,
    duplicate_answers=0.0,
    reorder_answers=0.0,
    refuse=0.0,
    temporary_failure=0.0,
    outage=False,
    unreachable=0.0,
    give_up_after_ms=1000.0,
    alerts_name_counter=True,
    dedupe=True,
    status=True,
    repeat_unexplained=True,
    fence=True,
    lies=0.0,
)


class Chance:
    """Draws from a seed."""

    def __init__(self, knobs: pb.Knobs, seed: int) -> None:
        self.knobs = pb.Knobs()
        self.knobs.CopyFrom(DEFAULTS)
        self.knobs.MergeFrom(knobs)
        self._random = random.Random(seed)  # noqa: S311  # play, not protection

    def happens(self, share: float) -> bool:
        """Return True in `share` of the cases."""
        return share > 0 and self._random.random() < share

    def latency_s(self) -> float:
        """Return a one-way delay, log-normal about its median."""
        median = self.knobs.latency_median_ms / 1000
        return median * math.exp(self._random.gauss(0.0, self.knobs.latency_sigma))

    def pick(self, choices: Sequence[_T]) -> _T:
        """Return one of `choices`."""
        return self._random.choice(choices)

    def unreachable(self, meter_id: str) -> bool:
        """Return whether a meter is among those that cannot be reached; the same ones while the share stays."""
        number = int.from_bytes(hashlib.sha256(meter_id.encode()).digest()[:4], "big")
        return number / 2**32 < self.knobs.unreachable
