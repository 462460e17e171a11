"""Lapse: may a code that was sold still be sent to its meter, or has the meter changed hands since?"""

from dataclasses import dataclass

from core.domain.delivery import DeliveryReason
from core.domain.meter import Custody
from core.domain.timeline import ms_of
from core.domain.vend import Vend
from core.ports.clock import Clock
from core.ports.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Lapse:
    """Looks a vend's meter up. Whoever sold the code answers for it; nobody sends it on their behalf any more."""

    registry: Registry
    clock: Clock

    def __call__(self, vend: Vend) -> DeliveryReason | None:
        """Return why the code may not be sent any more, or None if it may."""
        known = self.registry.meter(vend.meter_id)
        if known is None:
            return None
        at = max(ms_of(self.clock.now()), known.record.turned_at)
        registration, settings = known.record.registrations.at(at), known.record.settings.at(at)
        if registration is None or settings is None or registration.value.custody is Custody.SMSO:
            return DeliveryReason.METER_REMOVED
        if registration.value.supplier_id != vend.supplier_id:
            return DeliveryReason.SUPPLIER_CHANGED
        if settings.value.tenancy != vend.tenancy:
            return DeliveryReason.TENANCY_CHANGED
        return None
