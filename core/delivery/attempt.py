"""One attempt to deliver one code: hear late news, ask, send, wait, and write down what is known. Keeps nothing."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from core.delivery.duplicate_proof import DuplicateProof, SpentHere
from core.delivery.observations import AttemptObservation, Mailbox
from core.delivery.origins import Origins, Received
from core.delivery.outcomes import ALREADY_CREDITED, DUPLICATE, Ended, Next, Verdict
from core.delivery.waiting import Parked
from core.domain.delivery import Delivery, DeliveryReason, DeliveryState
from core.domain.effective_dated import NEVER, Ms, ms_of
from core.domain.errors import DeliveryChanged, Deposed, HeadEndRefused, HeadEndStale, HeadEndUnavailable, UtrnError
from core.domain.invariant import InvariantBroken
from core.domain.message_id import new_random_part
from core.domain.record import ReadSet
from core.domain.vend import Vend
from core.issuing.config import DeliveryConfig
from core.metrics import Stage, StageTimes
from core.ports.clock import Clock
from core.ports.head_end import AddCredit, HeadEnd, MessageState
from core.ports.ledger import StoredVend
from core.ports.outbox import DeliveryChange, Outbox
from core.ports.random import Random

log = logging.getLogger(__name__)

_ENDED_HEAD_END_REFUSED = Ended(DeliveryState.REFUSED, DeliveryReason.HEAD_END_REFUSED)


@dataclass(frozen=True, slots=True)
class Done:
    """The delivery has ended, and the ledger says so."""

    stored: StoredVend


@dataclass(frozen=True, slots=True)
class Later:
    """Try again after `delay_s`, or as soon as there is news."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Aside:
    """The code may not be sent any more: ask about it after `delay_s`, or on news. Nobody waits for it."""

    delay_s: float


AttemptEnd = Done | Later | Aside | Parked


class _NotOurs(Exception):
    """The ledger refused a write: another owner is at work, or the vend has moved on."""


class _RepeatRefused(Exception):
    """The head end will not carry the code again; what became of an earlier send is not known."""


