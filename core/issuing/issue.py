"""Steps 3 to 6 in order: find the earlier answer, authorize, charge, sign, commit. The one way codes are issued."""

import asyncio
import logging
from dataclasses import dataclass

from core.domain.authorization import Permit
from core.domain.effective_dated import FAR_FUTURE, NEVER, Ms, ms_of
from core.domain.errors import (
    FENCED,
    CeilingReached,
    DeadlineTooShort,
    Refused,
    RegistryMoved,
    TransactionIdReused,
)
from core.domain.invariant import check
from core.domain.participant import Principal
from core.domain.transaction_id import check_window
from core.domain.utrn import value_of
from core.domain.utrn_value import CodeValue, code_value
from core.domain.vend import Operation, Sale, check_same
from core.issuing.authorize import Authorize
from core.issuing.ceilings import Ceilings
from core.issuing.config import FlowConfig
from core.issuing.group_commit import GroupCommitter
from core.issuing.recent_vends import Issued, NotCommitted, RecentVends, VendAnswer, key_of, replay
from core.issuing.refuse_sale import RefuseSale
from core.ports.audit_context import NOTES
from core.ports.clock import Clock
from core.ports.registry import Registry

log = logging.getLogger(__name__)

# Each time the registry has changed under the vend, within milliseconds.
_ASKED_AGAIN_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueVend:
    """Issues the one code of one vend, or takes in the code made elsewhere."""

    authorize: Authorize
    answers: RecentVends
    line: GroupCommitter
    clock: Clock
    config: FlowConfig
    refuse: RefuseSale
    ceilings: Ceilings

    async def __call__(
        self, principal: Principal, sale: Sale, *, time_left_s: float | None, repeat: bool = False
    ) -> Issued:
        """Return the committed code of `sale`; the same one however often it is asked.

        Args:
            principal: Who asks; the sale is theirs.
            sale: What is asked, bounds checked.
            time_left_s: Seconds until the caller stops waiting; None for no limit.
            repeat: The caller has asked under this id before; a refusal closes the id.

        Raises:
            Refused: the class says why, `final` what it proves.
            Retryable: nothing was done; repeat the same transaction_id.
            OutcomeUnknown: repeat the same transaction_id.
        """
        check(principal.participant_id == sale.participant_id, "a sale belongs to the caller")
        snapshot: Registry | None = None
        for _ in range(_ASKED_AGAIN_MAX):
            answer = await self._answer_in_flight(sale)
            if isinstance(answer, Issued):
                return answer
            if answer is None and time_left_s is not None and time_left_s * 1000 < self.config.least_deadline_ms:
                raise DeadlineTooShort(f"less than {self.config.least_deadline_ms} ms are left of the deadline")
            try:
                answer = answer or await self._begin(principal, sale, snapshot)
                # Shielded: a caller that goes away must not take the answer from the others that wait for it.
                told = await asyncio.shield(answer) if isinstance(answer, asyncio.Future) else answer
            except Refused as refusal:
                return await self._refused(sale, refusal, repeat=repeat)
            if isinstance(told, Issued):
                return told
            if told is NotCommitted.AUTHORIZE_AGAIN:
                log.info("a record moved under a vend; it is authorized again")
            # A change of the meter is due, or a record has moved under the vend: the ledger says what holds now.
            snapshot = await self.authorize.refresh(principal, sale.pan)
        raise _registry_moved()

    async def _answer_in_flight(self, sale: Sale) -> Issued | asyncio.Future[VendAnswer] | None:
        """Return the answer given lately, or the one that an earlier request for the same vend waits for; else None.

        A request with other content under the same id waits until the first one is decided: only a committed vend may
        refuse it for good.

        Raises:
            TransactionIdReused: the committed vend has other content.
            Refused: fenced: the id is closed.
        """
        key = key_of(sale)
        while True:
            recent = self.answers.recent(key)
            if recent is not None:
                return replay(sale, recent)
            earlier = self.answers.in_flight(key)
            if earlier is None:
                return None
            first, answer = earlier
            try:
                check_same(sale, first)
            except TransactionIdReused:
                await asyncio.wait((answer,))
            else:
                return answer

    async def _begin(
        self, principal: Principal, sale: Sale, snapshot: Registry | None
    ) -> Issued | asyncio.Future[VendAnswer] | None:
        """Return the answer of a new vend, or its future; None if a change of the meter must be carried out first."""
        self._check_window(sale)
        permit = self.authorize.now(
            principal,
            sale.operation,
            sale.pan,
            amount=sale.amount,
            channel=0 if sale.operation is Operation.CREDIT else sale.channel,
            ask=sale.transaction_id,
            snapshot=snapshot,
        )
        if permit is None:
            return None
        if sale.code is not None:
            # Money that another generator has made: this service makes none by delivering it.
            return self._submit(sale, permit)
        return await self._charged(sale, permit, snapshot)

    async def _charged(
        self, sale: Sale, permit: Permit, snapshot: Registry | None
    ) -> Issued | asyncio.Future[VendAnswer]:
        """Return the future answer of a vend that is charged to its seller's ceiling."""
        seller = (snapshot or self.authorize.registry).participant(sale.participant_id)
        at = max(ms_of(self.clock.now()), permit.since)
        try:
            charge = await self.ceilings.take(sale.participant_id, seller, sale.amount, at)
        except CeilingReached:
            notes = NOTES.get()
            if notes is not None:
                # What was decided before allowed the sale: the audit log is to have the refusal too.
                notes.decided = False
            raise
        begun = False
        try:
            # While this request waited, another request may have begun the same vend.
            earlier = await self._answer_in_flight(sale)
            if earlier is not None:
                return earlier
            answer = self._submit(sale, permit, dated_from=charge.since, dated_before=charge.until)
            begun = True
        finally:
            if not begun:
                charge.release()
        answer.add_done_callback(charge.settle)
        return answer

    def _submit(
        self, sale: Sale, permit: Permit, *, dated_from: Ms = NEVER, dated_before: Ms = FAR_FUTURE
    ) -> asyncio.Future[VendAnswer]:
        answer = self.line.submit(sale, permit, _value(sale), dated_from=dated_from, dated_before=dated_before)
        self.answers.begin(sale, answer)
        return answer

    def _check_window(self, sale: Sale) -> None:
        """Return if the sale's id may be executed now."""
        check_window(
            sale.transaction_id,
            now=self.clock.now(),
            wall=self.clock.wall(),
            window=self.config.hot_window,
            ahead=self.config.ahead_max,
        )

    async def refused(self, sale: Sale, refusal: Refused, *, repeat: bool) -> Issued:
        """Answer a sale that is refused before it is authorized: its caller is suspended, or a field of it is wrong.

        Args:
            sale: What is asked, as it was asked: its fields are only compared with those of the committed vend.
            refusal: Why.
            repeat: As of a sale.

        Raises:
            As a sale.
        """
        try:
            answer = await self._answer_in_flight(sale)
            told = await asyncio.shield(answer) if isinstance(answer, asyncio.Future) else answer
        except Refused as decided:
            return await self._refused(sale, decided, repeat=repeat)
        if isinstance(told, Issued):
            return told
        if told is NotCommitted.AUTHORIZE_AGAIN:
            raise _registry_moved()
        return await self._refused(sale, refusal, repeat=repeat)

    async def _refused(self, sale: Sale, refusal: Refused, *, repeat: bool) -> Issued:
        """Return the answer this vend was given before; raise the refusal if it never was."""
        if refusal.final == FENCED or isinstance(refusal, TransactionIdReused):
            raise refusal
        stored = await self.refuse(sale.participant_id, sale.transaction_id, refusal, repeat=repeat)
        return replay(sale, stored)


def _registry_moved() -> RegistryMoved:
    return RegistryMoved("the registry changed while this was under way; repeat the same transaction_id")


def _value(sale: Sale) -> CodeValue:
    if sale.code is None:
        return code_value(sale.amount)
    value = value_of(sale.code[0])
    check(value.amount == sale.amount, "the amount of a code made elsewhere is read from its digits")
    return value
