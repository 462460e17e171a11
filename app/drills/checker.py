"""The checker: what callers saw, what the ledger did and what meters credited, held against the eleven invariants.

Pure: it takes a `Run`, from real processes or from the simulation, and returns findings. Calls without an answer are
settled from the ledger: it says whether, and when, they were carried out.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from app.drills.history import Call
from cluster.history import CounterSeen, LedgerEvent, OwnerGone, OwnerSeen, VendGone, VendSeen
from core.domain.delivery import DeliveryState
from core.domain.vend import Operation, Vend

_Code = tuple[str, str, int]
_REUSED = "TRANSACTION_ID_REUSED"


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


@dataclass(slots=True, kw_only=True)
class Run:
    """All that is known of one run.

    Attributes:
        calls: What callers did and saw.
        ledger: Every change of the ledger, in order of revision, from before the first call.
        credits: Every credit at every meter.
        not_authentic: How often meters found a code of ours not authentic.
        logs: Texts that nodes wrote: no code may be in them.
        window_s: How old an id may be; None if the run is too short for that to matter.
        id_age_s: Age of an id when its call began, for ids that were made earlier than that; by transaction id.
        owed: Deliveries still owed when the run had had its time to end.
        free_shards: Shards without an owner then.
        leases: Leases that should be gone then: of nodes that live no more.
        late: Sentences on what came back later than its fault allows.
        overloaded_without_delay: Refusals for load that did not say when to come back.
    """

    calls: Sequence[Call]
    ledger: Sequence[LedgerEvent]
    credits: Sequence[Credited] = ()
    not_authentic: int = 0
    logs: Iterable[str] = ()
    window_s: float | None = None
    id_age_s: dict[str, float] = field(default_factory=dict)
    owed: int = 0
    free_shards: int = 0
    leases: int = 0
    late: Sequence[str] = ()
    overloaded_without_delay: int = 0


def check_run(run: Run) -> list[Finding]:
    """Return every promise that was not kept, by number; empty if all were."""
    book = _Book(run.ledger)
    checks = (
        _one_id_one_code(run, book),
        _one_counter_one_content(book),
        _counters_never_fall(run.ledger),
        _answered_is_durable(run, book),
        _nothing_before_its_commit(run, book),
        _only_living_epochs_write(run.ledger),
        _money(run, book),
        _refused_stays_refused(run),
        _authentic(run),
        _comes_back(run),
        _says_when_to_come_back(run),
        _nothing_grows(run),
    )
    return sorted({finding for findings in checks for finding in findings})


class _Book:
    """The ledger's history by vend."""

    def __init__(self, ledger: Sequence[LedgerEvent]) -> None:
        self.versions: dict[str, list[tuple[int, Vend]]] = defaultdict(list)
        self.created: list[tuple[int, Vend]] = []
        for event in ledger:
            if isinstance(event.change, VendSeen):
                vend = event.change.vend
                self.versions[vend.sale.transaction_id].append((event.revision, vend))
                if event.change.created:
                    self.created.append((event.revision, vend))
        self.gone = {event.change.transaction_id for event in ledger if isinstance(event.change, VendGone)}
        self.last = {one: versions[-1][1] for one, versions in self.versions.items()}


def _code(vend: Vend) -> _Code:
    return vend.meter_id, vend.originator_id, vend.counter


def _one_id_one_code(run: Run, book: _Book) -> Iterator[Finding]:
    for transaction_id, versions in book.versions.items():
        if len({(vend.utrn, _code(vend), vend.issued_at) for _, vend in versions}) > 1:
            yield Finding(1, f"{transaction_id} has had several codes in the ledger")
    answers: dict[str, set[str]] = defaultdict(set)
    for call in run.calls:
        if call.outcome == "ok":
            answers[call.transaction_id].add(call.digest)
    for transaction_id, digests in answers.items():
        if len(digests) > 1:
            yield Finding(1, f"{transaction_id} was answered {len(digests)} different ways")
    for transaction_id, calls in _by_id(run.calls).items():
        if not linearizable(calls):
            yield Finding(1, f"{transaction_id}: no order of its calls explains their answers")