class _NotSent(Exception):
    """The code was not handed to the head end, although the ledger says that it was about to be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptDelivery:
    """Makes one attempt. All its state is in the ledger, so any owner can make the next one.

    `lapsed` says why a code may not be sent any more, although it may have been when it was sold, None if it may; and
    by which records. `reached_by` names the head end that reaches a vend's meter now. `origins` decides which head end
    may speak of what. `spent_here` says whether this service alone spends a sequence's counters, and by which records.
    `random_part` draws that of a message's id.
    `utc_ahead` is how far the head ends' clocks, which are right, may be ahead of cluster time. `in_flight` counts the
    attempts under way by head end, of which there are never more than it wants.
    """

    outbox: Outbox
    head_ends: Mapping[str, HeadEnd]
    clock: Clock
    times: StageTimes
    random: Random
    config: DeliveryConfig
    utc_ahead: Callable[[], timedelta]
    origins: Origins
    lapsed: Callable[[Vend], tuple[DeliveryReason | None, ReadSet]] = lambda _: (None, ())
    reached_by: Callable[[Vend], str] = lambda vend: vend.head_end
    spent_here: SpentHere = lambda *_: (True, ())
    random_part: Callable[[], str] = new_random_part
    in_flight: Counter[str] = field(default_factory=Counter)

    async def __call__(
        self, stored: StoredVend, *, shard: int, epoch: int, ours: Callable[[], bool], mailbox: Mailbox
    ) -> AttemptEnd | None:
        """Return how the attempt ended; None if the ledger says that it is not ours to make.

        Args:
            stored: The vend, with its delivery owed.
            shard: The shard of its meter.
            epoch: The epoch of this owner; every write is refused under another one.
            ours: Whether this node may still work on the shard under `epoch`, as far as it knows.
            mailbox: News of its meter.
        """
        name = ""
        try:
            name = self.reached_by(stored.vend)
            head_end = self.head_ends.get(name)
            attempt = _Attempt(self, name, head_end, stored, shard, epoch, ours, mailbox)
            decided = await attempt.end_without_head_end()
            if decided is not None:
                return decided
            if head_end is None or not head_end.available:
                return Parked(name, stored.vend.delivery.queued_at or stored.vend.issued_at)
            most = (await head_end.capabilities()).in_flight_max
            if 0 < most <= self.in_flight[name]:
                return Later(self.back_off_s(1))
            self.in_flight[name] += 1
            try:
                return await attempt.run()
            finally:
                self.in_flight[name] -= 1
        except _NotOurs:
            return None
        except (HeadEndUnavailable, HeadEndStale, _NotSent) as error:
            log.info("a code was not handed over", extra={"head_end": name, "error": str(error)})
            return Later(self.back_off_s(max(1, stored.vend.delivery.attempts)))
        except UtrnError as error:
            log.warning("the ledger did not take a delivery's state", extra={"error": error.message})
            return Later(self.back_off_s(1))

    def carriers(self, vend: Vend) -> frozenset[str]:
        """Return the head ends that may tell what becomes of a vend's code: who had it before, and who reaches it.

        Raises:
            NotReady: the meter's record is set aside.
        """
        return frozenset({self.reached_by(vend), *vend.delivery.head_ends})

    def back_off_s(self, attempts: int) -> float:
        """Return the seconds before the next attempt: doubled each time, capped, with jitter of half its length."""
        most = min(self.config.back_off_first_ms * 2 ** min(attempts - 1, 30), self.config.back_off_most_ms)
        return self.random.uniform(most / 2, most) / 1000


class _Attempt:
    """One attempt under way."""

    def __init__(
        self, by: AttemptDelivery, name: str, head_end: HeadEnd | None, stored: StoredVend, shard: int, epoch: int,
        ours: Callable[[], bool], mailbox: Mailbox,
    ) -> None:  # fmt: skip
        self._by = by
        self._config = by.config
        self._name = name
        self._reached = head_end
        self._stored = stored
        self._shard = shard
        self._epoch = epoch
        self._ours = ours
        self._mailbox = mailbox
        self._hearing = AttemptObservation(lambda: self._stored.vend, name, by.origins, by.config.trust_unnamed_alerts)
        self._prove = DuplicateProof(outbox=by.outbox, spent_here=by.spent_here)
        # By which records a duplicate was found to prove a credit, or not to.
        self._proof: ReadSet = ()

    @property
    def _delivery(self) -> Delivery:
        return self._stored.vend.delivery

    @property
    def _head_end(self) -> HeadEnd:
        if self._reached is None:
            raise InvariantBroken("an attempt without a head end asks and sends nothing")
        return self._reached

    async def end_without_head_end(self) -> AttemptEnd | None:
        """End what needs no head end: what news that is here decides, and what was never sent and may not be any more.

        None if the delivery goes on.
        """
        verdict = await self._drain_inbox()
        if isinstance(verdict, Ended) and self._is_of_an_earlier_send(verdict):
            verdict = await self._await_outcome(verdict)
        if isinstance(verdict, Ended):
            return await self._close(verdict, self._proof or self._hearing.known_by)
        if self._delivery.attempts:
            return None
        lapsed, read_set = self._by.lapsed(self._stored.vend)
        return None if lapsed is None else await self._lapse(lapsed, read_set)

    async def run(self) -> AttemptEnd:
        """Make the attempt. It gives up only after a send that the head end took: a head end that was away owes one."""
        verdict = await self._ask() if self._delivery.attempts else Next.TRY_AGAIN
        if verdict is Next.WAIT:
            verdict = await self._await_outcome()
        if not isinstance(verdict, Ended):
            lapsed, read_set = self._by.lapsed(self._stored.vend)
            if lapsed is not None:
                return await self._lapse(lapsed, read_set)
            if verdict is Next.ASK_AGAIN:
                # The code is on its way, as far as is known: that the stream broke is no reason to send it again.
                if self._exhausted(cut_short=True):
                    return await self._enter_by_hand(cut_short=True)
                return Later(self._by.back_off_s(1))
            # Also if the head end says that the code is on its way: it may have lost it since, and a repeat of the same
            # message does no harm.
            try:
                verdict = await self._send_and_listen(read_set)
            except _RepeatRefused:
                return await self._ask_on(DeliveryReason.HEAD_END_REFUSED, read_set)
        if isinstance(verdict, Ended):
            return await self._close(verdict, self._proof or self._hearing.known_by)
        cut_short = verdict is Next.ASK_AGAIN
        self._mailbox.cut_short += cut_short
        if self._exhausted(cut_short=cut_short):
            return await self._enter_by_hand(cut_short=cut_short)
        await self._write(self._delivery.mark_outcome_unknown(self._epoch))
        return Later(self._by.back_off_s(self._delivery.attempts))

    async def _lapse(self, lapsed: DeliveryReason, read_set: ReadSet) -> AttemptEnd:
        """End what may not be sent any more, unless it was sent before: then only asking can tell."""
        if not self._delivery.attempts:
            return await self._close(Ended(DeliveryState.REFUSED, lapsed), read_set)
        return await self._ask_on(lapsed, read_set)

    async def _ask_on(self, reason: DeliveryReason, read_set: ReadSet) -> AttemptEnd:
        """Go on asking about what was sent and may not, or cannot, be sent again; in the end it is somebody's task."""
        if self._exhausted():
            # It may have been credited. No consumer can be told to enter it: that, too, is its supplier's to find out.
            return await self._close(Ended(DeliveryState.NEEDS_CHECK, reason), read_set, self._given_up_at())
        return Aside(self._by.back_off_s(self._delivery.attempts))

    async def _drain_inbox(self) -> Verdict:
        """Return what came in since the last attempt; TRY_AGAIN if nothing decides."""
        found: Verdict = Next.TRY_AGAIN
        while (received := await self._mailbox.get(0)) is not None:
            verdict = await self._heard(received)
            if isinstance(verdict, Ended):
                found = _surer(found, verdict)
        return found

    async def _heard(self, received: Received) -> Verdict:
        """Return what is known after `received`; a duplicate that proves the credit is the credit."""
        verdict = self._hearing.hear(received)
        if verdict is not DUPLICATE:
            return verdict
        vend = self._stored.vend
        proven, self._proof = await self._prove(vend.meter_id, vend.originator_id, vend.counter)
        return ALREADY_CREDITED if proven else DUPLICATE

    async def _ask(self) -> Verdict:
        """Return what the head end knows of its earlier attempts, if it made any; WAIT if the code is on its way."""
        if self._name not in self._delivery.head_ends or not (await self._head_end.capabilities()).status_by_message_id:
            return Next.TRY_AGAIN
        status = await self._head_end.status(self._stored.vend.message_id)
        if isinstance(status, MessageState):
            return Next.WAIT if status is MessageState.IN_FLIGHT else Next.TRY_AGAIN
        verdict = await self._heard(Received(self._name, status))
        # Asked, a head end repeats the old unexplained refusal for ever; only a new attempt can bring its alert again.
        return Next.TRY_AGAIN if verdict is Next.EXPLAIN else verdict

    async def _send_and_listen(self, read_set: ReadSet) -> Verdict:
        began, now = self._by.clock.monotonic(), self._by.clock.now()
        not_after = now + self._by.utc_ahead() + timedelta(milliseconds=self._config.send_within_ms)
        sending = self._delivery.send(now, self._epoch, head_end=self._name, random_part=self._by.random_part())
        await self._write(sending, read_set)
        news = await self._drain_inbox()
        if isinstance(news, Ended):
            return news
        self._check_still_ours(began)
        started = self._by.clock.monotonic()
        try:
            await self._head_end.send(message_of(self._stored.vend, owner_epoch=self._epoch, not_after=not_after))
        except HeadEndRefused as refused:
            log.warning("the head end will not carry a code", extra={"error": str(refused)})
            if self._delivery.attempts > 1:
                # An earlier send may have brought the credit: a refusal of this one says nothing about that.
                await self._write(self._delivery.mark_outcome_unknown(self._epoch))
                raise _RepeatRefused from refused
            return _ENDED_HEAD_END_REFUSED
        self._by.times.record(Stage.SEND, self._by.clock.monotonic() - started)
        verdict = await self._await_outcome()
        self._by.times.record(Stage.ANSWER, self._by.clock.monotonic() - started)
        return verdict

    def _check_still_ours(self, began: float) -> None:
        """Return if what was written at `began`, or just after, still allows to send; raise _NotSent if not.

        This process may have stood still since: stopped, starved, or waiting for the ledger. What stops it between here
        and the wire is left to `not_after` and `owner_epoch`, which the head end looks at.
        """
        took = self._by.clock.monotonic() - began
        if took >= self._config.send_within_ms / 1000:
            raise _NotSent(f"{took:.1f} s lay between the decision to send and the send")
        if not self._ours():
            raise _NotSent("the shard may have another owner by now")
        if self._by.lapsed(self._stored.vend)[0] is not None:
            raise _NotSent("the meter has changed hands meanwhile")

    def _is_of_an_earlier_send(self, ended: Ended) -> bool:
        """Return whether a refusal may be the answer to an earlier send than the last, which has had no time yet."""
        last = self._delivery.last_sent_at
        if ended.state is not DeliveryState.REFUSED or self._delivery.attempts <= 1 or last is None:
            return False
        return self._by.clock.now() - last < timedelta(milliseconds=self._config.answer_wait_ms)

    async def _await_outcome(self, refusal: Verdict = Next.TRY_AGAIN) -> Verdict:
        """Return what is known when something decides, or when waiting longer is no use; `refusal` is known already."""
        wait_ms = self._config.explain_wait_ms if isinstance(refusal, Ended) else self._config.answer_wait_ms
        until = self._by.clock.monotonic() + wait_ms / 1000
        while (left := until - self._by.clock.monotonic()) > 0:
            received = await self._mailbox.get(left)
            if received is None:
                break
            verdict = await self._heard(received)
            if verdict in (Next.TRY_AGAIN, Next.ASK_AGAIN):
                return verdict
            if isinstance(verdict, Ended):
                refused = verdict.state is DeliveryState.REFUSED
                if verdict.state is DeliveryState.APPLIED or (refused and self._delivery.attempts <= 1):
                    return verdict
                # After several sends a refusal may be the answer to an earlier one: leave the last one time to credit.
                # And what a duplicate leaves open, an answer held up on its way may settle.
                refusal = _surer(refusal, verdict)
            if verdict is Next.EXPLAIN or isinstance(refusal, Ended):
                until = min(until, self._by.clock.monotonic() + self._config.explain_wait_ms / 1000)
        return refusal

    def _exhausted(self, *, cut_short: bool = False) -> bool:
        """Return whether there were attempts or time enough; `cut_short` if the last had no time for its answer."""
        return self._tried_enough(cut_short) or ms_of(self._by.clock.now()) >= self._give_up_at()

    def _tried_enough(self, cut_short: bool) -> bool:
        """Return whether so many sends as are allowed had the time for their answers."""
        return self._delivery.attempts - self._mailbox.cut_short >= self._config.attempts_max and not cut_short

    def _given_up_at(self, *, cut_short: bool = False) -> Ms:
        """Return before when the delivery may not be given up; whenever, if by the number of attempts."""
        return NEVER if self._tried_enough(cut_short) else self._give_up_at()

    def _give_up_at(self) -> Ms:
        since = self._delivery.queued_at or self._by.clock.now()
        return Ms(ms_of(since) + self._config.give_up_after_s * 1000)

    async def _enter_by_hand(self, *, cut_short: bool = False) -> Done:
        reason = DeliveryReason.UNEXPLAINED if self._hearing.unexplained else DeliveryReason.NO_ANSWER
        ended, not_before = Ended(DeliveryState.ENTER_BY_HAND, reason), self._given_up_at(cut_short=cut_short)
        return await self._close(ended, not_before=not_before)

    async def _close(self, ended: Ended, read_set: ReadSet = (), not_before: Ms = NEVER) -> Done:
        now = self._by.clock.now()
        await self._write(self._delivery.close(ended.state, ended.reason, now, self._epoch), read_set, not_before)
        if self._delivery.queued_at is not None:
            self._by.times.record(Stage.DELIVER, (now - self._delivery.queued_at).total_seconds())
        return Done(self._stored)

    async def _write(self, delivery: Delivery, read_set: ReadSet = (), not_before: Ms = NEVER) -> None:
        """Write the delivery's next state under our epoch, while `read_set` stands, or end the attempt."""
        change = DeliveryChange(
            shard=self._shard,
            epoch=self._epoch,
            stored=self._stored,
            delivery=delivery,
            read_set=read_set,
            not_before=not_before,
        )
        (outcome,) = await self._by.outbox.write([change])
        if isinstance(outcome, DeliveryChanged) and read_set:
            # The meter's record may be another one than this node's copy has: the next attempt goes by the ledger's.
            await self._by.origins.read_again(self._stored.vend.meter_id)
        if isinstance(outcome, Deposed | DeliveryChanged):
            raise _NotOurs from outcome
        if isinstance(outcome, UtrnError):
            raise outcome
        self._stored = outcome


def _surer(verdict: Verdict, other: Ended) -> Ended:
    """Return which of two verdicts on a code stands: a credit does, then a duplicate, then whichever came last."""
    if not isinstance(verdict, Ended) or other.state is DeliveryState.APPLIED:
        return other
    return verdict if verdict.state in (DeliveryState.APPLIED, DeliveryState.NEEDS_CHECK) else other


def message_of(vend: Vend, *, owner_epoch: int, not_after: datetime) -> AddCredit:
    """Return the Add Credit of a vend: the same one for ever, but for who sends it and until when it may be taken."""
    return AddCredit(
        message_id=vend.message_id,
        meter_id=vend.meter_id,
        meter_kind=vend.meter_kind,
        originator_id=vend.originator_id,
        counter=vend.counter,
        utrn=vend.utrn,
        owner_epoch=owner_epoch,
        not_after=not_after,
    )
