"""ClosedRefusal: the refusal that the ledger holds under a transaction id, so that nothing is ever sold under it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from core.domain import errors
from core.domain.effective_dated import Ms
from core.domain.errors import FENCED, BadField, NotReady, Refused
from core.domain.participant import ParticipantId
from core.domain.transaction_id import TransactionId

# Written into the ledger for whoever asks twice: none of it may grow with what a caller sends.
_MESSAGE_MAX = 400
_FACTS_MAX = 8
_FACT_NAME_MAX = 40
_FACT_MAX = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedRefusal:
    """Why an id was closed, when, and by which node. `reason` names a class of `core.domain.errors`."""

    participant_id: ParticipantId
    transaction_id: TransactionId
    reason: str
    message: str
    facts: Mapping[str, str] = field(default_factory=dict)
    refused_at: Ms
    node_id: str = ""

    def error(self) -> Refused | NotReady:
        """Return what every repeat is answered with, for ever; NotReady if only a newer node knows the reason."""
        kind = _KINDS.get(self.reason)
        if kind is None:
            return NotReady(f"this id is closed as {self.reason}, which this node's version does not know; ask another")
        if issubclass(kind, BadField):
            refused: Refused = kind(self.message, **{"field": "transaction_id", **self.facts})
        else:
            refused = kind(self.message, **self.facts)
        refused.final = FENCED
        return refused


def closed(
    refusal: Refused, participant_id: ParticipantId, transaction_id: TransactionId, *, at: Ms, node_id: str
) -> ClosedRefusal:
    """Return `refusal` as it is kept under its id: cut to a bounded size."""
    facts = list(refusal.facts.items())[:_FACTS_MAX]
    return ClosedRefusal(
        participant_id=participant_id,
        transaction_id=transaction_id,
        reason=refusal.reason,
        message=refusal.message[:_MESSAGE_MAX],
        facts={name[:_FACT_NAME_MAX]: value[:_FACT_MAX] for name, value in facts},
        refused_at=at,
        node_id=node_id,
    )


def _leaves(kind: type[Refused]) -> dict[str, type[Refused]]:
    found = {kind.reason: kind} if kind.reason else {}
    for below in kind.__subclasses__():
        found |= _leaves(below)
    return found


_KINDS: Mapping[str, type[Refused]] = _leaves(errors.Refused)
