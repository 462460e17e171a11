"""Origins: what a head end may speak of: meters registered to it, and messages that went out through it. Nothing else.

Whatever else it says is counted by a fixed reason, alarmed on, and moves nothing (docs/decisions/0029).
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from core.delivery.fresh_meters import FreshMeters, head_end_of
from core.domain.meter import MeterId
from core.domain.record import ReadSet
from core.domain.vend import Vend
from core.metrics import SetAside
from core.ports.head_end import HeadEndEvent

NEVER_SENT: Final = "answer to a message never sent"
ANOTHERS_MESSAGE: Final = "of a message that another head end carries"
WRONG_ID: Final = "answer under an id that was never sent"
ANOTHERS_METER: Final = "of a meter that another head end reaches"


@dataclass(frozen=True, slots=True)
class Received:
    """An event, and the name of the head end that told it."""

    head_end: str
    event: HeadEndEvent


async def _not_read(_: MeterId) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Origins:
    """Judges by the registry's and the delivery's records, and counts in `set_aside` what is not believed.

    `registered` returns two values. The first is the head end that the meter is registered to: the last head end of a
    meter out of service, None for a meter that was never in service. The second is the read set of that answer.
    `read_again` reads the meter's record from the ledger, because the replica may be behind.
    """

    set_aside: SetAside
    registered: Callable[[MeterId], tuple[str | None, ReadSet]]
    read_again: Callable[[MeterId], Awaitable[None]] = _not_read

    @classmethod
    def by(cls, meters: FreshMeters, set_aside: SetAside) -> "Origins":
        """Return Origins that judge by the registry."""
        return cls(
            set_aside=set_aside,
            registered=lambda meter_id: head_end_of(meters, meter_id),
            read_again=meters.read_again,
        )

    def reaches(self, head_end: str, meter_id: MeterId) -> bool:
        """Return whether a meter is registered to `head_end` now, as far as this node knows.

        Raises:
            NotReady: the meter's record is set aside.
        """
        return self.registered(meter_id)[0] == head_end

    def answers(self, head_end: str, message_id: str, vend: Vend) -> bool:
        """Return whether `head_end` can know what became of a message: it is the vend's, and went out through it."""
        if not vend.delivery.attempts:
            why = NEVER_SENT
        elif head_end not in vend.delivery.head_ends:
            why = ANOTHERS_MESSAGE
        elif message_id != vend.message_id:
            why = WRONG_ID
        else:
            return True
        self.set_aside.record(head_end, why)
        return False

    def alerts(self, head_end: str, vend: Vend, *, named: bool) -> ReadSet | None:
        """Return by which records `head_end` can know of an alert on a code: its meter's, or one that it carried.

        None if it cannot.

        Args:
            head_end: Who tells the alert.
            vend: The code's vend.
            named: Whether the alert names the code; one that does not can only come from whoever reaches the meter.

        Raises:
            NotReady: the meter's record is set aside.
        """
        if named and head_end in vend.delivery.head_ends:
            return ()
        reached_by, read_set = self.registered(vend.meter_id)
        if reached_by == head_end:
            return read_set
        self.set_aside.record(head_end, ANOTHERS_METER)
        return None

    async def alerts_surely(self, head_end: str, meter_id: MeterId, vend: Vend | None) -> ReadSet | None:
        """Return by which records `head_end` can know of an alert that names a code; None if it cannot.

        Before it is disbelieved the meter's record is read from the ledger: a credit is heard only once.

        Args:
            head_end: Who tells the alert.
            meter_id: The meter that it names.
            vend: The code's vend; None if the ledger has none for it.

        Raises:
            NotReady: the meter's record is set aside; repeat.
            LedgerUnavailable: repeat.
        """
        if vend is not None and head_end in vend.delivery.head_ends:
            return ()
        reached_by, read_set = self.registered(meter_id)
        if reached_by != head_end:
            await self.read_again(meter_id)
            reached_by, read_set = self.registered(meter_id)
        if reached_by == head_end:
            return read_set
        self.set_aside.record(head_end, ANOTHERS_METER)
        return None
