"""A ledger that goes back, is replaced or emptied: nothing more is written to it, and nothing of it is believed."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from etcdpb import rpc_pb2 as pb

from cluster.config import EtcdConfig
from cluster.etcd import ops
from cluster.etcd.client import EtcdClient, EtcdRefused, EtcdUnknown, EtcdUnreachable
from cluster.etcd.keys import Keys
from cluster.etcd.ledger_guard import LedgerGuard
from cluster.ledger.identity import LedgerThere, LedgerUnfit, accept, agree, create, look, unfit
from cluster.ledger.state_file import LedgerState, StateFile
from cluster.ledger.watch import LedgerWatch
from core.gateways.system_clock import SystemClock
from tests.contract.etcd.test_informer import until
from tests.support.etcd import RealEtcd
from tests.support.patience import PATIENCE_S

pytestmark = [pytest.mark.real]
SETTINGS = {"etcd.shards": "32", "flow.hot_window_days": "30", "schemes": "gbcs"}
NOW = SystemClock().now()


class Node:
    """What of a node has to do with its ledger's identity."""

    def __init__(self, config: EtcdConfig, folder: Path, settings: dict[str, str]) -> None:
        self.guard = LedgerGuard()
        self.client = EtcdClient(config, self.guard)
        self.state = StateFile(folder, "node-a")
        self.watch = LedgerWatch(self.client, config, self.guard, self.state, settings)

    async def put(self, key: bytes, value: bytes = b"x") -> None:
        await self.client.txn(pb.TxnRequest(success=[ops.put(key, value)]))


