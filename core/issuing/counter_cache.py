"""Counters: the counter sequences this node has seen lately, so that most commits need no read before them."""

from collections import OrderedDict
from dataclasses import dataclass

from core.domain.balance import BalanceTold, told_room
from core.domain.errors import AboveMaxBalance, CounterOutOfRange, TooManyUnapplied
from core.domain.meter import MeterId, OriginatorId
from core.domain.money import Pence
from core.domain.utrn import COUNTER_MAX, REBUILT_AT_MOST, Counter
from core.ports.clock import Clock
from core.ports.ledger import CounterState

SequenceKey = tuple[OriginatorId, MeterId]


@dataclass(frozen=True, slots=True)
class _Seen:
    state: CounterState
    at: float


class Counters:
    """A bounded memory of sequences. What it says may be old; the commit's compare finds out."""

    def __init__(self, clock: Clock, *, trust_s: float, sequences_max: int, alarm: int, refuse: int) -> None:
        self._clock = clock
        self._trust_s = trust_s
        self._sequences_max = sequences_max
        self._alarm = alarm
        self._refuse = refuse
        self._seen: OrderedDict[SequenceKey, _Seen] = OrderedDict()

    def get(self, key: SequenceKey) -> CounterState | None:
        """Return the state of a sequence, or None if it must be read first.

        A sequence that looks nearly full must be read too: what is known to be applied may have moved since.
        """
        seen = self._seen.get(key)
        if seen is None or seen.state.unapplied >= self._alarm:
            return None
        return seen.state if self._clock.monotonic() - seen.at <= self._trust_s else None

    def put(self, key: SequenceKey, state: CounterState) -> None:
        """Remember a state that the ledger told just now."""
        self._seen[key] = _Seen(state, self._clock.monotonic())
        self._seen.move_to_end(key)
        if len(self._seen) > self._sequences_max:
            self._seen.popitem(last=False)

    def forget(self, key: SequenceKey) -> None:
        """Drop a sequence from memory: the ledger is read before the sequence is used again."""
        self._seen.pop(key, None)

    @staticmethod
    def check_externally_issued(state: CounterState, counter: Counter) -> None:
        """Return if the meter can be near the counter that a code made elsewhere is said to have.

        Only ten bits of the counter are in the code: one that is wrong by a multiple of 1024 looks right to everybody
        but the meter, and would stand for a sequence that has come as far. So it must lie within what the meter
        rebuilds from the highest counter known to be credited. It may leave a gap: the code takes none of the room that
        this service's own codes have.

        Raises:
            CounterOutOfRange: facts counter_min, counter_max.

        Source: GBCS Table 27.
        """
        least = max(1, state.highest_applied - REBUILT_AT_MOST)
        most = min(COUNTER_MAX, state.highest_applied + REBUILT_AT_MOST)
        if not least <= counter <= most:
            raise CounterOutOfRange(
                f"the meter is known to be at counter {state.highest_applied}: it takes codes of {least} to "
                f"{most}; if the generator is further, hand the counters over and back, and tell where they are",
                counter_min=least,
                counter_max=most,
            )

    def check_room(self, state: CounterState) -> bool:
        """Return whether one more code should raise the alarm.

        Raises:
            TooManyUnapplied: the meter might not be able to rebuild the counter of one more code.

        Source: GBCS Table 27 (counter rebuilt from 10 bits, right up to 511 ahead of the last one applied).
        """
        if state.last_issued >= COUNTER_MAX:
            raise TooManyUnapplied(
                "the meter's counters are used up; its supplier must have it exchanged",
                unapplied=state.unapplied,
                unapplied_max=self._refuse,
            )
        if state.unapplied >= self._refuse:
            raise TooManyUnapplied(
                f"{state.unapplied} codes of this meter are not known to be used, and the meter might not accept one "
                "more; the consumer should enter the codes already issued, oldest first",
                unapplied=state.unapplied,
                unapplied_max=self._refuse,
            )
        return state.unapplied + 1 >= self._alarm


def check_balance(told: BalanceTold, state: CounterState, amount: Pence, *, asked_only: bool = False) -> None:
    """Return if a code of `amount` fits under the meter's maximum balance, with what was sold and is not yet in it.

    Whoever only asks, and does not sell, is answered in the steps of `told_room`.

    Raises:
        AboveMaxBalance: it does not.
    """
    if told.room_pence is None:
        return
    room = told.room_pence - state.outstanding(told)
    if amount > (told_room(room) if asked_only and room > 0 else room):
        raise AboveMaxBalance(
            "the meter's balance would go above its maximum, with the codes that were sold since it was told",
            room_pence=told_room(room),
        )
