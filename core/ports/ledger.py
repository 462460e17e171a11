"""Ledger: the one commit that decides about money, and look-ups of what it decided."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from core.domain.balance import NO_BALANCE, BalanceTold
from core.domain.effective_dated import FAR_FUTURE, NEVER, Ms
from core.domain.errors import LedgerUnavailable, UtrnError
from core.domain.meter import MeterId, OriginatorId
from core.domain.participant import ParticipantId
from core.domain.record import ReadSet
from core.domain.refusal import ClosedRefusal
from core.domain.transaction_id import TransactionId
from core.domain.utrn import Counter
from core.domain.vend import Vend


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterState:
    """The counter sequence of one (originator, meter), as last seen.

    `last_issued` is the last counter spent by anyone, `last_issued_here` the last one spent by this service,
    `highest_applied` the highest one known to be credited; 0 for none. `revision` is what the commit compares; 0 says
    that no counter was ever spent. `applied_revision` is that of what is known to be credited, where it was read.
    `last_issued_at` is the newest instant that a code of the sequence is dated with. `sold_since_pence` are the codes
    sold that the meter's balance of `balance_at` does not hold.
    """

    last_issued: int = 0
    last_issued_here: int = 0
    highest_applied: int = 0
    revision: int = 0
    applied_revision: int = 0
    last_issued_at: Ms = NEVER
    balance_at: Ms = NEVER
    sold_since_pence: int = 0

    def outstanding(self, told: BalanceTold) -> int:
        """Return the pence of codes sold that the balance `told` does not hold.

        Every code that was sold counts until a balance is told that holds it: one whose delivery was refused may yet be
        entered by hand, and one that was credited has raised the balance as much.
        """
        return self.sold_since_pence if self.balance_at == told.at else told.outstanding_pence

    @property
    def next(self) -> Counter:
        """The counter of the next code."""
        return Counter(self.last_issued + 1)

    @property
    def unapplied(self) -> int:
        """How many issued codes lie above the highest one known to be applied."""
        return self.last_issued - self.highest_applied


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVend:
    """A committed vend with the revision of its record, which a later write compares."""

    vend: Vend
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One vend to commit, the counter sequence its counter was taken from, and the balance it was judged by.

    `until` is when what allowed the vend ends.
    """

    vend: Vend
    seen: CounterState
    told: BalanceTold = NO_BALANCE
    until: Ms = FAR_FUTURE


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """The vend is durable. `counter` is the sequence after it."""

    stored: StoredVend
    counter: CounterState


@dataclass(frozen=True, slots=True, kw_only=True)
class Present:
    """The transaction id was committed before, by this caller, perhaps with other content. Nothing was written."""

    stored: StoredVend


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """The transaction id is closed as refused. Nothing was written, and nothing ever will be under it."""

    refusal: ClosedRefusal


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterMoved:
    """The counter sequence is not where the entry saw it. Nothing was written; sign again under the next counter."""

    counter: CounterState


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationMoved:
    """A record that allowed the vend has changed. Nothing was written; authorize again."""


# What the one key of a transaction id can hold; it never changes from one to the other.
Found = StoredVend | ClosedRefusal
# UtrnError here is LedgerUnavailable (nothing was written), OutcomeUnknown or CounterTaken.
CommitOutcome = Committed | Present | Closed | CounterMoved | RegistrationMoved | UtrnError


class Ledger(Protocol):
    """The only place where money is decided. Every write compares what it was based on."""

    async def commit(self, entries: Sequence[Entry]) -> Sequence[CommitOutcome]:
        """Commit each entry for itself, all in one round trip; return one outcome per entry, in order.

        A vend with an owed delivery is put into the outbox in the same transaction. At most one entry per
        (originator, meter) and per (participant, transaction id); at most `batch_max` entries. A vend is written only
        while every record of its basis is at the revision that allowed it, and before cluster time has come to its end
        (RegistrationMoved if not). An entry made
        elsewhere takes its own counter and is refused (CounterTaken) if that is not above `last_issued_here` or
        belongs to another code. Unknown outcomes are resolved here, by reading back, until the ledger's deadline.
        """
        ...

    async def find(self, participant_id: ParticipantId, transaction_id: TransactionId) -> Found | None:
        """Return the committed vend or the refusal that closed the id; None if there is neither now. Linearizable.

        None proves nothing about what comes: a commit may be under way. Only `close_refused` ends that.

        Raises:
            LedgerUnavailable: repeat.
        """
        ...

    async def close_refused(self, refusal: ClosedRefusal) -> Found:
        """Close the id of `refusal`, unless something is under it; return what is under it from now on, for ever.

        Every commit compares that its id has nothing under it, so whatever is under way elsewhere comes before this or
        is refused.

        Raises:
            LedgerUnavailable: nothing was written.
            OutcomeUnknown: repeat; the refusal must not be answered.
        """
        ...

    async def counters(
        self, keys: Sequence[tuple[OriginatorId, MeterId]]
    ) -> Sequence[CounterState | LedgerUnavailable]:
        """Return the counter sequence of each (originator, meter) as it is now, in order. One linearizable read.

        LedgerUnavailable stands for one whose record cannot be understood; the others are not touched by it.

        Raises:
            LedgerUnavailable: repeat.
        """
        ...

    async def request_delivery(self, stored: StoredVend, queued: Vend, read_set: ReadSet) -> StoredVend | None:
        """Store `queued` in place of `stored` and put it into the outbox, in one transaction.

        Returns None, and has written nothing, if the record is no longer at `stored.revision`, or a record of
        `read_set` has moved: read it again, and authorize again.

        Raises:
            LedgerUnavailable: nothing was written.
            OutcomeUnknown: repeat.
        """
        ...
