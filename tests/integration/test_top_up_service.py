"""The callers' service over the wire: right use, wrong use, and everything out of bounds."""

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from utrn.v1 import meter_service_pb2 as meter_pb
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import types_pb2

from app.devstack.ca import DevPki, participant_uri
from app.devstack.files import OUTSIDER, PSP, SUPPLIERS
from app.devstack.fleet import meter_by_pan
from app.devstack.stack import DevStack
from core.domain.meter import luhn_digit
from core.gateways.system_clock import SystemClock
from tests.support.calls import caller, failure_of, refused, registry_caller, top_up
from tests.support.patience import PATIENCE_S
from tests.support.selling import drained, new_id, pans

if TYPE_CHECKING:
    from utrn.v1.top_up_service_pb2_grpc import TopUpServiceAsyncStub as Stub

pytestmark = [pytest.mark.real]


@pytest.fixture
def pan(module_stack: DevStack) -> str:
    return pans(module_stack)[0]


async def _delivered(stub: "Stub", transaction_id: str) -> types_pb2.Delivery:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            vend = (await stub.GetVend(pb.GetVendRequest(transaction_id=transaction_id))).vend
            if vend.delivery.state == types_pb2.DELIVERY_STATE_APPLIED:
                return vend.delivery
            await asyncio.sleep(0.02)


async def test_one_step_issues_a_code_and_credits_the_meter(module_stack: DevStack, pan: str) -> None:
    transaction_id = new_id()
    async with caller(module_stack) as stub:
        reply = await stub.TopUp(top_up(transaction_id=transaction_id, pan=pan, amount_pence=4321))
        assert reply.code.utrn_printed.replace(" ", "") == reply.code.utrn
        assert (len(reply.code.utrn), reply.code.amount_pence, reply.replayed) == (20, 4321, False)
        delivery = await _delivered(stub, transaction_id)
    assert (delivery.attempts, delivery.reason) == (1, types_pb2.DELIVERY_REASON_CREDITED)
    assert (await drained(module_stack)).findings == []


async def test_two_steps_send_only_when_asked_and_only_once(module_stack: DevStack, pan: str) -> None:
    transaction_id = new_id()
    async with caller(module_stack) as stub:
        request = top_up(transaction_id=transaction_id, pan=pan)
        issue = pb.IssueUtrnRequest(transaction_id=transaction_id, pan=pan, amount_pence=1000, channel=request.channel)
        await stub.IssueUtrn(issue)
        vend = (await stub.GetVend(pb.GetVendRequest(transaction_id=transaction_id))).vend
        assert vend.delivery.state == types_pb2.DELIVERY_STATE_NOT_REQUESTED
        first = await stub.DeliverVend(pb.DeliverVendRequest(transaction_id=transaction_id))
        again = await stub.DeliverVend(pb.DeliverVendRequest(transaction_id=transaction_id))
        assert (first.replayed, again.replayed) == (False, True)
        await _delivered(stub, transaction_id)


async def test_a_repeat_answers_the_same_bytes(module_stack: DevStack, pan: str) -> None:
    request = top_up(transaction_id=new_id(), pan=pan)
    async with caller(module_stack) as stub:
        replies = [await stub.TopUp(request) for _ in range(3)]
    assert [reply.replayed for reply in replies] == [False, True, True]
    assert len({reply.code.SerializeToString(deterministic=True) for reply in replies}) == 1


async def test_fifty_callers_with_one_id_get_one_code(module_stack: DevStack, pan: str) -> None:
    request = top_up(transaction_id=new_id(), pan=pan)
    async with caller(module_stack) as stub, asyncio.TaskGroup() as tasks:
        asking = [tasks.create_task(_ask(stub, request)) for _ in range(50)]
    assert len({task.result().code.SerializeToString(deterministic=True) for task in asking}) == 1
    assert sum(not task.result().replayed for task in asking) >= 1


async def _ask(stub: "Stub", request: pb.TopUpRequest) -> pb.TopUpResponse:
    return await stub.TopUp(request)


@pytest.mark.parametrize(
    ("field", "value"),
    [("amount_pence", 1001), ("channel", types_pb2.CHANNEL_APP), ("pan", None)],
)
async def test_the_same_id_with_other_content_is_refused_naming_the_field(
    module_stack: DevStack, pan: str, field: str, value: object
) -> None:
    transaction_id = new_id()
    other = {"transaction_id": transaction_id, "pan": pan, field: value or pans(module_stack)[1]}
    async with caller(module_stack) as stub:
        await stub.TopUp(top_up(transaction_id=transaction_id, pan=pan))
        failure = await refused(stub.TopUp(top_up(**other)))
    assert (failure.code, failure.reason) == (grpc.StatusCode.ALREADY_EXISTS, "TRANSACTION_ID_REUSED")
    assert failure.facts["field"] == field


