"""BalanceTold: what a supplier told of a meter's balance, and what it leaves for codes of one counter sequence."""

from typing import NamedTuple

from core.domain.effective_dated import NEVER, Ms

_STEP = 500
_SMALL_STEP = 100


class BalanceTold(NamedTuple):
    """The last balance that was told, for the counter sequence that a code is to be taken from.

    Attributes:
        at: When it was read at the meter; NEVER if none was told.
        outstanding_pence: Pence of the codes of the sequence that were sold, and not known at the meter, at that time.
        room_pence: Pence from that balance up to the meter's maximum; None if there is no maximum, or the balance is
            too old to go by.
    """

    at: Ms = NEVER
    outstanding_pence: int = 0
    room_pence: int | None = None


NO_BALANCE = BalanceTold()


def told_room(room_pence: int) -> int:
    """Return what a seller may learn of a room: rounded down to five pounds, below five pounds to one.

    To the penny it would tell a household's balance to whoever sells to it.
    """
    room = max(0, room_pence)
    return room - room % (_STEP if room >= _STEP else _SMALL_STEP)
