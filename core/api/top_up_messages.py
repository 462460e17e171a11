"""Messages of TopUpService <-> domain. Bounds of requests are checked here, all fields at once."""

from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

from google.protobuf import timestamp_pb2
from utrn.v1 import errors_pb2 as errors_pb
from utrn.v1 import meter_service_pb2 as meter_pb
from utrn.v1 import top_up_service_pb2 as service_pb
from utrn.v1 import types_pb2 as pb

from core.api.validation import check_passed, instant
from core.domain.delivery import Delivery
from core.domain.effective_dated import Ms, instant_of
from core.domain.errors import BadField
from core.domain.invariant import InvariantBroken
from core.domain.meter import Pan, PanRule, parse_pan
from core.domain.money import Pence
from core.domain.participant import ParticipantId, Principal, parse_participant_id
from core.domain.transaction_id import TransactionId, parse_transaction_id
from core.domain.utrn import COUNTER_MAX, Counter, Utrn, parse_utrn, printed, truncated_counter, value_of
from core.domain.utrn_value import code_value
from core.domain.vend import NO_REFERENCE, SOLD_THROUGH, Channel, Operation, Sale, SaleReference, Vend
from core.issuing.check_eligibility import Eligibility
from core.registry.counter_transfer import ExternallyIssued

_T = TypeVar("_T")
_REFERENCE_MAX = 40
_RECEIPT_MAX = 64


class _Fields:
    """Collects what is wrong with a request, so that a caller hears of all of it at once."""

    def __init__(self) -> None:
        self._wrong: list[BadField] = []

    def take(self, parse: Callable[[], _T]) -> _T | None:
        """Return what `parse` returns; None if it refuses."""
        try:
            return parse()
        except BadField as error:
            self._wrong.append(error)
            return None

    def refuse(self) -> None:
        """Raise BadField, naming every field, if any was refused."""
        if self._wrong:
            first, *others = self._wrong
            first.others = tuple(others)
            raise first


_CodeRequest = service_pb.IssueUtrnRequest | service_pb.TopUpRequest
SaleRequest = _CodeRequest | service_pb.DeliverVendRequest


def sale_of(request: SaleRequest, operation: Operation, principal: Principal, pan_rule: PanRule) -> Sale:
    """Return what `request` asks for: a code, or the delivery of one made elsewhere, whose digits carry the amount.

    Raises:
        BadField, AmountNotEncodable: never repeat as it is.
    """
    if isinstance(request, service_pb.DeliverVendRequest):
        return _sale_externally_issued(request, principal, pan_rule)
    fields = _Fields()
    transaction_id = fields.take(lambda: parse_transaction_id(request.transaction_id))
    pan = fields.take(lambda: parse_pan(request.pan, pan_rule))
    amount = fields.take(lambda: code_value(Pence(request.amount_pence)).amount)
    channel = fields.take(lambda: _channel(request.channel, "channel"))
    reference = fields.take(lambda: _reference(request.reference, "reference"))
    fields.refuse()
    if transaction_id is None or pan is None or amount is None or channel is None or reference is None:
        raise InvariantBroken("every field was taken")
    return Sale(
        participant_id=principal.participant_id,
        transaction_id=transaction_id,
        operation=operation,
        pan=pan,
        amount=amount,
        channel=channel,
        reference=reference,
    )


def as_asked(request: SaleRequest, operation: Operation, principal: Principal) -> Sale | None:
    """Return a request with a wrong field as it is, only to be compared with what is committed; None without an id."""
    try:
        transaction_id = parse_transaction_id(request.transaction_id)
    except BadField:
        return None
    if isinstance(request, service_pb.DeliverVendRequest):
        made = request.externally_issued
        pan, amount, channel = made.pan, _carried(made.utrn), int(made.channel)
        code: tuple[Utrn, Counter] | None = (Utrn(made.utrn), Counter(made.utrn_counter))
    else:
        pan, amount, channel, code = request.pan, Pence(request.amount_pence), int(request.channel), None
    return Sale(
        participant_id=principal.participant_id,
        transaction_id=transaction_id,
        operation=operation,
        pan=Pan(pan),
        amount=amount,
        # No committed sale went through a channel that is none: it compares as different.
        channel=Channel(channel) if channel in SOLD_THROUGH else Channel.NOT_PAID,
        code=code,
    )


def _carried(digits: str) -> Pence:
    try:
        return value_of(parse_utrn(digits, field="externally_issued.utrn")).amount
    except BadField:
        return Pence(0)


