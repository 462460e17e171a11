"""`utrn meter` and `utrn pan`: add, change, hand over; history."""

from typing import Annotated, Any

import typer

from app.cli.market import (
    CA,
    CERT,
    JSON,
    KEY,
    TARGET,
    Instant,
    choice,
    dates_of,
    enum_name,
    message_json,
    moment,
    print_written,
    registry,
)
from app.cli.output import EXIT_USAGE, console, fail, print_json, print_table

meter = typer.Typer(no_args_is_help=True, help="Meters: registered, changed, handed from one to another.")
pan = typer.Typer(no_args_is_help=True, help="PANs: given, replaced, blocked, pointed elsewhere.")

_Meter = Annotated[str, typer.Argument(help="EUI-64, 16 hex digits.")]
_Pan = Annotated[str, typer.Argument(help="The number.")]
_Mode = Annotated[str, typer.Option(help="prepayment or credit.")]


def _point(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        fail("--point: hex is needed", code=EXIT_USAGE)


@meter.command("add")
def add(
    meter_id: _Meter,
    supplier: Annotated[str, typer.Option(help="Whose it is.")],
    head_end: Annotated[str, typer.Option(help="Name of the head end that reaches it.")],
    point: Annotated[str, typer.Option(help="Public point of its key-agreement key, hex.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    kind: Annotated[str, typer.Option(help="esme or gsme.")] = "esme",
    generation: Annotated[str, typer.Option(help="smets1 or smets2.")] = "smets2",
    make: str = "", model: str = "",
    not_enrolled: Annotated[bool, typer.Option(help="An SMSO serves it until it is handed over.")] = False,
    since: Instant = "", as_json: JSON = False,
) -> None:  # fmt: skip
    """Register a meter."""
    from utrn.v1 import registry_service_pb2 as pb

    from core.domain.meter import Generation, MeterKind

    one = pb.Meter(
        meter_id=meter_id, kind=pb.MeterKind.ValueType(choice(kind, MeterKind, "--kind")),
        generation=pb.MeterGeneration.ValueType(choice(generation, Generation, "--generation")),
        make=make, model=model, scheme="gbcs", public_point=_point(point),
    )  # fmt: skip
    request = pb.AddMeterRequest(
        meter=one, supplier_id=supplier, settings=pb.MeterSettings(head_end=head_end), not_enrolled=not_enrolled,
        since=moment(since),
    )  # fmt: skip
    print_written(registry("AddMeter", request, target, (cert, key, ca)).written, as_json=as_json)


@meter.command("set")
def change(
    meter_id: _Meter, target: TARGET, cert: CERT, key: KEY, ca: CA, mode: _Mode = "", head_end: str = "",
    zone: str = "", firmware: str = "", cohort: str = "", max_credit: int = 0, max_balance: int = 0,
    since: Instant = "", as_json: JSON = False,
) -> None:  # fmt: skip
    """Change what can change of a meter; what is left out stays. Amounts are in pence."""
    from utrn.v1 import registry_service_pb2 as pb

    from core.domain.meter import PaymentMode

    settings = pb.MeterSettings(
        payment_mode=pb.PaymentMode.ValueType(choice(mode, PaymentMode, "--mode") if mode else 0),
        head_end=head_end, zone=zone, firmware=firmware, cohort=cohort, max_credit_pence=max_credit,
        max_balance_pence=max_balance,
    )  # fmt: skip
    request = pb.ChangeMeterRequest(meter_id=meter_id, settings=settings, since=moment(since))
    print_written(registry("ChangeMeter", request, target, (cert, key, ca)).written, as_json=as_json)


@meter.command("change-supplier")
def change_supplier(
    meter_id: _Meter,
    losing: Annotated[str, typer.Option(help="Whose it is.")],
    gaining: Annotated[str, typer.Option(help="Whose it becomes.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA, since: Instant = "", as_json: JSON = False,
) -> None:  # fmt: skip
    """Change of Supplier."""
    from utrn.v1 import registry_service_pb2 as pb

    request = pb.ChangeSupplierRequest(
        meter_id=meter_id, losing_supplier_id=losing, gaining_supplier_id=gaining, since=moment(since)
    )
    print_written(registry("ChangeSupplier", request, target, (cert, key, ca)).written, as_json=as_json)


@meter.command("change-tenant")
def change_tenant(
    meter_id: _Meter,
    tenancy: Annotated[int, typer.Option(help="The tenancy that ends; `utrn meter show` has it.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA, since: Instant = "", as_json: JSON = False,
) -> None:  # fmt: skip
    """Change of Tenancy: PANs of earlier tenants are refused from then on."""
    from utrn.v1 import registry_service_pb2 as pb

    request = pb.ChangeTenantRequest(meter_id=meter_id, tenancy_before=tenancy, since=moment(since))
    print_written(registry("ChangeTenant", request, target, (cert, key, ca)).written, as_json=as_json)


@meter.command("exchange")
def exchange(
    meter_id: _Meter,
    new: Annotated[str, typer.Option(help="EUI-64 of the new meter.")],
    supplier: Annotated[str, typer.Option(help="Whose it is.")],
    head_end: Annotated[str, typer.Option(help="Name of the head end that reaches it.")],
    point: Annotated[str, typer.Option(help="Public point of the new meter, hex.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    kind: Annotated[str, typer.Option(help="esme or gsme.")] = "esme",
    pan_: Annotated[list[str], typer.Option("--pan", help="PAN that stands for the new one; repeat it.")] = [],  # noqa: B006  # typer's way
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Exchange a meter, at once."""
    from utrn.v1 import registry_service_pb2 as pb

    from core.domain.meter import MeterKind

    one = pb.Meter(
        meter_id=new, kind=pb.MeterKind.ValueType(choice(kind, MeterKind, "--kind")), scheme="gbcs",
        public_point=_point(point),
    )  # fmt: skip
    request = pb.ExchangeMeterRequest(
        old_meter_id=meter_id, new_meter=one, supplier_id=supplier, settings=pb.MeterSettings(head_end=head_end),
        pans=pan_,
    )  # fmt: skip
    print_written(registry("ExchangeMeter", request, target, (cert, key, ca)).written, as_json=as_json)


@meter.command("end")
def end(
    meter_id: _Meter, target: TARGET, cert: CERT, key: KEY, ca: CA, at: Instant = "", as_json: JSON = False
) -> None:
    """Take a meter out of service."""
    from utrn.v1 import registry_service_pb2 as pb

    request = pb.EndMeterRequest(meter_id=meter_id, at=moment(at))
    print_written(registry("EndMeter", request, target, (cert, key, ca)).written, as_json=as_json)


@meter.command("cancel")
def cancel(
    meter_id: _Meter, target: TARGET, cert: CERT, key: KEY, ca: CA,
    registration: Annotated[bool, typer.Option(help="The change of supplier or the end, not of settings.")] = False,
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Cancel the change that waits for its instant."""
    from utrn.v1 import registry_service_pb2 as pb

    request = pb.CancelChangeRequest(meter_id=meter_id, registration=registration)
    print_written(registry("CancelChange", request, target, (cert, key, ca)).written, as_json=as_json)


@meter.command("hand-over")
def hand_over(
    meter_id: _Meter,
    from_: Annotated[str, typer.Option("--from", help="central, supplier or smso: who has the counters.")],
    to: Annotated[str, typer.Option(help="central, supplier or smso: who gets them.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    last_issued: Annotated[int, typer.Option(help="To central: last counter spent before.")] = 0,
    highest_applied: Annotated[int, typer.Option(help="To central: highest counter known to be credited.")] = 0,
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Hand a meter's counters to another generator; enrol it, or back it out."""
    from utrn.v1 import registry_service_pb2 as pb

    from core.domain.meter import Custody

    request = pb.HandOverMeterRequest(
        meter_id=meter_id, custody_before=pb.Custody.ValueType(choice(from_, Custody, "--from")),
        custody=pb.Custody.ValueType(choice(to, Custody, "--to")), last_issued=last_issued,
        highest_applied=highest_applied,
    )  # fmt: skip
    reply = registry("HandOverMeter", request, target, (cert, key, ca))
    if as_json:
        print_json(message_json(reply))
        return
    print_written(reply.written, as_json=False)
    change = reply.change
    if change.meter_id:
        text = f"counters spent up to {change.last_issued}, credited up to {change.highest_applied}"
        console.print(f"{text}, {len(change.in_flight)} deliveries were owed", highlight=False)


@meter.command("show")
def show(meter_id: _Meter, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """Show a meter and its history."""
    from utrn.v1 import registry_service_pb2 as pb

    from core.domain.meter import Custody, MeterKind, PaymentMode

    one = registry("GetMeter", pb.GetMeterRequest(meter_id=meter_id), target, (cert, key, ca)).meter
    if as_json:
        print_json(message_json(one))
        return
    kind = enum_name(one.kind, MeterKind)
    console.print(f"meter {one.meter_id}, {kind} {one.make} {one.model}, {one.scheme}", highlight=False)
    rows: list[tuple[Any, ...]] = [
        (*dates_of(period.dates), period.supplier_id, enum_name(period.custody, Custody))
        for period in one.registrations
    ]
    print_table("Whose it is", ("since", "until", "by", "supplier", "counters with"), rows)
    rows = [
        (
            *dates_of(period.dates), enum_name(period.settings.payment_mode, PaymentMode), period.settings.head_end,
            period.settings.enrolled, period.settings.tenancy, period.settings.max_credit_pence or "-",
            period.settings.max_balance_pence or "-",
        )
        for period in one.settings
    ]  # fmt: skip
    columns = ("since", "until", "by", "mode", "head end", "enrolled", "tenancy", "max credit", "max balance")
    print_table("Settings", columns, rows)


@meter.command("list")
def list_all(
    target: TARGET, cert: CERT, key: KEY, ca: CA, after: str = "", limit: int = 100, as_json: JSON = False
) -> None:
    """List meters in the order of their ids."""
    from utrn.v1 import registry_service_pb2 as pb

    reply = registry("ListMeters", pb.ListMetersRequest(after=after, limit=limit), target, (cert, key, ca))
    if as_json:
        print_json({"meters": [message_json(one) for one in reply.meters], "next_after": reply.next_after})
        return
    rows = [
        (one.meter_id, one.registrations[-1].supplier_id, one.settings[-1].settings.head_end) for one in reply.meters
    ]
    print_table("Meters", ("meter", "supplier", "head end"), rows)
    if reply.next_after:
        console.print(f"more: --after {reply.next_after}", highlight=False)


@pan.command("give")
def give(
    number: _Pan, meter_id: Annotated[str, typer.Option("--meter", help="EUI-64.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    form: Annotated[str, typer.Option(help="plastic, virtual or app.")] = "plastic",
    since: Instant = "", as_json: JSON = False,
) -> None:  # fmt: skip
    """Give a PAN to the present tenant of a meter."""
    from utrn.v1 import registry_service_pb2 as pb

    from core.domain.meter import PanForm

    number_of = pb.PanForm.ValueType(choice(form, PanForm, "--form"))
    request = pb.GivePanRequest(pan=number, form=number_of, meter_id=meter_id, since=moment(since))
    print_written(registry("GivePan", request, target, (cert, key, ca)).written, as_json=as_json)


@pan.command("replace")
def replace(
    lost: _Pan, new: _Pan, target: TARGET, cert: CERT, key: KEY, ca: CA,
    form: Annotated[str, typer.Option(help="plastic, virtual or app.")] = "plastic", as_json: JSON = False,
) -> None:  # fmt: skip
    """Replace a lost PAN by a new one."""
    from utrn.v1 import registry_service_pb2 as pb

    from core.domain.meter import PanForm

    request = pb.ReplacePanRequest(
        lost_pan=lost, new_pan=new, form=pb.PanForm.ValueType(choice(form, PanForm, "--form"))
    )
    print_written(registry("ReplacePan", request, target, (cert, key, ca)).written, as_json=as_json)


@pan.command("block")
def block(number: _Pan, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """Block a PAN."""
    from utrn.v1 import registry_service_pb2 as pb

    request = pb.SetPanBlockedRequest(pan=number, blocked=True)
    print_written(registry("SetPanBlocked", request, target, (cert, key, ca)).written, as_json=as_json)


@pan.command("unblock")
def unblock(number: _Pan, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """Lift a PAN's block."""
    from utrn.v1 import registry_service_pb2 as pb

    request = pb.SetPanBlockedRequest(pan=number, blocked=False)
    print_written(registry("SetPanBlocked", request, target, (cert, key, ca)).written, as_json=as_json)


@pan.command("repoint")
def repoint(
    number: _Pan,
    from_: Annotated[str, typer.Option("--from", help="The meter it stands for.")],
    to: Annotated[str, typer.Option(help="The meter it is to stand for.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA, since: Instant = "", as_json: JSON = False,
) -> None:  # fmt: skip
    """Point a PAN to another meter, or anew to the same one after a change of supplier or tenant."""
    from utrn.v1 import registry_service_pb2 as pb

    request = pb.RepointPanRequest(pan=number, from_meter_id=from_, to_meter_id=to, since=moment(since))
    print_written(registry("RepointPan", request, target, (cert, key, ca)).written, as_json=as_json)


@pan.command("show")
def show_pan(number: _Pan, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """Show a PAN and its history."""
    from utrn.v1 import registry_service_pb2 as pb

    one = registry("GetPan", pb.GetPanRequest(pan=number), target, (cert, key, ca)).pan
    _print_pans([one], as_json=as_json)


@pan.command("list")
def list_pans(
    meter_id: Annotated[str, typer.Option("--meter", help="EUI-64.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False,
) -> None:  # fmt: skip
    """List every PAN of a meter: past, present and future."""
    from utrn.v1 import registry_service_pb2 as pb

    found = registry("ListPans", pb.ListPansRequest(meter_id=meter_id), target, (cert, key, ca)).pans
    _print_pans(list(found), as_json=as_json)


def _print_pans(found: list[Any], *, as_json: bool) -> None:
    from core.domain.meter import PanForm, PanStatus

    if as_json:
        print_json({"pans": [message_json(one) for one in found]})
        return
    rows = [
        (
            one.pan, enum_name(one.form, PanForm), *dates_of(use.dates), use.meter_id, use.supplier_id, use.tenancy,
            enum_name(use.status, PanStatus),
        )
        for one in found
        for use in one.uses
    ]  # fmt: skip
    columns = ("PAN", "form", "since", "until", "by", "meter", "given by", "tenancy", "status")
    print_table("PANs", columns, rows)
