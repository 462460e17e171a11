"""Registry: PAN -> meter -> supplier, who is who, and who is appointed; RegistryStore: the ledger behind it."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from core.domain.appointment import Appointments
from core.domain.approval import NO_CONSENT_NEEDED, Approval, Consent
from core.domain.effective_dated import NEVER, Ms
from core.domain.goodwill_credit import CreditDay, CreditRequest
from core.domain.grant import Grants
from core.domain.meter import Meter, MeterId, Model, OriginatorId, Pan, PanRecord
from core.domain.participant import Participant, ParticipantId
from core.domain.record import Ref, Versioned
from core.domain.registration_change import RegistrationChange, VendRef
from core.domain.vend import Vend
from core.ports.ledger import CounterState

RegistryRecord = Participant | Meter | PanRecord | Appointments | Model
StoredRecord = RegistryRecord | RegistrationChange | CreditRequest | CreditDay | Approval
R = TypeVar(
    "R", Participant, Meter, PanRecord, Appointments, Model, RegistrationChange, CreditRequest, CreditDay, Approval
)


class Registry(Protocol):
    """Answers at once, from a watched copy or a snapshot; None says that there is no such record.

    Every question raises NotReady if a record that it needs is there and cannot be understood.
    """

    @property
    def ready(self) -> bool:
        """True once the copy is complete."""
        ...

    @property
    def grants(self) -> Grants:
        """What was found of callers and suppliers lately; empty after every change of one."""
        ...

    def caller(self, identity: str) -> Participant | None:
        """Return the participant that uses the SAN URI `identity`."""
        ...

    def departed(self, identity: str) -> Participant | None:
        """Return the participant that used the SAN URI `identity` when it left, if nobody uses it now."""
        ...

    def participant(self, participant_id: ParticipantId) -> Versioned[Participant] | None:
        """Return a participant."""
        ...

    def card(self, pan: Pan) -> Versioned[PanRecord] | None:
        """Return a PAN."""
        ...

    def meter(self, meter_id: MeterId) -> Versioned[Meter] | None:
        """Return a meter."""
        ...

    def appointments(self, supplier_id: ParticipantId, psp_id: ParticipantId) -> Versioned[Appointments] | None:
        """Return what a supplier has appointed a PSP to."""
        ...

    def model(self, make: str, model: str) -> Versioned[Model] | None:
        """Return what the meters of a model can do."""
        ...


class RegistryBook(Protocol):
    """The watched copy, read from cover to cover; gives way to other work while it is read."""

    def cards(self, about: str) -> AsyncIterator[PanRecord]:
        """Return every PAN whose record mentions `about`; "" for every PAN."""
        ...

    def meters(self, about: str) -> AsyncIterator[Meter]:
        """Return every meter whose record mentions `about`; "" for every meter."""
        ...


class RegistryReplica(Registry, RegistryBook, Protocol):
    """A node's watched copy of the registry."""

    def pans_of(self, meter_id: MeterId) -> list[PanRecord]:
        """Return every PAN that stands, stood or will stand for a meter."""
        ...

    def due_by(self, now: Ms) -> list[tuple[Ms, MeterId]]:
        """Return the meters whose change is due, earliest first; some at a time."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterPut:
    """A counter sequence as it is handed over: compared with `seen`, then set."""

    originator_id: OriginatorId
    meter_id: MeterId
    seen: CounterState
    last_issued: int
    highest_applied: int
    balance_at: Ms = NEVER
    sold_since_pence: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryWrite:
    """Everything of one change: written together, or not at all.

    Attributes:
        put: Records to write.
        expect: What it was based on: each record and its revision, 0 for absent.
        claim: Names that must be free and are then taken, with who takes them: certificates, originators.
        release: Names given up.
        unmoved: Counter sequences that must not have moved.
        counter: A sequence that is handed over.
        vends: Codes sold elsewhere that are taken over; one whose delivery is owed is put into the outbox.
        due: Instants at which a meter must be looked at again.
        done: Such instants that have been served.
        not_before: The write happens only once cluster time, in the ledger, has come to this instant.
        consent: Of two operators, where it needs them: compared and used up by the write.
    """

    put: Sequence[StoredRecord]
    expect: Sequence[tuple[Ref, int]] = ()
    claim: Sequence[tuple[Ref, str]] = ()
    release: Sequence[Ref] = ()
    unmoved: Sequence[tuple[OriginatorId, MeterId, CounterState]] = ()
    counter: CounterPut | None = None
    vends: Sequence[Vend] = ()
    due: Sequence[tuple[Ms, MeterId]] = ()
    done: Sequence[tuple[Ms, MeterId]] = ()
    not_before: Ms = NEVER
    consent: Consent = NO_CONSENT_NEEDED


class RegistryStore(Protocol):
    """The registry in the ledger: linearizable reads, and writes that compare what they are based on.

    Every method raises LedgerUnavailable if no answer can be had; `write` raises OutcomeUnknown if it may have been
    carried out.
    """

    async def read(self, kind: type[R], *ids: str) -> Versioned[R] | None:
        """Return one record as it is now."""
        ...

    async def read_many(self, refs: Sequence[Ref]) -> Sequence[Versioned[StoredRecord] | None]:
        """Return records as they are now, in order; any number of them."""
        ...

    async def list_records(self, kind: type[R], *ids: str, after: str = "", limit: int = 100) -> Sequence[Versioned[R]]:
        """Return records in the order of their ids, whose first ids are `ids`, from the first one after `after`."""
        ...

    async def sequence(self, originator_id: OriginatorId, meter_id: MeterId) -> CounterState:
        """Return a counter sequence as it is now."""
        ...

    async def uncredited(self, originator_id: OriginatorId, meter_id: MeterId, state: CounterState, *, at: Ms) -> int:
        """Return the pence of the codes of a sequence, up to `state`, that were not known to be credited at `at`."""
        ...

    async def owed(self, meter_id: MeterId) -> Sequence[VendRef]:
        """Return the deliveries owed to a meter now."""
        ...

    async def codes_uncredited(self, originator_id: OriginatorId, meter_id: MeterId) -> tuple[Sequence[VendRef], int]:
        """Return the codes of a sequence not known to be credited now, lowest counter first, and how many more."""
        ...

    async def write(self, write: RegistryWrite) -> int | None:
        """Carry out all of `write`; return its revision, or None, with nothing written, if something had moved.

        Raises:
            NotReady: its `not_before` has not come, by this node's cluster time.
        """
        ...

    async def snapshot(self, pan: Pan, caller_id: ParticipantId) -> Registry:
        """Return what decides about a top-up of `pan` by that caller, as it is now."""
        ...
