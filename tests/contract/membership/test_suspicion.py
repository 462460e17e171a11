"""A silent peer, over the fake and over a real etcd: heard by no majority, and without an answer, it is deposed."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from etcdpb import rpc_pb2 as pb
from utrn.peer.v1 import peer_service_pb2 as peer

from cluster.config import PeersConfig
from cluster.etcd.client import EtcdRefused
from cluster.etcd.keys import Keys
from cluster.membership.failure_detector import FailureDetector
from cluster.membership.placement import plan
from cluster.membership.shard_ownership import EtcdOwnership, Member
from cluster.membership.suspicion import Suspicions, stands
from core.gateways.system_clock import SystemClock
from tests.contract.membership.test_shard_ownership import until
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.patience import PATIENCE_S

CONFIG = PeersConfig(suspect_ms=450, answer_ms=200)
ANSWER_S = CONFIG.answer_ms / 1000 + 0.001


class Voice:
    """One node: its shards, what it says of others, and whom a test lets it not hear."""

    def __init__(self, store: Store, name: str, clock: HandClock) -> None:
        self.name, self._store = name, store
        self.ownership = EtcdOwnership(store.client, store.config, SystemClock(), node_id=name)
        self.deaf_to: set[str] = set()
        self.looks = 0
        self.said = Suspicions(
            store.client, store.config, CONFIG, clock, me=self.ownership, silent=self.silent, revoke=self.revoke
        )
        self.revoked: list[tuple[str, int]] = []
        self.tasks: list[asyncio.Task[None]] = []

    def silent(self) -> Mapping[str, int]:
        self.looks += 1
        members = self.ownership.members()
        return {name: members[name].lease_id for name in self.deaf_to & members.keys()}

    async def revoke(self, node_id: str, lease_id: int, why: str) -> None:
        self.revoked.append((node_id, lease_id))
        try:
            await self._store.client.revoke_lease(lease_id)
        except EtcdRefused:
            return

    def freeze(self) -> None:
        """Let it neither answer nor keep its lease alive; the lease has not run out yet."""
        for task in self.tasks:
            task.cancel()


@asynccontextmanager
async def voices(store: Store, clock: HandClock, *names: str) -> AsyncIterator[list[Voice]]:
    found = [Voice(store, name, clock) for name in names]
    async with AsyncExitStack() as stack:
        for voice in found:
            loop = asyncio.get_running_loop()
            voice.tasks = [loop.create_task(voice.ownership.run()), loop.create_task(voice.said.run())]
            stack.callback(voice.freeze)
        await until(lambda: all(one.ownership.members().keys() == set(names) for one in found))
        # As planned, not only begun: a shard that still moves to its owner would look like one that was taken.
        planned = plan(store.config.shards, names)
        await until(lambda: {shard: one.name for one in found for shard in one.ownership.epochs()} == planned)
        yield found
        for voice in found:
            await voice.ownership.leave()


async def rounds(voice: Voice, count: int = 5) -> None:
    """Return when a node has looked so many times more."""
    wanted = voice.looks + count
    await until(lambda: voice.looks >= wanted)


async def words(store: Store) -> dict[str, pb.KeyValue]:
    prefix = Keys(store.config.prefix).suspicions()
    found, _ = await store.client.list_prefix(prefix)
    return {kv.key.removeprefix(prefix).decode(): kv for kv in found}


async def said(store: Store, *names: str) -> None:
    """Return when exactly these suspicions and answers are in the ledger."""
    async with asyncio.timeout(PATIENCE_S):
        while (await words(store)).keys() != set(names):  # noqa: ASYNC110  # another process tells
            await asyncio.sleep(0.01)


async def answered(store: Store, *voices: Voice) -> None:
    """Return when nothing stands against any of them in the ledger."""
    async with asyncio.timeout(PATIENCE_S):
        for voice in voices:
            while stands(voice.name, voice.ownership.lease_id, await words(store), "abc"):  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.01)


async def test_whom_two_of_three_do_not_hear_and_who_does_not_answer_loses_its_shards_before_its_lease_ends(
    store: Store,
) -> None:
    clock = HandClock()
    async with voices(store, clock, "a", "b", "c") as (a, b, c):
        lease, before = c.ownership.lease_id, dict(c.ownership.epochs())
        c.freeze()
        a.deaf_to = b.deaf_to = {"c"}
        await said(store, "c/a", "c/b")
        await rounds(a)
        assert a.revoked == b.revoked == [], "it still has time to answer"
        clock.advance(ANSWER_S)
        await until(lambda: "c" not in a.ownership.members())
        assert {("c", lease)} == {*a.revoked, *b.revoked}
        await until(lambda: not before.keys() - a.ownership.epochs().keys() - b.ownership.epochs().keys())
        epochs = {**a.ownership.epochs(), **b.ownership.epochs()}
        assert all(epochs[shard] > epoch for shard, epoch in before.items())
        await said(store)


async def test_who_answers_keeps_everything_though_nobody_hears_it(store: Store) -> None:
    clock = HandClock()
    async with voices(store, clock, "a", "b", "c") as (a, b, c):
        before = dict(c.ownership.epochs())
        for one in (a, b, c):
            one.deaf_to = {"a", "b", "c"} - {one.name}
        await said(store, *(f"{one}/{by}" for one in "abc" for by in "abc"))
        await answered(store, a, b, c)
        for _ in range(3):
            clock.advance(60)
            await rounds(a)
        assert a.revoked == b.revoked == c.revoked == []
        assert c.ownership.epochs() == before


async def test_one_voice_of_three_and_one_of_two_depose_nobody(store: Store) -> None:
    clock = HandClock()
    async with voices(store, clock, "a", "b", "c") as (a, b, c):
        a.deaf_to = {"c"}
        c.tasks[1].cancel()
        await said(store, "c/a")
        clock.advance(60)
        await rounds(a)
        await b.ownership.leave()
        await until(lambda: a.ownership.members().keys() == {"a", "c"})
        clock.advance(60)
        await rounds(a)
        assert a.revoked == []


async def test_who_answered_and_was_heard_again_may_be_suspected_anew(store: Store) -> None:
    clock = HandClock()
    async with voices(store, clock, "a", "b", "c") as (a, b, c):
        a.deaf_to = b.deaf_to = {"c"}
        await said(store, "c/a", "c/b", "c/c")
        a.deaf_to, b.deaf_to = set(), set()
        await said(store, "c/c")
        c.tasks[1].cancel()
        a.deaf_to = b.deaf_to = {"c"}
        await said(store, "c/a", "c/b", "c/c")
        await rounds(a)
        clock.advance(ANSWER_S)
        await until(lambda: bool(a.revoked or b.revoked))


async def test_the_ledger_is_asked_before_a_lease_is_revoked_on_a_copy_that_may_be_behind(store: Store) -> None:
    clock = HandClock()
    async with voices(store, clock, "a", "b", "c") as (a, b, c):
        lease = c.ownership.lease_id
        a.deaf_to = b.deaf_to = {"c"}
        await said(store, "c/a", "c/b", "c/c")
        await answered(store, c)
        # Its own copy never hears of the answer.
        a.tasks[1].cancel()
        behind = {name: kv for name, kv in (await words(store)).items() if name != "c/c"}
        assert stands("c", lease, behind, "abc")
        assert not await a.said._stands_in_ledger("c", lease)


async def test_no_lease_is_revoked_where_the_ledger_has_the_suspects_answer(store: Store) -> None:
    clock = HandClock()
    async with voices(store, clock, "a", "b", "c") as (a, b, c):
        lease = c.ownership.lease_id
        a.deaf_to = b.deaf_to = {"c"}
        await said(store, "c/a", "c/b", "c/c")
        await answered(store, c)
        # Its own copy says that the case is due, whatever the ledger has.
        a.said._due = lambda silent: [("c", lease)]  # type: ignore[method-assign]
        await rounds(a)
        assert a.revoked == []


async def test_a_newer_lease_of_the_suspect_is_not_meant(store: Store) -> None:
    clock = HandClock()
    async with voices(store, clock, "a", "b", "c") as (a, b, c):
        old = c.ownership.lease_id
        c.tasks[1].cancel()
        a.deaf_to = b.deaf_to = {"c"}
        await said(store, "c/a", "c/b")
        assert await a.said._stands_in_ledger("c", old)
        await store.client.revoke_lease(old)
        await until(lambda: c.ownership.lease_id not in (0, old))
        assert not await a.said._stands_in_ledger("c", old)


def kv(lease: int, revision: int) -> pb.KeyValue:
    from utrn.store.v1 import records_pb2 as records

    return pb.KeyValue(value=records.SuspicionRecord(lease_id=lease).SerializeToString(), mod_revision=revision)


@pytest.mark.parametrize(
    ("by", "living", "found"),
    [
        ("a", "ab", False),
        ("a", "abz", False),
        ("ab", "abz", True),
        ("ab", "abcz", False),
        ("abc", "abcz", True),
        ("abc", "abcdz", True),
        ("ab", "abcdz", False),
        # Those whose lease is gone have no voice.
        ("ab", "az", False),
    ],
)
def test_a_majority_is_of_all_that_live_the_suspect_among_them(by: str, living: str, *, found: bool) -> None:
    words = {f"z/{one}": kv(7, 10) for one in by}
    assert stands("z", 7, words, living) is found
    assert not stands("z", 8, words, living), "said of another lease"
    garbled = {name: pb.KeyValue(value=b"\xff", mod_revision=10) for name in words}
    assert not stands("z", 7, garbled, living)
    assert not stands("z", 7, {**words, "z/z": kv(7, 11)}, living), "answered"
    assert stands("z", 7, {**words, "z/z": kv(7, 9)}, living) is found, "answered before it was said"


def watch(clock: HandClock, members: list[Member]) -> FailureDetector:
    from tests.fakes.etcd import FakeEtcd

    return FailureDetector(FakeEtcd(), CONFIG, clock, node_id="a", members=lambda: members)  # type: ignore[arg-type]


def member(lease: int) -> Member:
    return Member(node_id="b", address="", zone="", version="", hsm_ready=True, mirror_ready=True, lease_id=lease)


async def test_silence_is_counted_in_own_ticks_and_only_after_a_beat_under_the_present_lease() -> None:
    members = [member(7)]
    peers = watch(HandClock(), members)

    async def tick(count: int, *, hears_another: bool = True) -> None:
        for _ in range(count):
            peers.tick(0.0501)
        if hears_another:
            await peers._take("c", peer.HeartbeatResponse(node_id="c", lease_id=3))

    await tick(20)
    assert peers.silent() == {}, "never heard"
    await peers._take("b", peer.HeartbeatResponse(node_id="b", lease_id=7))
    await tick(8)
    assert peers.silent() == {}
    await tick(1, hears_another=False)
    assert peers.silent() == {"b": 7}
    await tick(9, hears_another=False)
    assert peers.silent() == {}, "who hears nobody is probably cut off itself"
    await tick(0)
    assert peers.silent() == {}, "it was cut off itself: whoever is silent is so from now on"
    await tick(5)
    await tick(5)
    assert peers.silent() == {"b": 7}
    await peers._take("b", peer.HeartbeatResponse(node_id="b", lease_id=7))
    for _ in range(3):
        peers.tick(60.0)
    assert peers.silent() == {}, "three stalls of this node are nobody's silence"
    await peers._take("b", peer.HeartbeatResponse(node_id="b", lease_id=7))
    assert peers.silent() == {}
    await tick(9)
    members[:] = [member(8)]
    assert peers.silent() == {}, "its new lease costs it nothing until it is heard under it"
    await peers._take("b", peer.HeartbeatResponse(node_id="b", lease_id=8, leaving=True))
    await tick(9)
    assert peers.silent() == {}, "it leaves in good order"
