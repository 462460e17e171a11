"""Proto <-> domain for credit without payment. Bounds of requests are checked here."""

from utrn.v1 import credit_service_pb2 as pb

from core.api.change_messages import stamp
from core.api.validation import (
    number_in,
    parse_text,
)
from core.domain.effective_dated import Ms
from core.domain.goodwill_credit import CreditReason, CreditRequest
from core.domain.meter import (
    PanRule,
    parse_pan,
)
from core.domain.money import Pence
from core.domain.participant import (
    Principal,
)
from core.domain.transaction_id import parse_transaction_id
from core.domain.utrn_value import code_value


def credit_of(one: pb.Credit, principal: Principal, pan_rule: PanRule, now: Ms) -> CreditRequest:
    """Return a request for credit."""
    return CreditRequest(
        supplier_id=principal.participant_id,
        transaction_id=parse_transaction_id(one.transaction_id),
        pan=parse_pan(one.pan, pan_rule),
        amount=code_value(Pence(one.amount_pence)).amount,
        reason=CreditReason(number_in(one.reason, "credit.reason", CreditReason)),
        note=parse_text(one.note, "credit.note", most=200),
        asked_by=principal.identity,
        asked_at=now,
    )


def credit_message(one: CreditRequest) -> pb.Credit:
    """Return a request for credit as it stands."""
    return pb.Credit(
        transaction_id=one.transaction_id,
        pan=one.pan,
        amount_pence=one.amount,
        reason=pb.CreditReason.ValueType(one.reason),
        note=one.note,
        state=pb.CreditState.ValueType(one.state),
        asked_by=one.asked_by,
        asked_at=stamp(one.asked_at),
        decided_by=one.decided_by,
        decided_at=stamp(one.decided_at),
    )
