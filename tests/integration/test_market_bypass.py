"""Every method of every public service, asked by those who may not: a table of refusals, and nothing is changed by any.

The methods come from the descriptors: a new one without a row fails. Nothing in a request can name who asks; the
certificate does, so participants are forged wherever a request has a place for one.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf import timestamp_pb2
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message import Message
from utrn.admin.v1 import admin_service_pb2 as admin_pb
from utrn.admin.v1 import admin_service_pb2_grpc as admin_rpc
from utrn.v1 import appointment_service_pb2 as appointment_pb
from utrn.v1 import appointment_service_pb2_grpc as appointment_rpc
from utrn.v1 import credit_service_pb2 as credit_pb
from utrn.v1 import credit_service_pb2_grpc as credit_rpc
from utrn.v1 import errors_pb2, types_pb2
from utrn.v1 import meter_model_service_pb2 as meter_model_pb
from utrn.v1 import meter_model_service_pb2_grpc as meter_model_rpc
from utrn.v1 import meter_service_pb2 as meter_pb
from utrn.v1 import meter_service_pb2_grpc as meter_rpc
from utrn.v1 import pan_service_pb2 as pan_pb
from utrn.v1 import pan_service_pb2_grpc as pan_rpc
from utrn.v1 import participant_service_pb2 as participant_pb
from utrn.v1 import participant_service_pb2_grpc as participant_rpc
from utrn.v1 import registry_service_pb2 as registry_pb
from utrn.v1 import registry_service_pb2_grpc as registry_rpc
from utrn.v1 import top_up_service_pb2 as top_up_pb
from utrn.v1 import top_up_service_pb2_grpc as top_up_rpc
from utrn_client.appointing import sign_terms

from app.devstack.ca import CertPaths, participant_uri
from app.devstack.files import AUDITOR, HELPDESK, OPERATOR, OUTSIDER, PSP, SUPPLIERS
from app.devstack.stack import DevStack
from app.node.config import load_config
from app.workloads.sale_driver import secure_channel
from cluster.etcd.client import EtcdClient
from core.gateways.system_clock import SystemClock
from tests.integration.test_market import meters_of
from tests.support.calls import by_two, caller, credit_caller, failure_of, refused, registry_caller
from tests.support.lines import meter_line
from tests.support.patience import PATIENCE_S
from tests.support.selling import new_id
from tests.support.vends import POINT, utrn

pytestmark = [pytest.mark.real]

NORTH, SOUTH = SUPPLIERS
SUSPENDED, SUSPENDED_PSP, LEFT, NOBODY = "operator-suspended", "psp-suspended", "operator-left", "nobody"
SERVICES: dict[str, tuple[Any, type[Any]]] = {
    "TopUpService": (top_up_pb, top_up_rpc.TopUpServiceStub),
    "ParticipantService": (participant_pb, participant_rpc.ParticipantServiceStub),
    "MeterModelService": (meter_model_pb, meter_model_rpc.MeterModelServiceStub),
    "MeterService": (meter_pb, meter_rpc.MeterServiceStub),
    "PanService": (pan_pb, pan_rpc.PanServiceStub),
    "RegistryService": (registry_pb, registry_rpc.RegistryServiceStub),
    "AppointmentService": (appointment_pb, appointment_rpc.AppointmentServiceStub),
    "CreditService": (credit_pb, credit_rpc.CreditServiceStub),
    "AdminService": (admin_pb, admin_rpc.AdminServiceStub),
}
METHODS: dict[str, MethodDescriptor] = {
    f"{name}.{method.name}": method
    for name, (file, _) in SERVICES.items()
    for method in file.DESCRIPTOR.services_by_name[name].methods
}

# The table. Every request is about the northern supplier: its meter, its card, its sale, its appointment, its credit.

R, Y, N, P = "ROLE_NOT_ALLOWED", "NOT_YOURS", "NOT_APPOINTED", "OPERATOR_ONLY"
# It finds nothing of this name among its own.
UNKNOWN = "RECORD_UNKNOWN"
# It may, for North too.
MAY = "may"
# It is answered, and what it is told has nothing of North in it.
PART = "its own part"
# It is answered: no, for this reason, and nothing else.
TOLD = "told NOT_APPOINTED"
# It is answered: this line not.
LINE = "line NOT_YOURS"

CALLERS = (SOUTH, PSP, OUTSIDER, HELPDESK, AUDITOR, OPERATOR)
TABLE: dict[str, tuple[str, ...]] = {
    #                                      South   PSP    outsider helpdesk auditor operator
    "TopUpService.IssueUtrn":              (N,     MAY,   N,       N,       N,      N),
    "TopUpService.TopUp":                  (N,     MAY,   N,       N,       N,      N),
    "TopUpService.DeliverVend":              (N,     MAY,   N,       N,       N,      N),
    "TopUpService.GetVend":                (N,     MAY,   N,       N,       N,      N),
    "TopUpService.CheckEligibility":       (TOLD,  MAY,   TOLD,    TOLD,    TOLD,   TOLD),
    "TopUpService.ListOpenCases":          (Y,     R,     R,       MAY,     MAY,    MAY),
    "TopUpService.SettleDelivery":         (Y,     R,     R,       R,       R,      MAY),
    "ParticipantService.AddParticipant":      (R,     R,     R,       R,       R,      MAY),
    "ParticipantService.SetIdentities":       (R,     R,     R,       R,       R,      MAY),
    "ParticipantService.RevokeCertificates":  (R,     R,     R,       R,       R,      MAY),
    "ParticipantService.SetSupplierKey":      (R,     R,     R,       R,       R,      MAY),
    "ParticipantService.SetParticipantStatus":         (R,     R,     R,       R,       R,      MAY),
    "ParticipantService.SetCeiling":          (R,     R,     R,       R,       R,      MAY),
    "ParticipantService.SetProfile":          (Y,     R,     R,       R,       R,      MAY),
    "ParticipantService.CancelProfile":       (Y,     R,     R,       R,       R,      MAY),
    "ParticipantService.GetParticipant":      (Y,     Y,     Y,       MAY,     MAY,    MAY),
    "ParticipantService.ListParticipants":    (R,     R,     R,       MAY,     MAY,    MAY),
    "MeterModelService.SetMeterModel":            (R,     R,     R,       R,       R,      MAY),
    "MeterModelService.ListMeterModels":          (PART,  R,     R,       MAY,     MAY,    MAY),
    "MeterService.AddMeter":            (Y,     R,     R,       R,       R,      MAY),
    "MeterService.ChangeMeter":         (Y,     R,     R,       R,       R,      MAY),
    "MeterService.ChangeSupplier":      (R,     R,     R,       R,       R,      MAY),
    "MeterService.ChangeTenant":        (Y,     R,     R,       R,       R,      MAY),
    "MeterService.ExchangeMeter":       (Y,     R,     R,       R,       R,      MAY),
    "MeterService.EndMeter":            (Y,     R,     R,       R,       R,      MAY),
    "MeterService.CancelChange":        (Y,     R,     R,       R,       R,      MAY),
    "MeterService.TransferCounters":       (Y,     R,     R,       R,       R,      MAY),
    "MeterService.RecordBalance":       (Y,     R,     R,       R,       R,      MAY),
    "MeterService.GetMeter":            (Y,     R,     R,       MAY,     MAY,    MAY),
    "MeterService.ListMeters":          (PART,  R,     R,       MAY,     MAY,    MAY),
    "MeterService.ListSellers":         (Y,     R,     R,       MAY,     MAY,    MAY),
    "MeterService.ListRegistrationChanges":   (Y,     R,     R,       MAY,     MAY,    MAY),
    "PanService.AssignPan":             (Y,     R,     R,       R,       R,      MAY),
    "PanService.ReplacePan":          (Y,     R,     R,       R,       R,      MAY),
    "PanService.SetPanBlocked":       (Y,     R,     R,       R,       R,      MAY),
    "PanService.RepointPan":          (Y,     R,     R,       R,       R,      MAY),
    "PanService.CancelPan":           (Y,     R,     R,       R,       R,      MAY),
    "PanService.GetPan":              (Y,     R,     R,       MAY,     MAY,    MAY),
    "PanService.ListPans":            (Y,     R,     R,       MAY,     MAY,    MAY),
    "PanService.ReconcilePans":       (Y,     R,     R,       MAY,     MAY,    MAY),
    "RegistryService.LoadRecords":         (LINE,  R,     R,       R,       R,      MAY),
    "AppointmentService.Appoint":          (Y,     R,     R,       R,       R,      R),
    "AppointmentService.AcceptAppointment": (R,    MAY,   Y,       R,       R,      R),
    "AppointmentService.SuspendAppointment": (Y,   R,     R,       R,       R,      MAY),
    "AppointmentService.EndAppointment":   (Y,     MAY,   Y,       R,       R,      MAY),
    "AppointmentService.GetAppointments":  (Y,     MAY,   Y,       MAY,     MAY,    MAY),
    "AppointmentService.ListAppointments": (PART,  MAY,   PART,    MAY,     MAY,    MAY),
    "CreditService.RequestCredit":             (N,     R,     R,       R,       R,      R),
    "CreditService.DecideCredit":          (UNKNOWN, R,   R,       R,       R,      R),
    "CreditService.ListCredits":           (Y,     R,     R,       MAY,     MAY,    MAY),
    "AdminService.GetClusterStatus":       (P,     P,     P,       P,       P,      MAY),
    "AdminService.SetDrain":               (P,     P,     P,       P,       P,      MAY),
    "AdminService.ForgetNode":             (P,     P,     P,       P,       P,      MAY),
    "AdminService.ForgetHeadEnd":          (P,     P,     P,       P,       P,      MAY),
    "AdminService.AcceptClusterTime":      (P,     P,     P,       P,       P,      MAY),
    "AdminService.ListApprovals":          (P,     P,     P,       P,       P,      MAY),
    "AdminService.ApproveOperation":       (P,     P,     P,       P,       P,      MAY),
    "AdminService.WithdrawOperation":      (P,     P,     P,       P,       P,      MAY),
}  # fmt: skip
# Whoever may is answered, where nothing is changed by it.
READS = re.compile(r".*\.(Get|List|Check|Reconcile).*")
STATUS = {
    R: grpc.StatusCode.PERMISSION_DENIED, Y: grpc.StatusCode.PERMISSION_DENIED, N: grpc.StatusCode.PERMISSION_DENIED,
    P: grpc.StatusCode.PERMISSION_DENIED, UNKNOWN: grpc.StatusCode.NOT_FOUND,
    "CALLER_SUSPENDED": grpc.StatusCode.PERMISSION_DENIED, "UNKNOWN_CALLER": grpc.StatusCode.UNAUTHENTICATED,
}  # fmt: skip


@dataclass(frozen=True)
class Attacked:
    """A running stack, and what of the northern supplier is attacked; `south_meter` is with South's own generator."""

    stack: DevStack
    pan: str
    meter_id: str
    vend_id: str
    credit_id: str
    south_pan: str
    south_meter: str