def _sale_externally_issued(request: service_pb.DeliverVendRequest, principal: Principal, pan_rule: PanRule) -> Sale:
    made = request.externally_issued
    fields = _Fields()
    transaction_id = fields.take(lambda: parse_transaction_id(request.transaction_id))
    pan = fields.take(lambda: parse_pan(made.pan, pan_rule, field="externally_issued.pan"))
    code = fields.take(lambda: _code(made.utrn, made.utrn_counter, "externally_issued"))
    channel = fields.take(lambda: _channel(made.channel, "externally_issued.channel"))
    reference = fields.take(lambda: _reference(made.reference, "externally_issued.reference"))
    fields.refuse()
    if transaction_id is None or pan is None or code is None or channel is None or reference is None:
        raise InvariantBroken("every field was taken")
    return Sale(
        participant_id=principal.participant_id,
        transaction_id=transaction_id,
        operation=Operation.EXTERNALLY_ISSUED,
        pan=pan,
        amount=value_of(code[0]).amount,
        channel=channel,
        reference=reference,
        code=code,
    )


def vend_asked_for(
    request: service_pb.GetVendRequest | service_pb.DeliverVendRequest | service_pb.SettleDeliveryRequest,
    principal: Principal,
) -> tuple[ParticipantId, TransactionId]:
    """Return whose vend, and which.

    Raises:
        BadField: never repeat as it is.
    """
    transaction_id = parse_transaction_id(request.transaction_id)
    if not request.participant_id:
        return principal.participant_id, transaction_id
    return parse_participant_id(request.participant_id, field="participant_id"), transaction_id


def issued_code(vend: Vend) -> pb.IssuedCode:
    """Return the unchanging part of a vend: the same message, field for field, for ever."""
    return pb.IssuedCode(
        transaction_id=vend.sale.transaction_id,
        utrn=vend.utrn,
        utrn_printed=printed(vend.utrn),
        amount_pence=vend.sale.amount,
        issued_at=_timestamp(vend.issued_at),
    )


def delivery_message(delivery: Delivery, *, advised: bool) -> pb.Delivery:
    """Return a delivery, and whether entering the code by hand is advised.

    States and reasons have the same numbers in both worlds; a test holds them to it.
    """
    return pb.Delivery(
        state=pb.DeliveryState.ValueType(delivery.state),
        reason=pb.DeliveryReason.ValueType(delivery.reason),
        attempts=delivery.attempts,
        queued_at=_timestamp(delivery.queued_at),
        first_sent_at=_timestamp(delivery.first_sent_at),
        last_sent_at=_timestamp(delivery.last_sent_at),
        closed_at=_timestamp(delivery.closed_at),
        enter_by_hand_advised=advised,
    )


def eligibility_asked(
    request: service_pb.CheckEligibilityRequest, pan_rule: PanRule
) -> tuple[Pan, Pence | None, Channel | None]:
    """Return the PAN, the amount and the channel of a sale in mind; None for not said.

    Raises:
        BadField, AmountNotEncodable: never repeat as it is.
    """
    fields = _Fields()
    pan = fields.take(lambda: parse_pan(request.pan, pan_rule))
    amount = fields.take(lambda: code_value(Pence(request.amount_pence)).amount) if request.amount_pence else None
    channel = fields.take(lambda: _channel(request.channel, "channel")) if request.channel else None
    fields.refuse()
    if pan is None:
        raise InvariantBroken("every field was taken")
    return pan, amount, channel


def eligibility_message(eligibility: Eligibility) -> service_pb.CheckEligibilityResponse:
    """Return whether a sale would be allowed, and what stands against it."""
    return service_pb.CheckEligibilityResponse(
        eligible=not eligibility.objections,
        objections=[
            service_pb.Objection(
                reason=errors_pb.ErrorReason.Value(f"ERROR_REASON_{objection.reason}"),
                message=objection.message,
                facts=objection.facts,
            )
            for objection in eligibility.objections
        ],
        supplier_id=eligibility.supplier_id or "",
    )


def unspent_code(one: meter_pb.UnspentCode, pan_rule: PanRule, now: Ms) -> ExternallyIssued:
    """Return a code that was sold elsewhere and is handed over with its meter.

    Raises:
        BadField: never repeat as it is.
    """
    fields = _Fields()
    seller = fields.take(lambda: parse_participant_id(one.participant_id, field="codes.participant_id"))
    transaction_id = fields.take(lambda: parse_transaction_id(one.transaction_id, field="codes.transaction_id"))
    pan = fields.take(lambda: parse_pan(one.pan, pan_rule, field="codes.pan"))
    code = fields.take(lambda: _code(one.utrn, one.utrn_counter, "codes"))
    issued_at = fields.take(lambda: _sold_at(one, now))
    channel = fields.take(lambda: _channel(one.channel, "codes.channel", among=frozenset(Channel)))
    reference = fields.take(lambda: _reference(one.reference, "codes.reference"))
    fields.refuse()
    if seller is None or transaction_id is None or pan is None or code is None:
        raise InvariantBroken("every field was taken")
    if issued_at is None or channel is None or reference is None:
        raise InvariantBroken("every field was taken")
    return ExternallyIssued(
        sale=Sale(
            participant_id=seller,
            transaction_id=transaction_id,
            operation=Operation.EXTERNALLY_ISSUED,
            pan=pan,
            amount=value_of(code[0]).amount,
            channel=channel,
            reference=reference,
            code=code,
        ),
        issued_at=issued_at,
        deliver=one.deliver,
    )


