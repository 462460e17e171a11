"""Would this sale be allowed now? Asked before money is taken; the rule is the one that decides at the sale."""

from dataclasses import dataclass

from core.domain.errors import LedgerUnavailable, NotAppointed, PanNotFound, Refused
from core.domain.meter import Pan
from core.domain.money import Pence
from core.domain.participant import ParticipantId, Principal
from core.domain.vend import Channel, Operation
from core.issuing.authorize import Authorize
from core.issuing.counter_cache import Counters, check_balance
from core.ports.ledger import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class Eligibility:
    """The objections to a sale; none if it would be allowed. `supplier_id` is told to permitted callers only."""

    objections: tuple[Refused, ...]
    supplier_id: ParticipantId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckEligibility:
    """Asks the one rule, and looks whether the meter can take one more code."""

    authorize: Authorize
    ledger: Ledger
    counters: Counters

    async def __call__(
        self, principal: Principal, pan: Pan, *, amount: Pence | None, channel: Channel | None, deliver: bool
    ) -> Eligibility:
        """Return what stands against a sale of `amount` through `channel`; None for not said.

        Raises:
            NotReady, LedgerUnavailable: repeat.
        """
        act = Operation.TOP_UP if deliver else Operation.ISSUE
        decision, objections = await self.authorize.objections(
            principal, act, pan, amount=amount or 0, channel=channel or 0
        )
        if objections and isinstance(objections[0], NotAppointed | PanNotFound):
            return Eligibility(objections=objections, supplier_id=None)
        if decision.permit is not None:
            allowed = decision.permit.authorization
            sequence = allowed.originator_id, allowed.meter_id
            (state,) = await self.ledger.counters([sequence])
            if isinstance(state, LedgerUnavailable):
                raise state
            try:
                self.counters.check_room(state)
                check_balance(decision.permit.told, state, amount or Pence(0), asked_only=True)
            except Refused as refusal:
                objections = (*objections, refusal)
        return Eligibility(objections=objections, supplier_id=decision.supplier_id)
