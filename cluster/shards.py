"""Meter -> shard, and who should own which shard: two pure functions, the same on every node and for ever."""

import hashlib
from collections.abc import Iterable

from core.domain.meter import MeterId


def shard_of(meter_id: MeterId, shards: int) -> int:
    """Return the shard of a meter, 0 to shards - 1. Neither the hash nor the number of shards can ever change."""
    return int.from_bytes(hashlib.blake2b(meter_id.encode(), digest_size=8).digest(), "big") % shards


def plan(shards: int, nodes: Iterable[str]) -> dict[int, str]:
    """Return the node that should own each shard, by rendezvous hashing; empty without nodes.

    A node that comes or goes moves only the shards it takes or leaves.
    """
    candidates = sorted(nodes)
    if not candidates:
        return {}
    return {shard: max(candidates, key=lambda node: (_weight(shard, node), node)) for shard in range(shards)}


def _weight(shard: int, node: str) -> bytes:
    return hashlib.blake2b(f"{shard}/{node}".encode(), digest_size=8).digest()
