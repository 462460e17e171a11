"""Cluster time: one instant for all nodes, carried forward by monotonic clocks; wall clocks only pull at it. Pure.

The ledger holds an instant that only rises. Every node knows the last one it received and counts on by its own
monotonic clock, so that no step of a wall clock moves it. A majority of wall clocks that agree draws it along slowly;
what they say beyond `off_ms` is told to people and believed only where no node has carried the time, or on an
operator's word. Late is the safe side: where there is a choice, the earlier instant is taken.
"""

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from core.domain.effective_dated import Ms

_DAY_MS = 86_400_000
# For how much of the time since the last instant the wall clocks may draw at it, in ms for each second of `advance_s`.
_DRAWN_FOR_MS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeRule:
    """TimeRule says within which bounds nodes carry cluster time.

    Attributes:
        advance_s: Seconds after which the node that advanced the ledger's instant last does so again.
        stand_in_s: Seconds that the others wait longer than it.
        forward_share: How much faster than monotonic clocks cluster time may run to reach the wall clocks.
        back_share: How much slower: a carrier whose monotonic clock runs up to four times too fast is held by it.
        agree_ms: Wall clocks this near to each other agree.
        off_ms: A difference between cluster time and the agreed wall clocks beyond which it is not drawn along.
        ahead_ms: A node that has told a time so far ahead of what it now takes for right stands aside.
        late_ms: An instant that seems older than it should be by no more than that may have been received late.
        alone_s: After so long without an instant from the ledger, a node writes none that it has not held against what
            its peers make of the time, or against the wall clocks: its own monotonic clock may have leapt.
        quiet_s: A starting node watches the ledger at least so long before it believes that nobody carries the time.
        silent_s: So long, if a node is alive of which it does not know whether it does.
        step_max_ms: The longest stretch, after which nobody had carried the time, that wall clocks are believed about.
    """

    advance_s: float = 1.0
    stand_in_s: float = 0.5
    forward_share: float = 0.1
    back_share: float = 0.75
    agree_ms: int = 10_000
    off_ms: int = 60_000
    ahead_ms: int = 2_000
    late_ms: int = 10_000
    alone_s: float = 2.0
    quiet_s: float = 1.0
    silent_s: float = 5.0
    step_max_ms: int = 30 * _DAY_MS


class Received(NamedTuple):
    """An instant of the ledger, its revision, and this node's monotonic clock, in seconds, when it was right."""

    instant: Ms
    revision: int
    at: float


class Doubt(Enum):
    """Why the ledger's instant may be wrong by more than clocks drift."""

    NONE = ""
    # Nobody carried it for a while, and nobody knows for how long: a majority of wall clocks may set it forward.
    GAP = "gap"
    # An operator has said that it is ahead: it runs slowly until the wall clocks have come up to it.
    AHEAD = "ahead"


class Act(Enum):
    """Act says what a node does that does not know cluster time yet."""

    WAIT = 0
    # Go on from the ledger's instant: it was this late at least.
    CARRY_ON = 1
    # Set it forward.
    SET = 2


class Plan(NamedTuple):
    """A plan names the act, its instant, and the doubt about cluster time that is left after the act."""

    act: Act
    instant: Ms = Ms(0)
    doubt: Doubt = Doubt.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """Sight holds what a node sees of the other nodes at one moment.

    Attributes:
        walls: What each node's wall clock says now, this node's among them; only those heard of late.
        times: What each other node heard of late makes of cluster time now; None for one that has never known it.
        heard: This node's monotonic clock, in seconds, when each of `times` was heard; `times` were carried on since.
        alive: Nodes that have a lease.
        known: Nodes that should be there, alive or not, this node among them.
    """

    walls: Mapping[str, Ms]
    times: Mapping[str, Ms | None]
    heard: Mapping[str, float]
    alive: Collection[str]
    known: Collection[str]


def agreed(sight: Sight, agree_ms: int) -> Ms | None:
    """Return the middle of the wall clocks of a majority of the known nodes that agree; None if there is none.

    Of two majorities the earlier one counts, and of two middles the earlier.
    """
    walls = sorted(wall for node, wall in sight.walls.items() if node in sight.known)
    best: list[Ms] = []
    for first, wall in enumerate(walls):
        near = [other for other in walls[first:] if other - wall <= agree_ms]
        if len(near) > len(best):
            best = near
    return statistics.median_low(best) if 2 * len(best) > len(sight.known) else None


