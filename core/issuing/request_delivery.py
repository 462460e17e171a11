"""Step two of two: owe the delivery of a code that was issued before."""

from dataclasses import dataclass

from core.domain.delivery import Delivery, DeliveryState
from core.domain.errors import CodeTooFarBehind, LedgerUnavailable, NotAppointed, Refused
from core.domain.participant import ParticipantId, Principal
from core.domain.transaction_id import TransactionId
from core.domain.utrn import duplicate_proves_credit
from core.domain.vend import Authorization, Operation, Vend
from core.issuing.authorize import Authorize
from core.issuing.find_vend import FindVend
from core.issuing.recent_vends import RecentVends
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

    authorize: Authorize
    find: FindVend
    ledger: Ledger
    answers: RecentVends
    clock: Clock

    async def __call__(self, principal: Principal, owner: ParticipantId, transaction_id: TransactionId) -> Requested:
        """Return the delivery, owed from now on; the same one however often it is asked.

        Args:
            principal: Who asks: whoever made the vend, or the supplier of its meter.
            owner: Who made the vend.
            transaction_id: Which vend.

        Raises:
            VendNotFound, NotAppointed and whatever else refuses a delivery: do not repeat.
            LedgerUnavailable, OutcomeUnknown: repeat.
        """
        snapshot: Registry | None = None
        for _ in range(_RACES_MAX):
            stored = await self.find(principal, owner, transaction_id)
            if stored.vend.delivery.state is not DeliveryState.NOT_REQUESTED:
                return Requested(stored.vend.delivery, replayed=True)
            authorization = self._authorization(principal, stored.vend, snapshot)
            if authorization is not None:
                await self._check_near(stored.vend)
                queued = stored.vend.with_delivery(stored.vend.delivery.queue(self.clock.now()))
                written = await self.ledger.request_delivery(stored, queued, authorization.read_set)
                if written is not None:
                    self.answers.remember(written)
                    return Requested(written.vend.delivery, replayed=False)
            snapshot = await self.authorize.refresh(principal, stored.vend.sale.pan)
        raise LedgerUnavailable("others keep writing this vend; repeat the same request")

    async def refused(
        self, principal: Principal, owner: ParticipantId, transaction_id: TransactionId, refusal: Refused
    ) -> Requested:
        """Return the delivery of the caller's own vend, if it was asked for before; raise `refusal` if it was not.

        Nothing is written: the code was sold and may be entered by hand, whatever becomes of its delivery.

        Raises:
            Refused: `refusal`, if the delivery was never asked for; fenced, if the id is closed.
            LedgerUnavailable: repeat.
        """
        if owner != principal.participant_id:
            raise refusal
        stored = await self.find(principal, owner, transaction_id)
        if stored.vend.delivery.state is DeliveryState.NOT_REQUESTED:
            raise refusal
        return Requested(stored.vend.delivery, replayed=True)

    async def _check_near(self, vend: Vend) -> None:
        """Return if the meter's answer to the code will mean something; raise CodeTooFarBehind if not."""
        (state,) = await self.ledger.counters([(vend.originator_id, vend.meter_id)])
        if isinstance(state, LedgerUnavailable):
            raise state
        if not duplicate_proves_credit(vend.counter, state.last_issued):
            raise CodeTooFarBehind(
                f"{state.last_issued - vend.counter} newer codes of this meter were issued: its answer could not prove "
                "whether this one was credited; the consumer should enter it at the meter",
                utrn_counter=vend.counter,
                last_issued=state.last_issued,
            )

    def _authorization(self, principal: Principal, vend: Vend, snapshot: Registry | None) -> Authorization | None:
        permit = self.authorize.now(
            principal,
            Operation.DELIVER,
            vend.sale.pan,
            amount=0,
            channel=0,
            ask=vend.sale.transaction_id,
            snapshot=snapshot,
        )
        if permit is None:
            return None
        authorization = permit.authorization
        if (authorization.meter_id, authorization.supplier_id) != (vend.meter_id, vend.supplier_id):
            raise NotAppointed("the meter behind this PAN, or its supplier, is another one since this code was issued")
        return authorization
