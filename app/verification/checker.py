"""The checker: what callers saw, what the ledger did and what meters credited, held against the invariants.

Pure: it takes a `Run`, from real processes or from the simulation, and returns findings. Calls without an answer are
settled from the ledger: it says whether, and when, they were carried out. The rules are in `checker_calls`,
`checker_deliveries` and `checker_market`; those about codes, counters and money are here.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from app.verification.call_checks import REUSED, Sold, check_calls
from app.verification.call_log import FENCED
from app.verification.delivery_checks import check_deliveries
from app.verification.ledger_book import Book
from app.verification.observed_run import CodeKey, Credited, Finding, GiveUp, Run, Said, Taken, code_key, credited_key
from app.verification.registration_checks import check_market
from cluster.audit.change_feed import CodeSeen, CounterSeen, LedgerEvent, VendKey
from cluster.membership.placement import shard_of
from core.domain.ceiling import hour_of
from core.domain.delivery import DeliveryState
from core.domain.effective_dated import Ms, ms_of
from core.domain.meter import MeterId
from core.domain.vend import Operation, Vend

__all__ = ["CodeKey", "Credited", "Finding", "GiveUp", "Run", "Said", "Taken", "check_run"]

_DIGITS = re.compile(r"[0-9]{20,}", re.ASCII)
_CODE_DIGITS = 20


def check_run(run: Run) -> list[Finding]:
    """Return every promise that was not kept, by number; empty if all were."""

    def shard(meter_id: str) -> int:
        return shard_of(MeterId(meter_id), run.shards)

    book = Book(run.ledger, shard)
    checks = (
        _one_id_one_code(book),
        _one_counter_one_content(book),
        _counters_never_fall(run.ledger),
        _answered_is_durable(run, book),
        _nothing_before_its_commit(run, book),
        _codes_name_their_vends(run.ledger, book),
        _closed_stays_closed(run, book),
        _one_owner(book),
        _money(run, book),
        _too_old(run),
        _authentic(run),
        _comes_back(run, book),
        _says_when_to_come_back(run),
        _nothing_grows(run),
        _ceilings(run, book),
        check_calls(run, _sold(book)),
        check_deliveries(run, book, shard),
        check_market(run, book),
    )
    return sorted({finding for findings in checks for finding in findings})


def _one_id_one_code(book: Book) -> Iterator[Finding]:
    codes: dict[VendKey, set[tuple[object, ...]]] = defaultdict(set)
    for step in book.steps:
        vend, key = step.seen.vend, step.seen.key
        codes[key].add((vend.utrn, code_key(vend), vend.issued_at))
        if key != (vend.sale.participant_id, vend.sale.transaction_id):
            yield Finding(1, f"{key[1]}: the record under this key is of another vend")
    for (_, transaction_id), several in codes.items():
        if len(several) > 1:
            yield Finding(1, f"{transaction_id} has had several codes in the ledger")


def _gave_counter_back(book: Book, key: VendKey) -> bool:
    last = book.last.get(key)
    return last is not None and last.vend.gave_counter_back


def _one_counter_one_content(book: Book) -> Iterator[Finding]:
    holders: dict[CodeKey, set[VendKey]] = defaultdict(set)
    last: dict[tuple[str, str], int] = {}
    for step in book.created:
        vend = step.seen.vend
        if not _gave_counter_back(book, step.seen.key):
            holders[code_key(vend)].add(step.seen.key)
        sequence = (vend.meter_id, vend.originator_id)
        before = last.get(sequence, 0)
        # Codes made elsewhere come in whatever order their supplier sends them.
        elsewhere = vend.sale.operation is Operation.EXTERNALLY_ISSUED
        if vend.counter <= before and not elsewhere:
            yield Finding(2, f"meter {vend.meter_id}: counter {vend.counter} was committed after {before}")
        elif not elsewhere and vend.counter != before + 1 and before:
            yield Finding(2, f"meter {vend.meter_id}: counter {vend.counter} follows {before}: one is missing")
        last[sequence] = max(before, vend.counter)
    for code, keys in holders.items():
        if len(keys) > 1:
            yield Finding(2, f"meter {code.meter_id}: counter {code.counter} belongs to {len(keys)} vends")


def _codes_name_their_vends(ledger: Sequence[LedgerEvent], book: Book) -> Iterator[Finding]:
    """Every vend is committed together with the entry that says whose its counter is; no entry ever says otherwise.

    But for a code made elsewhere that its meter has found to be none: the right one may take its counter.
    """
    named: dict[CodeKey, VendKey] = {}
    first: dict[tuple[CodeKey, VendKey], int] = {}
    for event in ledger:
        if isinstance(event.change, CodeSeen):
            code = CodeKey(event.change.originator_id, event.change.meter_id, event.change.counter)
            before, named[code] = named.get(code, event.change.vend), event.change.vend
            first.setdefault((code, event.change.vend), event.revision)
            if before != event.change.vend and not _gave_counter_back(book, before):
                yield Finding(2, f"meter {code.meter_id}: counter {code.counter} was given to another vend")
    for step in book.created:
        if first.get((code_key(step.seen.vend), step.seen.key)) != step.revision:
            told = f"meter {step.seen.vend.meter_id}: counter {step.seen.vend.counter}"
            yield Finding(2, f"{told} was committed without saying whose it is")


def _closed_stays_closed(run: Run, book: Book) -> Iterator[Finding]:
    """An id that is closed as refused is never sold under; what is told to be closed is."""
    for key in book.unclosed:
        yield Finding(7, f"{key[1]} was closed as refused, and sold or closed anew")
    closed = {(str(participant), str(one)) for participant, one in book.closed}
    for call in run.calls:
        fenced = call.outcome == "refused" and call.final == FENCED and call.reason != REUSED
        if fenced and call.key not in closed:
            yield Finding(3, f"{call.transaction_id} was answered as closed ({call.reason}), and is not")


def _counters_never_fall(ledger: Sequence[LedgerEvent]) -> Iterator[Finding]:
    last: dict[tuple[str, str], int] = {}
    for event in ledger:
        if isinstance(event.change, CounterSeen):
            sequence = (event.change.originator_id, event.change.meter_id)
            if event.change.last_issued < last.get(sequence, 0):
                yield Finding(2, f"meter {sequence[1]}: the sequence fell to {event.change.last_issued}")
            last[sequence] = event.change.last_issued


def _answered_is_durable(run: Run, book: Book) -> Iterator[Finding]:
    last = {(str(key[0]), str(key[1])): seen.vend for key, seen in book.last.items()}
    for call in run.calls:
        if call.outcome != "ok":
            continue
        vend = last.get(call.key)
        if call.key in book.gone:
            yield Finding(3, f"{call.transaction_id} was answered and has been deleted from the ledger")
        if vend is None:
            yield Finding(3, f"{call.transaction_id} was answered and is not in the ledger")
        elif vend.utrn != call.utrn:
            yield Finding(3, f"{call.transaction_id} was answered with another code than the ledger has")
        elif vend.sale.amount != call.amount_pence:
            yield Finding(3, f"{call.transaction_id} was answered for another amount than the ledger has")


def _nothing_before_its_commit(run: Run, book: Book) -> Iterator[Finding]:
    committed = {str(step.seen.vend.utrn) for step in book.created}
    for utrn, who in [(call.utrn, "a caller") for call in run.calls if call.utrn] + [
        (credit.utrn, f"meter {credit.meter_id}") for credit in run.credits
    ]:
        if utrn not in committed:
            yield Finding(4, f"{who} has a code that was never committed")
    for text in run.logs:
        if any(_holds_one(found, committed) for found in _DIGITS.findall(text)):
            yield Finding(4, "a log holds a code")


def _holds_one(digits: str, codes: set[str]) -> bool:
    return any(digits[at : at + _CODE_DIGITS] in codes for at in range(len(digits) - _CODE_DIGITS + 1))


def _one_owner(book: Book) -> Iterator[Finding]:
    for revision, shard in book.two_owners:
        yield Finding(5, f"shard {shard} had two owners at revision {revision}")


def _money(run: Run, book: Book) -> Iterator[Finding]:
    vends = {code_key(seen.vend): seen.vend for seen in book.last.values()}
    times: Counter[CodeKey] = Counter()
    for credit in run.credits:
        code = credited_key(credit)
        times[code] += 1
        if times[code] > 1:
            yield Finding(6, f"meter {code.meter_id}: counter {code.counter} was credited {times[code]} times")
        vend = vends.get(code)
        if vend is not None and vend.sale.amount != credit.pence:
            yield Finding(6, f"meter {code.meter_id}: {credit.pence} pence credited for {vend.sale.amount}")
    digits = {credit.utrn for credit in run.credits}
    for code, vend in vends.items():
        # Of a code made elsewhere only its maker knows the counter; its digits are what the meter took.
        elsewhere = vend.sale.operation is Operation.EXTERNALLY_ISSUED and vend.utrn in digits
        if vend.delivery.state is DeliveryState.APPLIED and not times[code] and not elsewhere:
            told = (
                f"meter {code.meter_id}: counter {code.counter} is applied in the ledger ({vend.delivery.reason.name})"
            )
            yield Finding(6, f"{told}, not at the meter")


def _sold(book: Book) -> Sold:
    """Return PAN, operation and pence of every vend that was ever committed."""
    return {
        (str(step.seen.key[0]), str(step.seen.key[1])): (content_of(step.seen.vend), step.seen.vend.sale.amount)
        for step in book.steps
    }


def content_of(vend: Vend) -> str:
    """Return what else must be the same for two sales to be one, besides the amount, as callers' histories spell it."""
    return f"{vend.sale.pan}/{vend.sale.operation.name}"


