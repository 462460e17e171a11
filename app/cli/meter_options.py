"""The options of a meter that more than one command takes, and the messages that are made of them."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.requests import (
    choice,
    pence_option,
    point_of,
)

if TYPE_CHECKING:
    from utrn.v1 import meter_service_pb2 as pb

METER = Annotated[str, typer.Argument(help="EUI-64, 16 hex digits.")]
MODE = Annotated[str, typer.Option(help="prepayment or credit.")]
HEAD_END = Annotated[str, typer.Option(help="Name of the head end that reaches it.")]
ZONE = Annotated[str, typer.Option(help="Zone.")]
FIRMWARE = Annotated[str, typer.Option(help="Firmware.")]
COHORT = Annotated[str, typer.Option(help="SMETS1 cohort.")]
MAX_CREDIT = Annotated[int, pence_option("Maximum Credit Threshold, pence.", 0, 2**53)]
MAX_BALANCE = Annotated[int, pence_option("Maximum Meter Balance Threshold, pence.", 0, 2**53)]
KIND = Annotated[str, typer.Option(help="esme or gsme.")]
GENERATION = Annotated[str, typer.Option(help="smets1 or smets2.")]
MAKE = Annotated[str, typer.Option(help="Manufacturer; then the model must be in the capability matrix.")]
MODEL = Annotated[str, typer.Option(help="Model; see utrn meter-model list.")]
POINT = Annotated[str, typer.Option(help="Public point of its key-agreement key, 65 bytes in hex.")]


def meter_of(
    meter_id: str, *, kind: str, generation: str, make: str, model: str, scheme: str, point: str
) -> "pb.Meter":
    """Return a meter without history."""
    from utrn.v1 import meter_service_pb2 as pb

    from core.domain.meter import Generation, MeterKind

    return pb.Meter(
        meter_id=meter_id, kind=pb.MeterKind.ValueType(choice(kind, MeterKind, "--kind")),
        generation=pb.MeterGeneration.ValueType(choice(generation, Generation, "--generation")),
        make=make, model=model, scheme=scheme, public_point=point_of(point),
    )  # fmt: skip


def settings_of(
    *, mode: str, head_end: str, zone: str, firmware: str, cohort: str, max_credit: int, max_balance: int
) -> "pb.MeterSettings":
    """Return what can change of a meter; what is left out stays, or is not known of a new one."""
    from utrn.v1 import meter_service_pb2 as pb

    from core.domain.meter import PaymentMode

    return pb.MeterSettings(
        payment_mode=pb.PaymentMode.ValueType(choice(mode, PaymentMode, "--mode") if mode else 0),
        head_end=head_end, zone=zone, firmware=firmware, cohort=cohort, max_credit_pence=max_credit,
        max_balance_pence=max_balance,
    )  # fmt: skip
