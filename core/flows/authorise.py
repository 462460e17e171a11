"""Step 3: is this principal allowed to top up the meter behind this PAN, now?"""

from dataclasses import dataclass

from core.domain.errors import MeterUnknown, NotAppointed, NotReady, PanBlocked, PanUnknown
from core.domain.meter import Meter, Pan
from core.domain.party import Participant, Principal, Role, SupplierKey
from core.ports.registry import Registry


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a PAN stands for at this instant, and that the caller may top it up."""

    meter: Meter
    key: SupplierKey


@dataclass(frozen=True, slots=True)
class Authorise:
    """Supplier-centric: the meter's own supplier, and the PSPs it has appointed."""

    registry: Registry

    def __call__(self, principal: Principal, pan: Pan) -> Resolved:
        """Return what `pan` stands for.

        Raises:
            PanUnknown, PanBlocked, MeterUnknown, NotAppointed: do not repeat.
            NotReady: repeat at another node.
        """
        if not self.registry.ready:
            raise NotReady("this node is still reading the registry; ask another")
        card = self.registry.card(pan)
        if card is None:
            raise PanUnknown("pan is not registered; check the number with the consumer's supplier")
        meter = self.registry.meter(card.meter_id)
        if meter is None:
            raise MeterUnknown("pan stands for a meter that is not registered; its supplier must register it")
        supplier = self.registry.participant(meter.supplier_id)
        if supplier is None or supplier.supplier_key is None or not may_top_up(principal.participant, supplier):
            raise NotAppointed("this caller may not top up this meter; its supplier must appoint the caller first")
        if card.blocked:
            raise PanBlocked("pan is blocked; the consumer needs a new card from the supplier")
        return Resolved(meter, supplier.supplier_key)


def may_top_up(caller: Participant, supplier: Participant) -> bool:
    """Return whether `caller` may top up the meters of `supplier`."""
    if supplier.suspended:
        return False
    if caller.role is Role.SUPPLIER:
        return caller.participant_id == supplier.participant_id
    return caller.role is Role.PSP and caller.participant_id in supplier.appointed_psps
