"""A code that its meter has forgotten, on real processes: never credited, never called so, and somebody's task."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace

import grpc
import pytest
from utrn.sandbox.v1 import sandbox_pb2 as sandbox_pb
from utrn.sandbox.v1 import sandbox_pb2_grpc as sandbox_rpc
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import types_pb2

from app.devstack.files import SUPPLIERS
from app.devstack.fleet import meter_by_pan
from app.devstack.stack import DevStack
from core.domain.utrn import COUNTER_CACHE
from sandbox.servers import Tls
from tests.support.calls import caller, refused, top_up
from tests.support.patience import PATIENCE_S
from tests.support.selling import audit, new_id
from tests.support.stack import MakeStack
from tests.support.teller import Teller

pytestmark = [pytest.mark.real]
QUICK = ("answer_wait_ms = 1000", "explain_wait_ms = 500", "back_off_first_ms = 50", "back_off_most_ms = 200")
KINDS = ("METER_KIND_ESME", "METER_KIND_GSME")


def _cards(stack: DevStack) -> Iterator[tuple[str, str]]:
    """Return one electricity and one gas meter, each with its card."""
    lines = [json.loads(line) for line in (stack.folder / "sandbox" / "meters.jsonl").read_text().splitlines()]
    for kind in KINDS:
        meters = (one["add_meter"]["meter"] for one in lines if "add_meter" in one)
        meter_id = next(one["meter_id"] for one in meters if one["kind"] == kind)
        yield meter_id, next(pan for pan, one in meter_by_pan(stack.folder / "sandbox").items() if one == meter_id)


async def test_a_code_below_the_meters_memory_is_an_open_case_until_its_supplier_has_looked(
    make_stack: MakeStack,
) -> None:
    """Each meter is sent a code after a hundred newer ones were keyed in; it calls it a duplicate, and never had it."""
    stack = make_stack(meters=6, etcd_fsync=False, delivery=QUICK, max_balance_pence=500_000, knobs=("outage=true",))
    stack.start_all()
    old: list[str] = []
    newer: list[str] = []
    two_step: list[str] = []
    certs = stack.tool_certs
    fleet_channel = Tls(cert=certs.cert, key=certs.key, ca=certs.ca).channel(stack.fleet_target)
    async with caller(stack) as stub, fleet_channel as channel:
        fleet: sandbox_rpc.FleetServiceAsyncStub = sandbox_rpc.FleetServiceStub(channel)
        for meter_id, pan in _cards(stack):
            sale = top_up(transaction_id=new_id(), pan=pan, amount_pence=5_000)
            await stub.TopUp(sale)
            old.append(sale.transaction_id)
            never_sent = _issue(pan, 2_000)
            await stub.IssueUtrn(never_sent)
            two_step.append(never_sent.transaction_id)
            for _ in range(COUNTER_CACHE):
                asked = _issue(pan, 100)
                code = (await stub.IssueUtrn(asked)).code
                entry = sandbox_pb.EnterAtKeypadRequest(meter_id=meter_id, digits=code.utrn)
                assert (await fleet.EnterAtKeypad(entry)).credited
                newer.append(asked.transaction_id)
        for transaction_id in two_step:
            failure = await refused(stub.DeliverVend(pb.DeliverVendRequest(transaction_id=transaction_id)))
            assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "CODE_TOO_FAR_BEHIND")
        stack.kill("head-end")
        stack.plan = replace(stack.plan, knobs=())
        await asyncio.to_thread(stack.start_head_end)
        for transaction_id in old:
            delivery = await _until(stub, transaction_id, types_pb2.DELIVERY_STATE_NEEDS_CHECK)
            assert delivery.reason == types_pb2.DELIVERY_REASON_DUPLICATE_UNPROVEN
        for transaction_id in newer:
            await _until(stub, transaction_id, types_pb2.DELIVERY_STATE_APPLIED)
        sent = await stub.DeliverVend(pb.DeliverVendRequest(transaction_id=newer[0]))
        assert (sent.delivery.state, sent.replayed) == (types_pb2.DELIVERY_STATE_APPLIED, True)
        await _settle_all(stack, set(old))
        for transaction_id in old:
            await _until(stub, transaction_id, types_pb2.DELIVERY_STATE_REFUSED)
    result = await audit(stack)
    assert (result.findings, result.credited) == ([], 2 * COUNTER_CACHE)


def _issue(pan: str, pence: int) -> pb.IssueUtrnRequest:
    return pb.IssueUtrnRequest(transaction_id=new_id(), pan=pan, amount_pence=pence, channel=types_pb2.CHANNEL_ONLINE)


async def _until(stub: object, transaction_id: str, state: int) -> types_pb2.Delivery:
    request = pb.GetVendRequest(transaction_id=transaction_id)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            vend = (await stub.GetVend(request)).vend  # type: ignore[attr-defined]
            if vend.delivery.state == state:
                return vend.delivery  # type: ignore[no-any-return]
            await asyncio.sleep(0.05)


async def _settle_all(stack: DevStack, expected: set[str]) -> None:
    """Settle every case of the suppliers by the commands, as not credited."""
    teller, found = Teller(stack), set[str]()
    for supplier in SUPPLIERS:
        for one in (await asyncio.to_thread(teller.json, supplier, "vend", "cases"))["vends"]:
            found.add(one["code"]["transaction_id"])
            settled = await asyncio.to_thread(
                teller.json, supplier, "vend", "settle", one["code"]["transaction_id"], "--not-credited",
                "--participant", one["participant_id"],
            )  # fmt: skip
            assert settled["delivery"]["reason"] == "DELIVERY_REASON_CHECKED_BY_SUPPLIER"
    assert found == expected