@pytest.fixture(scope="module")
def attacked(module_stack: DevStack) -> Attacked:
    """Sell, ask for credit, and have callers who are suspended, or have left."""
    pan, meter_id = meters_of(module_stack, NORTH)[5]
    south_pan, south_meter = meters_of(module_stack, SOUTH)[6]
    target = Attacked(module_stack, pan, meter_id, new_id(), new_id(), south_pan, south_meter)
    asyncio.run(_prepare(target))
    return target


async def _prepare(target: Attacked) -> None:
    issue = top_up_pb.IssueUtrnRequest(
        transaction_id=target.vend_id, pan=target.pan, amount_pence=500, channel=types_pb2.CHANNEL_ONLINE
    )
    async with caller(target.stack) as stub:
        await stub.IssueUtrn(issue)
    async with credit_caller(target.stack, NORTH) as credit:
        await credit.RequestCredit(credit_pb.RequestCreditRequest(credit=_credit(target, target.credit_id)))
    async with registry_caller(target.stack, SOUTH) as registry:
        out = meter_pb.TransferCountersRequest(
            meter_id=target.south_meter, custody_before=meter_pb.CUSTODY_CENTRAL, custody=meter_pb.CUSTODY_SUPPLIER
        )
        await registry.TransferCounters(out)
    async with registry_caller(target.stack, OPERATOR) as registry:
        for name, role, status in (
            (SUSPENDED, participant_pb.ROLE_OPERATOR, participant_pb.PARTICIPANT_STATUS_SUSPENDED),
            (SUSPENDED_PSP, participant_pb.ROLE_PSP, participant_pb.PARTICIPANT_STATUS_SUSPENDED),
            (LEFT, participant_pb.ROLE_OPERATOR, participant_pb.PARTICIPANT_STATUS_LEFT),
        ):  # fmt: skip
            one = participant_pb.Participant(
                participant_id=name, role=role, name=name, identities=[participant_uri(name)]
            )
            stands = participant_pb.SetParticipantStatusRequest(participant_id=name, status=status)
            await by_two(target.stack, registry.AddParticipant, participant_pb.AddParticipantRequest(participant=one))
            await by_two(target.stack, registry.SetParticipantStatus, stands)
    for name, reason in ((SUSPENDED, "CALLER_SUSPENDED"), (SUSPENDED_PSP, "CALLER_SUSPENDED")):
        async with caller(target.stack, name) as stub, asyncio.timeout(PATIENCE_S):
            request = top_up_pb.CheckEligibilityRequest(pan=target.pan)
            while await _reason(stub.CheckEligibility(request)) != reason:  # noqa: ASYNC110  # the node is asked
                await asyncio.sleep(0.01)


