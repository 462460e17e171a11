"""Steps 5 and 6: GroupCommitter signs waiting vends and commits them in groups; nothing leaves it before its commit.

The batch that signs is the batch that commits, and the next one leaves when it has returned. So it sizes itself: alone,
a vend goes at once; under load, up to `batch_max` go together. No timer.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from core.domain.authorization import Permit
from core.domain.delivery import NOT_REQUESTED
from core.domain.effective_dated import FAR_FUTURE, NEVER, Ms, instant_of, ms_of
from core.domain.errors import (
    LedgerUnavailable,
    NotReady,
    OutcomeUnknown,
    Overloaded,
    Refused,
    ShuttingDown,
    UtrnError,
)
from core.domain.invariant import check
from core.domain.utrn import Counter, Utrn, truncated_counter
from core.domain.utrn_value import CodeValue
from core.domain.vend import Operation, Sale, Vend
from core.issuing.counter_cache import Counters, SequenceKey, check_balance
from core.issuing.recent_vends import Issued, NotCommitted, RecentVends, VendAnswer, replay
from core.metrics import Stage, StageTimes
from core.ports.audit_log import AuditLog
from core.ports.clock import Clock
from core.ports.ledger import (
    Closed,
    CommitOutcome,
    Committed,
    CounterMoved,
    CounterState,
    Entry,
    Found,
    Ledger,
    Present,
    RegistrationMoved,
)
from core.ports.signer import SignRequest, TokenSigner

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class PendingVend:
    """A vend from its admission to its answer.

    `value` is what the code will carry. The vend is dated at `dated_from` or later and before `dated_before`: in the
    hour that it is charged to. `admitted_at` is by the monotonic clock; `attempts` counts how often it was signed.
    """

    sale: Sale
    permit: Permit
    value: CodeValue
    dated_from: Ms
    dated_before: Ms
    answer: asyncio.Future[VendAnswer]
    admitted_at: float
    attempts: int = 0

    @property
    def sequence(self) -> SequenceKey:
        """The counter sequence the code belongs to."""
        return self.permit.authorization.originator_id, self.permit.authorization.meter_id


class GroupCommitter:
    """Owns every vend from its admission to its answer. A caller that goes away changes nothing here.

    `batches` and `batched` count group commits and the vends in them.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        signer: TokenSigner,
        counters: Counters,
        answers: RecentVends,
        clock: Clock,
        times: StageTimes,
        audit_log: AuditLog,
        batch_max: int,
        in_flight_max: int,
        attempts_max: int,
    ) -> None:
        self._ledger = ledger
        self._signer = signer
        self._counters = counters
        self._answers = answers
        self._clock = clock
        self._times = times
        self._audit_log = audit_log
        self._batch_max = batch_max
        self._in_flight_max = in_flight_max
        self._attempts_max = attempts_max
        self._in_flight = 0
        self.batches = 0
        self.batched = 0
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        # A pending vend is in one of these, or in the batch under way: waiting, to be signed again, or behind another
        # one of its counter sequence.
        self._waiting: deque[PendingVend] = deque()
        self._again: deque[PendingVend] = deque()
        self._behind: dict[SequenceKey, deque[PendingVend]] = {}
        self._work = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """How many vends wait or are being committed."""
        return self._in_flight

    def submit(
        self,
        sale: Sale,
        permit: Permit,
        value: CodeValue,
        *,
        dated_from: Ms = NEVER,
        dated_before: Ms = FAR_FUTURE,
    ) -> asyncio.Future[VendAnswer]:
        """Take a vend in and return its future answer; cancelling the future does not cancel the vend.

        Args:
            sale: What is asked for.
            permit: What allows it.
            value: What its code will carry.
            dated_from: Earliest instant of the vend, inclusive.
            dated_before: Latest instant of the vend, exclusive.

        Raises:
            Overloaded, ShuttingDown: nothing was done.
        """
        if self._closed:
            raise ShuttingDown("this node is leaving service; another will answer")
        if self._in_flight >= self._in_flight_max:
            raise Overloaded("too many vends wait at this node; repeat the same transaction_id after the delay")
        answer = asyncio.get_running_loop().create_future()
        now = self._clock.monotonic()
        self._in_flight += 1
        self._idle.clear()
        self._waiting.append(PendingVend(sale, permit, value, dated_from, dated_before, answer, now))
        self._work.set()
        return answer

    async def drain(self) -> None:
        """Admit nothing more, and return when every admitted vend has its answer."""
        self._closed = True
        await self._idle.wait()

    async def run(self) -> NoReturn:
        """Sign and commit for ever."""
        while True:
            await self._work.wait()
            taken = self._take()
            if not taken:
                self._work.clear()
                continue
            batch = await self._sign(taken)
            if batch:
                await self._commit(batch)

    def _take(self) -> list[PendingVend]:
        """Return the next vends, at most one per counter sequence."""
        taken: list[PendingVend] = []
        while self._again and len(taken) < self._batch_max:
            taken.append(self._again.popleft())
        while self._waiting and len(taken) < self._batch_max:
            pending = self._waiting.popleft()
            behind = self._behind.get(pending.sequence)
            if behind is None:
                self._behind[pending.sequence] = deque()
                taken.append(pending)
            else:
                behind.append(pending)
        return taken

    async def _sign(self, taken: list[PendingVend]) -> list[tuple[PendingVend, Entry]]:
        """Return the vends that are signed, each with what is to be committed; the others have failed."""
        started = self._clock.monotonic()
        for pending in taken:
            self._times.record(Stage.WAIT, started - pending.admitted_at)
        states = await self._states(taken)
        ready = [(pending, state) for pending, state in zip(taken, states, strict=True) if self._admit(pending, state)]
        asked = [
            (pending, state, self._request(pending, state))
            for pending, state in ready
            if pending.sale.code is None and state is not None
        ]
        codes = iter(await self._signer.sign([request for _, _, request in asked]) if asked else ())
        batch: list[tuple[PendingVend, Entry]] = []
        for pending, state in ready:
            check(state is not None, "an admitted vend has its counter sequence")
            if state is None:
                continue
            code = pending.sale.code or self._proven(next(codes), state)
            if isinstance(code, UtrnError):
                self._fail(pending, code)
                continue
            try:
                vend = self._vend(pending, *code)
            except NotReady as error:
                self._fail(pending, error)
                continue
            if ms_of(vend.issued_at) >= min(pending.permit.until, pending.dated_before):
                # It waited past the instant up to which it was allowed. The counter is not spent: nobody saw the code.
                self._tell(pending, NotCommitted.AUTHORIZE_AGAIN)
                continue
            permit = pending.permit
            batch.append((pending, Entry(vend=vend, seen=state, told=permit.told, until=permit.until)))
        self._times.record(Stage.SIGN, self._clock.monotonic() - started)
        return batch

    async def _states(self, taken: list[PendingVend]) -> list[CounterState | None]:
        """Return the counter sequence of each vend; None where it could not be read, and the vend has failed."""
        # What another generator made is held against what is known now: it is not signed again if that has moved.
        states = [None if pending.sale.code else self._counters.get(pending.sequence) for pending in taken]
        unread = [pending for pending, state in zip(taken, states, strict=True) if state is None]
        if not unread:
            return list(states)
        try:
            read = iter(await self._ledger.counters([pending.sequence for pending in unread]))
        except LedgerUnavailable as error:
            for pending in unread:
                self._fail(pending, error)
            return list(states)
        found: list[CounterState | None] = []
        for pending, state in zip(taken, states, strict=True):
            told = state if state is not None else next(read)
            if isinstance(told, LedgerUnavailable):
                self._fail(pending, told)
            found.append(None if isinstance(told, LedgerUnavailable) else told)
        return found

    def _admit(self, pending: PendingVend, state: CounterState | None) -> bool:
        if state is None:
            return False
        try:
            check_balance(pending.permit.told, state, pending.sale.amount)
            if pending.sale.code is not None:
                self._counters.check_externally_issued(state, pending.sale.code[1])
            elif self._counters.check_room(state):
                log.warning(
                    "many codes of a meter are not known to be used",
                    extra={"meter_id": pending.permit.authorization.meter_id, "unapplied": state.unapplied + 1},
                )
        except Refused as refusal:
            self._counters.put(pending.sequence, state)
            self._fail(pending, refusal)
            return False
        return True

    @staticmethod
    def _request(pending: PendingVend, state: CounterState) -> SignRequest:
        permit = pending.permit
        return SignRequest(
            scheme=permit.scheme,
            key=permit.key,
            meter_id=permit.authorization.meter_id,
            meter_point=permit.public_point,
            counter=state.next,
            value=pending.value,
        )

    @staticmethod
    def _proven(code: Utrn | UtrnError, state: CounterState) -> tuple[Utrn, Counter] | UtrnError:
        if isinstance(code, UtrnError):
            return code
        check(truncated_counter(code) == state.next % 1024, "a code carries the counter it was asked for")
        return code, state.next

    def _vend(self, pending: PendingVend, utrn: Utrn, counter: Counter) -> Vend:
        # A node whose clock is a little slow must not date a vend before the change of hands it comes after, nor before
        # the hour that it is charged to.
        now = max(self._clock.now(), instant_of(max(pending.permit.since, pending.dated_from)))
        return Vend(
            sale=pending.sale,
            authorization=pending.permit.authorization,
            utrn=utrn,
            counter=counter,
            issued_at=now,
            delivery=NOT_REQUESTED if pending.sale.operation is Operation.ISSUE else NOT_REQUESTED.queue(now),
        )

    async def _commit(self, batch: list[tuple[PendingVend, Entry]]) -> None:
        started = self._clock.monotonic()
        outcomes = await self._ledger.commit([entry for _, entry in batch])
        self._times.record(Stage.COMMIT, self._clock.monotonic() - started)
        self.batches += 1
        self.batched += len(batch)
        self._settle(batch, outcomes)

    def _settle(self, batch: Sequence[tuple[PendingVend, Entry]], outcomes: Sequence[CommitOutcome]) -> None:
        for (pending, entry), outcome in zip(batch, outcomes, strict=True):
            match outcome:
                case Committed():
                    check(outcome.stored.vend == entry.vend, "what was committed is what was signed")
                    self._audit_log.note_sale(entry.vend, outcome.stored.revision)
                    self._counters.put(pending.sequence, outcome.counter)
                    self._answer(pending, Issued(outcome.stored, replayed=False))
                case Present():
                    if outcome.stored.vend.utrn == entry.vend.utrn:
                        # An earlier sending was carried out; the delivery record has changed since.
                        self._audit_log.note_sale(entry.vend, outcome.stored.revision)
                    self._counters.forget(pending.sequence)
                    if outcome.stored.vend.same_code(entry.vend):
                        # An earlier sending was carried out and its answer lost; the delivery has moved since.
                        self._answer(pending, Issued(outcome.stored, replayed=False))
                    else:
                        self._answer_found(pending, outcome.stored)
                case Closed():
                    self._counters.forget(pending.sequence)
                    self._answers.remember(outcome.refusal)
                    self._answer_found(pending, outcome.refusal)
                case CounterMoved():
                    self._counters.put(pending.sequence, outcome.counter)
                    self._sign_again(pending)
                case RegistrationMoved():
                    self._tell(pending, NotCommitted.AUTHORIZE_AGAIN)
                case UtrnError():
                    if isinstance(outcome, OutcomeUnknown):
                        self._audit_log.note_sale(entry.vend, 0)
                    self._counters.forget(pending.sequence)
                    self._fail(pending, outcome)

    def _answer_found(self, pending: PendingVend, found: Found) -> None:
        try:
            self._answer(pending, replay(pending.sale, found))
        except UtrnError as error:
            self._fail(pending, error)

    def _sign_again(self, pending: PendingVend) -> None:
        pending.attempts += 1
        if pending.attempts >= self._attempts_max:
            self._fail(
                pending, Overloaded("other nodes keep issuing codes for this meter; repeat the same transaction_id")
            )
            return
        self._again.append(pending)
        self._work.set()

    def _answer(self, pending: PendingVend, issued: Issued) -> None:
        self._answers.remember(issued.stored)
        self._times.record(Stage.ISSUE, self._clock.monotonic() - pending.admitted_at)
        self._tell(pending, issued)

    def _tell(self, pending: PendingVend, answer: VendAnswer) -> None:
        if not pending.answer.done():
            pending.answer.set_result(answer)
        self._release(pending)

    def _fail(self, pending: PendingVend, error: UtrnError) -> None:
        if not pending.answer.done():
            pending.answer.set_exception(error)
            # Mark it as seen: the caller may be gone, and the error has been told to nobody else.
            pending.answer.exception()
        self._release(pending)

    def _release(self, pending: PendingVend) -> None:
        """Move the next vend of the same counter sequence to the waiting vends."""
        behind = self._behind.get(pending.sequence)
        if behind:
            self._again.append(behind.popleft())
            self._work.set()
        else:
            self._behind.pop(pending.sequence, None)
        self._in_flight -= 1
        if self._in_flight == 0:
            self._idle.set()