def utc_ahead_ms(rule: TimeRule, wall_off_ms: int, agreed_off_ms: int | None, doubt: Doubt) -> int:
    """Return how far UTC may be ahead of cluster time, in ms, 0 or more.

    An instant that somebody outside compares with a wall clock is moved out by so much: cluster time that is a little
    late must not make it past before it is sent. What is alarmed about is not believed here either, so that a clock
    that is wrong by hours moves no bound; in a gap cluster time is known to be late, and any clock tells more than it.

    Args:
        rule: How time is carried.
        wall_off_ms: How far this node's wall clock is ahead of cluster time.
        agreed_off_ms: How far the agreed wall clocks are; None if no majority agrees: then this node's own counts.
        doubt: What is in doubt about cluster time.
    """
    off = wall_off_ms if agreed_off_ms is None else agreed_off_ms
    return off if 0 < off <= (rule.step_max_ms if doubt is Doubt.GAP else rule.off_ms) else 0


def start(
    rule: TimeRule, sight: Sight, ledger: Ms | None, *, me: str, watched_s: float, doubt: Doubt = Doubt.NONE
) -> Plan:
    """Return what a node does that has not seen the ledger's instant move since it started.

    Args:
        rule: How time is carried.
        sight: What it sees.
        ledger: The ledger's instant, carried on since this node read it; None if the ledger has none yet.
        me: This node.
        watched_s: Seconds that it has watched the ledger.
        doubt: What the ledger says is in doubt; stays so if the time is taken from those who carry it, and AHEAD until
            the wall clocks have come up to the ledger.
    """
    sure = all(sight.times.get(node, 0) is None for node in sight.alive if node != me)
    if watched_s < (rule.quiet_s if sure else rule.silent_s):
        return Plan(Act.WAIT)
    carried = [time for time in sight.times.values() if time is not None]
    if carried:
        # A peer carries it that does not reach the ledger. What this node counts since it read may have leapt.
        return Plan(Act.SET, Ms(statistics.median_low(carried)), doubt)
    walls = agreed(sight, rule.agree_ms)
    if ledger is None:
        return Plan(Act.WAIT) if walls is None else Plan(Act.SET, walls)
    if walls is not None and ledger < walls <= ledger + rule.step_max_ms:
        # By seconds too: drawn along, it would be late for minutes for those who look at their own clocks.
        return Plan(Act.SET, walls)
    if walls is not None and 0 <= ledger - walls <= rule.off_ms:
        return Plan(Act.CARRY_ON, ledger)
    if watched_s < rule.silent_s:
        return Plan(Act.WAIT)
    # What an operator has said stays said: in a gap, wall clocks would be believed about any step.
    return Plan(Act.CARRY_ON, ledger, Doubt.AHEAD if doubt is Doubt.AHEAD else Doubt.GAP)


