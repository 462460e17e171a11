"""Vend: one paid sale and its one code; what makes two requests the same vend."""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import IntEnum
from typing import NamedTuple

from core.domain.delivery import NOT_REQUESTED, Delivery, DeliveryReason, DeliveryState
from core.domain.errors import TransactionIdReused
from core.domain.message_id import message_id
from core.domain.meter import MeterId, MeterKind, OriginatorId, Pan
from core.domain.money import Pence
from core.domain.participant import ParticipantId
from core.domain.record import ReadSet
from core.domain.transaction_id import TransactionId
from core.domain.utrn import Counter, Utrn


class Channel(IntEnum):
    """Where the consumer paid. Stored by number, and the same numbers as in utrn.v1."""

    COUNTER_CASH = 1
    COUNTER_CARD = 2
    ONLINE = 3
    APP = 4
    PHONE = 5
    AUTOMATIC = 6
    NOT_PAID = 7


# Credit without payment has a way of its own (core/credit/goodwill_credit.py), which no sale can take.
SOLD_THROUGH = frozenset(Channel) - {Channel.NOT_PAID}


class Operation(IntEnum):
    """Operation says what a caller asks for, and so how a vend came to be. Stored by number.

    DELIVER is asked for of a vend that is there; no vend came to be by it.
    """

    ISSUE = 1
    TOP_UP = 2
    EXTERNALLY_ISSUED = 3
    CREDIT = 4
    DELIVER = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SaleReference:
    """A sale reference is the seller's name for a sale; the node keeps it and never interprets it."""

    outlet_id: str = ""
    terminal_id: str = ""
    receipt_id: str = ""


NO_REFERENCE = SaleReference()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sale:
    """What a caller asks for, bounds checked. `code` is the code made elsewhere, if that is what is asked for."""

    participant_id: ParticipantId
    transaction_id: TransactionId
    operation: Operation
    pan: Pan
    amount: Pence
    channel: Channel
    reference: SaleReference = NO_REFERENCE
    code: tuple[Utrn, Counter] | None = None


class Authorization(NamedTuple):
    """An authorization is what allowed a vend, and what the PAN stood for then. Stored with the vend.

    Attributes:
        meter_id: The meter behind the PAN.
        meter_kind: Its fuel.
        head_end: The head end that reached it.
        supplier_id: Its supplier.
        originator_id: Under which the code is made.
        tenancy: Which tenant of the meter it was sold to, from 1.
        rule: Which right of the seller allowed it.
        read_set: Every record that it was based on, with its revision; the commit compares all of them.
    """

    meter_id: MeterId
    meter_kind: MeterKind
    head_end: str
    supplier_id: ParticipantId
    originator_id: OriginatorId
    tenancy: int = 1
    rule: str = ""
    read_set: ReadSet = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Vend:
    """A sale, what allowed it, and its code. A Vend outside the process is a committed one."""

    sale: Sale
    authorization: Authorization
    utrn: Utrn
    counter: Counter
    issued_at: datetime
    delivery: Delivery = NOT_REQUESTED

    @property
    def meter_id(self) -> MeterId:
        """The meter that takes the code."""
        return self.authorization.meter_id

    @property
    def meter_kind(self) -> MeterKind:
        """The meter's fuel."""
        return self.authorization.meter_kind

    @property
    def head_end(self) -> str:
        """The head end that reached the meter when the code was made."""
        return self.authorization.head_end

    @property
    def supplier_id(self) -> ParticipantId:
        """The meter's supplier when the code was made."""
        return self.authorization.supplier_id

    @property
    def originator_id(self) -> OriginatorId:
        """Under which the code was made."""
        return self.authorization.originator_id

    @property
    def tenancy(self) -> int:
        """Which tenant of the meter the code was sold to."""
        return self.authorization.tenancy

    @property
    def message_id(self) -> str:
        """The id of its Add Credit, the same for ever; "" before the first send."""
        random_part = self.delivery.random_part
        return message_id(self.originator_id, self.meter_id, self.counter, random_part) if random_part else ""

    def same_code(self, other: "Vend") -> bool:
        """Return whether `other` is this very vend, whatever has become of its delivery."""
        return replace(self, delivery=other.delivery) == other

    @property
    def gave_counter_back(self) -> bool:
        """True if the meter has said of this code made elsewhere that it is none: its counter may be told anew."""
        refused = self.delivery.state is DeliveryState.REFUSED
        not_one = refused and self.delivery.reason is DeliveryReason.NOT_AUTHENTIC
        return not_one and self.sale.operation is Operation.EXTERNALLY_ISSUED

    def with_delivery(self, delivery: Delivery) -> "Vend":
        """Return this vend with its delivery at another state; nothing else of a vend ever changes."""
        return replace(self, delivery=delivery)


def check_same(sale: Sale, committed: Sale) -> None:
    """Return if `sale` is the vend `committed` asked for again; the seller's references may differ.

    Raises:
        TransactionIdReused: facts name the first field that differs.
    """
    for field, asked, known in (
        ("operation", sale.operation, committed.operation),
        ("pan", sale.pan, committed.pan),
        ("amount_pence", sale.amount, committed.amount),
        ("channel", sale.channel, committed.channel),
        ("externally_issued.utrn", sale.code, committed.code),
    ):
        if asked != known:
            raise TransactionIdReused(
                f"transaction_id belongs to a vend with another {field}; a new payment needs a new transaction_id",
                field=field,
            )