def _one_counter_one_content(book: _Book) -> Iterator[Finding]:
    holders: dict[_Code, set[str]] = defaultdict(set)
    last: dict[tuple[str, str], int] = {}
    for _, vend in book.created:
        holders[_code(vend)].add(vend.sale.transaction_id)
        sequence = (vend.meter_id, vend.originator_id)
        before = last.get(sequence, 0)
        if vend.counter <= before:
            yield Finding(2, f"meter {vend.meter_id}: counter {vend.counter} was committed after {before}")
        elif vend.sale.operation is not Operation.MADE_ELSEWHERE and vend.counter != before + 1 and before:
            yield Finding(2, f"meter {vend.meter_id}: counter {vend.counter} follows {before}: one is missing")
        last[sequence] = max(before, vend.counter)
    for code, ids in holders.items():
        if len(ids) > 1:
            yield Finding(2, f"meter {code[0]}: counter {code[2]} belongs to {len(ids)} vends")


def _counters_never_fall(ledger: Sequence[LedgerEvent]) -> Iterator[Finding]:
    last: dict[tuple[str, str], int] = {}
    for event in ledger:
        if isinstance(event.change, CounterSeen):
            sequence = (event.change.originator_id, event.change.meter_id)
            if event.change.last_issued <= last.get(sequence, 0):
                yield Finding(2, f"meter {sequence[1]}: the sequence fell to {event.change.last_issued}")
            last[sequence] = event.change.last_issued


def _answered_is_durable(run: Run, book: _Book) -> Iterator[Finding]:
    for call in run.calls:
        if call.outcome != "ok":
            continue
        vend = book.last.get(call.transaction_id)
        if call.transaction_id in book.gone:
            yield Finding(3, f"{call.transaction_id} was answered and has been deleted from the ledger")
        if vend is None:
            yield Finding(3, f"{call.transaction_id} was answered and is not in the ledger")
        elif vend.utrn != call.utrn:
            yield Finding(3, f"{call.transaction_id} was answered with another code than the ledger has")
        elif vend.sale.amount != call.amount_pence:
            yield Finding(3, f"{call.transaction_id} was answered for another amount than the ledger has")


def _nothing_before_its_commit(run: Run, book: _Book) -> Iterator[Finding]:
    committed = {vend.utrn for _, vend in book.created}
    for utrn, who in [(call.utrn, "a caller") for call in run.calls if call.utrn] + [
        (credit.utrn, f"meter {credit.meter_id}") for credit in run.credits
    ]:
        if utrn not in committed:
            yield Finding(4, f"{who} has a code that was never committed")
    for text in run.logs:
        if any(utrn in text for utrn in committed):
            yield Finding(4, "a log holds a code")


def _only_living_epochs_write(ledger: Sequence[LedgerEvent]) -> Iterator[Finding]:
    """Replay who owned what: an owner's write carries the epoch of a shard key that is there at that revision."""
    living: dict[int, int] = {}
    before: dict[str, Vend] = {}
    for event in ledger:
        match event.change:
            case OwnerSeen(shard=shard, epoch=epoch):
                if shard in living and living[shard] != epoch:
                    yield Finding(5, f"shard {shard} had two owners at revision {event.revision}")
                living[shard] = epoch
            case OwnerGone(shard=shard):
                living.pop(shard, None)
            case VendSeen(vend=vend):
                earlier = before.get(vend.sale.transaction_id)
                before[vend.sale.transaction_id] = vend
                if earlier is None or vend.delivery == earlier.delivery or not vend.delivery.epoch:
                    continue
                if vend.delivery.epoch not in living.values():
                    epoch = vend.delivery.epoch
                    yield Finding(5, f"revision {event.revision}: a delivery was written by epoch {epoch}, which ended")