async def _reason(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return failure_of(error).reason
    return ""


# The requests.

NEW_METER_ID, NEW_PAN = "00db15000000ffff", "9826000000000000009"


def _credit(target: Attacked, transaction_id: str, **fields: Any) -> credit_pb.Credit:
    return credit_pb.Credit(
        transaction_id=transaction_id,
        pan=target.pan,
        amount_pence=100,
        reason=credit_pb.CREDIT_REASON_GOODWILL,
        **fields,
    )


def _new_meter(meter_id: str = NEW_METER_ID) -> meter_pb.Meter:
    return meter_pb.Meter(meter_id=meter_id, kind=meter_pb.METER_KIND_ESME, scheme="gbcs", public_point=POINT)


def _name(supplier_id: str = NORTH, psp_id: str = PSP) -> appointment_pb.AppointmentName:
    return appointment_pb.AppointmentName(supplier_id=supplier_id, psp_id=psp_id, appointment_id="corner")


def _terms(supplier_id: str = NORTH, psp_id: str = PSP) -> appointment_pb.AppointmentTerms:
    since = timestamp_pb2.Timestamp()
    since.FromDatetime(SystemClock().now() + timedelta(days=400))
    return appointment_pb.AppointmentTerms(
        appointment_id="forged", supplier_id=supplier_id, psp_id=psp_id, level=appointment_pb.LEVEL_ISSUE, min_pence=1,
        max_pence=100, since=since,
    )  # fmt: skip


def _signed(target: Attacked, by: str, terms: appointment_pb.AppointmentTerms) -> appointment_pb.SignedTerms:
    certs = target.stack.certs(by)
    return sign_terms(terms, cert=certs.cert, key=certs.key)


def _line(supplier_id: str) -> str:
    return json.dumps(meter_line(1, meter_id=NEW_METER_ID, supplier_id=supplier_id))


def requests_of(target: Attacked) -> dict[str, Message]:
    """A request of every method, about North, that its owner or an operator could make."""
    return _sales_of(target) | _records_of(target) | _meters_of(target) | _pans_of(target) | _appointments_of(target)


def _sales_of(target: Attacked) -> dict[str, Message]:
    online, pan, vend_id = types_pb2.CHANNEL_ONLINE, target.pan, target.vend_id
    return {
        "TopUpService.IssueUtrn": top_up_pb.IssueUtrnRequest(
            transaction_id=new_id(), pan=pan, amount_pence=700, channel=online
        ),
        "TopUpService.TopUp": top_up_pb.TopUpRequest(
            transaction_id=new_id(), pan=pan, amount_pence=700, channel=online
        ),
        "TopUpService.DeliverVend": top_up_pb.DeliverVendRequest(transaction_id=vend_id, participant_id=PSP),
        "TopUpService.GetVend": top_up_pb.GetVendRequest(transaction_id=vend_id, participant_id=PSP),
        "TopUpService.CheckEligibility": top_up_pb.CheckEligibilityRequest(pan=target.pan),
        "TopUpService.ListOpenCases": top_up_pb.ListOpenCasesRequest(supplier_id=NORTH),
        "TopUpService.SettleDelivery": top_up_pb.SettleDeliveryRequest(
            transaction_id=vend_id, participant_id=PSP, credited=False
        ),
        "CreditService.RequestCredit": credit_pb.RequestCreditRequest(credit=_credit(target, new_id())),
        "CreditService.DecideCredit": credit_pb.DecideCreditRequest(transaction_id=target.credit_id, approve=True),
        "CreditService.ListCredits": credit_pb.ListCreditsRequest(supplier_id=NORTH),
        "AdminService.GetClusterStatus": admin_pb.GetClusterStatusRequest(),
        "AdminService.SetDrain": admin_pb.SetDrainRequest(node_id="node-a", drained=True),
        "AdminService.ForgetNode": admin_pb.ForgetNodeRequest(node_id="node-gone"),
        "AdminService.ForgetHeadEnd": admin_pb.ForgetHeadEndRequest(name="sandbox"),
        "AdminService.AcceptClusterTime": admin_pb.AcceptClusterTimeRequest(seconds=0),
        "AdminService.ListApprovals": admin_pb.ListApprovalsRequest(),
        "AdminService.ApproveOperation": admin_pb.ApproveOperationRequest(approval_id="0" * 32),
        "AdminService.WithdrawOperation": admin_pb.WithdrawOperationRequest(approval_id="0" * 32),
    }


def _records_of(target: Attacked) -> dict[str, Message]:
    someone = participant_pb.Participant(
        participant_id="forged", role=participant_pb.ROLE_PSP, name="F", identities=["spiffe://forged"]
    )
    profile = participant_pb.Profile(selling_model=participant_pb.SELLING_MODEL_PSP_ISSUES)
    return {
        "ParticipantService.AddParticipant": participant_pb.AddParticipantRequest(participant=someone),
        "ParticipantService.SetIdentities": participant_pb.SetIdentitiesRequest(
            participant_id=NORTH, name="X", identities=["spiffe://x"]
        ),
        "ParticipantService.SetSupplierKey": participant_pb.SetSupplierKeyRequest(
            participant_id=NORTH,
            supplier_key=participant_pb.SupplierKey(originator_id="0" * 16, key_id="01", public_point=POINT),
        ),
        "ParticipantService.RevokeCertificates": participant_pb.RevokeCertificatesRequest(
            participant_id=NORTH, fingerprints=["0" * 64]
        ),
        "ParticipantService.SetParticipantStatus": participant_pb.SetParticipantStatusRequest(
            participant_id=NORTH, status=participant_pb.PARTICIPANT_STATUS_SUSPENDED
        ),
        "ParticipantService.SetCeiling": participant_pb.SetCeilingRequest(participant_id=NORTH, ceiling_pence=1),
        "ParticipantService.SetProfile": participant_pb.SetProfileRequest(supplier_id=NORTH, profile=profile),
        "ParticipantService.CancelProfile": participant_pb.CancelProfileRequest(supplier_id=NORTH),
        "ParticipantService.GetParticipant": participant_pb.GetParticipantRequest(participant_id=NORTH),
        "ParticipantService.ListParticipants": participant_pb.ListParticipantsRequest(),
        "MeterModelService.SetMeterModel": meter_model_pb.SetMeterModelRequest(
            model=meter_model_pb.MeterModel(make="A", model="B", schemes=["gbcs"])
        ),
        "MeterModelService.ListMeterModels": meter_model_pb.ListMeterModelsRequest(),
        "RegistryService.LoadRecords": registry_pb.LoadRecordsRequest(first_line=1, lines=[_line(NORTH)]),
    }


def _meters_of(target: Attacked) -> dict[str, Message]:
    it, settings, at = target.meter_id, meter_pb.MeterSettings(head_end="sandbox"), timestamp_pb2.Timestamp()
    at.FromDatetime(SystemClock().now() - timedelta(seconds=60))
    return {
        "MeterService.AddMeter": meter_pb.AddMeterRequest(meter=_new_meter(), supplier_id=NORTH, settings=settings),
        "MeterService.ChangeMeter": meter_pb.ChangeMeterRequest(settings=meter_pb.MeterSettings(zone="z"), meter_id=it),
        "MeterService.ChangeSupplier": meter_pb.ChangeSupplierRequest(
            losing_supplier_id=NORTH, gaining_supplier_id=SOUTH, meter_id=it
        ),
        "MeterService.ChangeTenant": meter_pb.ChangeTenantRequest(tenancy_before=1, meter_id=it),
        "MeterService.ExchangeMeter": meter_pb.ExchangeMeterRequest(
            old_meter_id=target.meter_id,
            new_meter=_new_meter(),
            supplier_id=NORTH,
            settings=settings,
            pans=[target.pan],
        ),
        "MeterService.EndMeter": meter_pb.EndMeterRequest(meter_id=it),
        "MeterService.CancelChange": meter_pb.CancelChangeRequest(meter_id=it),
        "MeterService.TransferCounters": meter_pb.TransferCountersRequest(
            custody_before=meter_pb.CUSTODY_CENTRAL, custody=meter_pb.CUSTODY_SUPPLIER, meter_id=it
        ),
        "MeterService.RecordBalance": meter_pb.RecordBalanceRequest(balance_pence=1, at=at, meter_id=it),
        "MeterService.GetMeter": meter_pb.GetMeterRequest(meter_id=it),
        "MeterService.ListMeters": meter_pb.ListMetersRequest(),
        "MeterService.ListSellers": meter_pb.ListSellersRequest(meter_id=it),
        "MeterService.ListRegistrationChanges": meter_pb.ListRegistrationChangesRequest(supplier_id=NORTH),
    }


def _pans_of(target: Attacked) -> dict[str, Message]:
    pan, meter_id = target.pan, target.meter_id
    return {
        "PanService.AssignPan": pan_pb.AssignPanRequest(pan=NEW_PAN, meter_id=meter_id),
        "PanService.ReplacePan": pan_pb.ReplacePanRequest(lost_pan=pan, new_pan=NEW_PAN),
        "PanService.SetPanBlocked": pan_pb.SetPanBlockedRequest(pan=pan, blocked=True),
        "PanService.RepointPan": pan_pb.RepointPanRequest(pan=pan, from_meter_id=meter_id, to_meter_id=meter_id),
        "PanService.CancelPan": pan_pb.CancelPanRequest(pan=pan),
        "PanService.GetPan": pan_pb.GetPanRequest(pan=pan),
        "PanService.ListPans": pan_pb.ListPansRequest(meter_id=meter_id),
        "PanService.ReconcilePans": pan_pb.ReconcilePansRequest(supplier_id=NORTH),
    }


def _appointments_of(target: Attacked) -> dict[str, Message]:
    named = {"name": _name()}
    return {
        "AppointmentService.Appoint": appointment_pb.AppointRequest(signed_terms=_signed(target, NORTH, _terms())),
        "AppointmentService.AcceptAppointment": appointment_pb.AcceptAppointmentRequest(**named),
        "AppointmentService.SuspendAppointment": appointment_pb.SuspendAppointmentRequest(suspended=True, **named),
        "AppointmentService.EndAppointment": appointment_pb.EndAppointmentRequest(**named),
        "AppointmentService.GetAppointments": appointment_pb.GetAppointmentsRequest(supplier_id=NORTH, psp_id=PSP),
        "AppointmentService.ListAppointments": appointment_pb.ListAppointmentsRequest(supplier_id=NORTH),
    }


# Calls, and what they leave behind.


async def answers(
    target: Attacked, who: str, method: str, request: Message, certs: CertPaths | None = None
) -> list[Any]:
    """Call as `who` and return the answer, or the answers of a stream."""
    paths, name = certs or target.stack.certs(who), method.split(".")
    _, stub_of = SERVICES[name[0]]
    targets = [target.stack.node_target("node-a")]
    async with secure_channel(targets, ca=paths.ca, cert=paths.cert, key=paths.key) as channel:
        call = getattr(stub_of(channel), name[1])
        if not METHODS[method].client_streaming:
            return [await call(request, timeout=10)]
        while True:
            try:
                return [one async for one in call(_once(request), timeout=10)]
            except grpc.aio.AioRpcError as error:
                # The server had refused before the request was sent, and this library tells only of the latter.
                if error.details() != "Internal error from Core":
                    raise


async def _once(request: Message) -> AsyncIterator[Message]:
    yield request


_ROOMS = ("registry/", "vend/", "counter/", "outbox/", "code/", "identity/", "originator/", "change/", "credit",
          "drain/")  # fmt: skip


async def ledger(stack: DevStack) -> dict[bytes, bytes]:
    """Everything in the ledger that is about sales, the market and drains."""
    config = load_config(stack.node_config("node-a")).etcd
    client = EtcdClient(config)
    try:
        pages = [(await client.list_prefix(f"{config.prefix}{room}".encode()))[0] for room in _ROOMS]
    finally:
        await client.close()
    return {one.key: one.value for page in pages for one in page}


def test_every_method_has_a_row_and_every_row_a_method(attacked: Attacked) -> None:
    assert TABLE.keys() == METHODS.keys() == requests_of(attacked).keys()
    assert {len(row) for row in TABLE.values()} == {len(CALLERS)}


@pytest.mark.parametrize("method", METHODS)
async def test_nobody_does_what_is_anothers(attacked: Attacked, method: str) -> None:
    request, before = requests_of(attacked)[method], await ledger(attacked.stack)
    for who, expected in zip(CALLERS, TABLE[method], strict=True):
        if expected in (MAY, PART, TOLD, LINE):
            if expected != MAY or READS.fullmatch(method):
                _look_at(await answers(attacked, who, method, request), expected, who)
            continue
        failure = await refused(answers(attacked, who, method, request))
        assert (failure.reason, failure.code) == (expected, STATUS[expected]), (who, failure)
    assert await ledger(attacked.stack) == before, "whatever was refused has changed nothing"


def _look_at(told: Sequence[Any], expected: str, who: str) -> None:
    """Look at an answer that was no refusal."""
    if expected == PART:
        assert not [one for one in told if NORTH.encode() in one.SerializeToString()], who
    if expected == TOLD:
        (objection,) = told[0].objections
        assert (told[0].eligible, told[0].supplier_id) == (False, "")
        assert objection.reason == errors_pb2.ERROR_REASON_NOT_APPOINTED
    if expected == LINE:
        assert (told[0].loaded, [problem.reason for problem in told[0].problems]) == (0, [Y])


@pytest.mark.parametrize("method", METHODS)
async def test_nobody_without_a_good_status_does_anything(attacked: Attacked, method: str) -> None:
    """A certificate that names nobody, that of a participant that has left, of a node, and those of the suspended."""
    request, before = requests_of(attacked)[method], await ledger(attacked.stack)
    node_certs = attacked.stack.pki.node("node-a")
    for who, expected, certs in (
        (NOBODY, "UNKNOWN_CALLER", None), (LEFT, "UNKNOWN_CALLER", None), ("node-a", "UNKNOWN_CALLER", node_certs),
        (SUSPENDED, "CALLER_SUSPENDED", None), (SUSPENDED_PSP, "CALLER_SUSPENDED", None),
    ):  # fmt: skip
        failure = await refused(answers(attacked, who, method, request, certs))
        assert (failure.reason, failure.code) == (expected, STATUS[expected]), (who, failure)
    assert await ledger(attacked.stack) == before


async def test_an_expired_certificate_gets_no_connection_to_any_service(attacked: Attacked) -> None:
    expired = attacked.stack.pki.participant("expired-operator", uri=participant_uri(OPERATOR), days=-1, renew=True)
    requests = requests_of(attacked)
    async with asyncio.TaskGroup() as tasks:
        for name in SERVICES:
            method = next(one for one in METHODS if one.startswith(name))
            tasks.create_task(_gets_no_connection(attacked, method, requests[method], expired))


async def _gets_no_connection(target: Attacked, method: str, request: Message, certs: CertPaths) -> None:
    _, stub_of = SERVICES[method.split(".")[0]]
    targets = [target.stack.node_target("node-a")]
    async with secure_channel(targets, ca=certs.ca, cert=certs.cert, key=certs.key) as channel:
        asked = iter([request]) if METHODS[method].client_streaming else request
        code = await getattr(stub_of(channel), method.split(".")[1])(asked, timeout=2).code()
    assert code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED), method


