"""The ledger's history as the checker reads it: every version of every vend, and what stood beside it then."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cluster.history import (
    LedgerEvent,
    OwnerGone,
    OwnerSeen,
    RecordGone,
    RecordSeen,
    VendGone,
    VendKey,
    VendSeen,
)
from core.domain.registry import Known, Ref
from core.ports.registry import RegistryRecord


@dataclass(frozen=True, slots=True)
class Step:
    """One write of a vend. `before` is None if it was the first; `epoch` that of its shard's owner then, if it had one.

    `at` is when it was made, in seconds as `heard_at` of the ledger's events.
    """

    revision: int
    at: float
    seen: VendSeen
    before: VendSeen | None
    epoch: int | None


class Book:
    """The ledger's history by vend, by record and by shard. One pass over the events makes it."""

    def __init__(self, ledger: Sequence[LedgerEvent], shard_of: Callable[[str], int]) -> None:
        self.steps: list[Step] = []
        self.last: dict[VendKey, VendSeen] = {}
        self.gone: set[VendKey] = set()
        self.two_owners: list[tuple[int, int]] = []
        self._shard_of = shard_of
        self._records: dict[Ref, list[tuple[int, RegistryRecord | None]]] = defaultdict(list)
        self._living: dict[int, int] = {}
        for event in ledger:
            self._take(event)
        self.created = [(step.revision, step.seen.vend) for step in self.steps if step.seen.created]

    def versions(self) -> dict[VendKey, list[Step]]:
        """Return every write of each vend, in order."""
        found: dict[VendKey, list[Step]] = defaultdict(list)
        for step in self.steps:
            found[step.seen.key].append(step)
        return found

    def in_force(self, ref: Ref, revision: int) -> Known[RegistryRecord] | None:
        """Return a record as it stood just before `revision`, with the revision that wrote it."""
        writes = self._records.get(ref, [])
        index = bisect_left(writes, revision, key=lambda one: one[0])
        if index == 0:
            return None
        written_at, record = writes[index - 1]
        return None if record is None else Known(record, written_at)

    def records(self) -> Iterator[tuple[Ref, list[tuple[int, RegistryRecord | None]]]]:
        """Return every record with all its writes."""
        yield from self._records.items()

    def _take(self, event: LedgerEvent) -> None:
        match event.change:
            case VendSeen() as seen:
                epoch = self._living.get(self._shard_of(seen.vend.meter_id))
                self.steps.append(Step(event.revision, event.heard_at, seen, self.last.get(seen.key), epoch))
                self.last[seen.key] = seen
            case VendGone(key=key):
                self.gone.add(key)
                self.last.pop(key, None)
            case OwnerSeen(shard=shard, epoch=epoch):
                if self._living.get(shard, epoch) != epoch:
                    self.two_owners.append((event.revision, shard))
                self._living[shard] = epoch
            case OwnerGone(shard=shard):
                self._living.pop(shard, None)
            case RecordSeen(ref=ref, record=record):
                self._records[ref].append((event.revision, record))
            case RecordGone(ref=ref):
                self._records[ref].append((event.revision, None))