def _money(run: Run, book: _Book) -> Iterator[Finding]:
    vends = {_code(vend): vend for vend in book.last.values()}
    times: Counter[_Code] = Counter()
    for credit in run.credits:
        code = (credit.meter_id, credit.originator_id, credit.counter)
        times[code] += 1
        if times[code] > 1:
            yield Finding(6, f"meter {code[0]}: counter {code[2]} was credited {times[code]} times")
        vend = vends.get(code)
        if vend is not None and vend.sale.amount != credit.pence:
            yield Finding(6, f"meter {code[0]}: {credit.pence} pence credited for {vend.sale.amount}")
    for code, vend in vends.items():
        if vend.delivery.state is DeliveryState.APPLIED and not times[code]:
            yield Finding(6, f"meter {code[0]}: counter {code[2]} is applied in the ledger, not at the meter")


def _refused_stays_refused(run: Run) -> Iterator[Finding]:
    for transaction_id, calls in _by_id(run.calls).items():
        contents = {(call.pan, call.amount_pence) for call in calls if call.outcome == "ok"}
        if len(contents) > 1:
            yield Finding(7, f"{transaction_id} got a code for {len(contents)} different sales")
        age = run.id_age_s.get(transaction_id, 0.0)
        fresh = any(call.outcome == "ok" and not call.replayed for call in calls)
        if run.window_s is not None and age > run.window_s and fresh:
            yield Finding(7, f"{transaction_id} is older than the window and was executed")


def _authentic(run: Run) -> Iterator[Finding]:
    if run.not_authentic:
        yield Finding(8, f"meters found {run.not_authentic} codes not authentic")


def _comes_back(run: Run) -> Iterator[Finding]:
    for sentence in run.late:
        yield Finding(9, sentence)
    if run.owed:
        yield Finding(9, f"{run.owed} deliveries are still owed")
    if run.free_shards:
        yield Finding(9, f"{run.free_shards} shards have no owner")


def _says_when_to_come_back(run: Run) -> Iterator[Finding]:
    if run.overloaded_without_delay:
        yield Finding(10, f"{run.overloaded_without_delay} refusals for load did not say when to come back")


def _nothing_grows(run: Run) -> Iterator[Finding]:
    if run.leases:
        yield Finding(11, f"{run.leases} leases of dead nodes are left")


def _by_id(calls: Iterable[Call]) -> dict[str, list[Call]]:
    found: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        found[call.transaction_id].append(call)
    return found


def linearizable(calls: Sequence[Call]) -> bool:
    """Return whether some order of the calls of one id, true to real time, explains every answer.

    The model: the first call that takes effect fixes content and code; every later one with the same content gets that
    code; one with other content is refused. A call without an answer may take effect at any time after it
    began, or never. Wing and Gong's search with memory of visited states; one id has few calls.
    """
    done_by = [float("inf") if call.ended is None or call.outcome == "unknown" else call.ended for call in calls]
    everything = frozenset(index for index, call in enumerate(calls) if call.outcome != "unknown")
    seen: set[tuple[frozenset[int], int | None]] = set()
    stack: list[tuple[frozenset[int], int | None]] = [(frozenset(), None)]
    while stack:
        state = stack.pop()
        if state in seen:
            continue
        seen.add(state)
        taken, first = state
        if everything <= taken:
            return True
        rest = [index for index in range(len(calls)) if index not in taken]
        horizon = min(done_by[index] for index in rest)
        for index in rest:
            # Only what began before every other pending call had ended may come next.
            if calls[index].began <= horizon and (after := _next(calls, index, first)) is not None:
                stack.append((taken | {index}, after[0]))
    return False


def _next(calls: Sequence[Call], index: int, first: int | None) -> tuple[int | None] | None:
    """Return the state after `calls[index]` takes effect, in a tuple; None if it cannot do so now."""
    call = calls[index]
    if call.outcome == "refused":
        explained = call.reason != _REUSED or (first is not None and not _same_content(call, calls[first]))
        return (first,) if explained else None
    if first is None:
        return (index,)
    if call.outcome == "unknown":
        return (first,)
    # The founder itself may have had no answer; then the first that had one tells the code.
    digests = {one.digest for one in (calls[first], call) if one.outcome == "ok"}
    return (first,) if _same_content(call, calls[first]) and len(digests) == 1 else None


def _same_content(one: Call, other: Call) -> bool:
    return (one.pan, one.amount_pence) == (other.pan, other.amount_pence)