# Forged participants.

# Where requests name participants; what a request says of history is not read (test below), nor is it who asks.
_NAMING = re.compile(r".*(participant_id|supplier_id|psp_id|asked_by|decided_by|identities|originator_id)")
_HISTORY = re.compile(r".*(statuses|profiles|identity_history|registrations|period)\..*")


@dataclass(frozen=True)
class Forged:
    """A request in which somebody puts a name that is not its own, or its own where another's belongs."""

    method: str
    field: str
    who: str
    request: Message
    reason: str


def forged(target: Attacked) -> list[Forged]:
    """At least one of every field that names a participant."""
    return [*_forged_sales(target), *_forged_records(target), *_forged_appointments(target)]


def _forged_sales(target: Attacked) -> Iterator[Forged]:
    for who, owner, reason in ((SOUTH, PSP, N), (OUTSIDER, PSP, N), (PSP, NORTH, N), (OPERATOR, PSP, N)):
        send = top_up_pb.DeliverVendRequest(participant_id=owner, transaction_id=target.vend_id)
        yield Forged("TopUpService.DeliverVend", "participant_id", who, send, reason)
        get = top_up_pb.GetVendRequest(participant_id=owner, transaction_id=target.vend_id)
        yield Forged("TopUpService.GetVend", "participant_id", who, get, reason)
    for who, owner, reason in ((SOUTH, PSP, Y), (SOUTH, NORTH, Y), (OPERATOR, NORTH, "VEND_UNKNOWN"), (PSP, PSP, R)):
        settle = top_up_pb.SettleDeliveryRequest(participant_id=owner, transaction_id=target.vend_id, credited=False)
        yield Forged("TopUpService.SettleDelivery", "participant_id", who, settle, reason)
    cases = top_up_pb.ListOpenCasesRequest(supplier_id=NORTH)
    for who, reason in ((SOUTH, Y), (PSP, R)):
        yield Forged("TopUpService.ListOpenCases", "supplier_id", who, cases, reason)
    asked = _credit(target, new_id(), asked_by=participant_uri(NORTH), decided_by=participant_uri(NORTH))
    for field in ("credit.asked_by", "credit.decided_by"):
        yield Forged("CreditService.RequestCredit", field, SOUTH, credit_pb.RequestCreditRequest(credit=asked), N)
        yield Forged("CreditService.RequestCredit", field, PSP, credit_pb.RequestCreditRequest(credit=asked), R)
    yield Forged("CreditService.ListCredits", "supplier_id", SOUTH, credit_pb.ListCreditsRequest(supplier_id=NORTH), Y)


