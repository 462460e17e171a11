"""The checker's rules for the market: nothing is sold, sent or changed on what does not hold in the ledger then."""

from collections.abc import Iterator
from typing import TypeVar

from app.verification.delivery_checks import SLACK_MS, still_its_own
from app.verification.ledger_book import Book, Step
from app.verification.observed_run import CodeKey, Finding, Run, code_key
from core.domain.appointment import Appointment, Appointments, AppointmentState
from core.domain.delivery import DeliveryState
from core.domain.effective_dated import FAR_FUTURE, EffectiveDated, ms_of
from core.domain.meter import Custody, Meter, PanRecord, PanStatus, PaymentMode
from core.domain.participant import Participant, ParticipantStatus, SellingModel
from core.domain.record import Kind, Ref
from core.domain.vend import Operation, Vend

_R = TypeVar("_R", PanRecord, Meter, Participant, Appointments)
_T = TypeVar("_T")
# What a hand-over brings in was sold by others, on records that were theirs.
_HANDED_OVER = "handed over"


def check_market(run: Run, book: Book) -> Iterator[Finding]:
    """Return what was sold, sent or changed against the registry as the ledger had it."""
    for step in book.steps:
        vend = step.seen.vend
        told = f"revision {step.revision}: {vend.sale.transaction_id}"
        if step.seen.created and vend.authorization.rule != _HANDED_OVER:
            yield from (Finding(14, f"{told} was sold, and {why}") for why in _Sale(book, step.revision, vend).wrong())
        if _is_sent(step) and not _may_be_sent(book, step):
            yield Finding(14, f"{told} was sent to a meter that has changed hands")
    yield from _nothing_before_its_time(run, book)
    yield from _nothing_taken_after(run, book)
    yield from _nothing_taken_unsent(run, book)


def _nothing_taken_after(run: Run, book: Book) -> Iterator[Finding]:
    """What was sold for one side is not taken over by a head end long after the meter has changed hands."""
    sold = {code_key(step.seen.vend): step for step in book.created}
    heard = {event.revision: event.heard_at for event in run.ledger}
    for taken in run.taken:
        step = sold.get(taken.code)
        since = taken.at - run.send_within_s
        if step is None or step.at > since:
            continue
        vend = step.seen.vend
        writes = [(heard[revision], record) for revision, record in book.writes(Ref(Kind.METER, vend.meter_id))]
        before, lately = (
            [write for write in writes if write[0] <= since],
            [write for write in writes if write[0] > since],
        )
        stood = before[-1:] + [one for one in lately if one[0] <= taken.at]
        if stood and not any(isinstance(one, Meter) and still_its_own(one, vend) for _, one in stood):
            told = f"meter {vend.meter_id}, counter {vend.counter}"
            yield Finding(14, f"{told}: a head end took it at {taken.at:.1f} s, long after the meter had changed hands")


def _nothing_taken_unsent(run: Run, book: Book) -> Iterator[Finding]:
    """The ledger says that a code is sent before a head end takes it over: who comes next must know of it."""
    sent_at: dict[CodeKey, float] = {}
    for step in book.steps:
        if _is_sent(step):
            sent_at.setdefault(code_key(step.seen.vend), step.at)
    for taken in run.taken:
        if taken.at < sent_at.get(taken.code, float("inf")):
            told = f"meter {taken.code.meter_id}, counter {taken.code.counter}"
            yield Finding(13, f"{told}: a head end took it before the ledger said that it was sent")


def _is_sent(step: Step) -> bool:
    delivery = step.seen.vend.delivery
    before = 0 if step.before is None else step.before.vend.delivery.attempts
    return delivery.state is DeliveryState.SENT and delivery.attempts > before


def _may_be_sent(book: Book, step: Step) -> bool:
    """Return whether the meter was still in the hands of the sale: by what had been carried out, not by any clock."""
    known = book.in_force(Ref(Kind.METER, step.seen.vend.meter_id), step.revision)
    if known is None or not isinstance(known.record, Meter):
        return False
    return still_its_own(known.record, step.seen.vend)


