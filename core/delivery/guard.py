"""DeliveryGuard: may a code that was sold still be sent to its meter, or has the meter changed hands since?"""

from dataclasses import dataclass

from core.delivery.fresh_meters import MeterRecords
from core.domain.delivery import DeliveryReason
from core.domain.effective_dated import NEVER
from core.domain.errors import NotReady
from core.domain.meter import Custody, Meter
from core.domain.record import Kind, ReadSet, Ref
from core.domain.vend import Vend


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryGuard:
    """Looks a vend's meter up, as of what has been carried out in the ledger: a clock ends no delivery.

    Whoever sold the code answers for it; nobody sends it on their behalf any more.
    """

    registry: MeterRecords

    def __call__(self, vend: Vend) -> tuple[DeliveryReason | None, ReadSet]:
        """Return why the code may not be sent any more, None if it may; and the record that says so.

        Whoever sends compares that record in the write before: a copy that has fallen behind sends nothing.

        Raises:
            NotReady: this node is still reading its registry.
        """
        if not self.registry.ready:
            raise NotReady("this node is still reading the registry; the delivery waits")
        known, ref = self.registry.meter(vend.meter_id), Ref(Kind.METER, vend.meter_id)
        if known is None:
            return DeliveryReason.METER_REMOVED, ((ref, 0),)
        return self._reason(vend, known.record), ((ref, known.revision),)

    def reached_by(self, vend: Vend) -> str:
        """Return the head end that reaches a vend's meter; the one of the sale if the meter changed hands since.

        It may be another one than at the sale: a name that was mistyped and set right, a meter that was migrated.
        """
        known = self.registry.meter(vend.meter_id) if self.registry.ready else None
        stands = None if known is None else known.record.stands_at(NEVER, None)
        if stands is None or stands[0].supplier_id != vend.supplier_id:
            return vend.head_end
        return stands[1].head_end

    def _reason(self, vend: Vend, meter: Meter) -> DeliveryReason | None:
        stands = meter.stands_at(NEVER, None)
        if stands is None or stands[0].custody is Custody.SMSO:
            return DeliveryReason.METER_REMOVED
        registration, settings = stands
        if registration.supplier_id != vend.supplier_id:
            return DeliveryReason.SUPPLIER_CHANGED
        if settings.tenancy != vend.tenancy:
            return DeliveryReason.TENANCY_CHANGED
        return None
