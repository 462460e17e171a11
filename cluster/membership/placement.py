"""Meter -> shard, and who should own which shard: two pure functions, the same on every node and for ever."""

import hashlib
from collections.abc import Collection, Iterable

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


def moves(
    shards: int,
    *,
    me: str,
    mine: Collection[int],
    owned: Collection[int],
    alive: Collection[str],
    able: Collection[str],
) -> tuple[list[int], list[int]]:
    """Return the shards that `me` should claim now, and those of its own that it should hand over.

    Args:
        shards: How many there are.
        me: This node.
        mine: What it owns.
        owned: What anybody owns.
        alive: Every live node.
        able: Those that stand ready to own: HSM signing, mirror complete, not drained.

    While nobody is able, nobody hands over: giving up in circles would help no delivery. Free shards are then shared
    out among the living.
    """
    planned = plan(shards, able or alive)
    claim = [shard for shard, node in planned.items() if node == me and shard not in owned]
    hand_over = [shard for shard in mine if able and planned[shard] != me]
    return claim, hand_over


def _weight(shard: int, node: str) -> bytes:
    return hashlib.blake2b(f"{shard}/{node}".encode(), digest_size=8).digest()