class _Sale:
    """One sale, held against the records that were in force when it was committed. A second opinion, kept simple."""

    def __init__(self, book: Book, revision: int, vend: Vend) -> None:
        self._book = book
        self._revision = revision
        self._vend = vend
        self._at = ms_of(vend.issued_at)

    def wrong(self) -> Iterator[str]:
        """Return every reason why it should not have been."""
        yield from self._basis()
        yield from self._of_meter()
        yield from self._of_card()
        yield from self._of_parties()

    def _basis(self) -> Iterator[str]:
        named = {ref.kind for ref, _ in self._vend.authorization.read_set}
        if not {Kind.METER, Kind.PAN, Kind.PARTICIPANT} <= named:
            yield "its meter, PAN or supplier is not among what it was based on"
        for ref, revision in self._vend.authorization.read_set:
            known = self._book.in_force(ref, self._revision)
            if known is None or known.revision != revision:
                yield f"{ref.kind} {ref.id} had moved since revision {revision}"

    def _of_meter(self) -> Iterator[str]:
        vend = self._vend
        meter = self._find(Kind.METER, vend.meter_id, Meter)
        stands = None if meter is None else meter.stands_at(self._at, None)
        if meter is None or stands is None:
            yield "nobody supplied its meter"
            return
        registration, settings = stands
        if meter.due(self._at) is not None:
            yield "a change of its meter was due and not carried out"
        if (registration.supplier_id, settings.tenancy) != (vend.supplier_id, vend.tenancy):
            yield "its meter was in other hands"
        minted = vend.sale.operation is not Operation.EXTERNALLY_ISSUED
        if registration.custody is not (Custody.CENTRAL if minted else Custody.SUPPLIER):
            yield "the counters of its meter were in other hands"
        if not settings.enrolled or settings.payment_mode is not PaymentMode.PREPAYMENT:
            yield "its meter was not a prepayment meter of this service"
        if settings.max_credit_pence and vend.sale.amount > settings.max_credit_pence:
            yield "its amount is above what the meter takes"

    def _of_card(self) -> Iterator[str]:
        vend = self._vend
        card = self._find(Kind.PAN, vend.sale.pan, PanRecord)
        use = None if card is None else self._holds(card.uses)
        if use is None:
            yield "its PAN stood for nothing"
        elif (use.meter_id, use.supplier_id, use.tenancy) != (vend.meter_id, vend.supplier_id, vend.tenancy):
            yield "its PAN stood for another meter, supplier or tenant"
        elif use.status is not PanStatus.ACTIVE:
            yield "its PAN was blocked"

    def _of_parties(self) -> Iterator[str]:
        vend, seller = self._vend, self._vend.sale.participant_id
        supplier = self._find(Kind.PARTICIPANT, vend.supplier_id, Participant)
        if supplier is None or self._holds(supplier.statuses) is not ParticipantStatus.ACTIVE:
            yield "its supplier was not active"
        elif supplier.supplier_key is None or supplier.supplier_key.originator_id != vend.originator_id:
            yield "its originator is not the supplier's"
        if supplier is None or seller == vend.supplier_id:
            return
        psp = self._find(Kind.PARTICIPANT, seller, Participant)
        if psp is None or self._holds(psp.statuses) is not ParticipantStatus.ACTIVE:
            yield "its seller was not active"
        profile = self._holds(supplier.profiles)
        if profile is None or profile.selling_model not in (
            SellingModel.PSP_ISSUES,
            SellingModel.PSP_ISSUES_AND_DELIVERS,
        ):
            yield "its supplier let no PSP sell"
        appointments = self._find(Kind.APPOINTMENT, f"{vend.supplier_id}/{seller}", Appointments)
        in_force = [] if appointments is None else [one for one in appointments.all if self._in_force(one)]
        if not in_force:
            yield "its seller was not appointed"
        elif not any(one.terms.min_pence <= vend.sale.amount <= one.terms.max_pence for one in in_force):
            yield "its amount is outside its seller's appointment"

    def _in_force(self, appointment: Appointment) -> bool:
        accepted = self._holds(appointment.states) is AppointmentState.ACCEPTED
        return accepted and appointment.terms.since <= self._at < (appointment.terms.until or FAR_FUTURE)

    def _find(self, kind: Kind, record_id: str, form: type[_R]) -> _R | None:
        known = self._book.in_force(Ref(kind, record_id), self._revision)
        return known.record if known is not None and isinstance(known.record, form) else None

    def _holds(self, timeline: EffectiveDated[_T]) -> _T | None:
        """Return what held at the sale; what was written before it holds for it, whatever its writer's clock said."""
        period = timeline.at(timeline.effective_now(self._at))
        return None if period is None else period.value


def _begun_ahead_s(run: Run, revision: int) -> float:
    """Return how far ahead of the truth cluster time began, when there was no node to ask, before `revision`."""
    return max((one.ahead_s for one in run.times_off if one.revision < revision and not one.known_to), default=0.0)


def _last_issued(book: Book, meter: Meter, revision: int) -> int:
    """Return the instant, in ms, by which the meter's last code before `revision` is dated; 0 if there is none."""
    codes = (step for step in book.created if step.revision < revision)
    return max(
        (ms_of(step.seen.vend.issued_at) for step in codes if step.seen.vend.meter_id == meter.meter_id), default=0
    )


def _nothing_before_its_time(run: Run, book: Book) -> Iterator[Finding]:
    """No change of a meter is carried out before its instant has truly come, by a time that somebody could know.

    A change made at once is dated after every code of the meter, also after one dated by a clock that was ahead.
    """
    for off in run.times_off:
        if off.known_to:
            known_to = ", ".join(off.known_to)
            yield Finding(14, f"revision {off.revision}: time is set {off.ahead_s:.0f} s ahead; known to {known_to}")
    if run.began is None:
        return
    began = ms_of(run.began)
    heard = {event.revision: event.heard_at for event in run.ledger}
    for ref, writes in book.records():
        effective_through = 0
        for revision, record in writes:
            if not isinstance(record, Meter):
                continue
            if record.effective_through <= _last_issued(book, record, revision) + 1:
                continue
            early_s = (record.effective_through - began) / 1000 - heard[revision] - _begun_ahead_s(run, revision)
            if record.effective_through > effective_through and early_s * 1000 > SLACK_MS:
                yield Finding(14, f"revision {revision}: a change of {ref.id} was carried out {early_s:.0f} s early")
            effective_through = record.effective_through
