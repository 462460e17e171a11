"""Cluster time over the ledger, the fake and a real one: machines whose clocks step, jump, sleep and disagree."""

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest
from etcdpb import rpc_pb2 as pb

from cluster.etcd import ops, preconditions
from cluster.etcd.client import EtcdClient
from cluster.etcd.keys import Keys
from cluster.registry.store import EtcdRegistryStore
from cluster.timekeeping.fence import TimeFence
from cluster.timekeeping.ledger_time import ClusterClock, LedgerTime
from core.domain.cluster_time import Doubt, TimeKeeper, TimeRule
from core.domain.effective_dated import Ms, ms_of
from core.domain.errors import ClocksDisagree, LedgerUnavailable, NotReady
from core.ports.registry import RegistryWrite
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.machines import Machines

HOUR = 3600.0
STEPS = [HOUR, -HOUR, 48 * HOUR, -48 * HOUR]


async def begun(nodes: Machines) -> None:
    """Let the first start ever come to an end: everybody knows the time, and it is the right one."""
    await nodes.pass_s(4)
    assert [abs(nodes.off_s(name)) < 0.5 for name in nodes.times] == [True] * len(nodes.times)


def step(nodes: Machines, names: str, seconds: float) -> None:
    for name in names:
        nodes.machines[name].step(seconds)


async def test_three_nodes_begin_by_the_middle_of_their_clocks_and_one_carries_the_time(store: Store) -> None:
    nodes = Machines(store)
    step(nodes, "c", HOUR)
    async with nodes.running():
        assert not any(time.known for time in nodes.times.values())
        with pytest.raises(NotReady):
            nodes.clocks["a"].now()
        await begun(nodes)
        _, before = await nodes.ledger()
        await nodes.pass_s(10)
        instant, after = await nodes.ledger()
        assert instant is not None
        assert 0 <= nodes.truth() - instant <= 2000
        assert await nodes.doubt() == ""
        assert 5 <= after - before <= 15, "about once a second, not once a second and node"


@pytest.mark.parametrize("names", ["a", "ab", "abc"])
@pytest.mark.parametrize("seconds", STEPS)
async def test_no_step_of_wall_clocks_moves_it(store: Store, names: str, seconds: float) -> None:
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        step(nodes, names, seconds)
        await nodes.pass_s(20)
        assert [abs(nodes.off_s(name)) < 0.5 for name in "abc"] == [True] * 3
        state = nodes.times["b"].state()
        assert state.known
        majority = seconds * 1000 if len(names) > 1 else 0
        assert state.off_ms is not None
        assert abs(state.off_ms - majority) < 1000
        wall_off = nodes.times["a"].state().wall_off_ms
        assert wall_off is not None
        assert abs(wall_off - seconds * 1000) < 1000, "a node whose clock is off says so"


@pytest.mark.parametrize(("share", "follows"), [(0.01, True), (-0.01, True), (0.5, False)])
async def test_slewing_is_followed_and_a_runaway_is_not(store: Store, share: float, *, follows: bool) -> None:
    """Leap smear and a time daemon's slewing are far below one part in a hundred."""
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        for tick in range(1, 61):
            step(nodes, "abc", 10 * tick * share)
            await nodes.pass_s(10, step_s=1.0)
        off = nodes.times["a"].state().off_ms
        assert off is not None
        assert (abs(off) < 1000) is follows
        assert abs(nodes.off_s("a")) < 100


async def test_two_nodes_left_with_clocks_two_minutes_apart_both_go_on(store: Store) -> None:
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        nodes.stop("c")
        step(nodes, "b", 120.0)
        await nodes.pass_s(60, step_s=0.5)
        for name in "ab":
            assert nodes.times[name].known
            assert abs(nodes.off_s(name)) < 1.0
        assert nodes.times["a"].state().walls is None


async def test_a_node_booted_an_hour_ahead_takes_the_time_from_those_who_carry_it(store: Store) -> None:
    nodes = Machines(store)
    step(nodes, "c", HOUR)
    nodes.apart.add("c")
    async with nodes.running("a", "b"):
        await begun(nodes)
        await nodes.start("c")
        with pytest.raises(NotReady):
            nodes.clocks["c"].now()
        await nodes.pass_s(3)
        assert abs(nodes.off_s("c")) < 0.5


