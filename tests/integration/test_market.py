"""The market at running nodes: who is refused where, how fast a change is seen, and the commands."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from utrn.v1 import appointment_service_pb2 as appointment_pb
from utrn.v1 import appointment_service_pb2_grpc as appointment_rpc
from utrn.v1 import credit_service_pb2 as credit_pb
from utrn.v1 import credit_service_pb2_grpc as credit_rpc
from utrn.v1 import registry_service_pb2 as pb
from utrn.v1 import registry_service_pb2_grpc as registry_rpc
from utrn.v1 import top_up_service_pb2 as top_up_pb
from utrn.v1 import types_pb2

from app.clock import SystemClock
from app.devstack import DevStack
from app.fleet_file import meter_by_pan
from app.pki import DevCa, participant_uri
from app.selling import secure_channel
from app.stackfiles import AUDITOR, HELPDESK, OPERATOR, OUTSIDER, PSP, SUPPLIERS
from tests.integration.test_command_line import as_json, utrn
from tests.support.calls import (
    appointments_caller,
    caller,
    credit_caller,
    failure_of,
    refused,
    registry_caller,
    top_up,
)
from tests.support.selling import drained, new_id
from tests.support.stack import MakeStack
from tests.support.vends import POINT

NORTH, SOUTH = SUPPLIERS
LONG_AGO = new_id(shift_s=-60)


def meters_of(stack: DevStack, supplier: str) -> list[tuple[str, str]]:
    """PAN and meter of every meter of a supplier."""
    lines = map(json.loads, (stack.folder / "sandbox" / "meters.jsonl").read_text().splitlines())
    whose = {one["meter_id"]: one["supplier_id"] for one in lines if one["type"] == "meter"}
    pairs = meter_by_pan(stack.folder / "sandbox").items()
    return [(pan, meter_id) for pan, meter_id in pairs if whose[meter_id] == supplier]


# Nobody does what another may do.

STRANGERS = (SOUTH, PSP, OUTSIDER, HELPDESK, AUDITOR)
READERS = {HELPDESK, AUDITOR}
PSP_OWN = {"AcceptAppointment", "EndAppointment", "GetAppointments", "ListAppointments"}
Requests = dict[str, tuple[type[Any], Message]]


def _requests(pan: str, meter_id: str) -> Requests:
    """Every method with a request about the northern supplier that its owner or an operator could make."""
    point = POINT
    new_meter = pb.Meter(meter_id="00db15000000ffff", kind=pb.METER_KIND_ESME, scheme="gbcs", public_point=point)
    settings = pb.MeterSettings(head_end="sandbox")
    name = appointment_pb.AppointmentName(supplier_id=NORTH, psp_id=PSP, appointment_id="corner")
    stub, appointed, credit = (
        registry_rpc.RegistryServiceStub,
        appointment_rpc.AppointmentServiceStub,
        credit_rpc.CreditServiceStub,
    )
    someone = pb.Participant(participant_id="forged", role=pb.ROLE_PSP, name="F", identities=["spiffe://forged"])
    terms = appointment_pb.AppointmentTerms(
        appointment_id="forged", supplier_id=NORTH, psp_id=PSP, level=appointment_pb.LEVEL_ISSUE, min_pence=1,
        max_pence=100,
    )  # fmt: skip
    terms.since.GetCurrentTime()
    signed = appointment_pb.SignedTerms(terms=terms.SerializeToString(), signature=b"x", certificate=b"x")
    profile = pb.Profile(option=pb.OPTION_PSP_ISSUES)
    return {
        "AddParticipant": (stub, pb.AddParticipantRequest(participant=someone)),
        "SetIdentities": (stub, pb.SetIdentitiesRequest(participant_id=NORTH, name="X", identities=["spiffe://x"])),
        "SetStanding": (stub, pb.SetStandingRequest(participant_id=NORTH, standing=pb.STANDING_SUSPENDED)),
        "SetProfile": (stub, pb.SetProfileRequest(supplier_id=NORTH, profile=profile)),
        "GetParticipant": (stub, pb.GetParticipantRequest(participant_id=NORTH)),
        "ListParticipants": (stub, pb.ListParticipantsRequest()),
        "SetModel": (stub, pb.SetModelRequest(model=pb.Model(make="A", model="B", schemes=["gbcs"]))),
        "ListModels": (stub, pb.ListModelsRequest()),
        "AddMeter": (stub, pb.AddMeterRequest(meter=new_meter, supplier_id=NORTH, settings=settings)),
        "ChangeMeter": (stub, pb.ChangeMeterRequest(meter_id=meter_id, settings=pb.MeterSettings(zone="z"))),
        "ChangeSupplier": (
            stub,
            pb.ChangeSupplierRequest(meter_id=meter_id, losing_supplier_id=NORTH, gaining_supplier_id=SOUTH),
        ),
        "ChangeTenant": (stub, pb.ChangeTenantRequest(meter_id=meter_id, tenancy_before=1)),
        "ExchangeMeter": (
            stub,
            pb.ExchangeMeterRequest(
                old_meter_id=meter_id, new_meter=new_meter, supplier_id=NORTH, settings=settings, pans=[pan]
            ),
        ),
        "EndMeter": (stub, pb.EndMeterRequest(meter_id=meter_id)),
        "CancelChange": (stub, pb.CancelChangeRequest(meter_id=meter_id)),
        "HandOverMeter": (
            stub,
            pb.HandOverMeterRequest(meter_id=meter_id, custody_before=pb.CUSTODY_CENTRAL, custody=pb.CUSTODY_SUPPLIER),
        ),
        "RecordBalance": (stub, pb.RecordBalanceRequest(meter_id=meter_id, balance_pence=1, at=terms.since)),
        "GetMeter": (stub, pb.GetMeterRequest(meter_id=meter_id)),
        "ListMeters": (stub, pb.ListMetersRequest()),
        "ListSellers": (stub, pb.ListSellersRequest(meter_id=meter_id)),
        "ListMarketChanges": (stub, pb.ListMarketChangesRequest(supplier_id=NORTH)),
        "GivePan": (stub, pb.GivePanRequest(pan="9826000000000000009", meter_id=meter_id)),
        "ReplacePan": (stub, pb.ReplacePanRequest(lost_pan=pan, new_pan="9826000000000000009")),
        "SetPanBlocked": (stub, pb.SetPanBlockedRequest(pan=pan, blocked=True)),
        "RepointPan": (stub, pb.RepointPanRequest(pan=pan, from_meter_id=meter_id, to_meter_id=meter_id)),
        "GetPan": (stub, pb.GetPanRequest(pan=pan)),
        "ListPans": (stub, pb.ListPansRequest(meter_id=meter_id)),
        "Appoint": (appointed, appointment_pb.AppointRequest(signed_terms=signed)),
        "AcceptAppointment": (appointed, appointment_pb.AcceptAppointmentRequest(name=name)),
        "SuspendAppointment": (appointed, appointment_pb.SuspendAppointmentRequest(name=name, suspended=True)),
        "EndAppointment": (appointed, appointment_pb.EndAppointmentRequest(name=name)),
        "GetAppointments": (appointed, appointment_pb.GetAppointmentsRequest(supplier_id=NORTH, psp_id=PSP)),
        "ListAppointments": (appointed, appointment_pb.ListAppointmentsRequest(supplier_id=NORTH)),
        "AskCredit": (
            credit,
            credit_pb.AskCreditRequest(
                credit=credit_pb.Credit(
                    transaction_id=LONG_AGO, pan=pan, amount_pence=100, reason=credit_pb.CREDIT_REASON_GOODWILL
                )
            ),
        ),
        "DecideCredit": (credit, credit_pb.DecideCreditRequest(transaction_id=LONG_AGO, approve=True)),
        "ListCredits": (credit, credit_pb.ListCreditsRequest(supplier_id=NORTH)),
    }


def _methods() -> list[str]:
    files = (pb, appointment_pb, credit_pb)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    return [method.name for service in services for method in service.methods if not method.client_streaming]


_READ_BY_ALL_READERS = {
    "GetParticipant", "ListParticipants", "ListModels", "GetMeter", "ListMeters", "ListSellers", "ListMarketChanges",
    "GetPan", "ListPans", "GetAppointments", "ListAppointments", "ListCredits",
}  # fmt: skip
# What a supplier may ask, and is then shown nothing of another's.
_OWN_PART_ONLY = {"ListModels", "ListMeters", "ListAppointments"}


@pytest.mark.parametrize("method", _methods())
async def test_no_stranger_does_what_is_anothers(module_stack: DevStack, method: str) -> None:
    pan, meter_id = meters_of(module_stack, NORTH)[5]
    stub_of, request = _requests(pan, meter_id)[method]
    for who in STRANGERS:
        if (who in READERS and method in _READ_BY_ALL_READERS) or (who == PSP and method in PSP_OWN):
            continue
        certs = module_stack.certs(who)
        target = [module_stack.node_target("node-a")]
        async with secure_channel(target, ca=certs.ca, cert=certs.cert, key=certs.key) as channel:
            if method in _OWN_PART_ONLY and who in (SOUTH, OUTSIDER):
                await _shows_nothing(getattr(stub_of(channel), method), request, method, who)
                continue
            failure = await refused(getattr(stub_of(channel), method)(request))
        if (who, method) == (SOUTH, "DecideCredit"):
            # Another supplier's request is not to be found among its own.
            assert failure.reason == "RECORD_UNKNOWN"
            continue
        assert failure.code is grpc.StatusCode.PERMISSION_DENIED, (who, failure)
        assert failure.reason in {"ROLE_NOT_ALLOWED", "NOT_YOURS", "NOT_APPOINTED"}, (who, failure)


async def _shows_nothing(call: Callable[[Message], Any], request: Message, method: str, who: str) -> None:
    if who == OUTSIDER and method != "ListAppointments":
        assert (await refused(call(request))).reason == "ROLE_NOT_ALLOWED"
        return
    reply = await call(request)
    if method == "ListMeters":
        assert all(one.registrations[0].supplier_id == who for one in reply.meters)
    if method == "ListAppointments":
        assert all(who in (one.terms.supplier_id, one.terms.psp_id) for one in reply.appointments)


async def test_a_participant_named_in_the_request_is_not_believed(module_stack: DevStack) -> None:
    """Nothing in a request can name who asks: the certificate does."""
    pan, _ = meters_of(module_stack, NORTH)[5]
    sale = top_up(transaction_id=new_id(), pan=pan)
    async with caller(module_stack) as stub:
        await stub.IssueUtrn(top_up_pb.IssueUtrnRequest.FromString(sale.SerializeToString()))
    forged = top_up_pb.SendTopUpRequest(transaction_id=sale.transaction_id, participant_id=PSP)
    async with caller(module_stack, SOUTH) as stub:
        assert (await refused(stub.SendTopUp(forged))).reason == "NOT_APPOINTED"
    async with caller(module_stack, OUTSIDER) as stub:
        assert (await refused(stub.SendTopUp(forged))).reason == "NOT_APPOINTED"
    async with caller(module_stack, NORTH) as stub:
        assert not (await stub.SendTopUp(forged)).replayed, "the meter's supplier delivers what its PSP has sold"


async def test_an_expired_certificate_does_not_come_in(module_stack: DevStack) -> None:
    long_ago = DevCa.load_or_create(module_stack.folder / "pki", now=SystemClock().now() - timedelta(days=4000))
    expired = long_ago.issue("expired-operator", uri=participant_uri(OPERATOR))
    target = [module_stack.node_target("node-a")]
    async with secure_channel(target, ca=expired.ca, cert=expired.cert, key=expired.key) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await registry_rpc.RegistryServiceStub(channel).ListParticipants(pb.ListParticipantsRequest(), timeout=3)
    assert failed.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


# Before money is taken.


async def test_eligibility_says_everything_that_stands_against_a_sale(module_stack: DevStack) -> None:
    pan, meter_id = meters_of(module_stack, SOUTH)[4]
    async with registry_caller(module_stack, SOUTH) as registry:
        await registry.ChangeMeter(
            pb.ChangeMeterRequest(
                meter_id=meter_id,
                settings=pb.MeterSettings(payment_mode=pb.PAYMENT_MODE_CREDIT, max_credit_pence=2000),
            )
        )
        await registry.SetPanBlocked(pb.SetPanBlockedRequest(pan=pan, blocked=True))
    asked = top_up_pb.CheckEligibilityRequest(
        pan=pan, amount_pence=3000, channel=types_pb2.CHANNEL_ONLINE, deliver=True
    )
    async with caller(module_stack) as stub:
        async with asyncio.timeout(5):
            while len((reply := await stub.CheckEligibility(asked)).objections) < 3:  # noqa: ASYNC110  # the node is asked
                await asyncio.sleep(0.01)
        reasons = [one.message for one in reply.objections]
        assert not reply.eligible
        assert ["blocked" in reasons[0], "credit mode" in reasons[1], "at most 2000" in reasons[2]] == [True] * 3
        assert reply.objections[2].facts == {"max_credit_pence": "2000"}
        fine, _ = meters_of(module_stack, SOUTH)[5]
        assert (await stub.CheckEligibility(top_up_pb.CheckEligibilityRequest(pan=fine))).eligible
    async with caller(module_stack, OUTSIDER) as stub:
        reply = await stub.CheckEligibility(asked)
        assert (len(reply.objections), reply.supplier_id) == (1, ""), "a stranger learns nothing of the meter"


# A change of hands, with real meters.


async def test_after_a_change_of_supplier_nothing_of_the_old_one_is_sent_or_sold(make_stack: MakeStack) -> None:
    stack = make_stack(meters=4, etcd_fsync=False, knobs=("loss_before=1.0",))
    stack.start_all()
    pan, meter_id = meters_of(stack, NORTH)[0]
    sale = top_up(transaction_id=new_id(), pan=pan)
    two_step = new_id()
    async with caller(stack) as stub, registry_caller(stack, OPERATOR) as registry:
        await stub.IssueUtrn(
            top_up_pb.IssueUtrnRequest(
                transaction_id=two_step, pan=pan, amount_pence=500, channel=types_pb2.CHANNEL_APP
            )
        )
        await registry.ChangeSupplier(
            pb.ChangeSupplierRequest(meter_id=meter_id, losing_supplier_id=NORTH, gaining_supplier_id=SOUTH)
        )
        assert (await refused(stub.TopUp(sale))).reason in {"NOT_APPOINTED", "PAN_NOT_CURRENT"}
        late = await refused(stub.SendTopUp(top_up_pb.SendTopUpRequest(transaction_id=two_step)))
        assert late.reason in {"NOT_APPOINTED", "PAN_NOT_CURRENT"}
        assert (await stub.GetVend(top_up_pb.GetVendRequest(transaction_id=two_step))).vend.supplier_id == NORTH
    async with registry_caller(stack, NORTH) as registry:
        (change,) = (await registry.ListMarketChanges(pb.ListMarketChangesRequest())).changes
    assert (change.responsible_supplier_id, change.supplier_id_after, change.last_issued) == (NORTH, SOUTH, 1)


async def test_every_node_knows_a_change_within_a_second(make_stack: MakeStack) -> None:
    nodes = ("node-a", "node-b", "node-c")
    stack = make_stack(meters=8, etcd_fsync=False, nodes=nodes)
    stack.start_all()
    pan, _ = meters_of(stack, NORTH)[0]
    asked = top_up_pb.CheckEligibilityRequest(pan=pan)
    name = appointment_pb.AppointmentName(supplier_id=NORTH, psp_id=PSP, appointment_id="corner")

    async def knows(node: str, *, eligible: bool) -> float:
        async with caller(stack, node=node) as stub:
            while (await stub.CheckEligibility(asked)).eligible is not eligible:  # noqa: ASYNC110  # the node is asked
                await asyncio.sleep(0.005)
        return time.monotonic()

    async with appointments_caller(stack, NORTH) as appointments:
        for suspended in (True, False):
            await appointments.SuspendAppointment(
                appointment_pb.SuspendAppointmentRequest(name=name, suspended=suspended)
            )
            changed = time.monotonic()
            async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
                known = [tasks.create_task(knows(node, eligible=not suspended)) for node in nodes]
            assert max(task.result() for task in known) - changed < 1.0


async def test_credit_without_payment_reaches_the_meter_by_two_people(module_stack: DevStack) -> None:
    pan, _ = meters_of(module_stack, NORTH)[7]
    second = DevCa.load_or_create(module_stack.folder / "pki", now=SystemClock().now()).issue(
        "north-second", uri="spiffe://utrn/person/north-second"
    )
    async with registry_caller(module_stack, OPERATOR) as registry:
        identities = [participant_uri(NORTH), "spiffe://utrn/person/north-second"]
        await registry.SetIdentities(pb.SetIdentitiesRequest(participant_id=NORTH, name=NORTH, identities=identities))
    asked = credit_pb.Credit(
        transaction_id=new_id(), pan=pan, amount_pence=500, reason=credit_pb.CREDIT_REASON_EMERGENCY, note="cold snap"
    )
    decision = credit_pb.DecideCreditRequest(transaction_id=asked.transaction_id, approve=True)
    async with credit_caller(module_stack, NORTH) as credit:
        await credit.AskCredit(credit_pb.AskCreditRequest(credit=asked))
        assert (await refused(credit.DecideCredit(decision))).reason == "TWO_PEOPLE_NEEDED"
    async with credit_caller(module_stack, NORTH, certs=second) as credit:
        async with asyncio.timeout(5):
            while (given := await _decided(credit, decision)) is None:  # noqa: ASYNC110  # the node is asked
                await asyncio.sleep(0.01)
        report = await credit.ListCredits(credit_pb.ListCreditsRequest())
    assert (report.approved, report.approved_pence) == (1, 500)
    result = await drained(module_stack)
    assert not result.findings
    async with caller(module_stack, NORTH) as stub:
        vend = (await stub.GetVend(top_up_pb.GetVendRequest(transaction_id=asked.transaction_id))).vend
    assert (vend.code.utrn, vend.channel) == (given.code.utrn, types_pb2.CHANNEL_NOT_PAID)


async def _decided(credit: Any, decision: credit_pb.DecideCreditRequest) -> credit_pb.DecideCreditResponse | None:
    """Return the answer once the node knows the second certificate."""
    try:
        answer: credit_pb.DecideCreditResponse = await credit.DecideCredit(decision)
    except grpc.aio.AioRpcError as error:
        if failure_of(error).reason != "UNKNOWN_CALLER":
            raise
        return None
    return answer


# The commands.


def _as(stack: DevStack, who: str) -> list[str]:
    certs = stack.certs(who)
    return [
        "--target", stack.node_target("node-a"), "--cert", str(certs.cert), "--key", str(certs.key),
        "--ca", str(certs.ca),
    ]  # fmt: skip


def test_the_trail_of_a_node_can_be_read_and_verified(module_stack: DevStack) -> None:
    files = [str(one) for one in (module_stack.folder / "trail").glob("*.trail")]
    assert as_json(utrn("audit", "verify", *files, "--json"))["ok"]
    found = as_json(utrn("audit", "show", *files, "--refused", "--json"))["decisions"]
    assert all(one["outcome"] != "allowed" for one in found)
    certs = module_stack.certs(SOUTH)
    _, meter_id = meters_of(module_stack, NORTH)[9]
    utrn("meter", "end", meter_id, *_as(module_stack, SOUTH), code=1)
    files = [str(one) for one in (module_stack.folder / "trail").glob("*.trail")]
    until = time.monotonic() + 5
    told: list[dict[str, Any]] = []
    while not told and time.monotonic() < until:
        told = as_json(utrn("audit", "show", *files, "--subject", meter_id, "--refused", "--json"))["decisions"]
    config = str(module_stack.node_config("node-a"))
    until = time.monotonic() + 10
    while not (anchored := as_json(utrn("audit", "verify", *files, "--config", config, "--json"))["anchored"]):
        assert time.monotonic() < until
    assert {Path(file).name for file in files} >= set(anchored)
    assert [(one["caller"], one["act"], one["outcome"]) for one in told] == [(SOUTH, "EndMeter", "NOT_YOURS")]
    _holds_no_secret("".join(Path(file).read_text() for file in files), module_stack, certs.key)


def _holds_no_secret(trail: str, stack: DevStack, key: Path) -> None:
    """No key, no PIN, no whole PAN, no code: of a PAN the last four digits, of a code nothing."""
    decisions = "".join(line for line in trail.splitlines() if "sha256" not in line)
    assert decisions
    secrets = [*key.read_text().splitlines()[1:-1], *meter_by_pan(stack.folder / "sandbox")]
    secrets += [one.read_text().strip() for one in stack.folder.rglob("*pin*") if one.is_file()]
    assert len(secrets) > 5
    assert not [one for one in secrets if one in decisions]
    assert not re.search(r"[0-9]{17,}", decisions)
