"""Step 4: is this principal allowed to do this for the meter behind this PAN, now? The one authorization of every path.

It decides from the copy in memory. Where a change is due it is carried out first, and where the commit finds that a
record has moved, the question is asked again of the ledger itself.
"""

from dataclasses import dataclass
from datetime import datetime

from core.domain.authorization import AuthorizationDecision, Permit, Question, authorize
from core.domain.effective_dated import ms_of
from core.domain.errors import NotReady, Refused
from core.domain.invariant import check
from core.domain.meter import Pan
from core.domain.participant import Principal
from core.domain.vend import Operation
from core.ports.audit_context import NOTES
from core.ports.audit_log import AuditLog, AuditRecord
from core.ports.clock import Clock
from core.ports.head_ends import HeadEndNames
from core.ports.registry import Registry, RegistryStore
from core.registry.due_changes import ApplyDueChange

_new = tuple.__new__
# Of a decision: no rows were read, no digits shown, and the caller is who it is.
_NO_READING = (0, 0, "")
_OPERATION_NAMES = {operation: operation.name for operation in Operation}


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorize:
    """Decides, and writes down every decision."""

    registry: Registry
    store: RegistryStore
    turn: ApplyDueChange
    clock: Clock
    audit_log: AuditLog
    head_ends: HeadEndNames

    def now(
        self,
        principal: Principal,
        act: Operation,
        pan: Pan,
        *,
        amount: int,
        channel: int,
        ask: str,
        snapshot: Registry | None,
    ) -> Permit | None:
        """Return what `pan` stands for; None if `refresh` is needed first.

        It is where a change of the meter is due, and where the copy in memory refuses: that may be behind, and what it
        refuses wrongly would be refused for good. A sale is compared at its commit; a refusal has nothing that is.

        Args:
            principal: Who asks.
            act: For what.
            pan: Quoted number.
            amount: Pence; 0 where it does not matter.
            channel: Number of the channel; 0 where it does not matter.
            ask: The transaction id, for the audit log.
            snapshot: What to decide by instead of the copy in memory.

        Raises:
            Refused: do not repeat; the class says why.
            NotReady: repeat at another node.
        """
        question, now = Question(principal.participant, act, pan, amount, channel), self.clock.now()
        decision = self._decide(question, snapshot, now)
        if decision.due_change_of is not None or (decision.refusals and snapshot is None):
            return None
        self._note(principal, question, decision, ask, now)
        if decision.refusals:
            raise decision.refusals[0]
        check(decision.permit is not None, "what is not refused is allowed")
        return decision.permit

    async def refresh(self, principal: Principal, pan: Pan) -> Registry:
        """Carry out the meter's change if one is due, and return what the ledger says now.

        Raises:
            LedgerUnavailable, OutcomeUnknown: repeat.
        """
        snapshot = await self.store.snapshot(pan, principal.participant_id)
        question = Question(caller=principal.participant, operation=Operation.ISSUE, pan=pan, amount=0, channel=0)
        due = authorize(snapshot, question, ms_of(self.clock.now())).due_change_of
        if due is None:
            return snapshot
        await self.turn(due)
        return await self.store.snapshot(pan, principal.participant_id)

    async def objections(
        self, principal: Principal, act: Operation, pan: Pan, *, amount: int, channel: int
    ) -> tuple[AuthorizationDecision, tuple[Refused, ...]]:
        """Return every objection there is, in the order of importance; none if it would be allowed now.

        Raises:
            NotReady, LedgerUnavailable: repeat.
        """
        question = Question(caller=principal.participant, operation=act, pan=pan, amount=amount, channel=channel)
        now = self.clock.now()
        decision = self._decide(question, None, now, collect_all=True)
        if decision.due_change_of is not None:
            snapshot, now = await self.refresh(principal, pan), self.clock.now()
            decision = self._decide(question, snapshot, now, collect_all=True)
        self._note(principal, question, decision, "eligibility", now)
        return decision, tuple(decision.refusals)

    def _decide(
        self, question: Question, snapshot: Registry | None, now: datetime, *, collect_all: bool = False
    ) -> AuthorizationDecision:
        if not self.registry.ready:
            raise NotReady("this node is still reading the registry; ask another")
        return authorize(
            snapshot or self.registry, question, ms_of(now), collect_all=collect_all, head_ends=self.head_ends()
        )

    def _note(
        self, principal: Principal, question: Question, decision: AuthorizationDecision, ask: str, at: datetime
    ) -> None:
        notes = NOTES.get()
        if notes is not None:
            notes.decided = True
        permit = decision.permit
        # In the order of the fields: named, they would take twice as long, for every sale.
        fields = (
            at,
            principal.participant.participant_id,
            principal.identity,
            _OPERATION_NAMES[question.operation],
            ask,
            decision.meter_id or f"pan ..{question.pan[-4:]}",
            question.amount,
            decision.refusals[0].reason if permit is None else "allowed",
            "" if permit is None else permit.authorization.rule,
            decision.read_set,
            "cluster",
            question.channel,
            *_NO_READING,
        )
        self.audit_log.note(_new(AuditRecord, fields))
