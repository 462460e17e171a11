"""TwoPeople: records what an operator asks for that cannot be undone, and gives consent once another has approved it.

The consent is part of the write that it allows: the write compares the approval as it was read, and marks it as done.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from core.access.roles import OPERATORS, require_role
from core.domain.approval import (
    NO_CONSENT_NEEDED,
    Approval,
    ApprovalState,
    Asked,
    Consent,
    ask,
    needs_approval,
)
from core.domain.effective_dated import Ms, ms_of
from core.domain.errors import (
    LastOperator,
    LedgerUnavailable,
    RecordNotFound,
    RoleNotAllowed,
    SecondOperatorNeeded,
)
from core.domain.invariant import InvariantBroken
from core.domain.participant import Participant, ParticipantId, ParticipantStatus, Principal, Role
from core.domain.record import Kind, Ref, Versioned
from core.ports.clock import Clock
from core.ports.registry import RegistryStore, RegistryWrite
from core.transaction import Reads, Written, transact

_PAGE = 1000


class Consents(Protocol):
    """Says whether an operator may do what cannot be undone."""

    async def of_two(self, principal: Principal, asked: Asked | None, *, urgent: bool = False) -> Consent:
        """Return the consent of two operators to `asked`; `urgent`: without a waiting time.

        Raises:
            NeedsApproval: nothing was done; it is recorded what was asked for, and what is missing.
            SecondOperatorNeeded: there is only one active operator.
            TwoPeopleNeeded: somebody else than the two asks for it to be carried out.
            LedgerUnavailable, OutcomeUnknown: repeat.
        """
        ...

    async def to_add_operator(self, principal: Principal, asked: Asked | None) -> Consent:
        """As `of_two`; none is needed while the caller is the only operator that there ever is."""
        ...

    async def to_bar_operator(self, participant_id: ParticipantId) -> Consent:
        """Return what a write compares that suspends an operator or ends it: that another one is active.

        Raises:
            LastOperator: there is no other.
        """
        ...


class ConsentOfLedger:
    """Asks nobody: for whoever writes straight into etcd, with etcd's certificate."""

    async def of_two(self, principal: Principal, asked: Asked | None, *, urgent: bool = False) -> Consent:
        """Return consent."""
        return NO_CONSENT_NEEDED

    async def to_add_operator(self, principal: Principal, asked: Asked | None) -> Consent:
        """Return consent."""
        return NO_CONSENT_NEEDED

    async def to_bar_operator(self, participant_id: ParticipantId) -> Consent:
        """Return consent."""
        return NO_CONSENT_NEEDED


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoPeople:
    """Keeps approvals. `wait_ms` passes between asking and doing, unless it is urgent."""

    store: RegistryStore
    clock: Clock
    wait_ms: int

    async def of_two(self, principal: Principal, asked: Asked | None, *, urgent: bool = False) -> Consent:
        """Return the consent of two operators."""
        if asked is None:
            raise RoleNotAllowed("this needs two operators: it is asked for by itself, not in a file", role="operator")
        there: Versioned[Approval] | None = None
        new: Approval | None = None

        async def attempt(reads: Reads) -> RegistryWrite | Written:
            nonlocal there, new
            now = ms_of(self.clock.now())
            there = await reads.read(Approval, asked.approval_id)
            if there is not None and there.record.open_at(now):
                return Written(revision=there.revision, changed=False)
            if len(await self._operators(active=True)) < 2:
                raise SecondOperatorNeeded("this needs two operators, and only one is active; add another one first")
            new = ask(asked, principal, now=now, wait_ms=0 if urgent else self.wait_ms)
            return RegistryWrite(put=[new])

        written = await transact(self.store, attempt, overtaken=_overtaken())
        if there is not None and not written.changed:
            return await self._carried_out(principal, there, ms_of(self.clock.now()))
        if new is None:
            raise InvariantBroken("an approval is open, or was asked for")
        raise needs_approval(new)

    async def to_add_operator(self, principal: Principal, asked: Asked | None) -> Consent:
        """Return the consent of two operators, or of the only one."""
        operators = await self._operators(active=False)
        if len(operators) == 1 and operators[0].record.participant_id == principal.participant_id:
            only = operators[0]
            return Consent(expect=(_seen(only),))
        return await self.of_two(principal, asked)

    async def to_bar_operator(self, participant_id: ParticipantId) -> Consent:
        """Return what proves, in the write itself, that another operator is left."""
        others = [
            operator
            for operator in await self._operators(active=True)
            if operator.record.participant_id != participant_id
        ]
        if not others:
            raise LastOperator("nobody could act without the last active operator", participant_id=participant_id)
        # Two that bar each other at the same moment would otherwise both find the other one active.
        return Consent(expect=tuple(_seen(other) for other in others[:2]))

    async def approve(self, principal: Principal, approval_id: str) -> Approval:
        """Approve what another operator has asked for.

        Raises:
            TwoPeopleNeeded: the caller is the operator who asked.
            RecordNotFound: no approval has this id.
            RecordChanged: the approval is no longer open.
        """
        return await self._decide(principal, approval_id, ApprovalState.APPROVED)

    async def withdraw(self, principal: Principal, approval_id: str) -> Approval:
        """Withdraw what was asked for, or approved, and not carried out.

        Raises:
            RecordNotFound: no approval has this id.
            RecordChanged: the approval is no longer open.
        """
        return await self._decide(principal, approval_id, ApprovalState.WITHDRAWN)

    async def list_page(self, principal: Principal, *, after: str, limit: int) -> tuple[Sequence[Approval], str]:
        """Return approvals in the order of their ids, whatever became of them, and where to go on: "" at the end."""
        require_role(principal, OPERATORS)
        found = [stored.record for stored in await self.store.list_records(Approval, after=after, limit=limit)]
        return found, found[-1].approval_id if len(found) == limit else ""

    async def _decide(self, principal: Principal, approval_id: str, to: ApprovalState) -> Approval:
        require_role(principal, OPERATORS)
        decided: Approval | None = None

        async def attempt(reads: Reads) -> RegistryWrite | Written:
            nonlocal decided
            known = await reads.read(Approval, approval_id)
            if known is None:
                raise RecordNotFound("there is no approval of this id", kind="approval")
            now, before = ms_of(self.clock.now()), known.record
            approves = to is ApprovalState.APPROVED
            decided = before.approve(principal, now) if approves else before.withdraw(principal, now)
            if decided == before:
                return Written(revision=known.revision, changed=False)
            return RegistryWrite(put=[decided])

        await transact(self.store, attempt, overtaken=_overtaken())
        if decided is None:
            raise InvariantBroken("an approval that was written was decided")
        return decided

    async def _carried_out(self, principal: Principal, known: Versioned[Approval], now: Ms) -> Consent:
        one = known.record
        done = one.carry_out(principal, now)
        expect = [(Ref(Kind.APPROVAL, one.approval_id), known.revision)]
        # An operator that was barred since has consented to nothing.
        for name in sorted({one.asked_by, ParticipantId(one.decided_by)}):
            operator = await self.store.read(Participant, name)
            if operator is None or not _active(operator.record):
                raise RoleNotAllowed(f"{name} is no active operator any more; withdraw this, ask anew", role="operator")
            expect.append(_seen(operator))
        return Consent(expect=tuple(expect), put=(done,), not_before=one.not_before)

    async def _operators(self, *, active: bool) -> list[Versioned[Participant]]:
        """Return every operator that has not left, or every active one."""
        found: list[Versioned[Participant]] = []
        after = ""
        while True:
            page = await self.store.list_records(Participant, after=after, limit=_PAGE)
            found += [stored for stored in page if _there(stored.record)]
            if len(page) < _PAGE:
                return [versioned for versioned in found if _active(versioned.record)] if active else found
            after = page[-1].record.participant_id


def _overtaken() -> LedgerUnavailable:
    return LedgerUnavailable("others keep writing this approval; nothing was done; repeat")


def _seen(versioned: Versioned[Participant]) -> tuple[Ref, int]:
    return Ref(Kind.PARTICIPANT, versioned.record.participant_id), versioned.revision


def _there(participant: Participant) -> bool:
    return participant.role is Role.OPERATOR and participant.status is not ParticipantStatus.LEFT


def _active(participant: Participant) -> bool:
    return _there(participant) and participant.status is ParticipantStatus.ACTIVE
