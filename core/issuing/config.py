"""FlowConfig: the numbers that govern the path of a vend."""

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Literal

from annotated_types import Interval

from core.domain.ceiling import CEILING_PENCE_MAX
from core.domain.meter import PanRule


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowConfig:
    """FlowConfig holds the limits within which one node issues codes; a value out of range ends the start.

    Attributes:
        hot_window_days: Days, 1 to 365. A transaction id older than this is never executed; closed vends stay in the
            ledger at least as long.
        ahead_max_s: Seconds, 0 to 3600. How far in the future a transaction id may claim to be made.
        pan: What a PAN looks like. Unconfirmed for GB energy cards, so it is configuration.
        unapplied_alarm: Codes, 1 to 511. So many issued codes of one meter not known to be applied raise an alarm.
        unapplied_refuse: Codes, 1 to 511. From here on issuing is refused: a meter rebuilds a keyed counter only if it
            is less than 512 above the last one it applied (GBCS Table 27).
        in_flight_max: Vends, 1 to 100000. Waiting or being committed at this node; more are refused as OVERLOADED.
        batch_max: Vends, 1 to 64, that sign and commit together (etcd's limit on a nested Txn sets the ceiling).
        commit_attempts_max: Times, 1 to 100, that one vend is signed again because another node moved its counter.
        least_deadline_ms: Milliseconds, 0 to 60000. A request with less time left than this is refused at once.
        counter_cache_max: Sequences, 1000 to 10000000, whose state is kept in memory; about 300 bytes each.
        counter_trust_s: Seconds, 0 to 86400, that a sequence in memory is taken as current before it is read again.
            Another node may have moved it: the commit then fails its compare, and the vend is signed once more.
        recent_answers_max: Vends, 0 to 10000000, whose answer is kept in memory and repeated without the ledger; about
            1 KB each.
        closings_burst: Ids, 1 to 1000000, that one caller may have closed as refused at once at this node; each takes
            about 500 bytes of the ledger.
        closings_per_minute: Ids, 1 to 1000000, that one caller may have closed a minute once the burst is used up.
        suppliers_register: Of "meters" and "pans", which a supplier may register itself while nobody has the id. None
            by default: the registration feed is loaded by an operator. A lost PAN is replaced by its supplier anyway.
        registrations_burst: Meters and PANs, 1 to 10000000, that one supplier may register at once at this node;
            operators, and so the registration feed, any number.
        registrations_per_minute: Meters and PANs, 1 to 1000000, that one supplier may register a minute once the
            burst is used up.
        approval_wait_s: Seconds, 0 to 604800, between asking for what cannot be undone and doing it.
        ceiling_pence: Pence, 1 to 10000000000000, that a seller without a ceiling of its own may sell in an hour.
    """

    hot_window_days: Annotated[int, Interval(ge=1, le=365)] = 30
    ahead_max_s: Annotated[int, Interval(ge=0, le=3600)] = 300
    pan: PanRule = field(default_factory=PanRule)
    unapplied_alarm: Annotated[int, Interval(ge=1, le=511)] = 256
    unapplied_refuse: Annotated[int, Interval(ge=1, le=511)] = 500
    in_flight_max: Annotated[int, Interval(ge=1, le=100_000)] = 2000
    batch_max: Annotated[int, Interval(ge=1, le=64)] = 64
    commit_attempts_max: Annotated[int, Interval(ge=1, le=100)] = 20
    least_deadline_ms: Annotated[int, Interval(ge=0, le=60_000)] = 20
    counter_cache_max: Annotated[int, Interval(ge=1000, le=10_000_000)] = 200_000
    counter_trust_s: Annotated[float, Interval(ge=0, le=86_400)] = 60.0
    recent_answers_max: Annotated[int, Interval(ge=0, le=10_000_000)] = 50_000
    closings_burst: Annotated[int, Interval(ge=1, le=1_000_000)] = 1000
    closings_per_minute: Annotated[int, Interval(ge=1, le=1_000_000)] = 60
    suppliers_register: tuple[Literal["meters", "pans"], ...] = ()
    registrations_burst: Annotated[int, Interval(ge=1, le=10_000_000)] = 5000
    registrations_per_minute: Annotated[int, Interval(ge=1, le=1_000_000)] = 300
    ceiling_pence: Annotated[int, Interval(ge=1, le=CEILING_PENCE_MAX)] = 10_000_000
    approval_wait_s: Annotated[int, Interval(ge=0, le=604_800)] = 900

    def __post_init__(self) -> None:
        """Refuse sets that do not fit together."""
        if self.unapplied_alarm > self.unapplied_refuse:
            raise ValueError("unapplied_alarm: must not be above unapplied_refuse")

    @property
    def hot_window(self) -> timedelta:
        """The hot window as a duration."""
        return timedelta(days=self.hot_window_days)

    @property
    def ahead_max(self) -> timedelta:
        """The tolerated lead of a caller's clock as a duration."""
        return timedelta(seconds=self.ahead_max_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryConfig:
    """DeliveryConfig holds the limits within which one node delivers codes; a value out of range ends the start.

    Attributes:
        attempts_max: Sends, 1 to 1000, after which the consumer is left to enter the code by hand; of those that this
            node made, only such as had the time for an answer: no break of the head end's stream cut it short.
        give_up_after_s: Seconds, 1 to 604800, since delivery was asked for, after which the consumer is left to enter
            the code by hand.
        answer_wait_ms: Milliseconds, 50 to 86400000, that an answer may take before its outcome counts as unknown.
        explain_wait_ms: Milliseconds, 0 to 600000, that the alert explaining an electricity meter's refusal may take.
        back_off_first_ms: Milliseconds, 1 to 3600000, before the second send; doubled each time, with full jitter.
        back_off_most_ms: Milliseconds, 1 to 86400000, the longest wait before a send; not below back_off_first_ms.
        in_flight_max: Deliveries, 1 to 100000, under way at once at this node.
        send_within_ms: Milliseconds, 1000 to 60000, between the write that allows a send and the send's being accepted.
            So long after a Change of Supplier a code that was allowed before it may still reach the head end.
        advise_after_s: Seconds, 1 to 604800, since delivery was asked for, after which callers are told to have the
            consumer enter the code by hand although it is still owed; never later than give_up_after_s.
        trust_unnamed_alerts: Take an alert that does not name its code as speaking of the code in flight. What real
            alerts name is unconfirmed, and a keypad entry at the same moment raises the same ones: the default is no.
    """

    attempts_max: Annotated[int, Interval(ge=1, le=1000)] = 12
    give_up_after_s: Annotated[int, Interval(ge=1, le=604_800)] = 86_400
    answer_wait_ms: Annotated[int, Interval(ge=50, le=86_400_000)] = 30_000
    explain_wait_ms: Annotated[int, Interval(ge=0, le=600_000)] = 5_000
    back_off_first_ms: Annotated[int, Interval(ge=1, le=3_600_000)] = 2_000
    back_off_most_ms: Annotated[int, Interval(ge=1, le=86_400_000)] = 900_000
    in_flight_max: Annotated[int, Interval(ge=1, le=100_000)] = 2000
    send_within_ms: Annotated[int, Interval(ge=1000, le=60_000)] = 10_000
    advise_after_s: Annotated[int, Interval(ge=1, le=604_800)] = 900
    trust_unnamed_alerts: bool = False

    def __post_init__(self) -> None:
        """Refuse sets that do not fit together."""
        if self.back_off_most_ms < self.back_off_first_ms:
            raise ValueError("back_off_most_ms: must not be below back_off_first_ms")
