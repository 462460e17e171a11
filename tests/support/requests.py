"""Requests to a market in memory: a world to call, requests that it answers, and what becomes of others."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from google.protobuf import timestamp_pb2
from google.protobuf.message import Message
from utrn.v1 import appointment_service_pb2, credit_service_pb2, top_up_service_pb2, types_pb2
from utrn.v1 import meter_model_service_pb2 as meter_model_pb
from utrn.v1 import meter_service_pb2 as meter_pb
from utrn.v1 import pan_service_pb2 as pan_pb
from utrn.v1 import participant_service_pb2 as participant_pb
from utrn.v1 import registry_service_pb2 as registry_pb
from utrn_client.appointing import sign_terms

from app.devstack.ca import DevCa, participant_uri
from cluster.config import EtcdConfig
from cluster.etcd.client import EtcdClient
from core.domain.effective_dated import ms_of
from core.domain.errors import UtrnError
from core.domain.meter import Custody
from core.domain.participant import CreditRule, Participant, Profile, SellingModel
from core.registry.counter_transfer import HandOver
from tests.fakes.clock import HandClock
from tests.fakes.etcd import FakeEtcd
from tests.support.etcd import Store
from tests.support.market_node import GAINING, OPERATOR, MarketNode, as_, open_market
from tests.support.patience import PATIENCE_S
from tests.support.servicers import calling, servicers
from tests.support.vends import NOW, ORIGINATOR, POINT, SUPPLIER, new_id, utrn

SERVICES = {
    "participants": participant_pb.DESCRIPTOR.services_by_name["ParticipantService"],
    "meter_models": meter_model_pb.DESCRIPTOR.services_by_name["MeterModelService"],
    "meters": meter_pb.DESCRIPTOR.services_by_name["MeterService"],
    "pans": pan_pb.DESCRIPTOR.services_by_name["PanService"],
    "registry": registry_pb.DESCRIPTOR.services_by_name["RegistryService"],
    "appointments": appointment_service_pb2.DESCRIPTOR.services_by_name["AppointmentService"],
    "credit": credit_service_pb2.DESCRIPTOR.services_by_name["CreditService"],
    "top_up": top_up_service_pb2.DESCRIPTOR.services_by_name["TopUpService"],
}
METHODS = [(room, method.name) for room, service in SERVICES.items() for method in service.methods]
_SECONDS = int(NOW.timestamp())


@dataclass(frozen=True)
class World:
    """A market as it is before each example: what etcd holds, its ids, and what appointments are signed under.

    The last meter is an SMSO's; the first has a code, and a change of supplier to come.
    """

    keys: dict[bytes, Any]
    revision: int
    meters: list[str]
    pans: list[str]
    roots: bytes
    signed: Any

    def node(self) -> MarketNode:
        etcd = FakeEtcd()
        etcd.keys, etcd.revision = dict(self.keys), self.revision
        return MarketNode(Store(cast("EtcdClient", etcd), EtcdConfig(endpoints=("fake:1",))), HandClock())


async def _open() -> World:
    etcd = FakeEtcd()
    node = MarketNode(Store(cast("EtcdClient", etcd), EtcdConfig(endpoints=("fake:1",))), HandClock())
    made = await open_market(node, meters=3)
    (first, pan), *_, (last, _) = made
    async with node.running():
        await node.sell(SUPPLIER, pan, transaction_id=IDS[0])
    credit = CreditRule(each_max_pence=5000, day_max_pence=9000)
    profile = Profile(selling_model=SellingModel.PSP_ISSUES_AND_DELIVERS, credit=credit)
    await node.parties.set_profile(as_(SUPPLIER), SUPPLIER.participant_id, profile, None)
    leaving = HandOver(meter_id=last, custody_before=Custody.CENTRAL, custody=Custody.SMSO)
    await node.hand_over(as_(OPERATOR), leaving)
    ahead = ms_of(NOW + timedelta(days=1))
    await node.meters.change_supplier(as_(OPERATOR), first, SUPPLIER.participant_id, GAINING.participant_id, ahead)
    with TemporaryDirectory() as folder:
        ca = DevCa.load_or_create(Path(folder), now=NOW)
        certs = ca.issue(GAINING.participant_id, uri=participant_uri(GAINING.participant_id))
        signed = sign_terms(_terms(), cert=certs.cert, key=certs.key)
        roots = (Path(folder) / "ca.pem").read_bytes()
    return World(
        keys=dict(etcd.keys),
        revision=etcd.revision,
        meters=[one for one, _ in made],
        pans=[pan for _, pan in made],
        roots=roots,
        signed=signed,
    )


def _terms() -> appointment_service_pb2.AppointmentTerms:
    return appointment_service_pb2.AppointmentTerms(
        appointment_id="web", supplier_id="supplier-gaining", psp_id="psp-corner",
        level=appointment_service_pb2.LEVEL_ISSUE, min_pence=1, max_pence=5000, channels=[3],
        since=timestamp_pb2.Timestamp(seconds=_SECONDS),
    )  # fmt: skip


IDS = [new_id() for _ in range(3)]
WORLD = asyncio.run(_open())


_SUSPEND = participant_pb.SetParticipantStatusRequest(
    participant_id="psp-corner", status=participant_pb.PARTICIPANT_STATUS_SUSPENDED
)
# Requests that are answered, with who asks.
_PROFILE = participant_pb.Profile(
    selling_model=participant_pb.SELLING_MODEL_PSP_ISSUES,
    limits=[participant_pb.ChannelLimit(channel=3, min_pence=1, max_pence=900)],
    credit_each_max_pence=1, credit_day_max_pence=2, credit_approvers=["spiffe://a"],
)  # fmt: skip
_METER = meter_pb.Meter(meter_id="00db990000000001", kind=meter_pb.METER_KIND_GSME, scheme="gbcs", public_point=POINT)
_SETTINGS = meter_pb.MeterSettings(head_end="sandbox", max_balance_pence=9000)
_PASSED = timestamp_pb2.Timestamp(seconds=_SECONDS - 60)
_AHEAD = timestamp_pb2.Timestamp(seconds=_SECONDS + 60)
_HANDED = meter_pb.TransferCountersRequest(
    meter_id=WORLD.meters[-1], custody_before=meter_pb.CUSTODY_SMSO, custody=meter_pb.CUSTODY_CENTRAL, last_issued=1030,
    highest_applied=3, settings=_SETTINGS, public_point=POINT,
    codes=[
        meter_pb.UnspentCode(
            participant_id="psp-corner", transaction_id=IDS[1], pan=WORLD.pans[-1], utrn=utrn(1025),
            utrn_counter=1025, issued_at=_PASSED, deliver=True, channel=types_pb2.CHANNEL_APP,
        )
    ],
)  # fmt: skip
ANSWERED: dict[str, list[tuple[Participant, Message]]] = {
    "AddParticipant": [
        (
            OPERATOR,
            participant_pb.AddParticipantRequest(
                participant=participant_pb.Participant(
                    participant_id="new", role=participant_pb.ROLE_SUPPLIER, name="New", identities=["spiffe://new"],
                    supplier_key=participant_pb.SupplierKey(
                        originator_id="90b3d51f30010077", key_id="01", public_point=POINT
                    ),
                ),
                profile=_PROFILE,
            ),
        )
    ],
    "SetIdentities": [
        (OPERATOR, participant_pb.SetIdentitiesRequest(participant_id="psp-corner", name="C", identities=["spiffe://c"]))
    ],
    "SetSupplierKey": [
        (
            OPERATOR,
            participant_pb.SetSupplierKeyRequest(
                participant_id="supplier-north",
                supplier_key=participant_pb.SupplierKey(
                    originator_id=ORIGINATOR, key_id="0a", public_point=POINT
                ),
            ),
        )
    ],
    "RevokeCertificates": [
        (
            OPERATOR,
            participant_pb.RevokeCertificatesRequest(
                participant_id="psp-corner", fingerprints=["0" * 64], issued_before=_PASSED
            ),
        )
    ],
    "SetParticipantStatus": [(OPERATOR, _SUSPEND)],
    "SetCeiling": [(OPERATOR, participant_pb.SetCeilingRequest(participant_id="psp-corner", ceiling_pence=5_000_000))],
    "SetProfile": [
        (SUPPLIER, participant_pb.SetProfileRequest(supplier_id="supplier-north", profile=_PROFILE, since=_AHEAD))
    ],
    "AddMeter": [
        (
            SUPPLIER,
            meter_pb.AddMeterRequest(meter=_METER, supplier_id="supplier-north", settings=_SETTINGS, since=_PASSED),
        )
    ],
    "ChangeMeter": [
        (SUPPLIER, meter_pb.ChangeMeterRequest(meter_id=WORLD.meters[1], settings=_SETTINGS, since=_AHEAD))
    ],
    "ChangeSupplier": [
        (
            OPERATOR,
            meter_pb.ChangeSupplierRequest(
                meter_id=WORLD.meters[1], losing_supplier_id="supplier-north", gaining_supplier_id="supplier-gaining",
                since=_AHEAD,
            ),
        )
    ],
    "ChangeTenant": [
        (SUPPLIER, meter_pb.ChangeTenantRequest(meter_id=WORLD.meters[1], tenancy_before=1, since=_AHEAD))
    ],
    "ExchangeMeter": [
        (
            SUPPLIER,
            meter_pb.ExchangeMeterRequest(
                old_meter_id=WORLD.meters[1], new_meter=_METER, supplier_id="supplier-north", settings=_SETTINGS,
                pans=[WORLD.pans[1]],
            ),
        )
    ],
    "TransferCounters": [
        (OPERATOR, _HANDED),
        (
            SUPPLIER,
            meter_pb.TransferCountersRequest(
                meter_id=WORLD.meters[1], custody_before=meter_pb.CUSTODY_CENTRAL, custody=meter_pb.CUSTODY_SUPPLIER
            ),
        ),
    ],
    "EndMeter": [(SUPPLIER, meter_pb.EndMeterRequest(meter_id=WORLD.meters[1], at=_AHEAD))],
    "RecordBalance": [(SUPPLIER, meter_pb.RecordBalanceRequest(meter_id=WORLD.meters[1], at=_PASSED))],
    "ListSellers": [(SUPPLIER, meter_pb.ListSellersRequest(meter_id=WORLD.meters[1], at=_AHEAD))],
    "ListRegistrationChanges": [(SUPPLIER, meter_pb.ListRegistrationChangesRequest(since=_PASSED))],
    "AssignPan": [
        (
            SUPPLIER,
            pan_pb.AssignPanRequest(
                pan="9826099999999999997", meter_id=WORLD.meters[1], form=pan_pb.PAN_FORM_APP
            ),
        )
    ],
    "RepointPan": [
        (
            SUPPLIER,
            pan_pb.RepointPanRequest(
                pan=WORLD.pans[1], from_meter_id=WORLD.meters[1], to_meter_id=WORLD.meters[2], since=_AHEAD
            ),
        )
    ],
    "LoadRecords": [(OPERATOR, registry_pb.LoadRecordsRequest(first_line=7, lines=["{}"]))],
    "ReplacePan": [(SUPPLIER, pan_pb.ReplacePanRequest(lost_pan=WORLD.pans[1], new_pan="9826099999999999998"))],
    "Appoint": [(GAINING, appointment_service_pb2.AppointRequest(signed_terms=WORLD.signed))],
    "RequestCredit": [
        (
            SUPPLIER,
            credit_service_pb2.RequestCreditRequest(
                credit=credit_service_pb2.Credit(
                    transaction_id=IDS[2], pan=WORLD.pans[1], amount_pence=500,
                    reason=credit_service_pb2.CREDIT_REASON_GOODWILL,
                )
            ),
        )
    ],
    "DeliverVend": [(SUPPLIER, top_up_service_pb2.DeliverVendRequest(transaction_id=IDS[0]))],
    "GetVend": [(SUPPLIER, top_up_service_pb2.GetVendRequest(transaction_id=IDS[0]))],
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A call to make."""

    who: Participant
    room: str
    method: str
    request: Any


async def _make(node: MarketNode, call: Call) -> UtrnError | None:
    """Make a call; return the reason of its refusal, None if it is answered."""
    method: Callable[..., Any] = getattr(getattr(servicers(node, WORLD.roots), call.room), call.method)
    told, context = SERVICES[call.room].methods_by_name[call.method], calling(call.who)
    asked = _once(call.request) if told.client_streaming else call.request
    try:
        if told.server_streaming:
            async for reply in method(asked, context):
                reply.SerializeToString()
        else:
            (await method(asked, context)).SerializeToString()
    except UtrnError as error:
        return error
    return None


async def _once(request: Message) -> AsyncIterator[Message]:
    yield request


async def drive(some: list[Call]) -> list[UtrnError | None]:
    """Make calls, one after the other, in a market of their own."""
    node = WORLD.node()
    told: list[UtrnError | None] = []
    wrong: Exception | None = None
    async with node.running(), asyncio.timeout(PATIENCE_S):
        try:
            for call in some:
                told.append(await _make(node, call))
        except Exception as error:  # noqa: BLE001  # told as it is, not in a group
            wrong = error
    if wrong is not None:
        raise wrong
    return told
