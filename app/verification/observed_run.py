"""What the checker is told of one run, and what it says of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from app.verification.call_log import Call
from cluster.audit.change_feed import LedgerEvent
from core.domain.delivery import DeliveryReason
from core.domain.meter import MeterId, OriginatorId
from core.domain.vend import Vend


class CodeKey(NamedTuple):
    """What names a code: whose, for which meter, and its counter."""

    originator_id: str
    meter_id: str
    counter: int


def code_key(vend: Vend) -> CodeKey:
    """Return what names the code of a vend."""
    return CodeKey(vend.originator_id, vend.meter_id, vend.counter)


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """A broken promise. `invariant` is a number of docs/invariants.md."""

    invariant: int
    text: str

    def __str__(self) -> str:
        """Return it as one line."""
        return f"INV-{self.invariant}: {self.text}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credited:
    """A credit at a meter."""

    meter_id: str
    originator_id: str
    counter: int
    utrn: str
    pence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """When a delivery may be given up: after so many sends, or so many seconds after it was asked for."""

    attempts_max: int
    after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What meters and head ends said, truly or not.

    Attributes:
        refusals: Why a code was said to be refused.
        credited: Codes that an alert or an answer said were credited.
    """

    refusals: set[tuple[CodeKey, DeliveryReason]] = field(default_factory=set)
    credited: set[CodeKey] = field(default_factory=set)


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A message that a head end took over, of which code, and when: in seconds as `heard_at` of the ledger's events."""

    at: float
    code: CodeKey


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeOff:
    """A write by which cluster time began off the truth, or came further ahead of it than it was.

    Attributes:
        revision: Of the write.
        ahead_s: Seconds by which cluster time is ahead since; below 0 if it is behind.
        known_to: Nodes that had known cluster time before and could be asked. If there are none, the wall clocks are
            all that there is to begin by, and whoever sets them all wrong sets cluster time wrong.
    """

    revision: int
    ahead_s: float
    known_to: Sequence[str] = ()


@dataclass(slots=True, kw_only=True)
class Run:
    """All that is known of one run.

    Attributes:
        calls: What callers did and saw.
        ledger: Every change of the ledger, in order of revision, from before the first call; `heard_at` of each is when
            it was made or soon after.
        shards: How many shards there are.
        give_up: When a delivery may be given up.
        credits: Every credit at every meter.
        said: What meters and head ends said; None if nobody kept it.
        taken: Every message that a head end took over, in order; empty if nobody kept them.
        send_within_s: How long after the write that allows it a message may still be taken over.
        not_authentic: How often meters found a code of ours not authentic.
        logs: Texts that nodes wrote: no code may be in them.
        window_s: How old an id may be; None if the run is too short for that to matter.
        id_age_s: Age of an id when its call began, for ids that were made earlier than that; by transaction id.
        began: The true instant at which the ledger's `heard_at` is 0; None if nobody knows it.
        times_off: Every write that brought cluster time off the truth, in order.
        settled: Whether the run has had its time to end: nothing may be owed any more then.
        free_shards: Shards without an owner then.
        leases: Leases that should be gone then: of nodes that live no more.
        late: Sentences on what came back later than its fault allows.
        overloaded_without_delay: Refusals for load that did not say when to come back.
        ceiling_pence: What every seller might sell in an hour, all the time; None if that is not to be checked.
    """

    calls: Sequence[Call]
    ledger: Sequence[LedgerEvent]
    shards: int
    give_up: GiveUp
    credits: Sequence[Credited] = ()
    said: Said | None = None
    taken: Sequence[Taken] = ()
    send_within_s: float = 10.0
    not_authentic: int = 0
    logs: Iterable[str] = ()
    window_s: float | None = None
    id_age_s: dict[str, float] = field(default_factory=dict)
    began: datetime | None = None
    times_off: Sequence[TimeOff] = ()
    settled: bool = True
    free_shards: int = 0
    leases: int = 0
    late: Sequence[str] = ()
    overloaded_without_delay: int = 0
    ceiling_pence: int | None = None


def credited_key(credit: Credited) -> CodeKey:
    """Return what names a credited code."""
    return CodeKey(OriginatorId(credit.originator_id), MeterId(credit.meter_id), credit.counter)