@pytest.mark.parametrize("reaches_ledger", [True, False])
@pytest.mark.parametrize("seconds", STEPS)
async def test_a_majority_that_starts_anew_with_stepped_clocks_goes_by_the_one_node_that_knows(
    store: Store, seconds: float, *, reaches_ledger: bool
) -> None:
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        nodes.machines["a"].lease_good = reaches_ledger
        nodes.stop("b")
        nodes.stop("c")
        step(nodes, "abc", seconds)
        await nodes.pass_s(2)
        await nodes.start("b")
        await nodes.start("c")
        await nodes.pass_s(10)
        assert [abs(nodes.off_s(name)) < 0.5 for name in "abc"] == [True] * 3


@pytest.mark.parametrize("seconds", STEPS)
async def test_so_it_does_while_that_node_stands_aside(store: Store, seconds: float) -> None:
    """It has told a time that is later than the ledger's; what it has from the ledger is still all that is known."""
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        nodes.machines["a"].jump(HOUR)
        nodes.clocks["a"].now()
        await nodes.pass_s(2)
        assert not nodes.times["a"].known, "it stands aside"
        nodes.machines["a"].lease_good = False
        nodes.stop("b")
        nodes.stop("c")
        step(nodes, "abc", seconds)
        await nodes.pass_s(2)
        await nodes.start("b")
        await nodes.start("c")
        await nodes.pass_s(10)
        assert [abs(nodes.off_s(name)) < 0.5 for name in "bc"] == [True] * 2


@pytest.mark.parametrize("seconds", STEPS)
async def test_after_hours_without_anybody_a_majority_sets_it_forward(store: Store, seconds: float) -> None:
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
    before, _ = await nodes.ledger()
    for machine in nodes.machines.values():
        machine.advance(8 * HOUR)
    step(nodes, "b", seconds)
    async with nodes.running():
        await nodes.pass_s(8)
        assert [abs(nodes.off_s(name)) < 1.0 for name in "abc"] == [True] * 3
        assert await nodes.doubt() == ""
        after, _ = await nodes.ledger()
        assert before is not None
        assert after is not None
        assert after - before >= 8 * HOUR * 1000


async def test_a_lone_node_of_three_goes_on_from_the_ledger_until_a_majority_closes_the_gap(store: Store) -> None:
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
    for machine in nodes.machines.values():
        machine.advance(8 * HOUR)
    step(nodes, "a", 13 * HOUR)
    async with nodes.running("a"):
        await nodes.pass_s(4)
        assert not nodes.times["a"].known, "it waits a little for the others"
        await nodes.pass_s(6)
        assert abs(nodes.off_s("a") + 8 * HOUR) < 30
        assert await nodes.doubt() == "gap a"
        await nodes.start("b")
        await nodes.pass_s(10)
        assert abs(nodes.off_s("b") + 8 * HOUR) < 30, "two clocks that disagree settle nothing"
        await nodes.start("c")
        await nodes.pass_s(5)
        assert [abs(nodes.off_s(name)) < 1.0 for name in "abc"] == [True] * 3
        assert await nodes.doubt() == ""


async def test_nodes_down_for_seconds_that_come_back_one_by_one_are_on_time_at_once(store: Store) -> None:
    """The first goes on from the ledger; as soon as a majority is there, so is the right time, and no later."""
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
    for machine in nodes.machines.values():
        machine.advance(20.0)
    async with nodes.running("a"):
        await nodes.pass_s(6)
        assert nodes.off_s("a") < -18
        assert await nodes.doubt() == "gap a"
        # Whoever compares with a right clock meanwhile is told an instant that has not passed.
        assert abs(nodes.off_s("a") + nodes.times["a"].utc_ahead().total_seconds()) < 0.5
        await nodes.start("b")
        await nodes.pass_s(3)
        assert [abs(nodes.off_s(name)) < 0.5 for name in "ab"] == [True] * 2
        assert await nodes.doubt() == ""


async def test_nodes_down_for_seconds_that_come_back_together_are_on_time_at_once(store: Store) -> None:
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
    for machine in nodes.machines.values():
        machine.advance(20.0)
    async with nodes.running():
        await nodes.pass_s(3)
        assert [abs(nodes.off_s(name)) < 0.5 for name in "abc"] == [True] * 3


@pytest.mark.parametrize(("names", "seconds", "ahead_s"), [("abc", 50.0, 50.0), ("a", 50.0, 0.0), ("abc", HOUR, 0.0)])
async def test_what_others_compare_with_their_clocks_is_moved_out_by_what_a_majority_says(
    store: Store, names: str, seconds: float, ahead_s: float
) -> None:
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        step(nodes, names, seconds)
        assert abs(nodes.times["a"].utc_ahead().total_seconds() - ahead_s) < 0.5