def _forged_records(target: Attacked) -> Iterator[Forged]:
    exists = "RECORD_EXISTS"
    key = participant_pb.SupplierKey(originator_id=SUPPLIERS[NORTH], key_id="01", public_point=POINT)
    role, uris = participant_pb.ROLE_SUPPLIER, ["spiffe://forged"]
    for field, one in (
        (
            "participant.participant_id",
            participant_pb.Participant(participant_id=NORTH, role=role, name="F", identities=uris, supplier_key=key),
        ),
        (
            "participant.identities",
            participant_pb.Participant(
                participant_id="forged", role=participant_pb.ROLE_PSP, name="F", identities=[participant_uri(NORTH)]
            ),
        ),
        (
            "participant.supplier_key.originator_id",
            participant_pb.Participant(participant_id="forged", role=role, name="F", identities=uris, supplier_key=key),
        ),
    ):
        request = participant_pb.AddParticipantRequest(participant=one)
        yield Forged("ParticipantService.AddParticipant", field, OPERATOR, request, exists)
    identities = participant_pb.SetIdentitiesRequest(
        participant_id=OUTSIDER, name="E", identities=[participant_uri(NORTH)]
    )
    yield Forged("ParticipantService.SetIdentities", "identities", OPERATOR, identities, exists)
    yield Forged("ParticipantService.SetIdentities", "participant_id", OUTSIDER, identities, R)
    revoked = participant_pb.RevokeCertificatesRequest(participant_id=PSP, fingerprints=["0" * 64])
    yield Forged("ParticipantService.RevokeCertificates", "participant_id", OUTSIDER, revoked, R)
    other = participant_pb.SupplierKey(originator_id="0" * 16, key_id="01", public_point=POINT)
    corrected = participant_pb.SetSupplierKeyRequest(participant_id=NORTH, supplier_key=other)
    yield Forged("ParticipantService.SetSupplierKey", "participant_id", SOUTH, corrected, R)
    yield Forged("ParticipantService.SetSupplierKey", "supplier_key.originator_id", OPERATOR, corrected, "BAD_FIELD")
    ceiling = participant_pb.SetCeilingRequest(participant_id=PSP, ceiling_pence=10**13)
    yield Forged("ParticipantService.SetCeiling", "participant_id", PSP, ceiling, R)
    yield Forged(
        "ParticipantService.SetParticipantStatus", "participant_id", SUSPENDED_PSP,
        participant_pb.SetParticipantStatusRequest(
            participant_id=SUSPENDED_PSP, status=participant_pb.PARTICIPANT_STATUS_ACTIVE
        ), "CALLER_SUSPENDED",
    )  # fmt: skip
    profile = participant_pb.Profile(selling_model=participant_pb.SELLING_MODEL_PSP_ISSUES_AND_DELIVERS)
    for who, whose, reason in ((SOUTH, NORTH, Y), (PSP, PSP, R), (OPERATOR, PSP, "PARTICIPANT_UNKNOWN")):
        chosen = participant_pb.SetProfileRequest(supplier_id=whose, profile=profile)
        yield Forged("ParticipantService.SetProfile", "supplier_id", who, chosen, reason)
    yield Forged(
        "ParticipantService.CancelProfile",
        "supplier_id",
        SOUTH,
        participant_pb.CancelProfileRequest(supplier_id=NORTH),
        Y,
    )
    yield Forged(
        "ParticipantService.GetParticipant",
        "participant_id",
        OUTSIDER,
        participant_pb.GetParticipantRequest(participant_id=PSP),
        Y,
    )
    yield from _forged_meters(target)
    for method, listed in (
        ("MeterService.ListRegistrationChanges", meter_pb.ListRegistrationChangesRequest(supplier_id=NORTH)),
        ("PanService.ReconcilePans", pan_pb.ReconcilePansRequest(supplier_id=NORTH)),
    ):
        yield Forged(method, "supplier_id", SOUTH, listed, Y)


