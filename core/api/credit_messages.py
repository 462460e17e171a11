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


def credit_of(credit: pb.Credit, principal: Principal, pan_rule: PanRule, now: Ms) -> CreditRequest:
    """Return a request for credit."""
    return CreditRequest(
        supplier_id=principal.participant_id,
        transaction_id=parse_transaction_id(credit.transaction_id),
        pan=parse_pan(credit.pan, pan_rule),
        amount=code_value(Pence(credit.amount_pence)).amount,
        reason=CreditReason(number_in(credit.reason, "credit.reason", CreditReason)),
        note=parse_text(credit.note, "credit.note", most=200),
        asked_by=principal.identity,
        asked_at=now,
    )


def credit_message(credit_request: CreditRequest) -> pb.Credit:
    """Return a request for credit as it stands."""
    return pb.Credit(
        transaction_id=credit_request.transaction_id,
        pan=credit_request.pan,
        amount_pence=credit_request.amount,
        reason=pb.CreditReason.ValueType(credit_request.reason),
        note=credit_request.note,
        state=pb.CreditState.ValueType(credit_request.state),
        asked_by=credit_request.asked_by,
        asked_at=stamp(credit_request.asked_at),
        decided_by=credit_request.decided_by,
        decided_at=stamp(credit_request.decided_at),
    )
