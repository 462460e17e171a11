"""Domain <-> utrn.store.v1: what is kept in etcd. A record with a newer schema than this program's is refused."""

from datetime import UTC, datetime
from typing import Protocol, TypeVar

from google.protobuf import timestamp_pb2
from utrn.store.v1 import records_pb2 as pb

from core.domain.delivery import Delivery, DeliveryReason, DeliveryState
from core.domain.meter import Card, Meter, MeterId, MeterKind, OriginatorId, Pan
from core.domain.money import Pence
from core.domain.party import Participant, ParticipantId, Role, SupplierKey
from core.domain.token import Counter, Utrn
from core.domain.transaction_id import TransactionId
from core.domain.vend import Channel, Operation, Sale, SaleReference, Vend

SCHEMA = 1


class NewerSchema(Exception):
    """A record was written by a newer version of this program. Upgrade this node; it must not guess."""


class _Record(Protocol):
    schema: int

    def ParseFromString(self, serialized: bytes, /) -> int: ...  # noqa: N802  # protobuf's name


_R = TypeVar("_R", bound=_Record)


def read(record: _R, value: bytes) -> _R:
    """Return `record` filled from `value`.

    Raises:
        NewerSchema: this program is too old for it.
    """
    record.ParseFromString(value)
    if record.schema > SCHEMA:
        raise NewerSchema(f"{type(record).__name__} has schema {record.schema}, this program knows up to {SCHEMA}")
    return record


def vend_value(vend: Vend) -> bytes:
    """Return the stored form of a vend."""
    sale, delivery = vend.sale, vend.delivery
    return pb.VendRecord(
        schema=SCHEMA,
        participant_id=sale.participant_id,
        transaction_id=sale.transaction_id,
        pan=sale.pan,
        meter_id=vend.meter_id,
        supplier_id=vend.supplier_id,
        originator_id=vend.originator_id,
        amount_pence=sale.amount,
        channel=sale.channel,
        operation=sale.operation,
        outlet_id=sale.reference.outlet_id,
        terminal_id=sale.reference.terminal_id,
        receipt_id=sale.reference.receipt_id,
        utrn=vend.utrn,
        utrn_counter=vend.counter,
        issued_at=_timestamp(vend.issued_at),
        meter_kind=vend.meter_kind,
        head_end=vend.head_end,
        delivery=pb.DeliveryRecord(
            state=delivery.state,
            reason=delivery.reason,
            attempts=delivery.attempts,
            queued_at=_timestamp(delivery.queued_at),
            first_sent_at=_timestamp(delivery.first_sent_at),
            last_sent_at=_timestamp(delivery.last_sent_at),
            closed_at=_timestamp(delivery.closed_at),
            epoch=delivery.epoch,
        ),
    ).SerializeToString(deterministic=True)


def vend_of(value: bytes) -> Vend:
    """Return the vend of a stored form."""
    record = read(pb.VendRecord(), value)
    operation = Operation(record.operation)
    utrn, counter = Utrn(record.utrn), Counter(record.utrn_counter)
    issued_at = _instant(record, "issued_at")
    if issued_at is None:
        raise ValueError("a stored vend has no issued_at")
    return Vend(
        sale=Sale(
            participant_id=ParticipantId(record.participant_id),
            transaction_id=TransactionId(record.transaction_id),
            operation=operation,
            pan=Pan(record.pan),
            amount=Pence(record.amount_pence),
            channel=Channel(record.channel),
            reference=SaleReference(
                outlet_id=record.outlet_id, terminal_id=record.terminal_id, receipt_id=record.receipt_id
            ),
            code=(utrn, counter) if operation is Operation.MADE_ELSEWHERE else None,
        ),
        meter_id=MeterId(record.meter_id),
        meter_kind=MeterKind(record.meter_kind),
        head_end=record.head_end,
        supplier_id=ParticipantId(record.supplier_id),
        originator_id=OriginatorId(record.originator_id),
        utrn=utrn,
        counter=counter,
        issued_at=issued_at,
        delivery=_delivery_of(record.delivery),
    )


