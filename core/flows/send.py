"""Step two of two: owe the delivery of a code that was issued before."""

from dataclasses import dataclass

from core.domain.delivery import Delivery, DeliveryState
from core.domain.eligibility import Act, Resolved
from core.domain.errors import LedgerUnavailable, NotAppointed, Refused
from core.domain.party import ParticipantId, Principal
from core.domain.transaction_id import TransactionId
from core.domain.vend import Vend
from core.flows.authorise import Authorise
from core.flows.idempotency import Answers
from core.flows.lookup import FindVend
from core.ports.clock import Clock
from core.ports.ledger import Ledger
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

    authorise: Authorise
    find: FindVend
    ledger: Ledger
    answers: Answers
    clock: Clock

    async def __call__(self, principal: Principal, owner: ParticipantId, transaction_id: TransactionId) -> Requested:
        """Return the delivery, owed from now on; the same one however often it is asked.

        Args:
            principal: Who asks: whoever made the vend, or the supplier of its meter.
            owner: Who made the vend.
            transaction_id: Which vend.

        Raises:
            VendUnknown, NotAppointed and whatever else refuses a delivery: do not repeat.
            LedgerUnavailable, OutcomeUnknown: repeat.
        """
        snapshot: Registry | None = None
        for _ in range(_RACES_MAX):
            stored = await self.find(principal, owner, transaction_id)
            if stored.vend.delivery.state is not DeliveryState.NOT_REQUESTED:
                return Requested(stored.vend.delivery, replayed=True)
            resolved = self._resolved(principal, stored.vend, snapshot)
            if resolved is not None:
                queued = stored.vend.with_delivery(stored.vend.delivery.queue(self.clock.now()))
                written = await self.ledger.request_delivery(stored, queued, resolved.basis)
                if written is not None:
                    self.answers.remember(written)
                    return Requested(written.vend.delivery, replayed=False)
            snapshot = await self.authorise.refresh(principal, stored.vend.sale.pan)
        raise LedgerUnavailable("others keep writing this vend; repeat the same request")

    async def refused(
        self, principal: Principal, owner: ParticipantId, transaction_id: TransactionId, refusal: Refused
    ) -> Requested:
        """Return the delivery of the caller's own vend, if it was asked for before; raise `refusal` if it was not.

        Nothing is written: the code was sold and may be entered by hand, whatever becomes of its delivery.

        Raises:
            Refused: as named; fenced, if the id is closed.
            LedgerUnavailable: repeat.
        """
        if owner != principal.participant_id:
            raise refusal
        stored = await self.find(principal, owner, transaction_id)
        if stored.vend.delivery.state is DeliveryState.NOT_REQUESTED:
            raise refusal
        return Requested(stored.vend.delivery, replayed=True)

    def _resolved(self, principal: Principal, vend: Vend, snapshot: Registry | None) -> Resolved | None:
        resolved = self.authorise.now(
            principal,
            Act.DELIVER,
            vend.sale.pan,
            amount=0,
            channel=0,
            ask=vend.sale.transaction_id,
            snapshot=snapshot,
        )
        if resolved is not None and (resolved.meter_id, resolved.supplier_id) != (vend.meter_id, vend.supplier_id):
            raise NotAppointed("the meter behind this PAN, or its supplier, is another one since this code was issued")
        return resolved
