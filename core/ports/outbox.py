"""Outbox: the deliveries that are owed; every write to them is fenced by the owner's epoch."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from core.domain.approval import NO_CONSENT_NEEDED, Consent
from core.domain.delivery import Delivery
from core.domain.effective_dated import NEVER, Ms
from core.domain.errors import DeliveryChanged, Deposed, NotReady, UtrnError
from core.domain.meter import MeterId, OriginatorId
from core.domain.participant import ParticipantId
from core.domain.record import ReadSet
from core.domain.transaction_id import TransactionId
from core.domain.utrn import Counter
from core.ports.ledger import CounterState, StoredVend


@dataclass(frozen=True, slots=True, kw_only=True)
class Owed:
    """One owed delivery: where it stands in the outbox, and the vend it points at. `since` rises with every new one."""

    shard: int
    meter_id: MeterId
    counter: Counter
    originator_id: OriginatorId
    participant_id: ParticipantId
    transaction_id: TransactionId
    since: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """All that is owed now, in every shard. First event of a watch; repeated if changes may have been missed."""

    owed: tuple[Owed, ...]


@dataclass(frozen=True, slots=True)
class Added:
    """A delivery is owed from now on."""

    owed: Owed


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """A delivery is no longer owed."""

    shard: int
    meter_id: MeterId
    counter: Counter
    originator_id: OriginatorId


OutboxEvent = Listing | Added | Removed


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryChange:
    """The next state of one delivery, by the owner of its shard under `epoch`, while no record of `read_set` has moved.

    It is written only once cluster time, in the ledger, has come to `not_before`.
    """

    shard: int
    epoch: int
    stored: StoredVend
    delivery: Delivery
    read_set: ReadSet = ()
    not_before: Ms = NEVER
    consent: Consent = NO_CONSENT_NEEDED


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """One counter in the ledger: the state of its sequence, and the counter's vend if there is one."""

    sequence: CounterState
    stored: StoredVend | None


# UtrnError here is LedgerUnavailable or NotReady (nothing was written), or OutcomeUnknown.
WriteOutcome = StoredVend | Deposed | DeliveryChanged | UtrnError


class Outbox(Protocol):
    """The deliveries owed to meters. Only the owner of a shard writes them, and only under its epoch."""

    def watch(self) -> AsyncIterator[OutboxEvent]:
        """Return a Listing, then every change, in order, for ever; a lost connection is resumed without a gap."""
        ...

    async def read(self, owed: Sequence[Owed]) -> Sequence[StoredVend | NotReady | None]:
        """Return the vend of each, in order; None where it is owed no longer, NotReady where it is set aside.

        Linearizable: nothing newer was there before the call.

        Raises:
            LedgerUnavailable: repeat.
        """
        ...

    async def write(self, changes: Sequence[DeliveryChange]) -> Sequence[WriteOutcome]:
        """Write each change for itself; return one outcome per change, in order.

        A change is written only if its shard's key still has `epoch` as create_revision, its vend is still at
        `stored.revision`, every record of its basis is at its revision, and its `not_before` has come. One that closes
        the delivery removes it from the outbox. One by which the meter has named the counter (applied, needs check)
        also raises the highest one known to be applied; one that needs a check opens its supplier's case, and one that
        needs none any more closes it. A code made elsewhere that the meter finds not authentic gives its counter back.
        All of that is one transaction per change.
        """
        ...

    async def settle(
        self, stored: StoredVend, delivery: Delivery, consent: Consent = NO_CONSENT_NEEDED
    ) -> StoredVend | DeliveryChanged:
        """Write what is said of a code whose delivery nobody owes any more; closes its case. Under no epoch.

        `consent` is used up by the write; if it has moved, nothing is written.

        Raises:
            LedgerUnavailable: nothing was written.
            OutcomeUnknown: repeat.
        """
        ...

    async def sequence(self, originator_id: OriginatorId, meter_id: MeterId) -> CounterState:
        """Return where a counter sequence is now. Linearizable.

        Raises:
            NotReady: one of its records is there, and cannot be understood by this node.
            LedgerUnavailable: repeat.
        """
        ...

    async def code(self, originator_id: OriginatorId, meter_id: MeterId, counter: Counter) -> Code:
        """Return what the ledger has of one counter. The sequence is not older than the vend.

        Raises:
            NotReady: its vend, its index or its sequence is there, and cannot be understood by this node.
            LedgerUnavailable: repeat.
        """
        ...

    async def cases(
        self, supplier_id: ParticipantId, *, after: str = "", limit: int = 100
    ) -> tuple[Sequence[StoredVend], str]:
        """Return open cases of a supplier in the order of their keys, and where to go on: "" at the end.

        Raises:
            LedgerUnavailable: repeat.
        """
        ...

    async def case_count(self) -> int:
        """Return how many cases are open, of all suppliers.

        Raises:
            LedgerUnavailable: repeat.
        """
        ...

    async def heard(self, shards: Sequence[int], head_end: str) -> Sequence[int | None]:
        """Return up to which event of a head end what it said is written down, for each shard; 0 for none.

        None where the record cannot be understood, and is set aside.

        Raises:
            LedgerUnavailable: repeat.
        """
        ...

    async def note_heard(self, *, shard: int, epoch: int, head_end: str, sequence: int) -> None:
        """Record that everything up to an event is written down, for one shard.

        Raises:
            Deposed: nothing was written; stop work on the shard.
            LedgerUnavailable, OutcomeUnknown: repeat.
        """
        ...

    async def note_applied(
        self, *, shard: int, epoch: int, originator_id: OriginatorId, meter_id: MeterId, counter: Counter
    ) -> None:
        """Record that the meter is at `counter` or further, if it was issued; never lowers what is known.

        What is known to be applied is never above what was issued: the transaction compares the sequence it was held
        against. A counter never issued changes nothing.

        Raises:
            Deposed: nothing was written; stop work on the shard.
            NotReady: a record of the sequence is set aside; nothing was written.
            LedgerUnavailable, OutcomeUnknown: repeat.
        """
        ...
