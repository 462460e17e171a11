"""A second head end beside an honest one: it speaks for the other's meters, and its replies cannot be read."""

import asyncio
import random
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.message import Message
from headend.v1 import head_end_service_pb2 as pb
from utrn.sandbox.v1 import sandbox_pb2
from utrn.sandbox.v1 import sandbox_pb2_grpc as sandbox_rpc
from utrn.v1 import meter_service_pb2 as meter_pb

from app.devstack.files import SUPPLIERS, StackPlan
from app.node.config import load_config
from cluster.codec.vend import vend_of
from cluster.etcd.client import EtcdClient
from cluster.etcd.keys import Keys
from core.delivery.outcomes import CREDIT_ADDED_LOCALLY, DUPLICATE_UTRN
from core.domain.delivery import DeliveryState
from core.domain.message_id import message_id, new_random_part
from core.domain.vend import Vend
from sandbox.servers import Tls
from tests.integration.test_market import meters_of
from tests.support.calls import caller, registry_caller, top_up
from tests.support.hostile_head_end import NAME, BesideHostile, HostileHeadEnd, mutated
from tests.support.selling import drained, new_id, pans

pytestmark = [pytest.mark.real, pytest.mark.timeout(240)]
_DELIVERY = ("answer_wait_ms = 500", "back_off_first_ms = 100", "back_off_most_ms = 500", "attempts_max = 1000")
_MEMORY_MOST_MB = 60
_HONEST_REACHED = 'utrn_head_end_available{head_end="sandbox"'


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BesideHostile]:
    plan = StackPlan(meters=20, etcd_fsync=False, delivery=_DELIVERY, knobs=("latency_median_ms=3",))
    made = BesideHostile(tmp_path_factory.mktemp("hostile"), plan)
    try:
        made.start_all()
        yield made
    finally:
        made.stop_all()


async def _knobs(stack: BesideHostile, knobs: sandbox_pb2.Knobs) -> None:
    certs = stack.tool_certs
    async with Tls(cert=certs.cert, key=certs.key, ca=certs.ca).channel(stack.head_end_target) as channel:
        stub: sandbox_rpc.HeadEndControlServiceAsyncStub = sandbox_rpc.HeadEndControlServiceStub(channel)
        await stub.SetKnobs(sandbox_pb2.SetKnobsRequest(knobs=knobs), timeout=10.0)


async def _vends(stack: BesideHostile) -> dict[str, Vend]:
    etcd = load_config(stack.node_config("node-a")).etcd
    client = EtcdClient(etcd)
    try:
        found, _ = await client.list_prefix(Keys(etcd.prefix).vends())
    finally:
        await client.close()
    return {vend.sale.transaction_id: vend for vend in (vend_of(kv.value) for kv in found)}


async def _until(stack: BesideHostile, transaction_id: str, holds: Callable[[Vend], bool]) -> Vend:
    async with asyncio.timeout(60):
        while not holds(vend := (await _vends(stack))[transaction_id]):  # noqa: ASYNC110  # the ledger's word
            await asyncio.sleep(0.1)
    return vend


def _figure(stack: BesideHostile, start: str) -> float:
    with urllib.request.urlopen(stack.metrics_url("node-a"), timeout=10) as page:  # noqa: S310  # our own node
        lines = page.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))


async def _set_aside(stack: BesideHostile, more_than: float) -> None:
    start = f'utrn_head_end_set_aside_total{{head_end="{NAME}"'
    async with asyncio.timeout(60):
        while await asyncio.to_thread(_figure, stack, start) <= more_than:  # noqa: ASYNC110  # the node's word
            await asyncio.sleep(0.1)


def _says_of(vend: Vend) -> list[Message]:
    """Return what would end a delivery, by somebody who knows everything of it but the random part of its id."""
    guess = message_id(vend.originator_id, vend.meter_id, vend.counter, new_random_part())
    answers = [
        pb.StreamEventsResponse(answer=pb.Answer(message_id=guess, outcome=pb.AddCreditOutcome.ValueType(outcome)))
        for outcome in range(1, 8)
    ]
    alerts = [
        pb.StreamEventsResponse(
            alert=pb.Alert(
                meter_id=vend.meter_id, alert_code=code, utrn_counter=vend.counter, originator_id=vend.originator_id
            )
        )
        for code in (CREDIT_ADDED_LOCALLY, DUPLICATE_UTRN)
    ]
    given_up = pb.GivenUp(message_id=guess, state=pb.MESSAGE_STATE_NOT_DELIVERED)
    return [*answers, *alerts, pb.StreamEventsResponse(given_up=given_up)]


