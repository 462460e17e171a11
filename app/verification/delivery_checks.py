"""The checker's rules for deliveries: who may write them, what each end needs, and that none is forgotten."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from app.verification.ledger_book import Book, Step
from app.verification.observed_run import CodeKey, Finding, Run, code_key, credited_key
from cluster.audit.change_feed import (
    AppliedSeen,
    CounterSeen,
    LedgerEvent,
    OwedGone,
    OwedSeen,
    VendGone,
    VendKey,
    VendSeen,
)
from core.domain.delivery import Delivery, DeliveryReason, DeliveryState
from core.domain.meter import Meter
from core.domain.record import Kind, Ref
from core.domain.vend import Operation, Vend

# Two clocks that are right may be so far apart.
SLACK_MS = 1000
_MARKET = {DeliveryReason.SUPPLIER_CHANGED, DeliveryReason.TENANCY_CHANGED, DeliveryReason.METER_REMOVED}
_UNANSWERED = {DeliveryReason.NO_ANSWER, DeliveryReason.UNEXPLAINED}
_CREDITED = {DeliveryReason.CREDITED, DeliveryReason.ALREADY_CREDITED, DeliveryReason.CREDITED_AFTER_REFUSAL}


def check_deliveries(run: Run, book: Book, shard_of: Callable[[str], int]) -> Iterator[Finding]:
    """Return what was wrong with deliveries."""
    yield from _only_owners_write(book)
    yield from _every_step_follows(book)
    yield from _every_end_has_a_cause(run, book)
    yield from _outbox_holds_what_is_owed(run.ledger, shard_of)
    yield from _applied_keys(run)
    yield from _what_was_credited_is_known(run, book)


def _told(step: Step) -> str:
    vend = step.seen.vend
    return f"revision {step.revision}: meter {vend.meter_id}, counter {vend.counter}"


def _only_owners_write(book: Book) -> Iterator[Finding]:
    """An owner's write carries the epoch of the key of its own shard, as it is at that revision."""
    for step in book.steps:
        if step.before is None or step.seen.vend.delivery == step.before.vend.delivery:
            continue
        delivery = step.seen.vend.delivery
        if delivery.state is DeliveryState.QUEUED and step.before.vend.delivery.state is DeliveryState.NOT_REQUESTED:
            # Asking for a delivery is the caller's, not the owner's.
            continue
        if delivery.reason is DeliveryReason.CHECKED_BY_SUPPLIER and not delivery.epoch:
            # Nobody owes it any more: what its supplier has read is the supplier's to say.
            continue
        if delivery.epoch != step.epoch:
            owner = "nobody" if step.epoch is None else f"epoch {step.epoch}"
            yield Finding(5, f"{_told(step)} was written by epoch {delivery.epoch}, and its shard was owned by {owner}")


def _every_step_follows(book: Book) -> Iterator[Finding]:
    for step in book.steps:
        after = step.seen.vend
        if step.before is None:
            wrong = _wrong_beginning(after)
        else:
            wrong = _wrong_step(step.before.vend.delivery, after.delivery)
            if replace(after, delivery=step.before.vend.delivery) != step.before.vend:
                yield Finding(1, f"{_told(step)}: more of a vend has changed than its delivery")
        if wrong:
            yield Finding(13, f"{_told(step)}: {wrong}")


def _wrong_beginning(vend: Vend) -> str | None:
    state = vend.delivery.state
    if vend.authorization.rule == "handed over" or vend.sale.operation is Operation.ISSUE:
        right = state in (DeliveryState.NOT_REQUESTED, DeliveryState.QUEUED)
    else:
        right = state is DeliveryState.QUEUED
    return None if right else f"a vend begins {state.name}"


