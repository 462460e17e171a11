"""CeilingLedger: what of a seller's hourly ceiling the nodes have drawn, decided in one place."""

from dataclasses import dataclass
from typing import Protocol

from core.domain.effective_dated import Ms
from core.domain.participant import ParticipantId


@dataclass(frozen=True, slots=True, kw_only=True)
class Allotment:
    """A node's part of a seller's ceiling of one hour.

    `pence` is what the node may sell; `drawn_pence` what all nodes have drawn, this node included; `ceiling_pence` the
    ceiling that the draw was checked against, from the seller's record at `revision`. `hour` is the hour that was asked
    for, or a later hour if the ledger has reached it.
    """

    hour: Ms

    pence: int
    drawn_pence: int
    ceiling_pence: int
    revision: int


class CeilingLedger(Protocol):
    """Grants allotments of a ceiling to nodes; all nodes together never draw more for an hour than the ceiling."""

    async def draw(self, participant_id: ParticipantId, hour: Ms, *, held: int, wanted: int) -> Allotment:
        """Give `held` back, which must not be sold any more, and return what may be sold instead.

        `wanted` 0 only gives back. The ceiling is that of the seller's record as it is in the ledger now.

        Raises:
            LedgerUnavailable: nothing was written; what was held still is.
            OutcomeUnknown: what was held may have been given back, and must not be sold.
            NotReady: the ledger is not yet in this hour; what was held still is.
        """
        ...
