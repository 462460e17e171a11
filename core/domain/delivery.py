"""Delivery: its state machine, queued -> sent -> applied | refused | unknown -> (sent again | enter_by_hand).

A meter's *duplicate* that proves nothing ends it as needs_check, until its supplier has looked. What a meter says of a
code reaches its delivery after its end too: a code keyed in is applied, whatever was said of it before.
"""

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
    NEEDS_CHECK = 8


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
    DUPLICATE_UNPROVEN = 12
    CHECKED_BY_SUPPLIER = 13
    CREDITED_AFTER_REFUSAL = 14


OWED = frozenset({DeliveryState.QUEUED, DeliveryState.SENT, DeliveryState.UNKNOWN})
CLOSED = frozenset(
    {DeliveryState.APPLIED, DeliveryState.REFUSED, DeliveryState.ENTER_BY_HAND, DeliveryState.NEEDS_CHECK}
)


# Of so many head ends the newest are remembered: a meter is hardly ever moved while a code waits for it.
_HEAD_ENDS_MAX = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The delivery of one code. `epoch` is that of the owner that wrote last; 0 before any did.

    `random_part` is that of its message's id, "" before the first send; `head_ends` are those that the message was
    handed to, or was about to be: nobody else can know what became of it.
    """

    state: DeliveryState
    reason: DeliveryReason = DeliveryReason.NONE
    attempts: int = 0
    queued_at: datetime | None = None
    first_sent_at: datetime | None = None
    last_sent_at: datetime | None = None
    closed_at: datetime | None = None
    epoch: int = 0
    random_part: str = ""
    head_ends: tuple[str, ...] = ()

    @property
    def owed(self) -> bool:
        """True while the meter is still to be sent this code."""
        return self.state in OWED

    def queue(self, now: datetime) -> "Delivery":
        """Return this delivery as asked for."""
        check(self.state is DeliveryState.NOT_REQUESTED, "only a delivery not asked for before is queued")
        return replace(self, state=DeliveryState.QUEUED, queued_at=now)

    def send(self, now: datetime, epoch: int, *, head_end: str, random_part: str) -> "Delivery":
        """Return this delivery as about to be handed to `head_end` once more.

        `random_part` is taken at the first send, and kept for every other.
        """
        check(self.owed, "only an owed delivery is sent")
        others = tuple(other for other in self.head_ends if other != head_end)
        return replace(
            self,
            state=DeliveryState.SENT,
            attempts=self.attempts + 1,
            first_sent_at=self.first_sent_at or now,
            last_sent_at=now,
            epoch=epoch,
            random_part=self.random_part or random_part,
            head_ends=(*others, head_end)[-_HEAD_ENDS_MAX:],
        )

    def mark_outcome_unknown(self, epoch: int) -> "Delivery":
        """Return this delivery as sent with unknown outcome."""
        check(self.owed, "only an owed delivery becomes unknown")
        return replace(self, state=DeliveryState.UNKNOWN, epoch=epoch)

    def close(self, state: DeliveryState, reason: DeliveryReason, now: datetime, epoch: int) -> "Delivery":
        """Return this delivery as ended."""
        check(self.owed, "a delivery is closed once")
        check(state in CLOSED, "a delivery ends applied, refused, to be entered by hand or to be checked")
        return replace(self, state=state, reason=reason, closed_at=now, epoch=epoch)

    def credit(self, now: datetime, epoch: int) -> "Delivery":
        """Return this delivery after the meter has said that the code is credited; itself, if that was known."""
        if self.state is DeliveryState.APPLIED:
            return self
        late = self.state is DeliveryState.REFUSED
        reason = DeliveryReason.CREDITED_AFTER_REFUSAL if late else DeliveryReason.ALREADY_CREDITED
        return replace(self, state=DeliveryState.APPLIED, reason=reason, closed_at=now, epoch=epoch)

    def dispute(self, now: datetime, epoch: int) -> "Delivery":
        """Return this delivery after a *duplicate* that does not prove a credit; itself, if more than that is known."""
        settled = self.reason is DeliveryReason.CHECKED_BY_SUPPLIER
        if settled or self.state in (DeliveryState.APPLIED, DeliveryState.NEEDS_CHECK):
            return self
        reason = DeliveryReason.DUPLICATE_UNPROVEN
        return replace(self, state=DeliveryState.NEEDS_CHECK, reason=reason, closed_at=now, epoch=epoch)

    def settle(self, now: datetime, *, credited: bool) -> "Delivery":
        """Return this delivery as its supplier has found it in the meter's credit log. Written by no shard's owner."""
        check(self.state is DeliveryState.NEEDS_CHECK, "only an open case is settled")
        state = DeliveryState.APPLIED if credited else DeliveryState.REFUSED
        return replace(self, state=state, reason=DeliveryReason.CHECKED_BY_SUPPLIER, closed_at=now, epoch=0)


NOT_REQUESTED = Delivery(state=DeliveryState.NOT_REQUESTED)
