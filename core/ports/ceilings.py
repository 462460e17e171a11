"""CeilingLedger: what of a seller's hourly ceiling the nodes have drawn, decided in one place."""

from dataclasses import dataclass
from typing import Protocol

from core.domain.effective_dated import Ms
from core.domain.participant import ParticipantId


@dataclass(frozen=True, slots=True, kw_only=True)
class Allotment:
    """What a node holds of a seller's hour from now on.

    `pence` is what it may sell; `drawn_pence` what all nodes have drawn, this one included; `ceiling_pence` the ceiling
    that was held against, by the seller's record at `revision`. `hour` is the one that was asked for, or a later one
    that the ledger has come to meanwhile.
    """

    hour: Ms

    pence: int
    drawn_pence: int
    ceiling_pence: int
    revision: int


class CeilingLedger(Protocol):
    """Deals the ceiling out. Whatever nodes do at the same time, no more is drawn for an hour than the ceiling."""

    async def draw(self, participant_id: ParticipantId, hour: Ms, *, held: int, wanted: int) -> Allotment:
        """Give `held` back, which must not be sold any more, and return what may be sold instead.

        `wanted` 0 only gives back. The ceiling is that of the seller's record as it is in the ledger now.

        Raises:
            LedgerUnavailable: nothing was written; what was held still is.
            OutcomeUnknown: what was held may have been given back, and must not be sold.
            NotReady: the ledger is not yet in this hour; what was held still is.
        """
        ...
