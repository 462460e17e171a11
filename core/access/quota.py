"""Quota: how much of something a participant may do at this node: a burst, then so much a minute."""

from core.domain.errors import Overloaded
from core.domain.participant import ParticipantId
from core.ports.clock import Clock


class Quota:
    """Counts per participant; forgets nobody, since only registered participants come here."""

    def __init__(self, clock: Clock, *, burst: int, per_minute: int, refusal: str) -> None:
        """Set the burst, the refill of a minute, and the sentence of the refusal when none is left."""
        self._clock = clock
        self._burst = burst
        self._per_s = per_minute / 60
        self._refusal = refusal
        # What is left of the burst, and when that was so.
        self._left: dict[ParticipantId, tuple[float, float]] = {}

    def take(self, participant_id: ParticipantId, many: int = 1) -> None:
        """Take so many, if one is left; the debt beyond it is refilled before the next is granted.

        Raises:
            Overloaded: none is left now.
        """
        now = self._clock.monotonic()
        left, at = self._left.get(participant_id, (float(self._burst), now))
        left = min(self._burst, left + (now - at) * self._per_s)
        if left < 1:
            raise Overloaded(self._refusal)
        self._left[participant_id] = (left - many, now)
