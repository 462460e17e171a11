"""subject_of: what a request is about, for the audit log. Ids only: never a whole PAN, never what people typed."""

from google.protobuf.message import DecodeError, Message
from utrn.admin.v1 import admin_service_pb2 as admin_pb
from utrn.v1 import appointment_service_pb2 as appointment_pb
from utrn.v1 import top_up_service_pb2 as top_up_pb

# Where a request says what it is about, most telling first; a dot goes into a part of it.
_PATHS = (
    "meter_id", "meter.meter_id", "old_meter_id", "pan", "lost_pan", "credit.pan", "externally_issued.pan",
    "transaction_id", "participant_id", "participant.participant_id", "supplier_id", "psp_id", "node_id",
    "approval_id",
)  # fmt: skip
_LENGTH_MAX = 100
_PART_MAX = 40


def subject_of(request: Message) -> str:
    """Return what `request` is about; "" if it does not say."""
    special = _appointment(request) or _model(request) or _word(request)
    if special:
        return special[:_LENGTH_MAX]
    for path in _PATHS:
        value = _at(request, path)
        if value:
            return f"pan ..{value[-4:]}" if path.endswith("pan") else value[:_LENGTH_MAX]
    return ""


def _at(request: Message, path: str) -> str:
    one: object = request
    for name in path.split("."):
        if not isinstance(one, Message) or name not in one.DESCRIPTOR.fields_by_name:
            return ""
        one = getattr(one, name)
    return one if isinstance(one, str) else ""


def _appointment(request: Message) -> str:
    name = getattr(request, "name", None)
    if isinstance(request, appointment_pb.AppointRequest):
        try:
            name = appointment_pb.AppointmentTerms.FromString(request.signed_terms.terms)
        except DecodeError:
            return ""
    if not isinstance(name, appointment_pb.AppointmentName | appointment_pb.AppointmentTerms):
        return ""
    return f"{name.supplier_id}/{name.psp_id}/{name.appointment_id}"


def _word(request: Message) -> str:
    """Return what is decided by the request's own word: what it is about would not say which way."""
    match request:
        case top_up_pb.SettleDeliveryRequest():
            how = ("credited" if request.credited else "not credited") if request.HasField("credited") else "not said"
            return f"{how}: {request.participant_id[:_PART_MAX]}/{request.transaction_id[:_PART_MAX]}"
        case admin_pb.SetDrainRequest():
            return f"{'drained' if request.drained else 'in service'}: {request.node_id}"
        case admin_pb.ForgetHeadEndRequest():
            return f"head end {request.name}"
        case admin_pb.AcceptClusterTimeRequest():
            return f"{request.seconds} s" if request.HasField("seconds") else "only asked"
    return ""


def _model(request: Message) -> str:
    make, model = _at(request, "model.make"), _at(request, "model.model")
    return f"{make}/{model}" if make or model else ""
