"""The ledger's history as the checker reads it: every version of every vend, and what stood beside it then."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from cluster.audit.change_feed import (
    LedgerEvent,
    OwnerGone,
    OwnerSeen,
    RecordGone,
    RecordSeen,
    RefusalSeen,
    VendGone,
    VendKey,
    VendSeen,
)
from core.domain.record import Ref, Versioned
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
        self.closed: dict[VendKey, RefusalSeen] = {}
        # Ids that were closed over a vend, sold over a refusal, or whose refusal changed.
        self.unclosed: set[VendKey] = set()
        self.two_owners: list[tuple[int, int]] = []
        self._shard_of = shard_of
        self._records: dict[Ref, list[tuple[int, RegistryRecord | None]]] = defaultdict(list)
        self._living: dict[int, int] = {}
        for event in ledger:
            self._take(event)
        self.created = [step for step in self.steps if step.seen.created]

    def in_force(self, ref: Ref, revision: int) -> Versioned[RegistryRecord] | None:
        """Return a record as it stood just before `revision`, with the revision that wrote it."""
        writes = self._records.get(ref, [])
        index = bisect_left(writes, revision, key=lambda one: one[0])
        if index == 0:
            return None
        written_at, record = writes[index - 1]
        return None if record is None else Versioned(record, written_at)

    def writes(self, ref: Ref) -> list[tuple[int, RegistryRecord | None]]:
        """Return every write of a record, in order; None where it was deleted."""
        return self._records.get(ref, [])

    def records(self) -> Iterator[tuple[Ref, list[tuple[int, RegistryRecord | None]]]]:
        """Return every record with all its writes."""
        yield from self._records.items()

    def _take(self, event: LedgerEvent) -> None:
        match event.change:
            case VendSeen() as seen:
                epoch = self._living.get(self._shard_of(seen.vend.meter_id))
                self.steps.append(Step(event.revision, event.heard_at, seen, self.last.get(seen.key), epoch))
                self.last[seen.key] = seen
                if seen.key in self.closed:
                    self.unclosed.add(seen.key)
            case RefusalSeen(key=key) as refused:
                if key in self.last or self.closed.setdefault(key, refused) != refused:
                    self.unclosed.add(key)
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