def unspent_code_message(vend: Vend) -> meter_pb.UnspentCode:
    """Return a code that is handed over with its meter, as it is taken over elsewhere."""
    message = meter_pb.UnspentCode(
        participant_id=vend.sale.participant_id,
        transaction_id=vend.sale.transaction_id,
        pan=vend.sale.pan,
        utrn=vend.utrn,
        utrn_counter=vend.counter,
        deliver=True,
        channel=pb.Channel.ValueType(vend.sale.channel),
        reference=_reference_message(vend.sale.reference),
    )
    message.issued_at.FromDatetime(vend.issued_at)
    return message


def _sold_at(code: meter_pb.UnspentCode, now: Ms) -> datetime:
    field = "codes.issued_at"
    if not code.HasField("issued_at"):
        raise BadField(f"{field}: is missing", field=field)
    return instant_of(check_passed(instant(code.issued_at, field), field, now))


def vend_message(vend: Vend, *, advised: bool) -> pb.Vend:
    """Return all that is known of a vend, and whether entering its code by hand is advised."""
    sale = vend.sale
    return pb.Vend(
        code=issued_code(vend),
        participant_id=sale.participant_id,
        pan=sale.pan,
        meter_id=vend.meter_id,
        supplier_id=vend.supplier_id,
        originator_id=vend.originator_id,
        utrn_counter=vend.counter,
        channel=pb.Channel.ValueType(sale.channel),
        reference=_reference_message(sale.reference),
        delivery=delivery_message(vend.delivery, advised=advised),
        externally_issued=sale.operation is Operation.EXTERNALLY_ISSUED,
        allowed_by=vend.authorization.rule,
    )


def case_message(vend: Vend, *, digits: bool) -> pb.Vend:
    """Return an open case, with the digits of its code or without."""
    message = vend_message(vend, advised=False)
    if not digits:
        message.code.ClearField("utrn")
        message.code.ClearField("utrn_printed")
    return message


def _code(digits: str, number: int, room: str) -> tuple[Utrn, Counter]:
    """Return a code made elsewhere and the counter it was made under; raise BadField, named as in `room`, if none."""
    utrn = parse_utrn(digits, field=f"{room}.utrn")
    field = f"{room}.utrn_counter"
    if not 1 <= number <= COUNTER_MAX:
        raise BadField(f"{field}: 1 to {COUNTER_MAX} is needed", field=field)
    if truncated_counter(utrn) != number % 1024:
        raise BadField(f"{field}: not the counter under which this code was made", field=field)
    if value_of(utrn).value == 0:
        raise BadField(f"{room}.utrn: the code carries no credit", field=f"{room}.utrn")
    return utrn, Counter(number)


def _channel(number: int, field: str, *, among: frozenset[Channel] = SOLD_THROUGH) -> Channel:
    """Return a channel; what is handed over, unlike what is sold, may have been given without payment."""
    if number not in among:
        raise BadField(f"{field}: one of the named channels, at which something is paid, is needed", field=field)
    return Channel(number)


def _reference(reference: pb.SaleReference, field: str) -> SaleReference:
    if not reference.ByteSize():
        return NO_REFERENCE
    return SaleReference(
        outlet_id=_label(reference.outlet_id, _REFERENCE_MAX, f"{field}.outlet_id"),
        terminal_id=_label(reference.terminal_id, _REFERENCE_MAX, f"{field}.terminal_id"),
        receipt_id=_label(reference.receipt_id, _RECEIPT_MAX, f"{field}.receipt_id"),
    )


def _reference_message(reference: SaleReference) -> pb.SaleReference:
    return pb.SaleReference(
        outlet_id=reference.outlet_id, terminal_id=reference.terminal_id, receipt_id=reference.receipt_id
    )


def _label(text: str, most: int, field: str) -> str:
    if len(text) > most or not (text.isascii() and text.isprintable()):
        raise BadField(f"{field}: 0 to {most} printable ASCII characters are allowed", field=field)
    return text


def _timestamp(instant: datetime | None) -> timestamp_pb2.Timestamp | None:
    if instant is None:
        return None
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromDatetime(instant)
    return timestamp