def _too_old(run: Run) -> Iterator[Finding]:
    # Where time began late, and nobody could know, ids are younger by it.
    late_s = max((0.0, *(-one.ahead_s for one in run.times_off if not one.known_to)))
    for call in run.calls:
        age = run.id_age_s.get(call.transaction_id, 0.0)
        if (
            run.window_s is not None
            and age - max(late_s, 0.0) > run.window_s
            and call.outcome == "ok"
            and not call.replayed
        ):
            yield Finding(7, f"{call.transaction_id} is older than the window and was executed")


def _authentic(run: Run) -> Iterator[Finding]:
    if run.not_authentic:
        yield Finding(8, f"meters found {run.not_authentic} codes not authentic")


def _comes_back(run: Run, book: Book) -> Iterator[Finding]:
    for sentence in run.late:
        yield Finding(9, sentence)
    owed = sum(seen.vend.delivery.owed for seen in book.last.values())
    if owed and run.settled:
        yield Finding(9, f"{owed} deliveries are still owed")
    if run.free_shards:
        yield Finding(9, f"{run.free_shards} shards have no owner")


def _says_when_to_come_back(run: Run) -> Iterator[Finding]:
    if run.overloaded_without_delay:
        yield Finding(10, f"{run.overloaded_without_delay} refusals for load did not say when to come back")


def _ceilings(run: Run, book: Book) -> Iterator[Finding]:
    sold: Counter[tuple[str, Ms]] = Counter()
    for step in book.created:
        vend = step.seen.vend
        if vend.sale.operation is not Operation.EXTERNALLY_ISSUED:
            sold[str(vend.sale.participant_id), hour_of(ms_of(vend.issued_at))] += vend.sale.amount
    for (seller, _), pence in sorted(sold.items()):
        if run.ceiling_pence is not None and pence > run.ceiling_pence:
            yield Finding(16, f"{seller} sold {pence} pence in an hour, above its ceiling of {run.ceiling_pence}")


def _nothing_grows(run: Run) -> Iterator[Finding]:
    if run.leases:
        yield Finding(11, f"{run.leases} leases of dead nodes are left")
