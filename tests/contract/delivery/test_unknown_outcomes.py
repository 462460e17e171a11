"""Answers that are lost, members that die: each vend is committed once, and its caller is told so."""

import asyncio
from typing import cast

import pytest

from cluster.audit.ledger_scan import all_vends
from cluster.config import EtcdConfig
from cluster.etcd.client import EtcdClient, EtcdUnknown
from cluster.ledger.vends import EtcdLedger
from core.domain.errors import LedgerUnavailable, OutcomeUnknown
from core.domain.vend import Vend
from core.gateways.system_clock import SystemClock
from core.ports.ledger import Committed, CounterMoved, CounterState, Entry
from tests.fakes.clock import HandClock
from tests.fakes.etcd import FakeEtcd
from tests.support.etcd import RealEtcd
from tests.support.patience import PATIENCE_S
from tests.support.vends import PSP_ID, new_meter_id, vend


class Losing:
    """Loses the first answers of a fake etcd, after or before the work is done."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self) -> None:
        self.left -= 1
        if self.left >= 0:
            raise EtcdUnknown("the answer was lost")


@pytest.mark.parametrize("lost", [1, 3])
async def test_a_commit_whose_answer_is_lost_is_found_again_and_done_once(lost: int) -> None:
    etcd = FakeEtcd()
    ledger = EtcdLedger(cast("EtcdClient", etcd), EtcdConfig(endpoints=("fake:1",)), HandClock())
    etcd.after_txn = Losing(lost)
    entries = [Entry(vend=vend(1, new_meter_id()), seen=CounterState()) for _ in range(5)]
    outcomes = await ledger.commit(entries)
    for entry, outcome in zip(entries, outcomes, strict=True):
        assert isinstance(outcome, Committed)
        assert outcome.stored.vend == entry.vend
        assert outcome.counter.last_issued == 1
    assert len({outcome.stored.revision for outcome in outcomes if isinstance(outcome, Committed)}) == 1


async def test_a_commit_never_carried_out_is_carried_out_by_the_repeat() -> None:
    etcd = FakeEtcd()
    ledger = EtcdLedger(cast("EtcdClient", etcd), EtcdConfig(endpoints=("fake:1",)), HandClock())
    etcd.before_txn = Losing(1)
    (outcome,) = await ledger.commit([Entry(vend=vend(1, new_meter_id()), seen=CounterState())])
    assert isinstance(outcome, Committed)


async def test_an_outcome_that_stays_unknown_is_said_to_be_so() -> None:
    etcd, clock = FakeEtcd(), HandClock()
    ledger = EtcdLedger(cast("EtcdClient", etcd), EtcdConfig(endpoints=("fake:1",)), clock)

    def always() -> None:
        clock.advance(5)
        raise EtcdUnknown("nothing comes back")

    etcd.after_txn = always
    one = vend(1, new_meter_id())
    (outcome,) = await ledger.commit([Entry(vend=one, seen=CounterState())])
    assert isinstance(outcome, OutcomeUnknown)
    etcd.after_txn = lambda: None
    assert await ledger.find(PSP_ID, one.sale.transaction_id) is not None


@pytest.mark.real
async def test_killing_the_etcd_leader_loses_and_doubles_no_vend(tmp_path_factory: pytest.TempPathFactory) -> None:
    etcd = RealEtcd(tmp_path_factory.mktemp("three"), members=3)
    config = etcd.config(resolve_timeout_ms=20_000)
    client = EtcdClient(config)
    ledger = EtcdLedger(client, config, SystemClock())
    committed: list[Vend] = []
    try:
        for number in range(60):
            if number == 20:
                # Whoever leads: one after the other is killed and comes back, so the leader is among them.
                for index in range(3):
                    etcd.processes[index].kill()
                    etcd.processes[index].wait()
                    await _commit_until_done(ledger, committed)
                    await asyncio.to_thread(etcd.restart, index)
            await _commit_until_done(ledger, committed)
        stored = {one.vend.sale.transaction_id: one.vend async for one in all_vends(client, config)}
    finally:
        await client.close()
        etcd.stop()
    assert len(stored) == len(committed) == 63
    assert all(stored[one.sale.transaction_id] == one for one in committed)


async def _commit_until_done(ledger: EtcdLedger, committed: list[Vend]) -> None:
    one = vend(1, new_meter_id())
    async with asyncio.timeout(PATIENCE_S):
        while True:
            (outcome,) = await ledger.commit([Entry(vend=one, seen=CounterState())])
            if isinstance(outcome, Committed):
                committed.append(outcome.stored.vend)
                return
            assert isinstance(outcome, LedgerUnavailable | OutcomeUnknown | CounterMoved)


@pytest.mark.real
async def test_a_watch_goes_on_over_a_restart_without_a_gap(tmp_path_factory: pytest.TempPathFactory) -> None:
    etcd = RealEtcd(tmp_path_factory.mktemp("one"))
    config = etcd.config()
    writer, watcher = EtcdClient(config), EtcdClient(config)
    ledger = EtcdLedger(writer, config, SystemClock())
    committed: list[Vend] = []
    seen = 0
    try:
        async with asyncio.TaskGroup() as tasks:
            events = tasks.create_task(_count_vends(watcher, config, 600))
            for number in range(600):
                if number in (150, 400):
                    etcd.processes[0].kill()
                    etcd.processes[0].wait()
                    await asyncio.to_thread(etcd.restart, 0)
                await _commit_until_done(ledger, committed)
            seen = await asyncio.wait_for(events, 30)
    finally:
        await writer.close()
        await watcher.close()
        etcd.stop()
    assert seen == 600


async def _count_vends(client: EtcdClient, config: EtcdConfig, wanted: int) -> int:
    seen: set[bytes] = set()
    async for reply in client.watch(f"{config.prefix}vend/".encode(), 0):
        for event in reply.events:
            assert event.kv.key not in seen
            seen.add(event.kv.key)
        if len(seen) >= wanted:
            break
    return len(seen)
