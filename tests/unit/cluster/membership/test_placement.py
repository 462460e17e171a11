"""Meter -> shard and who owns what: pure, and the same for ever."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.membership.placement import moves, plan, shard_of
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


SHARDS = 32
_NODES = st.sets(st.sampled_from(["a", "b", "c", "d"]), min_size=1)


@given(alive=_NODES, able=st.sets(st.sampled_from(["a", "b", "c", "d"])), data=st.data())
def test_moves_end_with_every_shard_owned_once_and_then_nothing_moves(
    alive: set[str], able: set[str], data: st.DataObject
) -> None:
    able &= alive
    owners = {shard: data.draw(st.sampled_from([*sorted(alive), None])) for shard in range(SHARDS)}
    for _ in range(3):
        for me in sorted(alive):
            owned = {shard for shard, owner in owners.items() if owner is not None}
            mine = [shard for shard, owner in owners.items() if owner == me]
            claim, hand_over = moves(SHARDS, me=me, mine=mine, owned=owned, alive=alive, able=able)
            assert not owned & set(claim), "only what is free is claimed"
            assert set(hand_over) <= set(mine)
            owners |= dict.fromkeys(hand_over) | dict.fromkeys(claim, me)
    assert None not in owners.values()
    if able:
        assert owners == plan(SHARDS, able)


def test_while_nobody_is_able_nobody_hands_over_and_what_is_free_is_shared_out() -> None:
    claim, hand_over = moves(SHARDS, me="a", mine=range(10), owned=range(20), alive={"a", "b"}, able=set())
    assert hand_over == []
    assert set(claim) == {shard for shard, node in plan(SHARDS, {"a", "b"}).items() if node == "a" and shard >= 20}
