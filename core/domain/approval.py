"""Approval: what cannot be undone is asked for by one operator, approved by another, and done after a waiting time."""

import hashlib
import re
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

from core.domain.effective_dated import NEVER, Ms
from core.domain.errors import BadField, NeedsApproval, RecordChanged, TwoPeopleNeeded
from core.domain.participant import ParticipantId, Principal
from core.domain.record import ReadSet

# From the end of the waiting time on.
LIFE_MS: Final = 24 * 3600 * 1000
_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)


class ApprovalState(IntEnum):
    """Where an approval stands. Stored by number, and the same numbers as in utrn.admin.v1."""

    WAITING = 1
    APPROVED = 2
    WITHDRAWN = 3
    DONE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request that needs two people.

    `method` is the call's name, `request` its exact bytes; `subject` says what it does, without personal data.
    """

    method: str
    request: bytes
    subject: str

    @property
    def approval_id(self) -> str:
        """Names what is approved: 32 hex digits, the same for the same request only."""
        return hashlib.sha256(self.method.encode() + b"\0" + self.request).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """One request, who asked for it and who approved it. It may be carried out from `not_before` to `expires_at`."""

    approval_id: str
    method: str
    subject: str
    asked_by: ParticipantId
    asked_identity: str
    asked_at: Ms
    not_before: Ms
    expires_at: Ms
    state: ApprovalState = ApprovalState.WAITING
    decided_by: str = ""
    decided_identity: str = ""
    decided_at: Ms | None = None

    def open_at(self, now: Ms) -> bool:
        """Return whether it may still be approved, or carried out."""
        return self.state in (ApprovalState.WAITING, ApprovalState.APPROVED) and now < self.expires_at

    def approve(self, principal: Principal, now: Ms) -> "Approval":
        """Return it approved by another operator than the one who asked.

        Raises:
            TwoPeopleNeeded: it is the one who asked.
            RecordChanged: it is not waiting any more.
        """
        if principal.participant_id == self.asked_by or principal.identity == self.asked_identity:
            raise TwoPeopleNeeded("whoever asked cannot approve; another operator must, with its own certificate")
        if self.state is ApprovalState.APPROVED and self.decided_by == principal.participant_id:
            return self
        if self.state is not ApprovalState.WAITING or not self.open_at(now):
            raise _over(self)
        return self._decided(ApprovalState.APPROVED, principal, now)

    def withdraw(self, principal: Principal, now: Ms) -> "Approval":
        """Return it withdrawn; any operator may.

        Raises:
            RecordChanged: it was carried out, or has expired.
        """
        if self.state is ApprovalState.WITHDRAWN:
            return self
        if not self.open_at(now):
            raise _over(self)
        return self._decided(ApprovalState.WITHDRAWN, principal, now)

    def carry_out(self, principal: Principal, now: Ms) -> "Approval":
        """Return it as done; by either of the two, once the waiting time is over.

        Raises:
            NeedsApproval: it is not approved yet, or waits.
            TwoPeopleNeeded: it is neither of the two.
        """
        if self.state is not ApprovalState.APPROVED or now < self.not_before:
            raise needs_approval(self)
        if principal.participant_id not in (self.asked_by, self.decided_by):
            raise TwoPeopleNeeded("one of the two operators who asked for it and approved it carries it out")
        return replace(self, state=ApprovalState.DONE)

    def _decided(self, state: ApprovalState, principal: Principal, now: Ms) -> "Approval":
        return replace(
            self,
            state=state,
            decided_by=principal.participant_id,
            decided_identity=principal.identity,
            decided_at=now,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """A consent names what the approved write compares and puts besides, and the earliest instant of the write."""

    expect: ReadSet = ()
    put: tuple[Approval, ...] = ()
    not_before: Ms = NEVER

    def and_of(self, other: "Consent") -> "Consent":
        """Return both in one: what either compares and puts, not before either may be."""
        expect = {**dict(self.expect), **dict(other.expect)}
        return Consent(
            expect=tuple(expect.items()),
            put=self.put + other.put,
            not_before=max(self.not_before, other.not_before),
        )


NO_CONSENT_NEEDED = Consent()


def ask(asked: Asked, principal: Principal, *, now: Ms, wait_ms: int) -> Approval:
    """Return the approval that a request waits for from now on."""
    not_before = Ms(now + wait_ms)
    return Approval(
        approval_id=asked.approval_id,
        method=asked.method,
        subject=asked.subject,
        asked_by=principal.participant_id,
        asked_identity=principal.identity,
        asked_at=now,
        not_before=not_before,
        expires_at=Ms(not_before + LIFE_MS),
    )


def needs_approval(approval: Approval) -> NeedsApproval:
    """Return the refusal that tells the way on."""
    approved = approval.state is ApprovalState.APPROVED
    told = "its waiting time is not over" if approved else "another operator approves it: utrn approval approve"
    return NeedsApproval(
        f"nothing was done: this needs two operators; {told}; then repeat the same request",
        approval_id=approval.approval_id,
        state=approval.state.name.lower(),
        not_before_ms=approval.not_before,
        expires_at_ms=approval.expires_at,
        asked_by=approval.asked_by,
    )


def parse_approval_id(text: str, *, field: str) -> str:
    """Return an approval's id; raise BadField if it is none."""
    if not _ID.fullmatch(text):
        raise BadField(f"{field}: 32 hex digits are needed, as `utrn approval list` has them", field=field)
    return text


def _over(approval: Approval) -> RecordChanged:
    told = (
        "has expired"
        if approval.state in (ApprovalState.WAITING, ApprovalState.APPROVED)
        else f"is {approval.state.name.lower()}"
    )
    return RecordChanged(f"this approval {told}; ask for the operation anew", kind="approval")
