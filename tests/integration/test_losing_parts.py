"""A node whose etcd, HSM or head end goes away: it says so, loses nothing, and comes back by itself."""

import asyncio
import signal
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from utrn.v1 import top_up_service_pb2 as pb

from app.devstack.files import PSP, StackFailed
from app.devstack.stack import DevStack
from app.workloads.sale_driver import secure_channel
from tests.support.calls import caller, refused, top_up
from tests.support.patience import PATIENCE_S
from tests.support.selling import audit, drained, new_id, pans, planned, sell_all
from tests.support.stack import MakeStack

pytestmark = [pytest.mark.real]


async def _wait_health(stack: DevStack, wanted: int) -> None:
    certs = stack.certs(PSP)
    async with (
        asyncio.timeout(PATIENCE_S),
        secure_channel([stack.node_target("node-a")], ca=certs.ca, cert=certs.cert, key=certs.key) as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        async for reply in stub.Watch(health_pb2.HealthCheckRequest()):  # type: ignore[attr-defined]  # stub gap
            if reply.status == wanted:
                return


async def test_etcd_gone_is_said_with_a_delay_and_forgotten_answers_are_not(make_stack: MakeStack) -> None:
    stack = make_stack(meters=4)
    stack.start_all()
    pan = pans(stack)[0]
    known = top_up(transaction_id=new_id(), pan=pan)
    async with caller(stack) as stub:
        first = await stub.TopUp(known)
        stack.kill("etcd-0", signal.SIGKILL)
        failure = await refused(stub.TopUp(top_up(transaction_id=new_id(), pan=pan), timeout=30))
        assert failure.code is grpc.StatusCode.UNAVAILABLE
        assert failure.reason in ("LEDGER_UNAVAILABLE", "OUTCOME_UNKNOWN")
        assert failure.retry_ms
        again = await stub.TopUp(known)
        assert (again.code, again.replayed) == (first.code, True)
        stack.start_etcd()
        sold = await sell_all(stack, [planned(pan)])
        assert sold[0].utrn
    assert (await drained(stack)).findings == []


async def test_hsm_gone_is_not_serving_and_comes_back(make_stack: MakeStack) -> None:
    stack = make_stack(meters=4, etcd_fsync=False)
    stack.start_all()
    pan, tokens = pans(stack)[0], stack.folder / "hsm" / "tokens"
    hidden = tokens.rename(tokens.with_name("taken-away"))
    for worker in _children(stack.pid("node-a")):
        _kill(worker)
    await _wait_health(stack, health_pb2.HealthCheckResponse.NOT_SERVING)
    async with caller(stack) as stub:
        failure = await refused(stub.TopUp(top_up(transaction_id=new_id(), pan=pan)))
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "HSM_UNAVAILABLE")
        assert failure.retry_ms
        hidden.rename(tokens)
        await _wait_health(stack, health_pb2.HealthCheckResponse.SERVING)
        await stub.TopUp(top_up(transaction_id=new_id(), pan=pan))
    assert (await drained(stack)).findings == []


async def test_head_end_gone_issuing_goes_on_and_deliveries_wait(make_stack: MakeStack) -> None:
    stack = make_stack(meters=4, etcd_fsync=False)
    stack.start_all()
    stack.kill("head-end", signal.SIGKILL)
    sold = await sell_all(stack, [planned(pan) for pan in pans(stack)])
    assert all(one.utrn for one in sold)
    assert (await audit(stack)).owed == len(sold)
    stack.start_head_end()
    result = await drained(stack)
    assert (result.owed, result.credited, result.findings) == (0, len(sold), [])


async def test_sandbox_killed_under_way_loses_nothing_it_acknowledged(make_stack: MakeStack) -> None:
    delivery = ("answer_wait_ms = 1000", "back_off_first_ms = 100", "back_off_most_ms = 500", "attempts_max = 100")
    stack = make_stack(meters=8, etcd_fsync=False, knobs=("latency_median_ms=50",), delivery=delivery)
    stack.start_all()
    sold = await sell_all(stack, [planned(pan, 100 + n) for n in range(4) for pan in pans(stack)])
    for part, start in (("fleet", stack.start_fleet), ("head-end", stack.start_head_end)):
        stack.kill(part, signal.SIGKILL)
        await asyncio.to_thread(start)
    result = await drained(stack)
    assert (result.credited, result.credited_twice, result.findings) == (len(sold), 0, [])


async def test_sigterm_finishes_what_was_admitted_and_exits_zero(make_stack: MakeStack) -> None:
    stack = make_stack(meters=20, etcd_fsync=False)
    stack.start_all()
    async with caller(stack) as stub, asyncio.TaskGroup() as tasks:
        requests = [top_up(transaction_id=new_id(), pan=pan) for pan in pans(stack)]
        asking = [tasks.create_task(_outcome(stub.TopUp(request))) for request in requests]
        await asyncio.sleep(0.005)
        await asyncio.to_thread(stack.kill, "node-a", signal.SIGTERM)
    assert stack.exit_code("node-a") == 0
    issued = sum(task.result() is None for task in asking)
    assert (await audit(stack)).vends >= issued
    assert {task.result() for task in asking} <= {None, grpc.StatusCode.UNAVAILABLE}


async def _outcome(call: "grpc.aio.UnaryUnaryCall[pb.TopUpRequest, pb.TopUpResponse]") -> grpc.StatusCode | None:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return None


@pytest.mark.parametrize(
    ("breaks", "names"),
    [
        ("pin", "hsm.pin_file"),
        ("unknown key", "flow.batch_maximum"),
        ("missing certificate", "api.pem"),
        ("shards", "etcd.shards"),
    ],
)
def test_a_node_that_cannot_work_refuses_to_start_naming_the_key(
    make_stack: MakeStack, breaks: str, names: str
) -> None:
    stack = make_stack(meters=2, etcd_fsync=False)
    stack.start_all()
    stack.kill("node-a", signal.SIGTERM)
    config: Path = stack.node_config("node-a")
    text = config.read_text()
    match breaks:
        case "pin":
            (stack.folder / "hsm" / "pin").write_text("wrong-pin\n")
        case "unknown key":
            config.write_text(text.replace("[flow]", "[flow]\nbatch_maximum = 3"))
        case "missing certificate":
            config.write_text(text.replace("[api]", "[api]").replace("node-a.pem", "api.pem", 1))
        case _:
            config.write_text(text.replace("[etcd]", "[etcd]\nshards = 7"))
    with pytest.raises(StackFailed) as failed:
        stack.start_node("node-a")
    assert names in str(failed.value)
    assert stack.exit_code("node-a") == 78


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _kill(pid: int) -> None:
    import os

    if "hsm.worker" in Path(f"/proc/{pid}/cmdline").read_text():
        os.kill(pid, signal.SIGKILL)