async def test_a_caller_that_goes_away_finds_its_code_later(module_stack: DevStack, pan: str) -> None:
    request = top_up(transaction_id=new_id(), pan=pan)
    async with caller(module_stack) as stub:
        call = stub.TopUp(request)
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        first, second = await stub.TopUp(request), await stub.TopUp(request)
    assert first.code == second.code


_BAD: list[tuple[str, dict[str, Any]]] = [
    ("transaction_id", {"transaction_id": ""}),
    ("transaction_id", {"transaction_id": "x" * 5_000}),
    ("request", {"transaction_id": "x" * 1_000_000}),
    ("transaction_id", {"transaction_id": "3f2504e0-4f89-41d3-9a0c-0305e82c3301"}),
    ("pan", {"pan": ""}),
    ("pan", {"pan": "1" * 5_000}),
    ("pan", {"pan": "9826" + "0" * 14 + "8"}),
    ("pan", {"pan": "9826 0000 0000 0000 000"}),
    ("amount_pence", {"amount_pence": 0}),
    ("amount_pence", {"amount_pence": -5}),
    ("amount_pence", {"amount_pence": 8192}),
    ("amount_pence", {"amount_pence": 10_050}),
    ("amount_pence", {"amount_pence": 819_200}),
    ("amount_pence", {"amount_pence": 2**63 - 1}),
    ("channel", {"channel": 0}),
    ("channel", {"channel": 99}),
    ("channel", {"channel": types_pb2.CHANNEL_NOT_PAID}),
    ("reference.outlet_id", {"reference": {"outlet_id": "x" * 41}}),
    ("reference.terminal_id", {"reference": {"terminal_id": "line\nbreak"}}),
    ("reference.receipt_id", {"reference": {"receipt_id": "x" * 5_000}}),
    ("reference.receipt_id", {"reference": {"receipt_id": "£"}}),
]


@pytest.mark.parametrize(("field", "wrong"), _BAD, ids=[f"{f}-{n}" for n, (f, _) in enumerate(_BAD)])
async def test_a_field_out_of_bounds_is_named(
    module_stack: DevStack, pan: str, field: str, wrong: dict[str, Any]
) -> None:
    async with caller(module_stack) as stub:
        failure = await refused(stub.TopUp(top_up(**{"transaction_id": new_id(), "pan": pan, **wrong})))
    assert (failure.code, failure.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])
    assert len(failure.message) < 300


async def test_an_amount_no_code_carries_names_the_nearest_that_work(module_stack: DevStack, pan: str) -> None:
    async with caller(module_stack) as stub:
        failure = await refused(stub.TopUp(top_up(transaction_id=new_id(), pan=pan, amount_pence=10_050)))
    assert failure.reason == "AMOUNT_NOT_ENCODABLE"
    assert (failure.facts["nearest_below_pence"], failure.facts["nearest_above_pence"]) == ("10000", "10100")


async def test_all_wrong_fields_are_named_at_once(module_stack: DevStack) -> None:
    async with caller(module_stack) as stub:
        failure = await refused(stub.TopUp(pb.TopUpRequest()))
    assert failure.fields == ["transaction_id", "pan", "amount_pence", "channel"]


@pytest.mark.parametrize(
    ("shift_s", "reason"),
    [(-31 * 86_400, "TRANSACTION_ID_TOO_OLD"), (600, "TRANSACTION_ID_FROM_FUTURE")],
)
async def test_an_id_outside_the_window_is_refused(
    module_stack: DevStack, pan: str, shift_s: float, reason: str
) -> None:
    async with caller(module_stack) as stub:
        failure = await refused(stub.TopUp(top_up(transaction_id=new_id(shift_s=shift_s), pan=pan)))
    assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, reason)


async def test_an_unknown_pan_is_refused(module_stack: DevStack) -> None:
    async with caller(module_stack) as stub:
        failure = await refused(
            stub.TopUp(top_up(transaction_id=new_id(), pan="982600000000000000" + luhn_digit("982600000000000000")))
        )
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "PAN_UNKNOWN")


@pytest.mark.parametrize("who", [OUTSIDER, "supplier-south"])
async def test_who_is_not_appointed_is_refused(module_stack: DevStack, pan: str, who: str) -> None:
    async with caller(module_stack, who) as stub:
        failure = await refused(stub.TopUp(top_up(transaction_id=new_id(), pan=pan)))
    assert (failure.code, failure.reason) == (grpc.StatusCode.PERMISSION_DENIED, "NOT_APPOINTED")


async def test_the_meters_own_supplier_may_top_it_up(module_stack: DevStack, pan: str) -> None:
    async with caller(module_stack, "supplier-north") as stub:
        assert (await stub.TopUp(top_up(transaction_id=new_id(), pan=pan))).code.utrn


