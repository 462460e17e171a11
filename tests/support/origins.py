"""A registry that has every meter at the tests' head end, for those who deliver without one."""

from datetime import datetime

from core.delivery.origins import Origins, Received
from core.domain.delivery import Delivery
from core.metrics import SetAside
from core.ports.head_end import HeadEndEvent
from tests.support.head_ends import HEAD_END
from tests.support.vends import NOW

RANDOM_PART = "5e" * 16


def at_head_end(set_aside: SetAside | None = None, name: str = HEAD_END) -> Origins:
    """Return who may speak of what, where every meter is registered to `name`."""
    return Origins(set_aside=SetAside() if set_aside is None else set_aside, registered=lambda _: (name, ()))


def sent(delivery: Delivery, epoch: int, at: datetime = NOW) -> Delivery:
    """Return a delivery as about to be handed to the tests' head end."""
    return delivery.send(at, epoch, head_end=HEAD_END, random_part=RANDOM_PART)


def told(event: HeadEndEvent, by: str = HEAD_END) -> Received:
    """Return an event as a head end tells it."""
    return Received(by, event)
