"""Ceiling: the most that a seller may sell in one hour of cluster time, and how it is dealt out to the nodes.

Each node draws an allotment from what the ledger says is left, and sells from that without asking again. What was drawn
for an hour, less what was given back, is in all never above the ceiling; so neither is what was sold.
"""

from dataclasses import dataclass
from typing import Final

from core.domain.effective_dated import Ms
from core.domain.errors import BadField
from core.domain.money import Pence
from core.domain.participant import ParticipantId

HOUR_MS: Final = 3_600_000
CEILING_PENCE_MAX: Final = 10**13
# One allotment is at most this part of the ceiling: what a node that crashes takes with it until the hour's end.
_PART_OF_CEILING = 100
# Near the ceiling allotments become smaller, so that what lies unused at other nodes starves nobody.
_PART_OF_REST = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SellerHour:
    """The pence that all nodes have drawn of a seller's ceiling for one hour; `hour`: its first millisecond."""

    participant_id: ParticipantId
    hour: Ms
    drawn_pence: int = 0


def hour_of(at: Ms) -> Ms:
    """Return the first millisecond of the hour that an instant lies in."""
    return Ms(at - at % HOUR_MS)


def deal(*, ceiling: int, drawn: int, wanted: int) -> int:
    """Return how many pence a node may hold that wants `wanted`, when the others have drawn `drawn` of `ceiling`.

    Never more than is left; nothing, if nothing is wanted; what is left, if that is less than is wanted.
    """
    left = max(0, ceiling - drawn)
    if not wanted:
        return 0
    return min(left, max(wanted, min(ceiling // _PART_OF_CEILING, left // _PART_OF_REST)))


def parse_ceiling(pence: int, *, field: str) -> Pence:
    """Return a seller's ceiling; 0 stands for the agreed one. Raise BadField if it is out of bounds."""
    if not 0 <= pence <= CEILING_PENCE_MAX:
        raise BadField(f"{field}: 0 to {CEILING_PENCE_MAX} pence are needed; 0 for the agreed ceiling", field=field)
    return Pence(pence)
