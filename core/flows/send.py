"""Step two of two: owe the delivery of a code that was issued before."""

from dataclasses import dataclass

from core.domain.delivery import Delivery, DeliveryState
from core.domain.errors import LedgerUnavailable, NotAppointed, VendUnknown
from core.domain.party import Principal
from core.domain.transaction_id import TransactionId
from core.flows.authorise import may_top_up
from core.flows.idempotency import Answers
from core.ports.clock import Clock
from core.ports.ledger import Ledger, StoredVend
from core.ports.registry import Registry

_RACES_MAX = 10


@dataclass(frozen=True, slots=True)
class Requested:
    """The delivery after the request. `replayed`: it had been asked for before."""

    delivery: Delivery
    replayed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SendIssued:
    """Asks for the delivery of a vend issued here."""

    registry: Registry
    ledger: Ledger
    answers: Answers
    clock: Clock

    async def __call__(self, principal: Principal, transaction_id: TransactionId) -> Requested:
        """Return the delivery, owed from now on; the same one however often it is asked.

        Raises:
            VendUnknown, NotAppointed: do not repeat.
            LedgerUnavailable, OutcomeUnknown: repeat.
        """
        for _ in range(_RACES_MAX):
            stored = await self.ledger.find(principal.participant_id, transaction_id)
            if stored is None:
                raise VendUnknown("no vend of this caller has this transaction_id; issue it first")
            if stored.vend.delivery.state is not DeliveryState.NOT_REQUESTED:
                return Requested(stored.vend.delivery, replayed=True)
            self._check_appointed(principal, stored)
            queued = stored.vend.with_delivery(stored.vend.delivery.queue(self.clock.now()))
            written = await self.ledger.request_delivery(stored, queued)
            if written is not None:
                self.answers.remember(written)
                return Requested(written.vend.delivery, replayed=False)
        raise LedgerUnavailable("others keep writing this vend; repeat the same request")

    def _check_appointed(self, principal: Principal, stored: StoredVend) -> None:
        supplier = self.registry.participant(stored.vend.supplier_id)
        if supplier is None or not may_top_up(principal.participant, supplier):
            raise NotAppointed("this caller may no longer send top-ups to this meter; its supplier must appoint it")