def _wrong_step(before: Delivery, after: Delivery) -> str | None:
    """Return what is wrong with a delivery's next state, None if nothing is."""
    sent = after.attempts - before.attempts
    if after.state is DeliveryState.SENT:
        return None if before.owed and sent == 1 else f"{before.state.name} is sent, and counts {sent} sends"
    if sent:
        return f"a delivery that is {after.state.name} counts {sent} sends more"
    if after == before or after.reason in _CREDITED:
        # A code may be credited by hand at any time: asked for or not, given up or not.
        return None
    if after.state is DeliveryState.QUEUED:
        return None if before.state is DeliveryState.NOT_REQUESTED else f"{before.state.name} is queued"
    if after.reason is DeliveryReason.CHECKED_BY_SUPPLIER:
        return None if before.state is DeliveryState.NEEDS_CHECK else f"{before.state.name} is settled"
    if after.reason is DeliveryReason.DUPLICATE_UNPROVEN and before.state is not DeliveryState.APPLIED:
        return None
    return None if before.owed else f"{before.state.name} becomes {after.state.name}"


def _every_end_has_a_cause(run: Run, book: Book) -> Iterator[Finding]:
    for step in book.steps:
        vend, delivery = step.seen.vend, step.seen.vend.delivery
        if delivery.closed_at is None or (step.before is not None and step.before.vend.delivery == delivery):
            continue
        if delivery.reason in _CREDITED:
            wrong = None if delivery.state is DeliveryState.APPLIED else "is credited and not applied"
        elif delivery.reason is DeliveryReason.CHECKED_BY_SUPPLIER:
            wrong = None
        elif delivery.reason is DeliveryReason.DUPLICATE_UNPROVEN:
            spoken_of = run.said is None or code_key(vend) in run.said.credited
            wrong = None if spoken_of else "neither its meter nor its head end spoke of it"
        elif delivery.reason in _MARKET and delivery.state is DeliveryState.NEEDS_CHECK:
            wrong = _wrong_giving_up(run, step, delivery)
        elif delivery.reason in _MARKET:
            wrong = _wrong_lapse(book, step)
        elif delivery.reason in _UNANSWERED:
            wrong = _wrong_giving_up(run, step, delivery)
        else:
            wrong = _wrong_refusal(run, vend)
        if wrong:
            yield Finding(13, f"{_told(step)} ended {delivery.state.name}, {delivery.reason.name}: {wrong}")


def _wrong_giving_up(run: Run, step: Step, delivery: Delivery) -> str | None:
    """What is given up has been sent, and was sent too often or owed too long: by what has truly passed, if known."""
    if delivery.attempts >= run.give_up.attempts_max or delivery.queued_at is None or delivery.closed_at is None:
        return None
    passed_s = (delivery.closed_at - delivery.queued_at).total_seconds()
    if run.began is not None:
        passed_s = min(passed_s, step.at - (delivery.queued_at - run.began).total_seconds() + SLACK_MS / 1000)
    if passed_s < run.give_up.after_s:
        return f"{delivery.attempts} sends and {passed_s:.0f} s are no reason"
    return None if delivery.attempts else "it was owed long enough, and never sent"


def _wrong_refusal(run: Run, vend: Vend) -> str | None:
    if vend.delivery.attempts == 0:
        return "it was never sent"
    if run.said is not None and (code_key(vend), vend.delivery.reason) not in run.said.refusals:
        return "neither its meter nor its head end said so"
    return None


def _wrong_lapse(book: Book, step: Step) -> str | None:
    """A code lapses only after a change of its meter that had been carried out in the ledger by then."""
    vend = step.seen.vend
    if vend.delivery.attempts:
        return "it was sent, and may have been credited"
    meter = _meter(book, vend, step.revision)
    return None if meter is None or not still_its_own(meter, vend) else "the meter had not changed hands"


def still_its_own(meter: Meter, vend: Vend) -> bool:
    """Return whether a meter is in the hands in which it was when the vend was sold, by what has been carried out."""
    stands = meter.stands_at(meter.effective_through, None)
    if stands is None:
        return False
    registration, settings = stands
    return (registration.supplier_id, settings.tenancy) == (vend.supplier_id, vend.tenancy)


def _meter(book: Book, vend: Vend, revision: int) -> Meter | None:
    known = book.in_force(Ref(Kind.METER, vend.meter_id), revision)
    return known.record if known is not None and isinstance(known.record, Meter) else None