def _forged_meters(target: Attacked) -> Iterator[Forged]:
    settings, theirs = meter_pb.MeterSettings(head_end="sandbox"), _new_meter(target.meter_id)
    add = meter_pb.AddMeterRequest(meter=theirs, supplier_id=SOUTH, settings=settings)
    yield Forged("MeterService.AddMeter", "supplier_id", SOUTH, add, "RECORD_EXISTS")
    exchange = meter_pb.ExchangeMeterRequest(
        old_meter_id=target.meter_id, new_meter=_new_meter(), supplier_id=SOUTH, settings=settings, pans=[target.pan]
    )
    yield Forged("MeterService.ExchangeMeter", "supplier_id", SOUTH, exchange, Y)
    yield Forged("MeterService.ExchangeMeter", "supplier_id", OPERATOR, exchange, "RECORD_CHANGED")
    for field, losing, gaining, reason in (
        ("losing_supplier_id", OUTSIDER, SOUTH, "RECORD_CHANGED"),
        ("gaining_supplier_id", NORTH, PSP, "PARTICIPANT_UNKNOWN"),
    ):  # fmt: skip
        change = meter_pb.ChangeSupplierRequest(
            meter_id=target.meter_id, losing_supplier_id=losing, gaining_supplier_id=gaining
        )
        yield Forged("MeterService.ChangeSupplier", field, OPERATOR, change, reason)
    now = timestamp_pb2.Timestamp()
    now.FromDatetime(SystemClock().now() - timedelta(seconds=1))
    back = meter_pb.TransferCountersRequest(
        meter_id=target.south_meter, custody_before=meter_pb.CUSTODY_SUPPLIER, custody=meter_pb.CUSTODY_CENTRAL,
        last_issued=9, codes=[
            meter_pb.UnspentCode(
                participant_id=NORTH, transaction_id=new_id(), pan=target.south_pan, utrn=utrn(7), utrn_counter=7,
                issued_at=now, channel=types_pb2.CHANNEL_APP,
            )
        ],
    )  # fmt: skip
    yield Forged("MeterService.TransferCounters", "codes.participant_id", SOUTH, back, "BAD_FIELD")


