"""A node stopped between write and send, woken after a Change of Supplier: the head end refuses what it then sends."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from utrn.sandbox.v1 import sandbox_pb2 as sandbox_pb
from utrn.sandbox.v1 import sandbox_pb2_grpc as sandbox_rpc
from utrn.v1 import meter_service_pb2 as pb

from app.devstack.files import OPERATOR, SUPPLIERS
from app.devstack.fleet import meter_by_pan
from app.devstack.stack import DevStack
from sandbox.servers import Tls
from tests.integration.test_market import meters_of
from tests.support.calls import caller, registry_caller, top_up
from tests.support.patience import PATIENCE_S
from tests.support.selling import new_id
from tests.support.stack import MakeStack

pytestmark = [pytest.mark.real]
NORTH, SOUTH = SUPPLIERS
HELD = 32
SEND_WITHIN_MS = 1000
DELIVERY = (
    f"send_within_ms = {SEND_WITHIN_MS}", "answer_wait_ms = 500", "back_off_first_ms = 100", "back_off_most_ms = 400",
)  # fmt: skip


async def _until(holds: Callable[[], Any], timeout_s: float = 40.0) -> Any:
    async with asyncio.timeout(timeout_s):
        while not (found := holds()):  # noqa: ASYNC110  # another process is waited for
            await asyncio.sleep(0.02)
    return found


def _channel(stack: DevStack, target: str) -> grpc.aio.Channel:
    certs = stack.tool_certs
    return Tls(cert=certs.cert, key=certs.key, ca=certs.ca).channel(target)


async def _credited(stack: DevStack) -> set[str]:
    """Return the meters that have credited something."""
    async with _channel(stack, stack.fleet_target) as channel:
        stub: sandbox_rpc.FleetServiceAsyncStub = sandbox_rpc.FleetServiceStub(channel)
        return {ListCredit.meter_id async for ListCredit in stub.ListCredits(sandbox_pb.ListCreditsRequest())}


async def _counts(stack: DevStack) -> dict[str, int]:
    async with _channel(stack, stack.head_end_target) as channel:
        stub: sandbox_rpc.HeadEndControlServiceAsyncStub = sandbox_rpc.HeadEndControlServiceStub(channel)
        return dict((await stub.GetKnobs(sandbox_pb.GetKnobsRequest())).counts)


async def _sell_until_held(stack: DevStack, marker: Path) -> set[str]:
    """Sell a code to every meter of the losing supplier; return the meters whose code the stopped node holds."""
    pans = [pan for pan, _ in meters_of(stack, NORTH)]
    async with caller(stack, node="node-b") as stub, asyncio.TaskGroup() as tasks:
        for pan in pans:
            tasks.create_task(_sold(stub, pan))
    await _until(marker.exists)
    return set(marker.read_text().split())


async def _change_supplier(stack: DevStack, meters: set[str]) -> None:
    async with registry_caller(stack, OPERATOR, node="node-b") as registry, asyncio.TaskGroup() as tasks:
        for meter in meters:
            tasks.create_task(_changed(registry, meter))


async def _sold(stub: Any, pan: str) -> None:
    await stub.TopUp(top_up(transaction_id=new_id(), pan=pan))


async def _changed(registry: Any, meter_id: str) -> None:
    await registry.ChangeSupplier(
        pb.ChangeSupplierRequest(meter_id=meter_id, losing_supplier_id=NORTH, gaining_supplier_id=SOUTH)
    )


@pytest.mark.parametrize("fence", [True, False])
async def test_codes_of_the_losing_supplier_do_not_reach_the_meter_after_its_change(
    make_stack: MakeStack, tmp_path: Path, *, fence: bool
) -> None:
    """Without the head end's fence, the control, all of them are credited after the change was acknowledged."""
    marker = tmp_path / "held"
    command = (sys.executable, "-m", "tests.support.stopping_node", "node-a", str(HELD), str(marker))
    stack = make_stack(
        meters=240, nodes=("node-a", "node-b"), node_command=command, etcd_fsync=False, delivery=DELIVERY,
        knobs=("latency_median_ms=2", f"fence={str(fence).lower()}"),
    )  # fmt: skip
    stack.start_all()
    assert meter_by_pan(stack.folder / "sandbox")
    held = await _sell_until_held(stack, marker)
    assert len(held) == HELD
    await _change_supplier(stack, held)
    before = await _credited(stack)
    assert not before & held, "the change came before any of them was sent"
    # Also the instant of the last of them has passed.
    await asyncio.sleep(SEND_WITHIN_MS / 1000)
    os.kill(stack.pid("node-a"), signal.SIGCONT)
    if fence:
        counts = await _stale(stack)
        assert not await _credited(stack) & held, f"credited after the change: {counts}"
    else:
        with suppress(TimeoutError):
            async with asyncio.timeout(20):
                while not await _credited(stack) >= held:  # noqa: ASYNC110  # another process is asked
                    await asyncio.sleep(0.05)
        assert await _credited(stack) >= held, (len(await _credited(stack) & held), await _counts(stack))


async def _stale(stack: DevStack) -> dict[str, int]:
    """Return the head end's counts once it has refused all of them."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            counts = await _counts(stack)
            if sum(count for name, count in counts.items() if name.startswith("stale")) >= HELD:
                return counts
            await asyncio.sleep(0.05)