def _delivery_of(record: pb.DeliveryRecord) -> Delivery:
    return Delivery(
        state=DeliveryState(record.state),
        reason=DeliveryReason(record.reason),
        attempts=record.attempts,
        queued_at=_instant(record, "queued_at"),
        first_sent_at=_instant(record, "first_sent_at"),
        last_sent_at=_instant(record, "last_sent_at"),
        closed_at=_instant(record, "closed_at"),
        epoch=record.epoch,
    )


def pointer_value(vend: Vend) -> bytes:
    """Return the stored pointer to a vend."""
    return pb.VendPointer(
        schema=SCHEMA, participant_id=vend.sale.participant_id, transaction_id=vend.sale.transaction_id
    ).SerializeToString(deterministic=True)


def participant_value(participant: Participant) -> bytes:
    """Return the stored form of a participant."""
    key = participant.supplier_key
    return pb.ParticipantRecord(
        schema=SCHEMA,
        participant_id=participant.participant_id,
        role=participant.role,
        name=participant.name,
        identities=participant.identities,
        suspended=participant.suspended,
        originator_id="" if key is None else key.originator_id,
        key_id="" if key is None else key.key_id,
        prepayment_public_point=b"" if key is None else key.public_point,
        appointed_psps=sorted(participant.appointed_psps),
    ).SerializeToString(deterministic=True)


def participant_of(value: bytes) -> Participant:
    """Return the participant of a stored form."""
    record = read(pb.ParticipantRecord(), value)
    key = None
    if record.originator_id:
        key = SupplierKey(
            originator_id=record.originator_id, key_id=record.key_id, public_point=record.prepayment_public_point
        )
    return Participant(
        participant_id=ParticipantId(record.participant_id),
        role=Role(record.role),
        name=record.name,
        identities=tuple(record.identities),
        suspended=record.suspended,
        supplier_key=key,
        appointed_psps=frozenset(ParticipantId(psp) for psp in record.appointed_psps),
    )


def meter_value(meter: Meter) -> bytes:
    """Return the stored form of a meter."""
    return pb.MeterRecord(
        schema=SCHEMA,
        meter_id=meter.meter_id,
        kind=meter.kind,
        supplier_id=meter.supplier_id,
        scheme=meter.scheme,
        public_point=meter.public_point,
        head_end=meter.head_end,
    ).SerializeToString(deterministic=True)


def meter_of(value: bytes) -> Meter:
    """Return the meter of a stored form."""
    record = read(pb.MeterRecord(), value)
    return Meter(
        meter_id=MeterId(record.meter_id),
        kind=MeterKind(record.kind),
        supplier_id=ParticipantId(record.supplier_id),
        scheme=record.scheme,
        public_point=record.public_point,
        head_end=record.head_end,
    )


def card_value(card: Card) -> bytes:
    """Return the stored form of a PAN."""
    return pb.PanRecord(schema=SCHEMA, pan=card.pan, meter_id=card.meter_id, blocked=card.blocked).SerializeToString(
        deterministic=True
    )


def card_of(value: bytes) -> Card:
    """Return the PAN of a stored form."""
    record = read(pb.PanRecord(), value)
    return Card(pan=Pan(record.pan), meter_id=MeterId(record.meter_id), blocked=record.blocked)


def _timestamp(instant: datetime | None) -> timestamp_pb2.Timestamp | None:
    if instant is None:
        return None
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromDatetime(instant)
    return timestamp


def _instant(record: pb.VendRecord | pb.DeliveryRecord, field: str) -> datetime | None:
    if not record.HasField(field):  # type: ignore[arg-type]
        return None
    timestamp: timestamp_pb2.Timestamp = getattr(record, field)
    return timestamp.ToDatetime(tzinfo=UTC)