async def test_a_single_node_is_its_own_majority(store: Store) -> None:
    nodes = Machines(store, "a")
    async with nodes.running():
        await nodes.pass_s(2)
        assert abs(nodes.off_s("a")) < 0.1
    nodes.machines["a"].advance(HOUR)
    async with nodes.running():
        await nodes.pass_s(2)
        assert abs(nodes.off_s("a")) < 0.1
        step(nodes, "a", HOUR)
        await nodes.pass_s(10)
        assert abs(nodes.off_s("a")) < 0.1, "once it carries the time, a step is for people to judge"


async def test_a_machine_that_slept_hears_the_others_first_and_one_that_leapt_stands_aside(store: Store) -> None:
    """A pause counts on a clock that counts sleep; a leap that was none is outvoted by the ledger."""
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        nodes.machines["a"].jump(HOUR)
        wild = nodes.clocks["a"].now()
        assert (wild.timestamp() * 1000 - nodes.truth()) > 3_500_000, "for a moment it is wrong, and cannot know"
        fence = TimeFence(store.client, nodes.keys, nodes.clocks["a"])
        before, _ = await nodes.ledger()
        with pytest.raises(NotReady):
            await fence.reach(ms_of(wild))
        assert (await nodes.ledger())[0] == before, "whoever asks the ledger finds out before it writes"
        await nodes.pass_s(3)
        assert (nodes.times["a"].known, nodes.times["b"].known, nodes.times["c"].known) == (False, True, True)
        with pytest.raises(NotReady):
            await fence.reach(Ms(nodes.truth() + 60_000))
        assert [abs(nodes.off_s(name)) < 0.5 for name in "bc"] == [True] * 2
        # Alone for a while, its process stopped with everything else: all of that is counted.
        for machine in nodes.machines.values():
            machine.advance(600)
        await nodes.pass_s(4)
        assert [abs(nodes.off_s(name)) < 1.0 for name in "bc"] == [True] * 2


@pytest.mark.parametrize("leap_s", [2.1, 4.0, 9.0, 30.0])
@pytest.mark.parametrize("name", ["a", "b", "c"])
async def test_a_leap_of_seconds_at_the_carrier_or_another_moves_cluster_time_nowhere(
    store: Store, name: str, leap_s: float
) -> None:
    """Whoever carries it: each node leaps once, between two looks, and again while it stands aside."""
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        for _ in range(3):
            nodes.machines[name].jump(leap_s)
            await nodes.times[name].look()
            await nodes.pass_s(5)
            instant, _ = await nodes.ledger()
            assert instant is not None
            assert 0 <= nodes.truth() - instant <= 3000
        assert [abs(nodes.off_s(other)) < 0.5 for other in "abc" if other != name] == [True] * 2


async def noticed(nodes: Machines, name: str) -> None:
    """Have a node find the ledger silent once, in a moment in which it hears no peer and its lease is good."""
    nodes.deaf.add(name)
    nodes.machines[name].lease_good = True
    await nodes.times[name].look()
    nodes.machines[name].lease_good = False
    nodes.deaf.discard(name)


@pytest.mark.parametrize("leap_s", [2.5, 9.0, 60.0])
@pytest.mark.parametrize("heard", [True, False], ids=["old beats", "no beats"])
async def test_a_leap_in_the_middle_of_a_silence_is_held_against_beats_that_come_after_it(
    store: Store, leap_s: float, *, heard: bool
) -> None:
    """What was heard before the leap is carried on by the clock that leapt, and so agrees with it."""
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        for machine in nodes.machines.values():
            machine.lease_good = False
        await nodes.pass_s(10)
        await noticed(nodes, "a")
        await nodes.pass_s(10)
        if heard:
            nodes.hear_no_more("a")
        else:
            nodes.deaf.add("a")
        nodes.machines["a"].jump(leap_s)
        nodes.machines["a"].lease_good = True
        for _ in range(5):
            nodes.machines["a"].advance(0.1)
            await nodes.times["a"].look()
        instant, _ = await nodes.ledger()
        assert instant is not None
        assert instant <= nodes.truth() + 100
        if heard:
            nodes.hear_again("a")
        nodes.deaf.clear()
        for machine in nodes.machines.values():
            machine.lease_good = True
        await nodes.pass_s(4)
        assert [abs(nodes.off_s(name)) < 1.0 for name in "bc"] == [True] * 2


