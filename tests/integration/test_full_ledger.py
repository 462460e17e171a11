"""etcd that is really full, under real nodes: nothing is sold, people are protected, operators are told what to do."""

import asyncio
import os
import signal

import grpc
import pytest
from etcdpb import rpc_pb2 as etcd
from etcdpb import rpc_pb2_grpc as etcd_rpc
from utrn.v1 import pan_service_pb2 as pan_pb
from utrn.v1 import top_up_service_pb2 as pb

from app.devstack.files import OPERATOR, StackFailed
from app.devstack.stack import DevStack
from tests.integration.test_command_line import as_json, utrn
from tests.support.calls import caller, refused, registry_caller, top_up
from tests.support.patience import PATIENCE_S
from tests.support.selling import drained, new_id, pans
from tests.support.stack import MakeStack

pytestmark = [pytest.mark.real]
_QUOTA = 16 * 1024**2


def fill(stack: DevStack) -> None:
    """Write as another client of this etcd would, until it raises NOSPACE."""
    tls = stack.etcd_certs
    credentials = grpc.ssl_channel_credentials(tls.ca.read_bytes(), tls.key.read_bytes(), tls.cert.read_bytes())
    options = (("grpc.ssl_target_name_override", "localhost"),)
    with grpc.secure_channel(stack.etcd_targets[0], credentials, options=options) as channel:
        kv = etcd_rpc.KVStub(channel)
        with pytest.raises(grpc.RpcError, match="space exceeded"):
            _fill(kv)


def _fill(kv: etcd_rpc.KVStub) -> None:
    while True:
        kv.Put(etcd.PutRequest(key=b"filler", value=os.urandom(200_000)), timeout=10)


def problems(stack: DevStack) -> list[str]:
    certs = stack.certs(OPERATOR)
    tls = ("--cert", str(certs.cert), "--key", str(certs.key), "--ca", str(certs.ca))
    told = as_json(utrn("cluster", "status", "--target", stack.node_target("node-a"), *tls, "--json", code=None))
    found: list[str] = told["problems"]
    return found


async def until_said(stack: DevStack, text: str) -> None:
    """Wait until node-a says `text` itself: its own measure is up to a second behind what a member says."""
    async with asyncio.timeout(PATIENCE_S):
        while not any(text in one for one in await asyncio.to_thread(problems, stack)):  # noqa: ASYNC110  # a command
            await asyncio.sleep(0.2)


async def test_a_full_ledger_sells_nothing_blocks_cards_delivers_and_says_what_to_do(make_stack: MakeStack) -> None:
    stack = make_stack(meters=4, etcd_fsync=False, etcd_quota_bytes=_QUOTA)
    stack.start_all()
    first, second = pans(stack)[:2]
    async with caller(stack) as stub:
        known = top_up(transaction_id=new_id(), pan=first)
        sold = await stub.TopUp(known)
        two_step = pb.IssueUtrnRequest(
            transaction_id=new_id(), pan=second, amount_pence=known.amount_pence, channel=known.channel
        )
        await stub.IssueUtrn(two_step)
        await asyncio.to_thread(fill, stack)
        await until_said(stack, "node-a: etcd has raised NOSPACE")
        failure = await refused(stub.TopUp(top_up(transaction_id=new_id(), pan=first)))
        assert (failure.code, failure.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LEDGER_FULL")
        assert failure.retry_ms
        again = await stub.TopUp(known)
        assert (again.code, again.replayed) == (sold.code, True)
        # What was sold is sent, and its delivery written to its end.
        await stub.DeliverVend(pb.DeliverVendRequest(transaction_id=two_step.transaction_id))
        result = await drained(stack)
        assert (result.owed, result.credited, result.findings) == (0, 2, [])
    async with registry_caller(stack, "supplier-north") as records, registry_caller(stack, "supplier-south") as others:
        block = pan_pb.SetPanBlockedRequest(pan=first, blocked=True)
        answers = [await _answer(one.SetPanBlocked(block)) for one in (records, others)]
        assert None in answers, "the card's own supplier blocks it"
    # A node that restarts now gets no lease; it says why, and never serves.
    stack.kill("node-a", signal.SIGKILL)
    stack.start_node("node-a", wait=False)
    with pytest.raises(StackFailed):
        stack.wait_serving("node-a", 8.0)
    assert "do not restart nodes" in stack.log_file("node-a").read_text()


async def _answer(
    call: "grpc.aio.UnaryUnaryCall[pan_pb.SetPanBlockedRequest, pan_pb.SetPanBlockedResponse]",
) -> grpc.StatusCode | None:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code()
    return None
