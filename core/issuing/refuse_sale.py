"""RefuseSale: answers a refused sale so that nothing can overtake the refusal.

A refusal is based on what one node knew at one moment, while a commit of the same id may be under way at another. So
what was committed before is answered instead. A repeat closes the id in the ledger first, by a write that every commit
compares; only then it is refused. The first attempt of an id writes nothing: nothing can be under way.
"""

from dataclasses import dataclass
from datetime import timedelta

from core.access.quota import Quota
from core.domain.effective_dated import ms_of
from core.domain.errors import IF_FIRST, LedgerUnavailable, Refused, TransactionIdTooOld
from core.domain.participant import ParticipantId
from core.domain.refusal import ClosedRefusal, closed
from core.domain.transaction_id import TransactionId, check_window
from core.issuing.recent_vends import RecentVends
from core.ports.clock import Clock
from core.ports.ledger import Ledger, StoredVend


@dataclass(frozen=True, slots=True, kw_only=True)
class RefuseSale:
    """Refuses. `id_window` is how old an id may be: of an older one the ledger may have forgotten that it was sold.

    `quota` bounds what one participant may have closed: a closed id stays in the ledger, and anybody with a certificate
    can ask for it with ids at random.
    """

    ledger: Ledger
    answers: RecentVends
    clock: Clock
    quota: Quota
    id_window: timedelta
    node_id: str = ""

    async def __call__(
        self, participant_id: ParticipantId, transaction_id: TransactionId, refusal: Refused, *, repeat: bool
    ) -> StoredVend:
        """Return the vend that was committed under the id before; raise the refusal if there is none.

        What was committed once is answered the same for ever, even if the card has been blocked or the appointment has
        ended since: the consumer's money was taken, and the till may be asking again after a lost reply.

        Raises:
            Refused: `refusal`, if this is no repeat; fenced, if the id is closed, now or before.
            TransactionIdTooOld: not fenced: whoever has the archive must say what became of it.
            Overloaded, LedgerUnavailable, OutcomeUnknown: nobody knows; repeat.
        """
        try:
            found = await self.ledger.find(participant_id, transaction_id)
        except LedgerUnavailable as error:
            # Without the ledger nobody can say whether this is a repeat; a refusal could be wrong.
            raise LedgerUnavailable("the ledger cannot be reached; repeat the same transaction_id") from error
        if found is None and not repeat:
            refusal.final = IF_FIRST
            raise refusal
        if found is None:
            found = await self._close(participant_id, transaction_id, refusal)
        self.answers.remember(found)
        if isinstance(found, ClosedRefusal):
            raise found.error() from refusal
        return found

    async def _close(
        self, participant_id: ParticipantId, transaction_id: TransactionId, refusal: Refused
    ) -> StoredVend | ClosedRefusal:
        now = self.clock.now()
        try:
            check_window(transaction_id, now=now, wall=now, window=self.id_window, ahead=timedelta.max)
        except TransactionIdTooOld as too_old:
            raise too_old from refusal
        self.quota.take(participant_id)
        return await self.ledger.close_refused(
            closed(refusal, participant_id, transaction_id, at=ms_of(now), node_id=self.node_id)
        )


def closing_quota(clock: Clock, *, burst: int, per_minute: int) -> Quota:
    """Return how many ids a participant may have closed."""
    told = "so many repeats of this caller were refused that no more are kept now; repeat later"
    return Quota(clock, burst=burst, per_minute=per_minute, refusal=told)
