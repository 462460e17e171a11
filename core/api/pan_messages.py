"""Proto <-> domain for PANs."""

from utrn.v1 import pan_service_pb2 as pb

from core.api.change_messages import period_message
from core.domain.meter import (
    PanRecord,
)


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
