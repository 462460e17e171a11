"""Ceilings: no seller sells more in an hour of cluster time than its ceiling, whatever its certificate is used for.

A sale is charged to an allotment in memory before it is signed; only a sale that finds too little there waits for the
ledger, together with all others of its seller. A charge comes back when it is known that nothing was committed for it.
"""

import asyncio
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import NoReturn

from core.domain.ceiling import HOUR_MS, hour_of
from core.domain.effective_dated import Ms, instant_of, ms_of
from core.domain.errors import CeilingReached, LedgerUnavailable, NotReady, OutcomeUnknown, Overloaded, UtrnError
from core.domain.participant import Participant, ParticipantId
from core.domain.record import Versioned
from core.issuing.recent_vends import Issued, VendAnswer
from core.ports.ceilings import Allotment, CeilingLedger
from core.ports.clock import Clock

log = logging.getLogger(__name__)

# Each time others of the same seller have sold what was drawn.
_DRAWN_AGAIN_MAX = 10
# So long a seller that has reached its ceiling is refused without asking the ledger again.
_SHORT_S = 1.0
# An allotment that nobody sells from goes back after so long: another node may need it.
_IDLE_S = 5.0
_LOOK_S = 1.0
# So far a node's time may be behind the hour that the ledger's time has come to: one further behind does not know it.
_BEHIND_MAX_MS = 2_000


@dataclass(slots=True)
class _Purse:
    """This node's allotment of one seller's hour. `revision`: of the seller's record at the draw."""

    participant_id: ParticipantId
    hour: Ms
    left: int = 0
    drawn_pence: int = 0
    ceiling_pence: int = 0
    revision: int = -1
    used_at: float = 0.0
    short_until: float = 0.0
    wanted: int = 0
    drawing: "asyncio.Task[UtrnError | None] | None" = None


@dataclass(slots=True)
class Charge:
    """Pence taken for one sale that is dated at `since` or later, and before `until`; to be settled once."""

    purse: _Purse
    pence: int
    since: Ms
    until: Ms
    sold: Counter[ParticipantId] = field(repr=False)

    def settle(self, answer: "asyncio.Future[VendAnswer]") -> None:
        """Give the pence back unless the sale was committed, or may have been."""
        if answer.cancelled():
            return
        error = answer.exception()
        if error is not None:
            if isinstance(error, UtrnError) and not isinstance(error, OutcomeUnknown):
                self.release()
            return
        told = answer.result()
        if isinstance(told, Issued) and not told.replayed:
            self.sold[self.purse.participant_id] += self.pence
        else:
            self.release()

    def release(self) -> None:
        """Give the pence back: nothing was committed for them."""
        self.purse.left += self.pence