@dataclass(slots=True)
class _Owed:
    """What is owed by the vends and what is in the outbox, code by code."""

    vends: dict[CodeKey, VendKey]
    outbox: dict[CodeKey, tuple[int, VendKey]]

    def take(self, event: LedgerEvent) -> CodeKey | None:
        """Take a change in; return whose code it is about."""
        match event.change:
            case VendSeen(vend=vend, key=key):
                code = code_key(vend)
                if vend.delivery.owed:
                    self.vends[code] = key
                elif self.vends.get(code) == key:
                    del self.vends[code]
            case VendGone(key=key):
                code = next((one for one, owner in self.vends.items() if owner == key), CodeKey("", "", 0))
                self.vends.pop(code, None)
            case OwedSeen(shard=shard, vend=key) as seen:
                code = CodeKey(seen.originator_id, seen.meter_id, seen.counter)
                self.outbox[code] = shard, key
            case OwedGone() as gone:
                code = CodeKey(gone.originator_id, gone.meter_id, gone.counter)
                self.outbox.pop(code, None)
            case _:
                return None
        return code


def _outbox_holds_what_is_owed(ledger: Sequence[LedgerEvent], shard_of: Callable[[str], int]) -> Iterator[Finding]:
    """After every revision: each owed vend is in the outbox of its shard, and nothing else is."""
    owed = _Owed({}, {})
    for revision, events in groupby(ledger, key=lambda one: one.revision):
        for code in {code for event in events if (code := owed.take(event)) is not None}:
            vend, entry = owed.vends.get(code), owed.outbox.get(code)
            told = f"revision {revision}: meter {code.meter_id}, counter {code.counter}"
            if vend is not None and entry is None:
                yield Finding(13, f"{told} is owed and not in the outbox")
            elif vend is None and entry is not None:
                yield Finding(13, f"{told} is in the outbox and not owed")
            elif vend is not None and entry is not None and entry != (shard_of(code.meter_id), vend):
                yield Finding(13, f"{told} is in the outbox of another shard, or for another vend")


def _applied_keys(run: Run) -> Iterator[Finding]:
    """What is known to be applied only rises, was issued, and was credited, or somebody said so."""
    issued: dict[tuple[str, str], int] = {}
    before: dict[tuple[str, str], int] = {}
    credited = {credited_key(credit) for credit in run.credits}
    for _, events in groupby(run.ledger, key=lambda one: one.revision):
        together = list(events)
        handed_over = _handed_over(together)
        for event in together:
            if isinstance(event.change, CounterSeen):
                issued[event.change.originator_id, event.change.meter_id] = event.change.last_issued
        for event in together:
            if not isinstance(event.change, AppliedSeen):
                continue
            sequence = event.change.originator_id, event.change.meter_id
            highest, told = event.change.highest_applied, f"revision {event.revision}: meter {sequence[1]}"
            code = CodeKey(*sequence, highest)
            if highest < before.get(sequence, 0):
                yield Finding(12, f"{told}: what is applied fell to {highest}")
            if highest > issued.get(sequence, 0):
                yield Finding(12, f"{told}: {highest} is applied, {issued.get(sequence, 0)} issued")
            elif run.said is not None and not handed_over and code not in credited and code not in run.said.credited:
                yield Finding(12, f"{told}: {highest} is applied, and the meter never said so")
            before[sequence] = highest


def _handed_over(events: Sequence[LedgerEvent]) -> bool:
    """Return whether counters were handed over at a revision: both keys are written then, and no vend but those."""
    kinds = {type(event.change) for event in events}
    return {AppliedSeen, CounterSeen} <= kinds


def _what_was_credited_is_known(run: Run, book: Book) -> Iterator[Finding]:
    """Where a meter credited a code, and it or its head end said so, the code's vend is applied when all is quiet."""
    if run.said is None or not run.settled:
        return
    known: dict[CodeKey, DeliveryState] = defaultdict(lambda: DeliveryState.APPLIED)
    known.update((code_key(seen.vend), seen.vend.delivery.state) for seen in book.last.values())
    for credit in run.credits:
        code = credited_key(credit)
        if code in run.said.credited and known[code] not in (DeliveryState.APPLIED, DeliveryState.NEEDS_CHECK):
            told = f"meter {code.meter_id}: counter {code.counter} is credited"
            yield Finding(15, f"{told}, and its vend is {known[code].name}")