async def test_a_silence_noticed_without_a_lease_does_not_count_for_a_later_one(store: Store) -> None:
    """The node has heard the ledger since: what it waits for begins anew."""
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        for machine in nodes.machines.values():
            machine.lease_good = False
        await nodes.pass_s(10)
        await noticed(nodes, "a")
        for name in "bc":
            nodes.machines[name].lease_good = True
        await nodes.pass_s(10)
        nodes.deaf.add("a")
        nodes.machines["a"].jump(9.0)
        nodes.machines["a"].lease_good = True
        await nodes.times["a"].look()
        instant, _ = await nodes.ledger()
        assert instant is not None
        assert instant <= nodes.truth() + 100


@pytest.mark.parametrize("names", ["cb", "bc", "ab", "ca"])
async def test_two_nodes_that_leap_one_after_the_other_do_not_vouch_for_each_other(store: Store, names: str) -> None:
    """The first has written since, and asks for nobody's belief in what it told before."""
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        nodes.machines[names[0]].jump(9.0)
        await nodes.pass_s(1.5)
        nodes.machines[names[1]].jump(9.0)
        await nodes.pass_s(3)
        instant, _ = await nodes.ledger()
        assert instant is not None
        assert instant <= nodes.truth() + 100


@pytest.mark.parametrize("leap_s", [2.1, 4.0, 9.0])
async def test_a_write_that_needs_the_time_does_not_take_a_leap_of_seconds_along(store: Store, leap_s: float) -> None:
    """Also where the leap is told first, and the ledger's instant then looks as if it came late."""
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        for name in "abc":
            nodes.machines[name].jump(leap_s)
            wild = ms_of(nodes.clocks[name].now())
            fence = TimeFence(store.client, nodes.keys, nodes.clocks[name])
            for _ in range(3):
                with pytest.raises(NotReady):
                    await fence.reach(wild)
                await nodes.settle()
                instant, _ = await nodes.ledger()
                assert instant is not None
                assert instant <= nodes.truth() + 1100, "a second is what nobody can tell from a draw"
            await nodes.pass_s(20)


@pytest.mark.parametrize("rate", [1.5, 3.0, 0.5])
async def test_a_carrier_whose_monotonic_clock_runs_at_another_rate_is_held_by_the_wall_clocks(
    store: Store, rate: float
) -> None:
    nodes = Machines(store, "abc")
    async with nodes.running():
        await begun(nodes)
        nodes.machines["a"].rate = rate
        await nodes.pass_s(240)
        instant, _ = await nodes.ledger()
        assert instant is not None
        assert abs(nodes.truth() - instant) <= 3000


async def test_after_the_ledger_was_away_the_time_is_not_taken_from_one_clock_that_leapt(store: Store) -> None:
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        for machine in nodes.machines.values():
            machine.lease_good = False
        await nodes.pass_s(60, step_s=1.0)
        nodes.machines["a"].jump(HOUR)
        for machine in nodes.machines.values():
            machine.lease_good = True
        await nodes.pass_s(4)
        assert [abs(nodes.off_s(name)) < 1.0 for name in "bc"] == [True] * 2


async def test_whoever_carried_it_may_go_another_goes_on(store: Store) -> None:
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        for name in ("a", "b"):
            nodes.stop(name)
            await nodes.pass_s(5)
            assert abs(nodes.off_s("c")) < 0.5


# An operator's word.


async def test_an_operator_sets_it_forward_at_once(store: Store) -> None:
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        step(nodes, "abc", HOUR)
        await nodes.pass_s(5)
        await nodes.times["b"].accept("operator")
        await nodes.pass_s(3)
        assert [abs(nodes.off_s(name) - HOUR) < 1.0 for name in "abc"] == [True] * 3
        assert await nodes.doubt() == ""


async def test_back_it_is_let_run_slowly_and_never_goes_back(store: Store) -> None:
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        step(nodes, "abc", -600)
        await nodes.pass_s(5)
        before = nodes.clocks["a"].now()
        await nodes.times["b"].accept("operator")
        assert await nodes.doubt() == "ahead operator"
        for _ in range(150):
            await nodes.pass_s(10, step_s=1.0)
            now = nodes.clocks["a"].now()
            assert now >= before
            before = now
            if await nodes.doubt() == "":
                break
        assert await nodes.doubt() == ""
        assert abs(nodes.off_s("a") + 600) < 61


