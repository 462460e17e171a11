"""A head end that is away, or that no node is configured with: what waits is seen, and nothing is given up unsent."""

import asyncio
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from etcdpb import rpc_pb2 as etcd_pb
from utrn.sandbox.v1 import sandbox_pb2 as sandbox_pb
from utrn.sandbox.v1 import sandbox_pb2_grpc as sandbox_rpc
from utrn.v1 import meter_service_pb2 as meter_pb
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import types_pb2

from app.devstack.files import HEAD_END, OPERATOR, SUPPLIERS
from app.devstack.stack import DevStack
from app.node.config import load_config
from cluster.etcd import ops
from cluster.etcd.client import EtcdClient
from cluster.etcd.keys import Keys
from sandbox.servers import Tls
from tests.integration.test_command_line import utrn
from tests.integration.test_market import meters_of
from tests.support.calls import caller, refused, registry_caller, top_up
from tests.support.patience import PATIENCE_S
from tests.support.selling import drained, new_id, pans
from tests.support.stack import MakeStack

pytestmark = [pytest.mark.real]
DELIVERY = (
    "give_up_after_s = 3", "advise_after_s = 2", "answer_wait_ms = 500", "back_off_first_ms = 50",
    "back_off_most_ms = 300",
)  # fmt: skip
NORTH = next(iter(SUPPLIERS))
Act = Callable[[DevStack], Awaitable[None]]


async def _kill(stack: DevStack) -> None:
    await asyncio.to_thread(stack.kill, "head-end")


async def _start(stack: DevStack) -> None:
    await asyncio.to_thread(stack.start_head_end)


async def _outage(stack: DevStack, *, on: bool = True) -> None:
    certs = stack.tool_certs
    async with Tls(cert=certs.cert, key=certs.key, ca=certs.ca).channel(stack.head_end_target) as channel:
        request = sandbox_pb.SetKnobsRequest(knobs=sandbox_pb.Knobs(outage=on))
        await sandbox_rpc.HeadEndControlServiceStub(channel).SetKnobs(request, timeout=5.0)


async def _back(stack: DevStack) -> None:
    await _outage(stack, on=False)


async def _vend(
    stack: DevStack, transaction_id: str, holds: Callable[[types_pb2.Delivery], bool]
) -> types_pb2.Delivery:
    """Return a vend's delivery once `holds` is true of it."""
    async with caller(stack) as stub, asyncio.timeout(PATIENCE_S):
        while True:
            vend = (await stub.GetVend(pb.GetVendRequest(transaction_id=transaction_id))).vend
            if holds(vend.delivery):
                return vend.delivery
            await asyncio.sleep(0.05)


async def _status(stack: DevStack, says: str, code: int = 3) -> None:
    """Return once `utrn cluster status` says so, with that exit code."""
    certs = stack.certs(OPERATOR)
    options = ["--target", stack.node_target("node-a"), "--cert", str(certs.cert), "--key", str(certs.key)]
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                said = await asyncio.to_thread(
                    utrn, "cluster", "status", *options, "--ca", str(certs.ca), "--json", code=code
                )
            except AssertionError:
                said = ""
            if says in said:
                return
            await asyncio.sleep(0.2)


def _metric(stack: DevStack, name: str) -> float:
    with urllib.request.urlopen(stack.metrics_url("node-a"), timeout=5.0) as page:  # noqa: S310  # our own page
        lines = page.read().decode().splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.mark.parametrize(("leave", "come_back"), [(_kill, _start), (_outage, _back)], ids=["killed", "unavailable"])
