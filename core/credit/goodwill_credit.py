"""Credit without payment: asked for by one person of a supplier, approved by another, counted against the day, issued.

The approval is the ledger's: request and day's total are written together. A crash after it loses nothing: deciding
again finds it approved, and issues the one code of its transaction id.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import cast

from core.access.roles import READERS, SUPPLIERS, require_owner, require_role
from core.domain.effective_dated import ms_of
from core.domain.errors import RecordChanged, RecordExists, RecordNotFound
from core.domain.goodwill_credit import (
    CreditDay,
    CreditRequest,
    CreditState,
    check_approver,
    check_asked,
    count_in,
    day_of,
    day_start,
)
from core.domain.invariant import check
from core.domain.participant import Participant, ParticipantId, Principal
from core.domain.record import Versioned
from core.domain.transaction_id import TransactionId, check_window, make_transaction_id
from core.domain.vend import Channel, Operation, Sale
from core.issuing.authorize import Authorize
from core.issuing.issue import IssueVend
from core.issuing.recent_vends import Issued
from core.ports.clock import Clock
from core.ports.registry import RegistryStore, RegistryWrite, StoredRecord
from core.transaction import Reads, Written, transact

# Of a supplier that approves many credits of one day at once.
_DECIDED_AGAIN_MAX = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditQuery:
    """Which requests are asked for: those of a UTC day ("": today), or all that wait; at most `limit`, after an id."""

    day: str = ""
    waiting_only: bool = False
    after: str = ""
    limit: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditReport:
    """A page of requests, the totals of the day, and after which id to go on; "" when all has been told."""

    requests: Sequence[CreditRequest]
    total: CreditDay
    next_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveGoodwillCredit:
    """Asks, decides, reports. `id_window` and `id_ahead` are how old and how new a transaction id may be."""

    store: RegistryStore
    authorize: Authorize
    issue: IssueVend
    clock: Clock
    id_window: timedelta
    id_ahead: timedelta

    async def ask(self, principal: Principal, asked: CreditRequest) -> CreditRequest:
        """Keep a request; the same one again changes nothing.

        Raises:
            RoleNotAllowed, AmountOutOfLimits, RecordExists, and every objection against a top-up of the PAN.
        """
        require_role(principal, SUPPLIERS)
        supplier = await self._supplier(self.store, principal)
        check_asked(supplier.record.profile_at(ms_of(self.clock.now())).credit, asked.amount)
        kept = asked

        async def attempt(reads: Reads) -> RegistryWrite | Written:
            nonlocal kept
            there = await reads.read(CreditRequest, principal.participant_id, asked.transaction_id)
            if there is not None:
                kept = there.record
                return Written(revision=there.revision, changed=False)
            _, objections = await self.authorize.objections(
                principal, Operation.CREDIT, asked.pan, amount=asked.amount, channel=0
            )
            if objections:
                raise objections[0]
            return RegistryWrite(put=[asked])

        await transact(self.store, attempt, overtaken=RecordChanged("others keep asking; repeat", kind="credit"))
        if (kept.pan, kept.amount, kept.reason) != (asked.pan, asked.amount, asked.reason):
            raise RecordExists("a request of this transaction_id has other content", kind="credit")
        return kept

    async def decide(
        self,
        principal: Principal,
        transaction_id: TransactionId,
        *,
        approve: bool,
        time_left_s: float | None,
        repeat: bool = False,
    ) -> tuple[CreditRequest, Issued | None]:
        """Decide a request, as another person than who asked; answer its code if it is approved.

        `repeat` is of the issue: what refuses the decision itself is not final, the request says where it stands.

        Raises:
            RoleNotAllowed, TwoPeopleNeeded, DailyLimit, RecordNotFound, RecordChanged, and whatever refuses an issue.
        """
        require_role(principal, SUPPLIERS)
        to = CreditState.APPROVED if approve else CreditState.REJECTED
        decided = await self._decided(principal, transaction_id, to)
        if decided.state is CreditState.REJECTED:
            return decided, None
        sale = Sale(
            participant_id=principal.participant_id,
            transaction_id=transaction_id,
            operation=Operation.CREDIT,
            pan=decided.pan,
            amount=decided.amount,
            channel=Channel.NOT_PAID,
        )
        return decided, await self.issue(principal, sale, time_left_s=time_left_s, repeat=repeat)

    async def report(self, principal: Principal, supplier_id: ParticipantId, asked: CreditQuery) -> CreditReport:
        """Return a page of a supplier's requests, and the totals of the day over all pages."""
        require_role(principal, READERS)
        require_owner(principal, supplier_id)
        day = asked.day or self.clock.now().date().isoformat()
        # Ids carry their time: nothing older can have been asked for or approved on the day.
        oldest = make_transaction_id(day_start(day) - self.id_window // timedelta(milliseconds=1), 0)
        after = asked.after or ("" if asked.waiting_only else oldest)
        start = f"{supplier_id}/{after}" if after else ""
        page = await self.store.list_records(CreditRequest, supplier_id, after=start, limit=asked.limit)
        found = [stored.record for stored in page]
        total = await self.store.read(CreditDay, supplier_id, day)
        return CreditReport(
            requests=[record for record in found if record.concerns(None if asked.waiting_only else day)],
            total=CreditDay(supplier_id=supplier_id, day=day) if total is None else total.record,
            next_key=found[-1].transaction_id if len(found) == asked.limit else "",
        )

    async def _decided(self, principal: Principal, transaction_id: TransactionId, to: CreditState) -> CreditRequest:
        supplier_id = principal.participant_id
        decided: CreditRequest | None = None

        async def attempt(reads: Reads) -> RegistryWrite | Written:
            nonlocal decided
            known = await reads.read(CreditRequest, supplier_id, transaction_id)
            if known is None:
                raise RecordNotFound("there is no request of this transaction_id", kind="credit")
            if known.record.state is to:
                decided = known.record
                return Written(revision=known.revision, changed=False)
            if known.record.state is not CreditState.WAITING:
                raise RecordChanged(f"the request is {known.record.state.name.lower()} already", kind="credit")
            # The rule it is decided by is the one that holds when it is written.
            supplier = await self._supplier(reads, principal)
            rule = supplier.record.profile_at(ms_of(self.clock.now())).credit
            check_approver(rule, known.record.asked_by, principal.identity)
            if to is CreditState.APPROVED:
                check_asked(rule, known.record.amount)
                # What could not be issued any more is not counted against the day.
                today, wall = self.clock.now(), self.clock.wall()
                check_window(transaction_id, now=today, wall=wall, window=self.id_window, ahead=self.id_ahead)
            now = ms_of(self.clock.now())
            day = day_of(now)
            decided = replace(
                known.record, state=to, decided_by=principal.identity, decided_at=now,
                day=day if to is CreditState.APPROVED else "",
            )  # fmt: skip
            put: list[StoredRecord] = [decided]
            if to is CreditState.APPROVED:
                total = await reads.read(CreditDay, supplier_id, day)
                before = CreditDay(supplier_id=supplier_id, day=day) if total is None else total.record
                put.append(count_in(rule, before, decided.amount))
            # Counted against the day that it is, not one that this node believes in before its time.
            return RegistryWrite(put=put, not_before=now)

        overtaken = RecordChanged("others keep deciding credit of this day; repeat", kind="credit")
        await transact(self.store, attempt, overtaken=overtaken, attempts_max=_DECIDED_AGAIN_MAX)
        check(decided is not None, "a decision that was written, or was there, is known")
        return cast("CreditRequest", decided)

    async def _supplier(self, reads: Reads | RegistryStore, principal: Principal) -> Versioned[Participant]:
        known = await reads.read(Participant, principal.participant_id)
        if known is None:
            raise RecordNotFound("the supplier is not registered", kind="participant")
        return known
