"""Delivery: its state machine, queued -> sent -> applied | refused | unknown -> (sent again | enter_by_hand)."""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import IntEnum

from core.domain.invariant import check


class DeliveryState(IntEnum):
    """Where a delivery stands. Stored by number, and the same numbers as in utrn.v1."""

    NOT_REQUESTED = 1
    QUEUED = 2
    SENT = 3
    UNKNOWN = 4
    APPLIED = 5
    REFUSED = 6
    ENTER_BY_HAND = 7


class DeliveryReason(IntEnum):
    """Why a delivery ended. Stored by number, and the same numbers as in utrn.v1."""

    NONE = 0
    CREDITED = 1
    ALREADY_CREDITED = 2
    MAX_CREDIT = 3
    MAX_BALANCE = 4
    NOT_AUTHENTIC = 5
    UNEXPLAINED = 6
    HEAD_END_REFUSED = 7
    NO_ANSWER = 8
    SUPPLIER_CHANGED = 9
    TENANCY_CHANGED = 10
    METER_REMOVED = 11


OWED = frozenset({DeliveryState.QUEUED, DeliveryState.SENT, DeliveryState.UNKNOWN})
CLOSED = frozenset({DeliveryState.APPLIED, DeliveryState.REFUSED, DeliveryState.ENTER_BY_HAND})


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The delivery of one code. `epoch` is that of the owner that wrote last; 0 before any did."""

    state: DeliveryState
    reason: DeliveryReason = DeliveryReason.NONE
    attempts: int = 0
    queued_at: datetime | None = None
    first_sent_at: datetime | None = None
    last_sent_at: datetime | None = None
    closed_at: datetime | None = None
    epoch: int = 0

    @property
    def owed(self) -> bool:
        """True while the meter is still to be sent this code."""
        return self.state in OWED

    def queue(self, now: datetime) -> "Delivery":
        """Return this delivery as asked for."""
        check(self.state is DeliveryState.NOT_REQUESTED, "only a delivery not asked for before is queued")
        return replace(self, state=DeliveryState.QUEUED, queued_at=now)

    def send(self, now: datetime, epoch: int) -> "Delivery":
        """Return this delivery as about to be handed to the head end once more."""
        check(self.owed, "only an owed delivery is sent")
        return replace(
            self,
            state=DeliveryState.SENT,
            attempts=self.attempts + 1,
            first_sent_at=self.first_sent_at or now,
            last_sent_at=now,
            epoch=epoch,
        )

    def lose_sight(self, epoch: int) -> "Delivery":
        """Return this delivery as sent with unknown outcome."""
        check(self.owed, "only an owed delivery becomes unknown")
        return replace(self, state=DeliveryState.UNKNOWN, epoch=epoch)

    def close(self, state: DeliveryState, reason: DeliveryReason, now: datetime, epoch: int) -> "Delivery":
        """Return this delivery as ended."""
        check(self.owed, "a delivery is closed once")
        check(state in CLOSED, "a delivery ends applied, refused or to be entered by hand")
        return replace(self, state=state, reason=reason, closed_at=now, epoch=epoch)


NOT_REQUESTED = Delivery(state=DeliveryState.NOT_REQUESTED)
