"""Changes of hands and credit without payment as they are stored."""

from utrn.store.v1 import records_pb2 as pb

from cluster.codec.vend import SCHEMA, read
from core.domain.effective_dated import Ms
from core.domain.goodwill_credit import CreditDay, CreditReason, CreditRequest, CreditState
from core.domain.meter import (
    MeterId,
    OriginatorId,
    Pan,
)
from core.domain.money import Pence
from core.domain.participant import (
    ParticipantId,
)
from core.domain.registration_change import ChangeKind, RegistrationChange, VendRef
from core.domain.transaction_id import TransactionId
from core.domain.utrn import Counter


def change_record(change: RegistrationChange) -> pb.MarketChangeRecord:
    """Return a change of hands as it is stored."""
    return pb.MarketChangeRecord(
        schema=SCHEMA,
        meter_id=change.meter_id,
        at=change.at,
        carried_out_at=change.carried_out_at,
        kinds=change.kinds,
        responsible=change.responsible,
        supplier_after=change.supplier_after or "",
        originator_id=change.originator_id or "",
        last_issued=change.last_issued,
        highest_applied=change.highest_applied,
        in_flight=[_owed_record(vend) for vend in change.in_flight],
        uncredited=[_owed_record(vend) for vend in change.uncredited],
        uncredited_more=change.uncredited_more,
    )


def _owed_record(vend: VendRef) -> pb.OwedVendRecord:
    return pb.OwedVendRecord(
        participant_id=vend.participant_id, transaction_id=vend.transaction_id, utrn_counter=vend.counter
    )


def _owed_of(record: pb.OwedVendRecord) -> VendRef:
    return VendRef(
        participant_id=ParticipantId(record.participant_id),
        transaction_id=TransactionId(record.transaction_id),
        counter=Counter(record.utrn_counter),
    )


def change_of(value: bytes) -> RegistrationChange:
    """Return a change of hands from its stored form."""
    record = read(pb.MarketChangeRecord(), value)
    return RegistrationChange(
        meter_id=MeterId(record.meter_id),
        at=Ms(record.at),
        carried_out_at=Ms(record.carried_out_at),
        kinds=tuple(ChangeKind(kind) for kind in record.kinds),
        responsible=ParticipantId(record.responsible),
        supplier_after=ParticipantId(record.supplier_after) if record.supplier_after else None,
        originator_id=OriginatorId(record.originator_id) if record.originator_id else None,
        last_issued=record.last_issued,
        highest_applied=record.highest_applied,
        in_flight=tuple(map(_owed_of, record.in_flight)),
        uncredited=tuple(map(_owed_of, record.uncredited)),
        uncredited_more=record.uncredited_more,
    )


def credit_record(credit_request: CreditRequest) -> pb.CreditRequestRecord:
    """Return a request for credit as it is stored."""
    return pb.CreditRequestRecord(
        schema=SCHEMA,
        supplier_id=credit_request.supplier_id,
        transaction_id=credit_request.transaction_id,
        pan=credit_request.pan,
        amount_pence=credit_request.amount,
        reason=credit_request.reason,
        note=credit_request.note,
        asked_by=credit_request.asked_by,
        asked_at=credit_request.asked_at,
        state=credit_request.state,
        decided_by=credit_request.decided_by,
        decided_at=credit_request.decided_at or 0,
        day=credit_request.day,
    )


def credit_of(value: bytes) -> CreditRequest:
    """Return a request for credit from its stored form."""
    record = read(pb.CreditRequestRecord(), value)
    return CreditRequest(
        supplier_id=ParticipantId(record.supplier_id),
        transaction_id=TransactionId(record.transaction_id),
        pan=Pan(record.pan),
        amount=Pence(record.amount_pence),
        reason=CreditReason(record.reason),
        note=record.note,
        asked_by=record.asked_by,
        asked_at=Ms(record.asked_at),
        state=CreditState(record.state),
        decided_by=record.decided_by,
        decided_at=Ms(record.decided_at) if record.decided_at else None,
        day=record.day,
    )


def day_record(day: CreditDay) -> pb.CreditDayRecord:
    """Return a day of credit as it is stored."""
    return pb.CreditDayRecord(
        schema=SCHEMA, supplier_id=day.supplier_id, day=day.day, count=day.count, total_pence=day.total_pence
    )


def day_of(value: bytes) -> CreditDay:
    """Return a day of credit from its stored form."""
    record = read(pb.CreditDayRecord(), value)
    return CreditDay(
        supplier_id=ParticipantId(record.supplier_id),
        day=record.day,
        count=record.count,
        total_pence=record.total_pence,
    )
