"""Open cases: codes of which nobody knows whether their meter credited them, until their supplier has looked."""

from collections.abc import Sequence
from dataclasses import dataclass

from core.access.approvals import Consents
from core.access.roles import KEEPERS, READERS, require_owner, require_role
from core.domain.approval import NO_CONSENT_NEEDED, Asked
from core.domain.delivery import Delivery, DeliveryReason, DeliveryState
from core.domain.errors import LedgerUnavailable, NotYours, RecordChanged, VendNotFound
from core.domain.participant import ParticipantId, Principal, Role
from core.domain.transaction_id import TransactionId
from core.domain.vend import Vend
from core.issuing.recent_vends import RecentVends
from core.ports.clock import Clock
from core.ports.ledger import Ledger, StoredVend
from core.ports.outbox import Outbox

_RACES_MAX = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCases:
    """Lists the cases, and settles them by what the supplier has read in the meter's credit log."""

    ledger: Ledger
    outbox: Outbox
    answers: RecentVends
    clock: Clock
    consents: Consents

    async def list_page(
        self, principal: Principal, supplier_id: ParticipantId, *, after: str, limit: int
    ) -> tuple[Sequence[Vend], str]:
        """Return open cases of a supplier, and where to go on: "" at the end.

        Raises:
            RoleNotAllowed, NotYours: do not repeat.
            LedgerUnavailable: repeat.
        """
        require_role(principal, READERS)
        require_owner(principal, supplier_id)
        found, more = await self.outbox.cases(supplier_id, after=after, limit=limit)
        return [case.vend for case in found], more

    async def settle(
        self,
        principal: Principal,
        owner: ParticipantId,
        transaction_id: TransactionId,
        *,
        credited: bool,
        asked: Asked | None = None,
    ) -> Delivery:
        """Return the delivery, settled; the same one however often it is settled the same way.

        Its supplier settles it by what it has read in the meter; an operator, who reads no meters, needs another one.

        Raises:
            RoleNotAllowed, NotYours, VendNotFound: do not repeat.
            RecordChanged: it is no open case, or the meter or another has settled it the other way.
            NeedsApproval, SecondOperatorNeeded: an operator asks.
            LedgerUnavailable, OutcomeUnknown: repeat.
        """
        require_role(principal, KEEPERS)
        for _ in range(_RACES_MAX):
            stored = await self._found(principal, owner, transaction_id)
            delivery = stored.vend.delivery
            if _settled(delivery, credited=credited):
                return delivery
            if delivery.state is not DeliveryState.NEEDS_CHECK:
                raise RecordChanged(f"it is no open case, but {delivery.state.name}", kind="case")
            settled = delivery.settle(self.clock.now(), credited=credited)
            consent = NO_CONSENT_NEEDED
            if principal.role is Role.OPERATOR:
                consent = await self.consents.of_two(principal, asked, urgent=True)
            outcome = await self.outbox.settle(stored, settled, consent)
            if isinstance(outcome, StoredVend):
                self.answers.remember(outcome)
                return outcome.vend.delivery
        raise LedgerUnavailable("others keep writing this vend; repeat the same request")

    async def _found(self, principal: Principal, owner: ParticipantId, transaction_id: TransactionId) -> StoredVend:
        found = await self.ledger.find(owner, transaction_id)
        stored = found if isinstance(found, StoredVend) else None
        supplier_id = None if stored is None else stored.vend.supplier_id
        if principal.role is Role.SUPPLIER and supplier_id != principal.participant_id:
            raise NotYours("a code is settled by the supplier it was sold under")
        if stored is None:
            raise VendNotFound("no vend of this participant has this transaction_id")
        return stored


def _settled(delivery: Delivery, *, credited: bool) -> bool:
    """Return whether the case is settled so already; a meter that has said that it credited the code settles it too."""
    if credited:
        return delivery.state is DeliveryState.APPLIED
    return delivery.state is DeliveryState.REFUSED and delivery.reason is DeliveryReason.CHECKED_BY_SUPPLIER
