"""Vend: one paid sale and its one code; what makes two requests the same vend."""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import IntEnum

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
    """What a caller asks for, and so how a vend came to be. Stored by number.

    DELIVER is asked for of a vend that is there; no vend came to be by it.
    """

    ISSUE = 1
    TOP_UP = 2
    EXTERNALLY_ISSUED = 3
    CREDIT = 4
    DELIVER = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SaleReference:
    """What the seller calls the sale; kept, never interpreted."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Vend:
    """A sale, what it was resolved to, and its code. A Vend outside the process is a committed one.

    `tenancy` is which tenant of the meter it was sold to; `rule` and `read_set` are what allowed it: the rule, and
    every record it was based on, all of which the commit compares.
    """

    sale: Sale
    meter_id: MeterId
    meter_kind: MeterKind
    head_end: str
    supplier_id: ParticipantId
    originator_id: OriginatorId
    utrn: Utrn
    counter: Counter
    issued_at: datetime
    tenancy: int = 1
    rule: str = ""
    read_set: ReadSet = ()
    delivery: Delivery = NOT_REQUESTED

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
