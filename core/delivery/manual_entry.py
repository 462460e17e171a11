"""When a caller is told to have the consumer enter a code by hand, although it is still owed to the meter."""

from dataclasses import dataclass
from datetime import timedelta

from core.domain.delivery import Delivery
from core.domain.errors import NotReady
from core.issuing.config import DeliveryConfig
from core.ports.clock import Clock


@dataclass(frozen=True, slots=True)
class AdviseByHand:
    """Advises by the time since delivery was asked for; the code is sent all the same, and a meter takes it once."""

    clock: Clock
    config: DeliveryConfig

    def __call__(self, delivery: Delivery) -> bool:
        """Return whether the consumer should not wait any longer."""
        if not delivery.owed or delivery.queued_at is None:
            return False
        after = timedelta(seconds=min(self.config.advise_after_s, self.config.give_up_after_s))
        try:
            return self.clock.now() - delivery.queued_at >= after
        except NotReady:
            # A node that does not know the cluster's time still answers what became of a vend.
            return False
