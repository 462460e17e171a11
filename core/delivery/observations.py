"""What head ends tell of one code: Mailbox keeps it until the code's attempt looks; Hearing says what it amounts to."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from core.delivery.origins import Origins, Received
from core.delivery.outcomes import Ended, Next, Verdict, of_alert, of_answer, of_given_up
from core.domain.record import ReadSet
from core.domain.vend import Vend
from core.ports.head_end import Alert, Answer, GivenUp, StreamRestored

_NEWS_MAX = 64


class Mailbox:
    """News for one meter, oldest first; bounded, dropping the oldest: what is lost can be asked for or sent again.

    Each head end has a bound of its own, so that none pushes out what another one told.
    """

    def __init__(self) -> None:
        self._news: deque[Received] = deque()
        self._of: OrderedDict[str, int] = OrderedDict()
        self._arrived = asyncio.Event()
        # How often everything that was there had been taken.
        self.emptied = 0
        # How many sends made at this node had their wait for an answer cut short: the head end's stream broke.
        self.cut_short = 0

    def __bool__(self) -> bool:
        """Return whether there is news."""
        return bool(self._news)

    def put(self, received: Received) -> None:
        """Add one event."""
        of = received.head_end
        if self._of.get(of, 0) >= _NEWS_MAX:
            self._news.remove(next(piece for piece in self._news if piece.head_end == of))
            self._of[of] -= 1
        self._news.append(received)
        self._of[of] = self._of.get(of, 0) + 1
        self._arrived.set()

    async def get(self, timeout_s: float) -> Received | None:
        """Return the next event, or None if none comes within `timeout_s`; 0 asks only for what is there."""
        if not self._news and timeout_s > 0:
            self._arrived.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._arrived.wait()
            except TimeoutError:
                pass
        if not self._news:
            self.emptied += 1
            return None
        taken = self._news.popleft()
        self._of[taken.head_end] -= 1
        return taken


@dataclass(slots=True)
class AttemptObservation:
    """Answers, alerts and statuses about one code's message during one attempt.

    Attributes:
        vend: Returns the vend, its delivery as it was written last.
        head_end: Who carries the message in this attempt.
        origins: Decides who may speak of what.
        trust_unnamed: Take an alert that names no code as speaking of this one, after an unexplained refusal.
    """

    vend: Callable[[], Vend]
    head_end: str
    origins: Origins
    trust_unnamed: bool
    unexplained: bool = False
    # By which records whoever told the last alert could know of it.
    known_by: ReadSet = ()
    alerts: list[Alert] = field(default_factory=list)

    def hear(self, received: Received) -> Verdict:
        """Return what is known after `received`; nothing more than before, if who told it cannot know."""
        vend, by = self.vend(), received.head_end
        match received.event:
            case Answer(message_id=message_id) as answer:
                if not self.origins.answers(by, message_id, vend):
                    return Next.WAIT
                verdict = of_answer(answer)
                self.unexplained = self.unexplained or verdict is Next.EXPLAIN
                return self._explained() if verdict is Next.EXPLAIN else verdict
            case GivenUp(message_id=message_id) as given_up:
                return of_given_up(given_up) if self.origins.answers(by, message_id, vend) else Next.WAIT
            case Alert() as alert:
                known_by = self.origins.alerts(by, vend, named=alert.counter is not None)
                if known_by is None:
                    return Next.WAIT
                self.known_by = known_by
                self.alerts.append(alert)
                return self._of(alert)
            case StreamRestored():
                return Next.ASK_AGAIN if by == self.head_end else Next.WAIT

    def _explained(self) -> Verdict:
        """Return what the alerts that came before an unexplained refusal say of it."""
        verdicts = (self._of(alert) for alert in self.alerts)
        return next((verdict for verdict in verdicts if isinstance(verdict, Ended)), Next.EXPLAIN)

    def _of(self, alert: Alert) -> Verdict:
        return of_alert(alert, self.vend(), unexplained=self.unexplained, trust_unnamed=self.trust_unnamed)
