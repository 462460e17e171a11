"""Clock: cluster time, this node's wall clock, and steady time; tests drive them by hand."""

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the time. Nothing in core asks the operating system.

    Every flow is given a Clock whose `now` is cluster time (core/domain/cluster_time.py): one instant for all nodes,
    which no step of a wall clock moves. The few parts that work before it is known, and logs, are given the
    operating system's, whose `now` is its wall clock. What must not happen before an instant also says so in its write
    (`not_before`), and the ledger compares.
    """

    def now(self) -> datetime:
        """Return the time, aware, in UTC; never earlier than it was told before.

        Raises:
            NotReady: this node does not know cluster time (yet); ask another.
        """
        ...

    def wall(self) -> datetime:
        """Return what this node's wall clock says, aware, in UTC. It may step; nothing is decided by it alone."""
        ...

    def monotonic(self) -> float:
        """Return seconds of a clock that never goes back, and counts sleep; only differences mean anything."""
        ...