class Ceilings:
    """Charges sales to allotments. `sold` counts pence that were committed here, by seller, since the node started."""

    def __init__(self, ledger: CeilingLedger, clock: Clock) -> None:
        self._ledger = ledger
        self._clock = clock
        self._purses: dict[ParticipantId, _Purse] = {}
        self.sold: Counter[ParticipantId] = Counter()
        self.draws = 0

    def used(self) -> dict[ParticipantId, float]:
        """Return the share of this hour's ceiling that is drawn, by seller, as this node last heard; 0 to 1."""
        hour = self._this_hour()
        return {
            name: one.drawn_pence / one.ceiling_pence if one.ceiling_pence and one.hour == hour else 0.0
            for name, one in self._purses.items()
        }

    def held(self) -> dict[ParticipantId, int]:
        """Return the pence that this node has drawn and not sold, by seller."""
        return {name: one.left for name, one in self._purses.items()}

    async def take(
        self, participant_id: ParticipantId, seller: Versioned[Participant] | None, pence: int, at: Ms
    ) -> Charge:
        """Return `pence` taken from what `seller`, as the registry has it, may sell in the hour of `at`.

        In the next one, if the ledger's time has come to it and this node's has not quite. Does not wait where the
        allotment suffices.

        Raises:
            CeilingReached: nothing was taken, and nothing of the sale was written.
            Overloaded, LedgerUnavailable, NotReady: repeat.
        """
        for _ in range(_DRAWN_AGAIN_MAX):
            purse = self._purse(participant_id, at)
            now = self._clock.monotonic()
            current = seller is None or seller.revision <= purse.revision
            if current or (seller is not None and purse.ceiling_pence == seller.record.ceiling_pence > 0):
                if purse.left >= pence:
                    purse.left -= pence
                    purse.used_at = now
                    return Charge(purse, pence, purse.hour, Ms(purse.hour + HOUR_MS), self.sold)
                if purse.drawing is None and now < purse.short_until:
                    raise _reached(purse)
            await self._more(purse, pence)
        raise Overloaded("too many sales of this seller wait at this node; repeat the same transaction_id")

    async def run(self) -> NoReturn:
        """Give back, for ever, what nobody sells from."""
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.give_back(idle_s=_IDLE_S)

    async def give_back(self, *, idle_s: float = 0.0) -> None:
        """Give back every allotment that was not sold from for `idle_s` seconds."""
        before, hour = self._clock.monotonic() - idle_s, self._this_hour()
        for purse in list(self._purses.values()):
            if purse.left and purse.hour == hour and purse.used_at <= before and purse.drawing is None:
                await self._draw_once(purse)

    def _this_hour(self) -> Ms | None:
        """Return the hour that it is; None while this node does not know cluster time."""
        try:
            return hour_of(ms_of(self._clock.now()))
        except NotReady:
            return None

    def _purse(self, participant_id: ParticipantId, at: Ms) -> _Purse:
        purse, hour = self._purses.get(participant_id), hour_of(at)
        if purse is None or purse.hour < hour:
            # What is left of an hour that is over belongs to nobody.
            purse = self._purses[participant_id] = _Purse(participant_id, hour)
        elif purse.hour - at > _BEHIND_MAX_MS:
            raise NotReady("the cluster has come to a later hour than this node; repeat the same transaction_id")
        return purse

    async def _more(self, purse: _Purse, pence: int) -> None:
        """Wait until more is drawn, for everybody of the seller that waits.

        Raises:
            CeilingReached: there is less left than `pence`.
            LedgerUnavailable, NotReady: repeat.
        """
        purse.wanted += pence
        try:
            error = await self._draw_once(purse)
        finally:
            purse.wanted -= pence
        if error is not None:
            raise error
        if purse.left < pence and self._clock.monotonic() < purse.short_until:
            raise _reached(purse)

    async def _draw_once(self, purse: _Purse) -> UtrnError | None:
        if purse.drawing is None:
            # A task: who goes away must not take what was drawn from the others that wait for it.
            purse.drawing = asyncio.get_running_loop().create_task(self._draw(purse))
        return await asyncio.shield(purse.drawing)

    async def _draw(self, purse: _Purse) -> UtrnError | None:
        held, purse.left = purse.left, 0
        wanted = purse.wanted
        self.draws += 1
        try:
            allotment = await self._ledger.draw(purse.participant_id, purse.hour, held=held, wanted=wanted)
        except OutcomeUnknown:
            # It may have been given back: it is not sold any more.
            return LedgerUnavailable("the ledger did not answer; nothing was sold; repeat the same transaction_id")
        except UtrnError as error:
            purse.left += held
            return error
        finally:
            purse.drawing = None
        self._hold(purse, allotment, wanted)
        return None

    def _hold(self, purse: _Purse, allotment: Allotment, wanted: int) -> None:
        if allotment.hour != purse.hour:
            purse = self._purses[purse.participant_id] = _Purse(purse.participant_id, allotment.hour)
        purse.left += allotment.pence
        purse.drawn_pence, purse.ceiling_pence = allotment.drawn_pence, allotment.ceiling_pence
        purse.revision = max(purse.revision, allotment.revision)
        now = self._clock.monotonic()
        purse.used_at = max(purse.used_at, now) if wanted else purse.used_at
        purse.short_until = 0.0
        if allotment.pence < wanted:
            purse.short_until = now + _SHORT_S
            log.warning(
                "a seller has reached its ceiling for this hour",
                extra={"seller": purse.participant_id, "ceiling_pence": allotment.ceiling_pence},
            )


def _reached(purse: _Purse) -> CeilingReached:
    ends = instant_of(purse.hour + HOUR_MS)
    return CeilingReached(
        f"not sold: {purse.participant_id} has reached its ceiling of {purse.ceiling_pence} pence an hour until "
        f"{ends:%H:%M} UTC; give the money back; the operator raises it with `utrn participant ceiling`",
        ceiling_pence=purse.ceiling_pence,
        left_pence=purse.left,
        hour_ends_ms=purse.hour + HOUR_MS,
    )
