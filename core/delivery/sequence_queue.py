"""SequenceQueue: what a meter is owed of one counter sequence, and which of it may go next."""

import asyncio
from dataclasses import dataclass, field

from core.delivery.observations import Mailbox
from core.delivery.waiting import Parked
from core.domain.utrn import COUNTER_CACHE
from core.ports.outbox import Owed


@dataclass(slots=True)
class Slot:
    """One owed delivery, with news of it and the timer it rests on, if any.

    `aside`: it may not be sent any more, only asked about. `carriers`: the head ends that its last attempt here knew
    to be able to tell of it. `first_heard_at`: when this node first heard of it, in seconds of the event loop.
    """

    owed: Owed
    mailbox: Mailbox | None = None
    resting: asyncio.TimerHandle | None = None
    aside: bool = False
    tried: bool = False
    carriers: frozenset[str] = frozenset()
    first_heard_at: float = field(default_factory=lambda: asyncio.get_running_loop().time())

    @property
    def box(self) -> Mailbox:
        """Its mailbox; most of what waits after an outage never needs one before its turn."""
        if self.mailbox is None:
            self.mailbox = Mailbox()
        return self.mailbox


@dataclass(slots=True)
class SequenceQueue:
    """What a meter is owed of a sequence. At most one of: a turn it waits for, a task at work, a timer it rests on.

    `parked` says which head end its deliveries wait for, as of the last attempt; None if for none.
    """

    slots: dict[int, Slot] = field(default_factory=dict)
    waiting: bool = False
    task: asyncio.Task[None] | None = None
    resting: asyncio.TimerHandle | None = None
    parked: Parked | None = None

    @property
    def since(self) -> int:
        """When the first of what is owed was asked for."""
        return self.slots[min(self.slots)].owed.since if self.slots else 0

    def next(self, *, in_order: bool) -> Owed | None:
        """Return the delivery whose turn it is: the lowest counter that does not rest; None if none may go now.

        None goes so far beyond one that is still to be sent that the meter would forget to tell the two apart.
        """
        ready = min((counter for counter, slot in self.slots.items() if slot.resting is None), default=None)
        if ready is None:
            return None
        lowest = min((counter for counter, slot in self.slots.items() if not slot.aside), default=ready)
        behind = ready - lowest
        return None if behind >= COUNTER_CACHE or (in_order and behind > 0) else self.slots[ready].owed
