"""A node that lacks one supplier's key, and a node that breaks a promise: others serve, and nothing final is said."""

import asyncio
import http.client
import shutil
import signal
import sys

import grpc
import pytest
from utrn.v1 import top_up_service_pb2 as pb

from app.devstack.files import PSP
from app.devstack.stack import DevStack
from tests.support.calls import Failure, caller, refused, top_up
from tests.support.hsm_keys import destroy_key
from tests.support.patience import PATIENCE_S
from tests.support.selling import drained, new_id, pans
from tests.support.stack import MakeStack

pytestmark = [pytest.mark.real]


def _figures(stack: DevStack, node: str) -> str:
    host, _, path = stack.metrics_url(node).removeprefix("http://").partition("/")
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.request("GET", f"/{path}")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


async def _until(holds: object, stack: DevStack, node: str) -> str:
    """Return a node's figures once one of them is there."""
    async with asyncio.timeout(PATIENCE_S):
        while str(holds) not in (text := await asyncio.to_thread(_figures, stack, node)):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    return text


async def _sale_of_every_meter(stack: DevStack, node: str) -> list[Failure | None]:
    """Ask a node for a code of each meter; return how each was refused, None if it was not."""
    answers: list[Failure | None] = []
    async with caller(stack, node=node) as stub:
        for pan in pans(stack):
            asked = stub.TopUp(top_up(transaction_id=new_id(), pan=pan), timeout=10)
            try:
                await asked
                answers.append(None)
            except grpc.aio.AioRpcError:
                answers.append(await refused(asked))
    return answers


async def test_a_key_missing_at_one_node_is_that_nodes_trouble(make_stack: MakeStack) -> None:
    stack = make_stack(meters=8, nodes=("node-a", "node-b"), own_tokens=True, etcd_fsync=False)
    stack.start_all()
    supplier, keys = "supplier-north", stack.make_keys()
    key_id, folder = keys[supplier].key_id, stack.token_folder("node-b")
    figure = f'utrn_key_missing{{key_id="{key_id}",supplier="{supplier}"}} 1.0'
    destroy_key(stack.hsm_config("node-b"), key_id)
    await _until(figure, stack, "node-b")
    assert "utrn_serving 0.0" in await _until("utrn_serving 0.0", stack, "node-b"), "another has every key"
    assert "utrn_hsm_ready 1.0" in await _until("utrn_hsm_ready", stack, "node-b")
    # Whoever asks it nevertheless is told to ask again: nothing final, and the other supplier's sales go on.
    answers = await _sale_of_every_meter(stack, "node-b")
    missing = [answer for answer in answers if answer is not None]
    assert missing
    for failure in missing:
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "KEY_MISSING")
        assert failure.retry_ms
        assert "final" not in failure.facts
    assert await _sale_of_every_meter(stack, "node-a") == [None] * len(pans(stack))
    # Nobody else is there: it serves those it can.
    stack.kill("node-a", signal.SIGKILL)
    await _until("utrn_serving 1.0", stack, "node-b")
    # The key is put back.
    shutil.copytree(stack.folder / "hsm" / "tokens", folder / "tokens", dirs_exist_ok=True)
    async with asyncio.timeout(PATIENCE_S):
        while figure in await asyncio.to_thread(_figures, stack, "node-b"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    assert await _sale_of_every_meter(stack, "node-b") == [None] * len(pans(stack))
    assert (await drained(stack)).findings == []


async def test_a_node_that_breaks_a_promise_tells_its_caller_and_ends(make_stack: MakeStack) -> None:
    stack = make_stack(meters=2, etcd_fsync=False)
    stack.start_all()
    stack.kill("node-a")
    stack.start_node("node-a", [sys.executable, "-m", "tests.support.broken_node"])
    async with caller(stack, PSP) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.GetVend(pb.GetVendRequest(transaction_id=new_id()), timeout=20)
    assert failure.value.code() is grpc.StatusCode.INTERNAL
    assert "quote" in (failure.value.details() or "")
    assert await asyncio.to_thread(stack.wait_ended, "node-a", 30.0) == 70
