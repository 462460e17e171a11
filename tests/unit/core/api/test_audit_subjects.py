"""subject_of: what the audit log says a request is about."""

import pytest
from google.protobuf.message import Message
from utrn.admin.v1 import admin_service_pb2 as admin_pb
from utrn.v1 import appointment_service_pb2 as appointment_pb
from utrn.v1 import meter_model_service_pb2 as meter_model_pb
from utrn.v1 import meter_service_pb2 as meter_pb
from utrn.v1 import pan_service_pb2 as pan_pb
from utrn.v1 import participant_service_pb2 as participant_pb
from utrn.v1 import top_up_service_pb2 as top_up_pb

from core.api.audit_subjects import subject_of

METER = "00db1234567890ab"
PAN = "9826012345678901234"
_TERMS = appointment_pb.AppointmentTerms(supplier_id="supplier-north", psp_id="psp-corner", appointment_id="web")
_NAME = appointment_pb.AppointmentName(supplier_id="supplier-north", psp_id="psp-corner", appointment_id="web")

_SAYS: list[tuple[Message, str]] = [
    (meter_pb.AddMeterRequest(meter=meter_pb.Meter(meter_id=METER)), METER),
    (meter_pb.ExchangeMeterRequest(old_meter_id=METER, pans=[PAN]), METER),
    (pan_pb.ReplacePanRequest(lost_pan=PAN, new_pan=PAN), "pan ..1234"),
    (top_up_pb.TopUpRequest(pan=PAN, transaction_id="typed"), "pan ..1234"),
    (top_up_pb.DeliverVendRequest(externally_issued=top_up_pb.ExternallyIssuedUtrn(pan=PAN)), "pan ..1234"),
    (participant_pb.SetIdentitiesRequest(participant_id="psp-corner"), "psp-corner"),
    (meter_model_pb.SetMeterModelRequest(model=meter_model_pb.MeterModel(make="Acme", model="E1")), "Acme/E1"),
    (
        appointment_pb.AppointRequest(
            signed_terms=appointment_pb.SignedTerms(terms=_TERMS.SerializeToString(deterministic=True))
        ),
        "supplier-north/psp-corner/web",
    ),
    (appointment_pb.AppointRequest(signed_terms=appointment_pb.SignedTerms(terms=b"\xff")), ""),
    (appointment_pb.EndAppointmentRequest(name=_NAME), "supplier-north/psp-corner/web"),
    (meter_pb.AddMeterRequest(), ""),
    (
        top_up_pb.SettleDeliveryRequest(participant_id="psp-corner", transaction_id="id", credited=False),
        "not credited: psp-corner/id",
    ),
    (top_up_pb.SettleDeliveryRequest(participant_id="psp-corner", credited=True), "credited: psp-corner/"),
    (top_up_pb.SettleDeliveryRequest(transaction_id="id"), "not said: /id"),
    (admin_pb.SetDrainRequest(node_id="node-a", drained=True), "drained: node-a"),
    (admin_pb.ForgetNodeRequest(node_id="node-a"), "node-a"),
    (admin_pb.ForgetHeadEndRequest(name="smso"), "head end smso"),
    (admin_pb.AcceptClusterTimeRequest(seconds=-3), "-3 s"),
    (admin_pb.AcceptClusterTimeRequest(), "only asked"),
    (meter_pb.GetMeterRequest(meter_id="x" * 50_000), "x" * 100),
]


@pytest.mark.parametrize(
    ("request_", "subject"), _SAYS, ids=[f"{type(one).__name__}-{said}"[:60] for one, said in _SAYS]
)
def test_the_subject_is_an_id_and_never_a_whole_pan(request_: Message, subject: str) -> None:
    assert subject_of(request_) == subject
    assert PAN not in subject_of(request_)