async def test_what_waits_for_a_head_end_past_the_give_up_time_is_seen_and_sent_when_it_is_back(
    make_stack: MakeStack,
    leave: Callable[[DevStack], Awaitable[None]],
    come_back: Callable[[DevStack], Awaitable[None]],
) -> None:
    stack = make_stack(meters=6, etcd_fsync=False, delivery=DELIVERY, knobs=("latency_median_ms=3",))
    stack.start_all()
    first, waiting = new_id(), [new_id() for _ in range(4)]
    async with caller(stack) as stub:
        await stub.TopUp(top_up(transaction_id=first, pan=pans(stack)[0]))
        await _vend(stack, first, lambda one: one.state == types_pb2.DELIVERY_STATE_APPLIED)
        await leave(stack)
        await _status(stack, f"head end {HEAD_END} is not reached by node-a")
        for transaction_id, pan in zip(waiting, pans(stack)[1:], strict=False):
            await stub.TopUp(top_up(transaction_id=transaction_id, pan=pan))
        at_once = (await stub.GetVend(pb.GetVendRequest(transaction_id=waiting[-1]))).vend.delivery
        assert not at_once.enter_by_hand_advised
    for transaction_id in waiting:
        delivery = await _vend(stack, transaction_id, lambda one: one.enter_by_hand_advised)
        assert (delivery.state, delivery.attempts) == (types_pb2.DELIVERY_STATE_QUEUED, 0)
    # Past the time after which a delivery that can be sent is given up.
    await asyncio.sleep(2.0)
    await _status(stack, f"4 deliveries wait for head end {HEAD_END}")
    assert _metric(stack, "utrn_parked{") == 4
    assert _metric(stack, "utrn_parked_oldest_seconds{") > 3
    assert _metric(stack, "utrn_head_end_available{") == 0
    await come_back(stack)
    for transaction_id in waiting:
        delivery = await _vend(stack, transaction_id, lambda one: one.HasField("closed_at"))
        assert delivery.state == types_pb2.DELIVERY_STATE_APPLIED
        assert delivery.attempts >= 1
        assert not delivery.enter_by_hand_advised, "it is over"
    await _status(stack, '"problems": []', code=0)
    result = await drained(stack)
    assert (result.credited, result.findings) == (5, [])


async def test_a_head_end_that_no_node_is_configured_with_is_seen_and_its_meters_can_be_moved(
    make_stack: MakeStack,
) -> None:
    """The ledger remembers a head end; every node has come back without it."""
    stack = make_stack(meters=4, etcd_fsync=False, delivery=DELIVERY)
    stack.start_all()
    etcd = load_config(stack.node_config("node-a")).etcd
    client = EtcdClient(etcd)
    await client.txn(etcd_pb.TxnRequest(success=[ops.put(Keys(etcd.prefix).head_end("smso-old"), b"")]))
    await client.close()
    pan, meter_id = meters_of(stack, NORTH)[0]

    async def reach(name: str, call: Callable[[Any], Any] = lambda asked: asked) -> Any:
        async with registry_caller(stack, NORTH) as registry:
            settings = meter_pb.MeterSettings(head_end=name)
            asked = registry.ChangeMeter(meter_pb.ChangeMeterRequest(meter_id=meter_id, settings=settings))
            return await call(asked)

    told = await reach("sandbx", refused)
    assert (told.reason, told.facts["head_end"]) == ("HEAD_END_UNKNOWN", "sandbx")
    await _status(stack, "no node is configured with head end smso-old")
    await reach("smso-old")
    sold = new_id()
    async with caller(stack) as stub, asyncio.timeout(PATIENCE_S):
        await stub.TopUp(top_up(transaction_id=sold, pan=pan))
        await _status(stack, "1 delivery waits for head end smso-old")
        assert _metric(stack, 'utrn_head_end_missing{head_end="smso-old"}') == 1
        assert "head ends that there are" in stack.log_file("node-a").read_text()
    certs = stack.certs(OPERATOR)
    options = ["--target", stack.node_target("node-a"), "--cert", str(certs.cert), "--key", str(certs.key)]
    forget = ["cluster", "forget-head-end", *options, "--ca", str(certs.ca)]
    assert "a node is" not in await asyncio.to_thread(utrn, *forget, "smso-old")
    async with caller(stack) as stub:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                asked = pb.CheckEligibilityRequest(pan=pan, deliver=True)
                objections = (await stub.CheckEligibility(asked)).objections
                if objections:
                    break
                await asyncio.sleep(0.05)
        assert [objection.facts["head_end"] for objection in objections] == ["smso-old"]
        assert (await refused(stub.TopUp(top_up(transaction_id=new_id(), pan=pan)))).reason == "HEAD_END_UNKNOWN"
        await stub.IssueUtrn(
            pb.IssueUtrnRequest(transaction_id=new_id(), pan=pan, amount_pence=500, channel=types_pb2.CHANNEL_ONLINE)
        )
    assert "configuration first" in await asyncio.to_thread(utrn, *forget, HEAD_END, code=1)
    await reach(HEAD_END)
    delivery = await _vend(stack, sold, lambda one: one.HasField("closed_at"))
    assert delivery.state == types_pb2.DELIVERY_STATE_APPLIED, "what was sold before follows its meter"
