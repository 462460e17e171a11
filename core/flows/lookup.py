"""Look-up of one vend, by its own caller or by the supplier of its meter."""

from dataclasses import dataclass

from core.domain.errors import NotAppointed, VendUnknown
from core.domain.party import ParticipantId, Principal
from core.domain.transaction_id import TransactionId
from core.domain.vend import Vend
from core.ports.ledger import Ledger


@dataclass(frozen=True, slots=True)
class FindVend:
    """Finds a vend in the ledger, never in memory: its delivery moves on."""

    ledger: Ledger

    async def __call__(self, principal: Principal, owner: ParticipantId, transaction_id: TransactionId) -> Vend:
        """Return the vend that `owner` made under `transaction_id`.

        Raises:
            VendUnknown: there is none.
            NotAppointed: it is another's, and not of one of the caller's meters. Said too where there is none, so that
                nobody learns which ids others have used.
            LedgerUnavailable: repeat.
        """
        stored = await self.ledger.find(owner, transaction_id)
        if owner != principal.participant_id and (
            stored is None or stored.vend.supplier_id != principal.participant_id
        ):
            raise NotAppointed("a vend of another participant is shown only to the supplier of its meter")
        if stored is None:
            raise VendUnknown("no vend of this caller has this transaction_id")
        return stored.vend