async def test_an_operators_word_that_it_is_ahead_outlives_a_start_of_all_nodes(store: Store) -> None:
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        step(nodes, "abc", -2 * HOUR)
        await nodes.pass_s(2)
        await nodes.times["b"].accept("operator")
        await nodes.pass_s(2)
    async with nodes.running():
        await nodes.pass_s(8)
        assert await nodes.doubt() == "ahead operator"
        step(nodes, "abc", 24 * HOUR)
        before, _ = await nodes.ledger()
        await nodes.pass_s(20)
        after, _ = await nodes.ledger()
        assert before is not None
        assert after is not None
        assert after - before < 25_000, "a step of all wall clocks is for an operator"


async def test_where_no_clocks_agree_there_is_nothing_to_set_it_to(store: Store) -> None:
    nodes = Machines(store)
    async with nodes.running():
        with pytest.raises(ClocksDisagree):
            await nodes.times["a"].accept("operator")
        await begun(nodes)
        step(nodes, "b", HOUR)
        step(nodes, "c", -HOUR)
        with pytest.raises(ClocksDisagree):
            await nodes.times["a"].accept("operator")


# What must not happen before its time.


async def test_a_write_that_is_not_due_is_not_written_and_one_that_is_brings_the_ledger_up(store: Store) -> None:
    clock = HandClock()
    records, keys = EtcdRegistryStore(store.client, store.config, clock), Machines(store).keys
    now = ms_of(clock.now())
    with pytest.raises(NotReady):
        await records.write(RegistryWrite(expect=[], put=[], due=[(now, cast("object", "x"))], not_before=Ms(now + 1)))  # type: ignore[list-item]
    assert (await store.client.range(pb.RangeRequest(key=keys.time_now()))).kvs == []
    assert await records.write(RegistryWrite(expect=[], put=[], not_before=now)) is not None
    (there,) = (await store.client.range(pb.RangeRequest(key=keys.time_now()))).kvs
    assert int(there.value) == now


@pytest.mark.parametrize(("ahead_ms", "written"), [(-1, True), (0, True), (1, False)])
async def test_without_the_time_compare_a_node_that_is_wrong_writes_before_its_time(
    store: Store, ahead_ms: int, *, written: bool
) -> None:
    """The compare is in the transaction of the write: a node that asks nobody writes nothing early."""
    key, at = Machines(store).keys.time_now(), 1_795_000_000_000
    await store.client.txn(pb.TxnRequest(success=[ops.put(key, preconditions.time_value(at))]))
    early = ops.put(key + b"-early", b"x")
    fenced = pb.TxnRequest(compare=preconditions.time_reached(key, at + ahead_ms), success=[early])
    assert (await store.client.txn(fenced)).succeeded is written
    assert (await store.client.txn(pb.TxnRequest(success=[early]))).succeeded, "the control: nothing else holds it up"


async def test_the_instant_only_rises_whoever_writes(store: Store) -> None:
    key = Machines(store).keys.time_now()
    first = await store.client.txn(pb.TxnRequest(success=[ops.put(key, preconditions.time_value(5_000))]))
    back = pb.TxnRequest(
        compare=preconditions.time_unmoved(key, first.header.revision, 5_000), success=[ops.put(key, b"0")]
    )
    assert not (await store.client.txn(back)).succeeded
    forward = preconditions.time_unmoved(key, first.header.revision, 5_001)
    put = [ops.put(key, preconditions.time_value(5_001))]
    assert (await store.client.txn(pb.TxnRequest(compare=forward, success=put))).succeeded
    assert not (await store.client.txn(pb.TxnRequest(compare=forward, success=put))).succeeded, "it has moved since"


async def test_many_fences_at_once_bring_it_up_without_a_step_back(store: Store) -> None:
    clocks = [HandClock() for _ in range(8)]
    for number, clock in enumerate(clocks):
        clock.advance(number / 10)
    keys = Machines(store).keys
    async with asyncio.TaskGroup() as tasks:
        for clock in clocks:
            tasks.create_task(TimeFence(store.client, keys, clock).reach(ms_of(clock.now())))
    (there,) = (await store.client.range(pb.RangeRequest(key=keys.time_now()))).kvs
    assert int(there.value) == ms_of(clocks[-1].now())


