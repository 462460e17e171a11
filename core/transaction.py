"""One optimistic transaction: what an attempt has read is what its write compares; if it has moved, it is tried again.

The mechanism of etcd's own `stm.go` (client/v3/concurrency), over the port RegistryStore.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, cast

from core.domain.appointment import Appointments
from core.domain.approval import Approval
from core.domain.errors import UtrnError
from core.domain.goodwill_credit import CreditDay, CreditRequest
from core.domain.meter import Meter, Model, PanRecord
from core.domain.participant import Participant
from core.domain.record import Kind, Ref, Versioned
from core.ports.registry import R, RegistryStore, RegistryWrite

# Each time others have changed what was read, within milliseconds: more often than that is no coincidence.
_ATTEMPTS_MAX: Final = 5
_KINDS: Final[dict[type[object], Kind]] = {
    Participant: Kind.PARTICIPANT,
    Meter: Kind.METER,
    PanRecord: Kind.PAN,
    Appointments: Kind.APPOINTMENT,
    Model: Kind.MODEL,
    CreditRequest: Kind.CREDIT,
    CreditDay: Kind.CREDIT_DAY,
    Approval: Kind.APPROVAL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The result of a change: its revision; `changed` is False if the record had this content already."""

    revision: int
    changed: bool = True


class Reads:
    """The records that one attempt has read. Each is read once, and compared by the attempt's write."""

    def __init__(self, store: RegistryStore) -> None:
        self._store = store
        self._seen: dict[Ref, Versioned[object] | None] = {}

    async def read(self, kind: type[R], *ids: str) -> Versioned[R] | None:
        """Return one record as it is now, or as this attempt has read it.

        Raises:
            LedgerUnavailable: repeat.
        """
        ref = Ref(_KINDS[kind], "/".join(ids))
        if ref not in self._seen:
            self._seen[ref] = await self._store.read(kind, *ids)
        return cast("Versioned[R] | None", self._seen[ref])

    def anew(self, kind: type[R], *ids: str) -> "Reads":
        """Forget one record, which this attempt itself has had changed; it is read again where it is needed."""
        self._seen.pop(Ref(_KINDS[kind], "/".join(ids)), None)
        return self

    @property
    def preconditions(self) -> list[tuple[Ref, int]]:
        """Every record that was read, with its revision; 0 for one that was not there."""
        return [(ref, 0 if seen is None else seen.revision) for ref, seen in self._seen.items()]


Attempt = Callable[[Reads], Awaitable[RegistryWrite | Written]]


async def transact(
    store: RegistryStore, attempt: Attempt, *, overtaken: UtrnError, attempts_max: int = _ATTEMPTS_MAX
) -> Written:
    """Carry out a change of the registry in one write, based on what was read for it.

    Args:
        store: The registry in the ledger.
        attempt: Reads, decides, and returns what to write beside comparing what it has read; or Written, if there is
            nothing to write. It is called anew after others have changed what it had read.
        overtaken: Raised if that happens `attempts_max` times.
        attempts_max: More than the default where many write the same record.

    Raises:
        LedgerUnavailable, OutcomeUnknown: repeat. And whatever `attempt` raises.
    """
    for _ in range(attempts_max):
        reads = Reads(store)
        outcome = await attempt(reads)
        if isinstance(outcome, Written):
            return outcome
        named = dict(outcome.expect)
        expect = [
            *outcome.expect,
            *(precondition for precondition in reads.preconditions if precondition[0] not in named),
        ]
        revision = await store.write(replace(outcome, expect=expect))
        if revision is not None:
            return Written(revision=revision)
    raise overtaken