def _forged_appointments(target: Attacked) -> Iterator[Forged]:
    service, no_such = "AppointmentService", UNKNOWN
    for who, name, field, reason in (
        (OUTSIDER, _name(), "name.psp_id", Y), (OUTSIDER, _name(psp_id=OUTSIDER), "name.psp_id", no_such),
        (PSP, _name(supplier_id="supplier-nobody"), "name.supplier_id", no_such),
    ):  # fmt: skip
        accept = appointment_pb.AcceptAppointmentRequest(name=name)
        yield Forged(f"{service}.AcceptAppointment", field, who, accept, reason)
        end = appointment_pb.EndAppointmentRequest(name=name)
        yield Forged(f"{service}.EndAppointment", field, who, end, reason)
    for field, name, reason in (
        ("name.supplier_id", _name(), Y), ("name.psp_id", _name(supplier_id=SOUTH, psp_id=OUTSIDER), no_such),
    ):  # fmt: skip
        suspend = appointment_pb.SuspendAppointmentRequest(name=name, suspended=True)
        yield Forged(f"{service}.SuspendAppointment", field, SOUTH, suspend, reason)
    get = appointment_pb.GetAppointmentsRequest(supplier_id=NORTH, psp_id=PSP)
    yield Forged(f"{service}.GetAppointments", "psp_id", OUTSIDER, get, Y)
    yield Forged(f"{service}.GetAppointments", "supplier_id", SOUTH, get, Y)
    by_another = appointment_pb.AppointRequest(signed_terms=_signed(target, SOUTH, _terms()))
    yield Forged(f"{service}.Appoint", "signed_terms", SOUTH, by_another, Y)
    yield Forged(f"{service}.Appoint", "signed_terms", NORTH, by_another, "SIGNATURE_WRONG")
    yield Forged(
        f"{service}.ListAppointments", "supplier_id", HELPDESK,
        appointment_pb.ListAppointmentsRequest(supplier_id="NOT A NAME"), "BAD_FIELD",
    )  # fmt: skip


