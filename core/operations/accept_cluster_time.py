"""Set cluster time to what the wall clocks say: on an operator's word, who has been told what it carries out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.access.approvals import Consents
from core.domain.approval import Asked
from core.domain.effective_dated import Ms
from core.domain.errors import BadField, ClocksDisagree
from core.domain.participant import Principal
from core.ports.cluster_admin import Cluster

_NEAR_S = 5


@dataclass(frozen=True, slots=True)
class TimeStep:
    """By how many seconds cluster time is set, or would be if not `done`, and how many changes fall due by it."""

    seconds: int
    changes_due: int
    done: bool


@dataclass(frozen=True, slots=True)
class AcceptTime:
    """Sets it. `due_by` returns the changes that are due by an instant; some of them, if there are many."""

    cluster: Cluster
    due_by: Callable[[Ms], Sequence[object]]
    consents: Consents

    async def __call__(self, principal: Principal, seconds: int | None, *, asked: Asked | None = None) -> TimeStep:
        """Return what was done; with `seconds` None nothing is, and what would be is told.

        Args:
            principal: The operator.
            seconds: How far ahead of cluster time the operator has read the wall clocks to be.
            asked: The request as it is approved.

        Raises:
            ClocksDisagree: there is nothing to set it to.
            BadField: the wall clocks are not there any more.
            NeedsApproval, SecondOperatorNeeded: changes that fall due by it are carried out for good.
            LedgerUnavailable, OutcomeUnknown: look and repeat.
        """
        time = self.cluster.time()
        if not time.known or not time.clocks_agree:
            raise ClocksDisagree("no majority of wall clocks agrees, or this node does not know cluster time")
        off_s = round(time.clocks_off_ms / 1000)
        before = len(self.due_by(Ms(time.now_ms)))
        due = len(self.due_by(Ms(time.now_ms + max(0, time.clocks_off_ms)))) - before
        if seconds is None:
            return TimeStep(off_s, due, done=False)
        if abs(seconds - off_s) > _NEAR_S:
            raise BadField(f"seconds: the wall clocks are {off_s} s ahead of cluster time now", field="seconds")
        consent = await self.consents.of_two(principal, asked, urgent=True)
        await self.cluster.accept_time(by=principal.participant_id, consent=consent)
        return TimeStep(off_s, due, done=True)