async def test_a_second_head_end_moves_nothing_of_the_first_ones(stack: BesideHostile) -> None:
    """One code was sent and its meter cannot be reached; the other was never sent, for the head end is out."""
    sent, never_sent = new_id(), new_id()
    async with HostileHeadEnd().serving(stack) as hostile, caller(stack) as till:
        await _knobs(stack, sandbox_pb2.Knobs(unreachable=1.0))
        await till.TopUp(top_up(transaction_id=sent, pan=pans(stack)[0]))
        await _until(stack, sent, lambda vend: vend.delivery.attempts > 0)
        await _knobs(stack, sandbox_pb2.Knobs(outage=True))
        async with asyncio.timeout(60):
            while await asyncio.to_thread(_figure, stack, _HONEST_REACHED):  # noqa: ASYNC110  # the node's word
                await asyncio.sleep(0.1)
        await till.TopUp(top_up(transaction_id=never_sent, pan=pans(stack)[1]))
        vends = await _vends(stack)
        before = await asyncio.to_thread(_figure, stack, "utrn_head_end_set_aside_total")
        told = [event for _ in range(20) for one in (sent, never_sent) for event in _says_of(vends[one])]
        for sequence, event in enumerate(told, start=1):
            event.sequence = sequence  # type: ignore[attr-defined]
        hostile.tell(*told)
        await _set_aside(stack, before + len(told) // 2)
        vends = await _vends(stack)
        state = vends[never_sent].delivery.state
        assert state is DeliveryState.QUEUED
        assert vends[sent].delivery.state in (DeliveryState.SENT, DeliveryState.UNKNOWN)
        await _knobs(stack, sandbox_pb2.Knobs(outage=False, unreachable=0.0))
        for one in (sent, never_sent):
            await _until(stack, one, lambda vend: vend.delivery.state is DeliveryState.APPLIED)
    result = await drained(stack)
    assert result.findings == []


def _memory_mb(pid: int) -> float:
    """Return the memory that a process holds, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


async def test_replies_that_nobody_can_read_end_no_node_and_hold_nobody(stack: BesideHostile) -> None:
    """Bytes changed in every reply: capabilities, status, the answer to a send, events. The other's sales go on."""
    hostile, chance, pid = HostileHeadEnd(), random.Random(11), stack.pid("node-a")
    hostile.bend = mutated(chance)
    pan, meter_id = meters_of(stack, next(iter(SUPPLIERS)))[3]
    async with hostile.serving(stack), caller(stack) as till, registry_caller(stack, next(iter(SUPPLIERS))) as registry:
        settings = meter_pb.MeterSettings(head_end=NAME)
        await registry.ChangeMeter(meter_pb.ChangeMeterRequest(meter_id=meter_id, settings=settings))
        own = new_id()
        await till.TopUp(top_up(transaction_id=own, pan=pan))
        await _until(stack, own, lambda one: one.delivery.attempts > 1)
        before = new_id()
        await till.TopUp(top_up(transaction_id=before, pan=pans(stack)[0]))
        others = (await _vends(stack))[before]
        began = _memory_mb(pid)
        for _ in range(30):
            hostile.tell(*(event for _ in range(10) for event in _says_of(others)))
            await asyncio.sleep(0.05)
        await _set_aside(stack, 1500)
        assert {"SendAddCredit", "GetCapabilities", "StreamEvents"} <= hostile.asked
        honest = new_id()
        await till.TopUp(top_up(transaction_id=honest, pan=pans(stack)[0]))
        await _until(stack, honest, lambda one: one.delivery.state is DeliveryState.APPLIED)
        assert (await _vends(stack))[own].delivery.owed, "no bent reply ended it"
        settings = meter_pb.MeterSettings(head_end="sandbox")
        await registry.ChangeMeter(meter_pb.ChangeMeterRequest(meter_id=meter_id, settings=settings))
    assert (await drained(stack)).findings == []
    assert stack.pid("node-a") == pid
    assert stack.exit_code("node-a") is None
    assert _memory_mb(pid) - began < _MEMORY_MOST_MB
    assert "Traceback" not in stack.log_file("node-a").read_text()
