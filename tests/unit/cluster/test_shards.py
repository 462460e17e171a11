"""Meter -> shard and who owns what: pure, and the same for ever."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.shards import plan, shard_of
from core.domain.meter import MeterId

NODES = st.sets(st.text("abcdef-0123456789", min_size=1, max_size=8), min_size=1, max_size=6)


def test_the_hash_never_changes() -> None:
    assert [shard_of(MeterId(f"00db12000000000{n}"), 32) for n in range(4)] == [21, 29, 9, 8]


@given(NODES, st.integers(1, 64))
def test_every_shard_has_one_owner(nodes: set[str], shards: int) -> None:
    owners = plan(shards, nodes)
    assert set(owners) == set(range(shards))
    assert set(owners.values()) <= nodes


@given(NODES, st.text("xyz", min_size=1, max_size=3))
def test_a_node_that_comes_moves_only_what_it_takes(nodes: set[str], newcomer: str) -> None:
    before, after = plan(32, nodes), plan(32, nodes | {newcomer})
    assert all(after[shard] in (before[shard], newcomer) for shard in before)


def test_without_nodes_nobody_owns_anything() -> None:
    assert plan(32, ()) == {}
