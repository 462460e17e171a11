"""FreshMeters: the registry's copy of meters, and what was read of them in the ledger since, where the copy is behind.

A copy that has lost an event believes what it has until it is next compared with the ledger, minutes later. Whoever
finds that out, because a write compared a meter's record and was refused, has the record read from the ledger; the copy
is believed again once it has moved.
"""

from collections import OrderedDict
from typing import Protocol

from core.domain.effective_dated import NEVER
from core.domain.meter import Meter, MeterId
from core.domain.participant import Participant, ParticipantId
from core.domain.record import Kind, ReadSet, Ref, Versioned
from core.ports.registry import RegistryStore

_KEPT_MAX = 10_000


class MeterRecords(Protocol):
    """Meters and their registrations. Every method raises NotReady if the meter's record is set aside."""

    @property
    def ready(self) -> bool:
        """True once the copy is complete."""
        ...

    def meter(self, meter_id: MeterId) -> Versioned[Meter] | None:
        """Return a meter; None if there is none."""
        ...

    def participant(self, participant_id: ParticipantId) -> Versioned[Participant] | None:
        """Return a participant; None if there is none."""
        ...


class FreshMeters:
    """MeterRecords that can be told to look at the ledger. Keeps at most 10,000 records, the oldest dropped first."""

    def __init__(self, copy: MeterRecords, store: RegistryStore) -> None:
        self._copy = copy
        self._store = store
        # Of each meter read again: what the copy had then, and what the ledger had.
        self._read: OrderedDict[MeterId, tuple[int, Versioned[Meter] | None]] = OrderedDict()

    @property
    def ready(self) -> bool:
        """True once the copy is complete."""
        return self._copy.ready

    def participant(self, participant_id: ParticipantId) -> Versioned[Participant] | None:
        """Return a participant, as the copy has it; raise NotReady if its record is set aside."""
        return self._copy.participant(participant_id)

    def meter(self, meter_id: MeterId) -> Versioned[Meter] | None:
        """Return a meter, as it was last heard of or read; None if there is none.

        Raises:
            NotReady: its record is set aside.
        """
        copied = self._copy.meter(meter_id)
        read = self._read.get(meter_id)
        if read is None:
            return copied
        if read[0] == _revision(copied):
            return read[1]
        del self._read[meter_id]
        return copied

    async def read_again(self, meter_id: MeterId) -> None:
        """Read a meter from the ledger; linearizable.

        Raises:
            LedgerUnavailable: repeat.
        """
        found = await self._store.read(Meter, meter_id)
        copied = _revision(self._copy.meter(meter_id))
        if _revision(found) == copied:
            self._read.pop(meter_id, None)
            return
        self._read[meter_id] = (copied, found)
        self._read.move_to_end(meter_id)
        if len(self._read) > _KEPT_MAX:
            self._read.popitem(last=False)


def head_end_of(records: MeterRecords, meter_id: MeterId) -> tuple[str | None, ReadSet]:
    """Return the head end that a meter is registered to, and the record that says so.

    The last one if the meter is out of service; None if it has never been in service.
    """
    known = records.meter(meter_id)
    ref = Ref(Kind.METER, meter_id)
    if known is None:
        return None, ((ref, 0),)
    return known.record.head_end_at(NEVER), ((ref, known.revision),)


def _revision(known: Versioned[Meter] | None) -> int:
    return 0 if known is None else known.revision