@asynccontextmanager
async def node(config: EtcdConfig, folder: Path, settings: dict[str, str] = SETTINGS) -> AsyncIterator[Node]:
    one = Node(config, folder, settings)
    running = asyncio.get_running_loop().create_task(one.watch.run())
    try:
        await asyncio.wait((running, asyncio.get_running_loop().create_task(until(lambda: one.watch.agreed))),
                           return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
        if running.done():
            await running
        yield one
    finally:
        running.cancel()
        await one.client.close()


async def made(config: EtcdConfig) -> None:
    client = EtcdClient(config)
    await create(client, Keys(config.prefix), SETTINGS, NOW)
    await client.close()


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[RealEtcd]:
    """An etcd of this test's own, whose data it puts back."""
    real = RealEtcd(tmp_path)
    yield real
    real.stop()


def stop(etcd: RealEtcd) -> None:
    etcd.processes[0].terminate()
    etcd.processes[0].wait()


def put_back(etcd: RealEtcd, copy: Path) -> None:
    """Put an earlier copy of the data in the present one's place, as a restore does, and start."""
    stop(etcd)
    shutil.rmtree(etcd.folder / "m0")
    shutil.copytree(copy, etcd.folder / "m0")
    etcd.restart(0)


async def test_a_ledger_is_made_once(etcd: RealEtcd) -> None:
    config = etcd.config()
    await made(config)
    client = EtcdClient(config)
    with pytest.raises(LedgerThere):
        await create(client, Keys(config.prefix), SETTINGS, NOW)
    await client.close()


async def test_a_mistyped_prefix_is_no_new_ledger(etcd: RealEtcd, tmp_path: Path) -> None:
    config = etcd.config()
    with pytest.raises(LedgerUnfit, match="mistyped prefix"):
        async with node(config, tmp_path):
            raise AssertionError("it serves")


async def test_a_node_that_differs_does_not_start_and_names_the_setting(etcd: RealEtcd, tmp_path: Path) -> None:
    config = etcd.config()
    await made(config)
    with pytest.raises(LedgerUnfit, match="hot_window_days: 7 here, 30 agreed"):
        async with node(config, tmp_path, {**SETTINGS, "flow.hot_window_days": "7"}):
            raise AssertionError("it serves")


async def test_a_running_node_stops_writing_when_other_settings_are_agreed(etcd: RealEtcd, tmp_path: Path) -> None:
    config = etcd.config()
    await made(config)
    operator = EtcdClient(config)
    async with node(config, tmp_path) as one:
        await one.put(b"before")
        keys, other = Keys(config.prefix), {**SETTINGS, "flow.hot_window_days": "7"}
        seen = await look(operator, keys)
        await agree(operator, keys, other, NOW, seen=seen)
        with pytest.raises(LedgerUnfit, match="changed meanwhile"):
            await agree(operator, keys, SETTINGS, NOW, seen=seen)
        assert (await look(operator, keys)).settings == other
        assert await until(lambda: not one.watch.agreed)
        assert one.watch.problems == [
            "flow.hot_window_days: 30 here, 7 agreed in the ledger: docs/runbooks/ledger-identity.md"
        ]
        with pytest.raises(EtcdRefused, match="hot_window_days"):
            await one.put(b"after")
        with pytest.raises(EtcdUnreachable):
            await one.client.keep_alive(1, timeout_s=1)
        await agree(operator, keys, SETTINGS, NOW, seen=await look(operator, keys))
        assert await until(lambda: one.watch.agreed)
        await one.put(b"after")
    await operator.close()


async def test_a_write_is_not_carried_out_in_another_incarnation(etcd: RealEtcd, tmp_path: Path) -> None:
    """The compare alone: the watch has not told the node yet."""
    config = etcd.config()
    keys = Keys(config.prefix)
    await made(config)
    operator = EtcdClient(config)
    async with node(config, tmp_path) as one:
        one.watch._config._changed = lambda: None
        await accept(operator, keys, await look(operator, keys), None, SETTINGS, NOW)
        with pytest.raises(EtcdRefused, match="another incarnation"):
            await one.put(f"{config.prefix}money".encode())
        assert one.guard.lost
        found = await operator.range(pb.RangeRequest(key=f"{config.prefix}money".encode()))
        assert not found.kvs
    await operator.close()


async def test_without_the_compare_it_is(etcd: RealEtcd, tmp_path: Path) -> None:
    config = etcd.config()
    keys = Keys(config.prefix)
    await made(config)
    operator = EtcdClient(config)
    async with node(config, tmp_path) as one:
        one.watch._config._changed = lambda: None
        one.guard._fence = pb.Compare(target=pb.Compare.VERSION, key=b"no such key", version=0)
        await accept(operator, keys, await look(operator, keys), None, SETTINGS, NOW)
        await one.put(f"{config.prefix}money".encode())
        assert (await operator.range(pb.RangeRequest(key=f"{config.prefix}money".encode()))).kvs
    await operator.close()


async def test_a_ledger_put_back_under_a_running_node_is_noticed_at_the_first_answer(
    own_etcd: RealEtcd, tmp_path: Path
) -> None:
    config = own_etcd.config()
    await made(config)
    async with node(config, tmp_path / "state") as one:
        await one.put(b"before")
        stop(own_etcd)
        shutil.copytree(own_etcd.folder / "m0", tmp_path / "copy")
        own_etcd.restart(0)
        async with asyncio.timeout(PATIENCE_S):
            for number in range(50):
                await _until_written(one, b"later%d" % number)
        told = one.guard.revision
        await asyncio.to_thread(put_back, own_etcd, tmp_path / "copy")
        async with asyncio.timeout(PATIENCE_S):
            # Whatever comes first: an answer from the past, or the read that proves it.
            while not one.guard.lost:
                with pytest.raises((EtcdUnknown, EtcdRefused, EtcdUnreachable)):
                    await one.put(b"a new sale")
                await asyncio.sleep(0.05)
        assert "gone back" in one.guard.lost
        assert not one.watch.identified
        with pytest.raises(EtcdRefused):
            await one.put(b"another")
        with pytest.raises(EtcdUnreachable):
            await one.client.range(pb.RangeRequest(key=b"before"))
        kept = one.state.read()
        assert kept is not None
        assert kept.revision >= told - 60
    with pytest.raises(LedgerUnfit, match="gone back, from revision"):
        async with node(config, tmp_path / "state"):
            raise AssertionError("it serves")
    await _accepted(config, tmp_path / "state")
    async with node(config, tmp_path / "state") as again:
        await again.put(b"accepted")


async def _until_written(one: Node, key: bytes) -> None:
    while True:
        try:
            return await one.put(key)
        except (EtcdUnknown, EtcdUnreachable):
            await asyncio.sleep(0.05)


async def _accepted(config: EtcdConfig, folder: Path) -> None:
    operator, keys = EtcdClient(config), Keys(config.prefix)
    known = StateFile(folder, "node-a").read()
    await accept(operator, keys, await look(operator, keys), known, SETTINGS, NOW)
    await operator.close()


async def test_members_that_restart_or_lag_raise_no_alarm(tmp_path: Path) -> None:
    etcd = RealEtcd(tmp_path, members=3)
    config = etcd.config()
    try:
        await made(config)
        async with node(config, tmp_path / "state") as one:
            async with asyncio.timeout(PATIENCE_S):
                for number in range(120):
                    if number % 30 == 15:
                        member = (number // 30) % 3
                        etcd.processes[member].kill()
                        etcd.processes[member].wait()
                        await asyncio.to_thread(etcd.restart, member)
                    await _until_written(one, b"key%d" % number)
                    if number % 10 == 0:
                        one.client._connections.rotate()
            assert await until(lambda: not one.guard.why_closed)
            assert one.guard.lost == ""
    finally:
        etcd.stop()


async def test_a_stale_read_is_settled_and_a_loss_in_a_doubt_stops_nothing_else(etcd: RealEtcd, tmp_path: Path) -> None:
    config = etcd.config()
    await made(config)
    async with node(config, tmp_path) as one:
        past = pb.ResponseHeader(cluster_id=one.guard.cluster_id, revision=1, raft_term=1)
        # As from a member of etcd 3.4.20 or later that was paused: a read, and it proves nothing.
        assert not one.guard.judge(past, one.guard.floor(), proposed=False)
        with pytest.raises(EtcdRefused):
            await one.put(b"in doubt")
        assert await until(lambda: not one.guard.why_closed)
        await one.put(b"settled")
        # Both at once: a doubt, and before it is settled a proposal that proves the loss.
        one.guard.judge(past, one.guard.floor(), proposed=False)
        one.guard.judge(past, one.guard.floor(), proposed=True)
        assert one.guard.lost
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(100):
                await asyncio.sleep(0.001)


async def test_a_ledger_that_was_emptied_is_not_begun_anew(etcd: RealEtcd, tmp_path: Path) -> None:
    config = etcd.config()
    keys = Keys(config.prefix)
    await made(config)
    async with node(config, tmp_path):
        pass
    operator = EtcdClient(config)
    await operator.txn(pb.TxnRequest(success=[ops.delete(keys.ledger()), ops.delete(keys.agreed())]))
    with pytest.raises(LedgerUnfit, match="is empty, and this node knows ledger"):
        async with node(config, tmp_path):
            raise AssertionError("it serves")
    await _accepted(config, tmp_path)
    async with node(config, tmp_path) as one:
        assert one.watch.agreed
    await operator.close()


async def test_what_follows_another_ledger_is_known_by_its_record(etcd: RealEtcd, tmp_path: Path) -> None:
    config = etcd.config()
    keys, client = Keys(config.prefix), EtcdClient(config)
    await made(config)
    first = await look(client, keys)
    known = LedgerState(incarnation=first.record.incarnation, sequence=1, cluster_id=first.cluster_id, revision=10**9)
    assert "gone back" in unfit(keys, first, known)
    await accept(client, keys, first, None, SETTINGS, NOW)
    second = await look(client, keys)
    assert unfit(keys, second, known) == "", "it follows the one this node knew"
    later = LedgerState(incarnation="somebody else's", sequence=1, cluster_id=1, revision=1)
    assert "this is ledger" in unfit(keys, second, later)
    moved = LedgerState(incarnation=second.record.incarnation, sequence=2, cluster_id=1, revision=1)
    assert "another etcd cluster" in unfit(keys, second, moved)
    await client.close()
