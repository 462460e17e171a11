"""The line that signs and commits, over fakes: windows, repeats, callers that go away, draining."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import cast

import pytest

from cluster.config import EtcdConfig
from cluster.etcd.client import EtcdClient, EtcdUnreachable
from cluster.ledger.vends import EtcdLedger
from core.domain.errors import HsmUnavailable, LedgerUnavailable, NotReady, Overloaded, ShuttingDown, TooManyUnapplied
from core.domain.meter import Meter, Pan
from core.domain.money import Pence
from core.domain.transaction_id import TransactionId
from core.domain.utrn_value import code_value
from core.domain.vend import Channel, Operation, Sale
from core.issuing.counter_cache import Counters
from core.issuing.group_commit import GroupCommitter
from core.issuing.recent_vends import Issued
from core.metrics import StageTimes
from tests.fakes.clock import HandClock
from tests.fakes.etcd import FakeEtcd
from tests.fakes.signer import FakeSigner
from tests.support.answers import memory
from tests.support.market import KeptAuditLog
from tests.support.vends import PSP_ID, meter, new_id, new_meter_id, permit_of

# The scalar of the support's point: the first originator of tests/vectors/gbcs.json.
SCALAR = 0xC92F51B1766E4AAA9167AB94B39D9DEB1B8B90897C0C52E0488E2C0916C98F39


class Line:
    """A commit line with everything it stands on."""

    def __init__(self, *, refuse: int = 500, in_flight_max: int = 100) -> None:
        self.etcd, self.clock, self.signer = FakeEtcd(), HandClock(), FakeSigner({"01": SCALAR})
        self.answers = memory(100)
        client = cast("EtcdClient", self.etcd)
        config = EtcdConfig(endpoints=("fake:1",), resolve_timeout_ms=100)
        self.line = GroupCommitter(
            ledger=EtcdLedger(client, config, self.clock),
            signer=self.signer,
            counters=Counters(self.clock, trust_s=60, sequences_max=1000, alarm=min(256, refuse), refuse=refuse),
            answers=self.answers,
            clock=self.clock,
            times=StageTimes(),
            audit_log=KeptAuditLog(),
            batch_max=64,
            in_flight_max=in_flight_max,
            attempts_max=3,
        )

    def submit(self, one: Meter, transaction_id: TransactionId | None = None) -> asyncio.Future[Issued]:
        sale = Sale(
            participant_id=PSP_ID,
            transaction_id=transaction_id or new_id(),
            operation=Operation.ISSUE,
            pan=Pan("9" * 19),
            amount=Pence(500),
            channel=Channel.APP,
        )
        # No record moves here: whatever is not refused is issued.
        answer = self.line.submit(sale, permit_of(one), code_value(Pence(500)))
        return cast("asyncio.Future[Issued]", answer)


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    made = Line()
    running = asyncio.get_running_loop().create_task(made.line.run())
    yield made
    running.cancel()


async def test_vends_of_one_meter_take_counters_in_the_order_they_came(line: Line) -> None:
    one = meter(new_meter_id())
    issued = [await answer for answer in [line.submit(one) for _ in range(5)]]
    assert [answer.stored.vend.counter for answer in issued] == [1, 2, 3, 4, 5]
    assert not any(answer.replayed for answer in issued)


async def test_vends_of_many_meters_share_one_commit(line: Line) -> None:
    issued = [await answer for answer in [line.submit(meter(new_meter_id())) for _ in range(40)]]
    assert len({answer.stored.revision for answer in issued}) == 1


async def test_a_caller_that_goes_away_leaves_its_vend_in_the_line(line: Line) -> None:
    transaction_id = new_id()
    line.submit(meter(new_meter_id()), transaction_id).cancel()
    await line.line.drain()
    assert line.answers.recent((PSP_ID, transaction_id)) is not None


async def test_the_five_hundredth_unapplied_code_is_the_last() -> None:
    made = Line(refuse=5)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(made.line.run())
        one = meter(new_meter_id())
        for _ in range(5):
            await made.submit(one)
        with pytest.raises(TooManyUnapplied) as refused:
            await made.submit(one)
        running.cancel()
    assert refused.value.facts == {"unapplied": "5", "unapplied_max": "5"}


async def test_from_the_alarm_on_every_vend_is_logged(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    one = meter(new_meter_id())
    for _ in range(255):
        await line.submit(one)
    assert not [record for record in caplog.records if record.name != "asyncio"]
    await line.submit(one)
    assert [record.levelname for record in caplog.records if record.name != "asyncio"] == ["WARNING"]


async def test_an_hsm_that_fails_fails_the_vend_and_burns_nothing(line: Line) -> None:
    one = meter(new_meter_id())
    line.signer.broken = HsmUnavailable("gone")
    with pytest.raises(HsmUnavailable):
        await line.submit(one)
    line.signer.broken = None
    assert (await line.submit(one)).stored.vend.counter == 1


async def test_a_ledger_out_of_reach_fails_the_vend_and_writes_nothing(line: Line) -> None:
    def gone() -> None:
        raise EtcdUnreachable("gone")

    one = meter(new_meter_id())
    line.etcd.before_txn = gone
    with pytest.raises(LedgerUnavailable):
        await line.submit(one)
    line.etcd.before_txn = lambda: None
    assert (await line.submit(one)).stored.vend.counter == 1


async def test_a_full_line_refuses_and_a_closed_one_too() -> None:
    made = Line(in_flight_max=2)
    waiting = [made.submit(meter(new_meter_id())) for _ in range(2)]
    with pytest.raises(Overloaded):
        made.submit(meter(new_meter_id()))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(made.line.run())
        await made.line.drain()
        running.cancel()
    assert all(answer.done() for answer in waiting)
    with pytest.raises(ShuttingDown):
        made.submit(meter(new_meter_id()))


async def test_a_node_that_loses_the_time_fails_the_vend_and_goes_on(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its monotonic clock has leapt: it does not know the time for a while, and must not end for it."""

    def unknown() -> datetime:
        raise NotReady("this node does not know the cluster's time yet; ask another")

    with monkeypatch.context() as patched:
        patched.setattr(line.clock, "now", unknown)
        with pytest.raises(NotReady):
            await line.submit(meter(new_meter_id()))
    assert (await line.submit(meter(new_meter_id()))).stored.vend.counter == 1
