"""Ownership: which shards this node delivers for, and under which epoch."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from core.domain.meter import MeterId


@dataclass(frozen=True, slots=True)
class Gained:
    """This node owns `shard` from now on, under `epoch`."""

    shard: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Lost:
    """This node no longer owns `shard`, or can no longer be sure of it."""

    shard: int


OwnershipChange = Gained | Lost


class Ownership(Protocol):
    """Which shards this node owns. Safety comes from the epoch that every delivery write compares."""

    def shard_of(self, meter_id: MeterId) -> int:
        """Return the shard of a meter; a pure function, the same on every node and for ever."""
        ...

    def epoch(self, shard: int) -> int | None:
        """Return the epoch under which this node may start work on `shard` now; None if it may not."""
        ...

    def changes(self) -> AsyncIterator[OwnershipChange]:
        """Return what this node owns now, as Gained, then every change, in order, for ever. For one reader."""
        ...