async def test_without_the_bound_all_nodes_stepped_would_take_the_time_along(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        loose = replace(TimeRule(), off_ms=10**9)
        for time in nodes.times.values():
            monkeypatch.setattr(time.keeper, "rule", loose)
            time.keeper.doubt = Doubt.NONE
        step(nodes, "abc", HOUR)
        await nodes.pass_s(20)
        assert nodes.off_s("a") > 1.0


async def test_a_word_of_a_newer_version_about_the_time_ends_no_node(store: Store) -> None:
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        await store.client.txn(pb.TxnRequest(success=[ops.put(nodes.keys.time_doubt(), b"\xffsomething-new by c")]))
        await nodes.pass_s(5)
        assert [abs(nodes.off_s(name)) < 0.5 for name in "abc"] == [True] * 3
        instant, _ = await nodes.ledger()
        assert instant is not None
        assert 0 <= nodes.truth() - instant <= 2000, "somebody still carries it"


async def test_a_garbled_time_ends_no_node_and_lets_nothing_happen_early(store: Store) -> None:
    nodes = Machines(store, "a")
    registry = EtcdRegistryStore(store.client, store.config, nodes.machines["a"])
    async with nodes.running():
        await begun(nodes)
        await store.client.txn(pb.TxnRequest(success=[ops.put(nodes.keys.time_now(), b"zzz")]))
        for _ in range(8):
            nodes.machines["a"].advance(0.25)
            await nodes.times["a"].look()
        assert abs(nodes.off_s("a")) < 0.5
        with pytest.raises(LedgerUnavailable):
            await registry.write(RegistryWrite(expect=[], put=[], not_before=Ms(nodes.truth() + 1000)))


async def test_a_clock_that_leapt_and_so_thinks_its_peers_silent_takes_nobody_along(store: Store) -> None:
    """After the leap all that was heard seems old, the peers' beats too, while the lease is renewed in a moment."""
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        for _ in range(2):
            # The second time as well: how long it has waited is counted anew.
            nodes.machines["a"].jump(HOUR)
            nodes.deaf.add("a")
            await nodes.times["a"].look()
            nodes.deaf.discard("a")
            await nodes.pass_s(3)
            instant, _ = await nodes.ledger()
            assert instant is not None
            assert instant <= nodes.truth()
            assert [abs(nodes.off_s(name)) < 0.5 for name in "abc"] == [True] * 3


async def test_where_peers_are_never_heard_the_time_goes_on_after_the_ledger_was_away(store: Store) -> None:
    nodes = Machines(store)
    async with nodes.running():
        await begun(nodes)
        nodes.deaf |= set("abc")
        for machine in nodes.machines.values():
            machine.lease_good = False
        await nodes.pass_s(60, step_s=1.0)
        before, _ = await nodes.ledger()
        for machine in nodes.machines.values():
            machine.lease_good = True
        await nodes.pass_s(10)
        after, _ = await nodes.ledger()
        assert before is not None
        assert after is not None
        assert 0 <= nodes.truth() - after <= 2000


class SlowToAsk:
    """A way to the ledger on which the first question takes long; the ledger's time goes on meanwhile."""

    def __init__(self, store: Store, clock: HandClock, *, after: int) -> None:
        self._store = store
        self._clock = clock
        self._after = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store.client, name)

    async def _on_its_way(self) -> None:
        self._clock.advance(5.0)
        key = Keys(self._store.config.prefix).time_now()
        await self._store.client.txn(pb.TxnRequest(success=[ops.put(key, preconditions.time_value(self._after))]))

    async def list_prefix(self, prefix: bytes) -> tuple[list[pb.KeyValue], int]:
        await self._on_its_way()
        return await self._store.client.list_prefix(prefix)

    async def range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        await self._on_its_way()
        return await self._store.client.range(request)


async def test_a_question_that_was_long_on_its_way_does_not_set_the_time_ahead(store: Store) -> None:
    clock, right = HandClock(), 1_795_000_005_000
    keeper = TimeKeeper(TimeRule())
    time = LedgerTime(
        cast("EtcdClient", SlowToAsk(store, clock, after=right)), store.config, ClusterClock(keeper, clock),
        node_id="a", sight=lambda *_: None, may_write=lambda: False,
    )  # fmt: skip
    following = asyncio.get_running_loop().create_task(time.follow())
    await time.watching()
    assert keeper.estimate(clock.monotonic()) == right
    following.cancel()


async def test_a_write_that_asks_for_the_time_does_not_set_it_ahead_either(store: Store) -> None:
    clock, right = HandClock(), 1_795_000_005_000
    keeper = TimeKeeper(TimeRule())
    client = cast("EtcdClient", SlowToAsk(store, clock, after=right))
    fence = TimeFence(client, Keys(store.config.prefix), ClusterClock(keeper, clock))
    await fence.reach(Ms(right))
    assert keeper.estimate(clock.monotonic()) == right
