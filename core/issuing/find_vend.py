"""Look-up of one vend, by its own caller or by the supplier of its meter."""

from dataclasses import dataclass

from core.domain.errors import NotAppointed, VendNotFound
from core.domain.participant import ParticipantId, Principal
from core.domain.refusal import ClosedRefusal
from core.domain.transaction_id import TransactionId
from core.ports.ledger import Ledger, StoredVend


@dataclass(frozen=True, slots=True)
class FindVend:
    """Finds a vend in the ledger, never in memory: its delivery moves on."""

    ledger: Ledger

    async def __call__(self, principal: Principal, owner: ParticipantId, transaction_id: TransactionId) -> StoredVend:
        """Return the vend that `owner` made under `transaction_id`.

        Raises:
            Refused: fenced: the caller's own id is closed as refused; it is what closed it.
            VendNotFound: there is nothing under it now; a commit may be under way.
            NotAppointed: it is another's, and not of one of the caller's meters. Said too where there is none, or it is
                closed, so that nobody learns which ids others have used.
            LedgerUnavailable: repeat.
        """
        found = await self.ledger.find(owner, transaction_id)
        if owner != principal.participant_id and (
            not isinstance(found, StoredVend) or found.vend.supplier_id != principal.participant_id
        ):
            raise NotAppointed("a vend of another participant is for the supplier of its meter only")
        if found is None:
            raise VendNotFound("no vend of this caller has this transaction_id; issue it first")
        if isinstance(found, ClosedRefusal):
            raise found.error()
        return found