class TimeKeeper:
    """One node's cluster time. Takes monotonic seconds, and asks no clock itself.

    `established` once an instant was received that somebody wrote after this node had started.
    """

    def __init__(self, rule: TimeRule) -> None:
        self.rule = rule
        self.last: Received | None = None
        self.doubt = Doubt.NONE
        self.established = False
        self._told = Ms(0)
        self._received_at = 0.0

    def receive(self, received: Received, *, moved: bool, own: bool = False) -> None:
        """Record an instant of the ledger; `moved`: written since this node started, `own`: written by this node."""
        last = self.last
        # Of one's own write, the answer may come after the watch has told of it; the earlier moment is the right one.
        if last is None or (received.revision, -received.at) > (last.revision, -last.at):
            self.last = received if own else self._timed(received)
            self._received_at = received.at
        self.established = self.established or moved

    def _timed(self, received: Received) -> Received:
        """Return an instant with the moment at which it was right, if a process that stood still received it late.

        For what this node tells only. What it writes counts from the moment of receipt: after a leap of the monotonic
        clock an instant looks late too.

        A delay is no longer than the silence before it. What is wrong for another reason is so again the next time,
        after a short silence, and is believed then.
        """
        estimate, silence_ms = self.estimate(received.at), (received.at - self._received_at) * 1000
        late_ms = 0 if estimate is None else estimate - received.instant
        # Less is no matter, and may be the draw of the wall clocks.
        if self.rule.back_share * _DRAWN_FOR_MS * self.rule.advance_s < late_ms <= min(silence_ms, self.rule.late_ms):
            return received._replace(at=received.at - late_ms / 1000)
        return received

    def estimate(self, at: float) -> Ms | None:
        """Return what this node makes of cluster time; None if the ledger has none. May be before what was told."""
        if self.last is None:
            return None
        return Ms(self.last.instant + round((at - self.last.at) * 1000))

    def tell(self, at: float) -> Ms | None:
        """Return cluster time, never before what was told; None while it is not known, or was told much too late."""
        estimate = self.estimate(at)
        if not self.established or estimate is None or self._told - estimate > self.rule.ahead_ms:
            return None
        self._told = max(self._told, estimate)
        return self._told

    def silence_s(self, at: float) -> float:
        """Return how long ago the last instant was received, in seconds."""
        return at - self._received_at

    def counted(self, at: float) -> Ms | None:
        """Return cluster time as this node counts it from the receipt of the last instant: what may be written."""
        return None if self.last is None else Ms(self.last.instant + round(self.silence_s(at) * 1000))

    def alone(self, at: float) -> bool:
        """Return whether nothing was heard of the ledger for so long that the peers are to be asked."""
        return self.last is not None and self.silence_s(at) > self.rule.alone_s

    def writable(self, at: float) -> Ms | None:
        """Return the latest instant that this node may write without asking a peer; None if it is to ask first.

        Counts from the receipt of the last instant; what was told may be ahead of that by half of `ahead_ms`.
        """
        told, counted = self.tell(at), self.counted(at)
        if told is None or counted is None or self.alone(at):
            return None
        return min(told, Ms(counted + self.rule.ahead_ms // 2))

    def known(self, at: float) -> bool:
        """Return whether `tell` would tell."""
        estimate = self.estimate(at)
        return self.established and estimate is not None and self._told - estimate <= self.rule.ahead_ms

    def advance(self, at: float, walls: Ms | None, peers: Sequence[Ms] = ()) -> Plan:
        """Return the instant to write next, drawn towards the agreed wall clocks.

        Args:
            at: Monotonic seconds.
            walls: The middle of the wall clocks that agree; None if no majority does.
            peers: What peers make of cluster time, heard after this node had noticed a silence of more than `alone_s`:
                its own monotonic clock may have leapt. Without any, wall clocks that are not behind the ledger count.
        """
        own, last = self.counted(at), self.last
        if own is None or last is None:
            return Plan(Act.WAIT)
        elapsed_ms = self.silence_s(at) * 1000
        if self.alone(at) and peers:
            own = max(Ms(statistics.median_low([own, *peers])), last.instant)
        elif self.alone(at) and walls is not None and last.instant <= walls < own:
            # Not before what was told: the only node left goes on serving, and is drawn back slowly.
            own = min(own, max(walls, self._told))
        if walls is None:
            return Plan(Act.CARRY_ON, own, self.doubt)
        off, rule = walls - own, self.rule
        if self.doubt is Doubt.GAP and 0 < off <= rule.step_max_ms:
            return Plan(Act.SET, walls)
        if abs(off) <= rule.off_ms or (off < 0 and self.doubt is Doubt.AHEAD):
            # After a silence too it is drawn no further at once: what was told must not be far ahead of what is right.
            draw_ms = min(elapsed_ms, _DRAWN_FOR_MS * rule.advance_s)
            drawn = min(max(off, -rule.back_share * draw_ms), rule.forward_share * draw_ms)
            doubt = Doubt.NONE if abs(off) <= rule.off_ms else self.doubt
            return Plan(Act.CARRY_ON, Ms(own + int(drawn)), doubt)
        return Plan(Act.CARRY_ON, own, self.doubt)
