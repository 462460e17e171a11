"""DuplicateProof: does a meter's *duplicate* prove that it has credited this very code?"""

from collections.abc import Callable
from dataclasses import dataclass

from core.delivery.fresh_meters import MeterRecords
from core.domain.errors import NotReady
from core.domain.meter import Custody, Meter, MeterId, OriginatorId
from core.domain.record import Kind, ReadSet, Ref
from core.domain.utrn import Counter, duplicate_proves_credit
from core.ports.outbox import Outbox

SpentHere = Callable[[MeterId, OriginatorId], tuple[bool, ReadSet]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CustodyOf:
    """Whether this service alone spends a sequence's counters, so that it knows how many were issued."""

    registry: MeterRecords

    def __call__(self, meter_id: MeterId, originator_id: OriginatorId) -> tuple[bool, ReadSet]:
        """Return whether no other generator spends the counters now; and the record that says so.

        What another one spent before is known: a hand-over to this service tells it.

        Raises:
            NotReady: this node is still reading its registry.
        """
        if not self.registry.ready:
            raise NotReady("this node is still reading the registry; ask again")
        known, ref = self.registry.meter(meter_id), Ref(Kind.METER, meter_id)
        if known is None:
            return False, ((ref, 0),)
        custody = self._custody(known.record, originator_id)
        return custody is Custody.CENTRAL, ((ref, known.revision),)

    def _custody(self, meter: Meter, originator_id: OriginatorId) -> Custody | None:
        """Return in whose hands an originator's counters are, or were when its supplier had the meter last.

        As of what has been carried out in the ledger: a clock decides nothing here.
        """
        for period in reversed(meter.registrations.periods):
            supplier = self.registry.participant(period.value.supplier_id)
            key = None if supplier is None else supplier.record.supplier_key
            if period.since <= meter.effective_through and key is not None and key.originator_id == originator_id:
                return period.value.custody
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class DuplicateProof:
    """Decides from what the ledger knows: how many codes of the sequence are newer."""

    outbox: Outbox
    spent_here: SpentHere

    async def __call__(self, meter_id: MeterId, originator_id: OriginatorId, counter: Counter) -> tuple[bool, ReadSet]:
        """Return whether a *duplicate* heard before this call proves the credit; and the record that says so.

        Raises:
            LedgerUnavailable, NotReady: repeat.
        """
        spent_here, read_set = self.spent_here(meter_id, originator_id)
        if not spent_here:
            # Another generator's codes may be keyed in without ever passing here: how many are newer is not known.
            return False, read_set
        sequence = await self.outbox.sequence(originator_id, meter_id)
        return duplicate_proves_credit(counter, sequence.last_issued), read_set
