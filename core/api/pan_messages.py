"""Proto <-> domain for PANs. Bounds of requests are checked here."""

from utrn.v1 import pan_service_pb2 as pb

from core.api.change_messages import period_message, since_of
from core.api.validation import number_in, parse_meter_id
from core.domain.effective_dated import Ms
from core.domain.meter import PanForm, PanRecord, PanRule, parse_pan
from core.registry.bulk_load import NewPan


def new_pan(request: pb.AssignPanRequest, rule: PanRule, *, now: Ms, blocked: bool = False) -> NewPan:
    """Return a PAN and what it is to stand for; raise BadField, which quotes no PAN."""
    return NewPan(
        pan=parse_pan(request.pan, rule),
        form=form_of(request.form),
        meter_id=parse_meter_id(request.meter_id),
        blocked=blocked,
        since=since_of(request, now=now),
    )


def form_of(number: int) -> PanForm:
    """Return what carries a PAN, plastic if it is left out."""
    return PanForm(number_in(number or PanForm.PLASTIC, "form", PanForm))


def pan_message(card: PanRecord) -> pb.Pan:
    """Return a PAN and its history."""
    return pb.Pan(
        pan=card.pan,
        form=pb.PanForm.ValueType(card.form),
        uses=[
            pb.PanPeriod(
                period=period_message(period),
                meter_id=period.value.meter_id,
                supplier_id=period.value.supplier_id,
                tenancy=period.value.tenancy,
                status=pb.PanStatus.ValueType(period.value.status),
            )
            for period in card.uses.periods
        ],
        replaced_by=card.replaced_by or "",
    )