async def test_a_certificate_that_names_nobody_is_refused(module_stack: DevStack, pan: str) -> None:
    async with caller(module_stack, "psp-unregistered") as stub:
        failure = await refused(stub.TopUp(top_up(transaction_id=new_id(), pan=pan)))
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNKNOWN_CALLER")


@pytest.mark.parametrize("kind", ["expired", "foreign"])
async def test_a_bad_certificate_gets_no_connection(module_stack: DevStack, pan: str, kind: str) -> None:
    foreign = DevPki.load_or_create(module_stack.folder / "foreign-pki", now=SystemClock().now())
    pki, days = (module_stack.pki, -1) if kind == "expired" else (foreign, 1)
    certs = pki.participant(f"{kind}-caller", uri=participant_uri(PSP), days=days, renew=True)
    async with caller(module_stack, certs=certs) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.TopUp(top_up(transaction_id=new_id(), pan=pan), timeout=5)
    assert failed.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def test_a_vend_is_shown_to_its_caller_and_its_supplier_only(module_stack: DevStack, pan: str) -> None:
    transaction_id = new_id()
    async with caller(module_stack) as stub:
        await stub.TopUp(top_up(transaction_id=transaction_id, pan=pan))
        unknown = await refused(stub.GetVend(pb.GetVendRequest(transaction_id=new_id())))
    assert unknown.reason == "VEND_UNKNOWN"
    request = pb.GetVendRequest(transaction_id=transaction_id, participant_id=PSP)
    async with caller(module_stack, "supplier-north") as stub:
        assert (await stub.GetVend(request)).vend.supplier_id == "supplier-north"
    for other in ("supplier-south", OUTSIDER):
        async with caller(module_stack, other) as stub:
            assert (await refused(stub.GetVend(request))).reason == "NOT_APPOINTED"


async def test_a_vend_never_issued_cannot_be_sent(module_stack: DevStack) -> None:
    async with caller(module_stack) as stub:
        failure = await refused(stub.DeliverVend(pb.DeliverVendRequest(transaction_id=new_id())))
    assert (failure.code, failure.reason) == (grpc.StatusCode.NOT_FOUND, "VEND_UNKNOWN")


async def test_an_externally_issued_code_is_checked_and_delivered_once(module_stack: DevStack) -> None:
    meters = list(meter_by_pan(module_stack.folder / "sandbox").items())
    (first_pan, _), (other_pan, other_meter) = meters[10], meters[12]
    supplier = next(iter(SUPPLIERS))
    async with registry_caller(module_stack, supplier) as registry:
        await registry.TransferCounters(
            meter_pb.TransferCountersRequest(
                meter_id=other_meter, custody_before=meter_pb.CUSTODY_CENTRAL, custody=meter_pb.CUSTODY_SUPPLIER
            )
        )
    async with caller(module_stack, supplier) as stub:
        # A code of this service for one meter stands in for one made elsewhere for another, which will refuse it.
        code = (await stub.TopUp(top_up(transaction_id=new_id(), pan=first_pan))).code
        made = pb.ExternallyIssuedUtrn(pan=other_pan, utrn=code.utrn, utrn_counter=1, channel=types_pb2.CHANNEL_APP)
        request = pb.DeliverVendRequest(transaction_id=new_id(), externally_issued=made)
        assert not (await stub.DeliverVend(request)).replayed
        assert (await stub.DeliverVend(request)).replayed
        again = pb.DeliverVendRequest(transaction_id=new_id(), externally_issued=made)
        assert (await refused(stub.DeliverVend(again))).reason == "COUNTER_TAKEN"
        made.utrn_counter = 2
        wrong = pb.DeliverVendRequest(transaction_id=new_id(), externally_issued=made)
        assert (await refused(stub.DeliverVend(wrong))).fields == ["externally_issued.utrn_counter"]
        made.utrn = code.utrn[:-1] + str((int(code.utrn[-1]) + 1) % 10)
        assert (await refused(stub.DeliverVend(wrong))).reason == "BAD_FIELD"
        async with asyncio.timeout(PATIENCE_S):
            while True:
                vend = (await stub.GetVend(pb.GetVendRequest(transaction_id=request.transaction_id))).vend
                if vend.delivery.state == types_pb2.DELIVERY_STATE_REFUSED:
                    break
                await asyncio.sleep(0.05)
    assert vend.delivery.reason == types_pb2.DELIVERY_REASON_NOT_AUTHENTIC


async def test_no_log_holds_a_code(module_stack: DevStack, pan: str) -> None:
    async with caller(module_stack) as stub:
        code = (await stub.TopUp(top_up(transaction_id=new_id(), pan=pan))).code
    log = module_stack.log_file("node-a").read_text()
    assert code.utrn not in log
    assert pan not in log


def test_failure_of_demands_details() -> None:
    error = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata())
    with pytest.raises(AssertionError):
        failure_of(error)