def _naming_fields(message: Descriptor, path: str = "", depth: int = 0) -> Iterator[str]:
    for field in message.fields:
        name = f"{path}{field.name}"
        if _NAMING.fullmatch(name) and not _HISTORY.fullmatch(name):
            yield name
        if field.message_type is not None and depth < 3:
            yield from _naming_fields(field.message_type, f"{name}.", depth + 1)


def test_every_field_that_names_a_participant_is_forged(attacked: Attacked) -> None:
    wanted = {(name, field) for name, method in METHODS.items() for field in _naming_fields(method.input_type)}
    done = {(one.method, one.field) for one in forged(attacked)}
    assert wanted <= done, sorted(wanted - done)


async def test_a_participant_named_in_a_request_is_not_believed(attacked: Attacked) -> None:
    before = await ledger(attacked.stack)
    for one in forged(attacked):
        failure = await refused(answers(attacked, one.who, one.method, one.request))
        assert failure.reason == one.reason, (one.method, one.field, one.who, failure)
    assert await ledger(attacked.stack) == before


async def test_a_vend_is_delivered_by_who_sold_it_or_by_its_meters_supplier(attacked: Attacked) -> None:
    """The control of the forged owners above."""
    send = top_up_pb.DeliverVendRequest(transaction_id=attacked.vend_id, participant_id=PSP)
    async with caller(attacked.stack, NORTH) as stub:
        assert not (await stub.DeliverVend(send)).replayed
    async with caller(attacked.stack) as stub:
        assert (await stub.DeliverVend(send)).replayed


async def test_who_asks_for_credit_is_who_calls_whatever_the_request_says(attacked: Attacked) -> None:
    """One person does not become two by naming a colleague as who asked, or the request as approved."""
    asked = _credit(
        attacked, new_id(), asked_by="spiffe://utrn/person/colleague", decided_by="spiffe://utrn/person/colleague",
        state=credit_pb.CREDIT_STATE_APPROVED,
    )  # fmt: skip
    async with credit_caller(attacked.stack, NORTH) as credit:
        kept = (await credit.RequestCredit(credit_pb.RequestCreditRequest(credit=asked))).credit
        assert (kept.asked_by, kept.decided_by) == (participant_uri(NORTH), "")
        assert kept.state == credit_pb.CREDIT_STATE_WAITING
        decide = credit_pb.DecideCreditRequest(transaction_id=asked.transaction_id, approve=True)
        assert (await refused(credit.DecideCredit(decide))).reason == "TWO_PEOPLE_NEEDED"


async def test_history_in_a_request_is_not_believed(attacked: Attacked) -> None:
    """A meter that is registered has the history that this service has seen, not the one that a request tells."""
    long_ago = timestamp_pb2.Timestamp(seconds=1_600_000_000)
    told = _new_meter("00db15000000fffe")
    dates = types_pb2.EffectivePeriod(since=long_ago, recorded_at=long_ago, recorded_by=OPERATOR)
    told.registrations.append(
        meter_pb.RegistrationPeriod(period=dates, supplier_id=NORTH, custody=meter_pb.CUSTODY_SMSO)
    )
    add = meter_pb.AddMeterRequest(
        meter=told, supplier_id=SOUTH, settings=meter_pb.MeterSettings(head_end="sandbox", tenancy=9)
    )
    async with registry_caller(attacked.stack, SOUTH) as registry:
        await registry.AddMeter(add)
        meter = (await registry.GetMeter(meter_pb.GetMeterRequest(meter_id=told.meter_id))).meter
    (registration,), (settings,) = meter.registrations, meter.settings
    assert (registration.supplier_id, registration.period.recorded_by) == (SOUTH, SOUTH)
    assert registration.period.since.seconds > long_ago.seconds
    assert settings.settings.tenancy == 1


async def test_a_supplier_learns_nothing_of_anothers_cards_by_reconciling(attacked: Attacked) -> None:
    blocked, its_meter = meters_of(attacked.stack, NORTH)[8]
    async with registry_caller(attacked.stack, NORTH) as registry:
        await registry.SetPanBlocked(pan_pb.SetPanBlockedRequest(pan=blocked, blocked=True))
    told = {}
    for name, pan, meter_id in (
        ("its meter", attacked.pan, attacked.meter_id),
        ("another meter", attacked.pan, its_meter),
        ("blocked", blocked, its_meter),
        ("unknown", "9826000000000000009", attacked.meter_id),
    ):
        request = pan_pb.ReconcilePansRequest(supplier_id=SOUTH, claims=[pan_pb.PanClaim(pan=pan, meter_id=meter_id)])
        # Whether the node has heard of the block yet or not: the answer must be the same.
        reply = await answers(attacked, SOUTH, "PanService.ReconcilePans", request)
        told[name] = [pan_pb.PanFindingKind.Name(finding.kind) for finding in reply[0].findings]
    assert len(set(map(tuple, told.values()))) == 1, told
