"""Domain <-> utrn.store.v1: what is kept in etcd. A record with a newer schema than this program's is refused."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Protocol, TypeVar
from urllib.parse import quote, unquote

from google.protobuf import timestamp_pb2
from google.protobuf.message import DecodeError
from utrn.store.v1 import records_pb2 as pb

from core.domain.delivery import Delivery, DeliveryReason, DeliveryState
from core.domain.effective_dated import Ms
from core.domain.errors import BadField
from core.domain.meter import MeterId, MeterKind, OriginatorId, Pan
from core.domain.money import Pence
from core.domain.participant import ParticipantId
from core.domain.record import Kind, ReadSet, Ref
from core.domain.refusal import ClosedRefusal
from core.domain.transaction_id import TransactionId
from core.domain.utrn import Counter, Utrn
from core.domain.vend import Authorization, Channel, Operation, Sale, SaleReference, Vend
from core.ports.ledger import Found, StoredVend

SCHEMA = 2
_SCHEMA_TAG = b"\x08"
_SCHEMA_KNOWN = bytes([SCHEMA])


class Unreadable(Exception):
    """A stored record cannot be understood. It is set aside (`cluster/codec/set_aside.py`): left as it is, and alarmed.

    It must not stop work on the others, and no question about it may be answered as if it were not there.
    """


class NewerSchema(Unreadable):
    """A record was written by a newer version of this program. Upgrade this node; it must not guess."""


class UnreadableVend(Unreadable):
    """A stored vend is not what this program writes."""


# What reading a garbled record may end in: no such message, or values that its readers have no meaning for.
GARBLED: Final = (Unreadable, DecodeError, ValueError, LookupError, TypeError, BadField)


class _Record(Protocol):
    schema: int

    def ParseFromString(self, serialized: bytes, /) -> int: ...  # noqa: N802  # protobuf's name


_R = TypeVar("_R", bound=_Record)
_T = TypeVar("_T")


def read(record: _R, value: bytes) -> _R:
    """Return `record` filled from `value`.

    Raises:
        NewerSchema: this program is too old for it.
        Unreadable: it is no such record.
    """
    try:
        record.ParseFromString(value)
    except DecodeError as error:
        raise Unreadable(f"not a {type(record).__name__}: {error}") from error
    if record.schema > SCHEMA:
        raise NewerSchema(f"{type(record).__name__} has schema {record.schema}, this program knows up to {SCHEMA}")
    return record


def understand(of: Callable[[bytes], _T], value: bytes) -> _T:
    """Return what `of` makes of a stored value.

    Raises:
        Unreadable: whatever `of` stumbled over.
    """
    try:
        return of(value)
    except GARBLED as error:
        raise error if isinstance(error, Unreadable) else Unreadable(f"{type(error).__name__}: {error}") from error


def check_schema(value: bytes) -> None:
    """Return if a record kept as bytes can be understood when it is needed: its schema is its first field.

    Raises:
        NewerSchema: this program is too old for it.
    """
    if value[:1] == _SCHEMA_TAG and value[1:2] > _SCHEMA_KNOWN:
        raise NewerSchema(f"a record has schema {value[1]}, this program knows up to {SCHEMA}")


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
            random_part=delivery.random_part,
            head_ends=delivery.head_ends,
        ),
        tenancy=vend.tenancy,
        rule=vend.authorization.rule,
        read_set=" ".join(
            [
                f"{kind}/{_spelled(kind, record_id)}@{revision}"
                for (kind, record_id), revision in vend.authorization.read_set
            ]
        ),
    ).SerializeToString(deterministic=True)


def refusal_value(refusal: ClosedRefusal) -> bytes:
    """Return the stored form of the refusal that closes an id, under the key that a vend would have."""
    return pb.VendRecord(
        schema=SCHEMA,
        participant_id=refusal.participant_id,
        transaction_id=refusal.transaction_id,
        refused=pb.ClosedRefusalRecord(
            reason=refusal.reason,
            message=refusal.message,
            facts=refusal.facts,
            refused_at=refusal.refused_at,
            node_id=refusal.node_id,
        ),
    ).SerializeToString(deterministic=True)


def under_vend_key_of(value: bytes) -> Vend | ClosedRefusal:
    """Return what a vend's key holds: the vend, or the refusal that closed its id.

    Raises:
        UnreadableVend: it is not what this program writes.
        NewerSchema: this program is too old for it.
    """
    try:
        record = read(pb.VendRecord(), value)
        return _refusal_of(record) if record.HasField("refused") else _vend_of(record)
    except GARBLED as error:
        raise error if isinstance(error, Unreadable) else UnreadableVend(str(error)) from error


def vend_of(value: bytes) -> Vend:
    """Return the vend of a stored form.

    Raises:
        UnreadableVend: it is not what this program writes.
        NewerSchema: this program is too old for it.
    """
    try:
        return _vend_of(read(pb.VendRecord(), value))
    except GARBLED as error:
        raise error if isinstance(error, Unreadable) else UnreadableVend(str(error)) from error


def packed(found: Found) -> tuple[int, bytes]:
    """Return what is under an id in two values that the garbage collector does not look into."""
    if isinstance(found, ClosedRefusal):
        return 0, refusal_value(found)
    return found.revision, vend_value(found.vend)


def unpacked(kept: tuple[int, bytes]) -> Found:
    """Return what `packed` was given."""
    revision, value = kept
    found = under_vend_key_of(value)
    return found if isinstance(found, ClosedRefusal) else StoredVend(vend=found, revision=revision)


def _refusal_of(record: pb.VendRecord) -> ClosedRefusal:
    refused = record.refused
    return ClosedRefusal(
        participant_id=ParticipantId(record.participant_id),
        transaction_id=TransactionId(record.transaction_id),
        reason=refused.reason,
        message=refused.message,
        facts=dict(sorted(refused.facts.items())),
        refused_at=Ms(refused.refused_at),
        node_id=refused.node_id,
    )


def _vend_of(record: pb.VendRecord) -> Vend:
    operation = Operation(record.operation)
    utrn, counter = Utrn(record.utrn), Counter(record.utrn_counter)
    issued_at = _instant(record, "issued_at")
    if issued_at is None or operation is Operation.DELIVER:
        raise ValueError("a stored vend has no issued_at, or came to be by its own delivery")
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
            code=(utrn, counter) if operation is Operation.EXTERNALLY_ISSUED else None,
        ),
        authorization=Authorization(
            meter_id=MeterId(record.meter_id),
            meter_kind=MeterKind(record.meter_kind),
            head_end=record.head_end,
            supplier_id=ParticipantId(record.supplier_id),
            originator_id=OriginatorId(record.originator_id),
            tenancy=record.tenancy or 1,
            rule=record.rule,
            read_set=_basis_of(record.read_set),
        ),
        utrn=utrn,
        counter=counter,
        issued_at=issued_at,
        delivery=_delivery_of(record.delivery),
    )


def _basis_of(text: str) -> ReadSet:
    found = []
    for one in text.split():
        name, revision = one.rsplit("@", 1)
        kind, record_id = name.split("/", 1)
        found.append((Ref(Kind(kind), unquote(record_id)), int(revision)))
    return tuple(found)


def _spelled(kind: Kind, record_id: str) -> str:
    """Return an id without blanks. Only makes and models may have any: every other id has an alphabet of its own."""
    return quote(record_id) if kind is Kind.MODEL else record_id


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
        random_part=record.random_part,
        head_ends=tuple(record.head_ends),
    )


def pointer_value(vend: Vend, *, credited: bool = False) -> bytes:
    """Return the stored pointer to a vend; `credited` is said under code/ only."""
    return pb.VendPointer(
        schema=SCHEMA,
        participant_id=vend.sale.participant_id,
        transaction_id=vend.sale.transaction_id,
        credited=credited,
    ).SerializeToString(deterministic=True)


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
