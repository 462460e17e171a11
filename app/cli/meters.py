"""`utrn meter`: add, change, exchange, end, tell the balance; history. What changes hands is in hands.py."""

from typing import Annotated, Any

import typer

from app.cli.command import Commands
from app.cli.meter_history import changes, sellers
from app.cli.meter_options import (
    COHORT,
    FIRMWARE,
    GENERATION,
    HEAD_END,
    KIND,
    MAKE,
    MAX_BALANCE,
    MAX_CREDIT,
    METER,
    MODE,
    MODEL,
    POINT,
    ZONE,
    meter_of,
    settings_of,
)
from app.cli.meter_transfers import cancel, change_supplier, change_tenant, hand_over
from app.cli.options import CA, CERT, JSON, KEY, TARGET
from app.cli.paging import Listing, print_listing
from app.cli.requests import (
    Instant,
    Most,
    Page,
    PageToken,
    call,
    enum_name,
    instant_text,
    message_json,
    moment,
    pence_option,
    period_of,
    print_result,
)
from app.terminal.output import EXIT_USAGE, console, fail, print_json, print_table

meter = Commands(help="Meters: registered, changed, handed from one to another; who could sell.")

_Supplier = Annotated[str, typer.Option(help="Whose it is.")]
_Scheme = Annotated[str, typer.Option(help="Token scheme.")]


@meter.command("add")
def add(
    meter_id: METER, supplier: _Supplier, head_end: HEAD_END, point: POINT,
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    kind: KIND = "esme", generation: GENERATION = "smets2", make: MAKE = "", model: MODEL = "",
    scheme: _Scheme = "gbcs", mode: MODE = "", zone: ZONE = "", firmware: FIRMWARE = "", cohort: COHORT = "",
    max_credit: MAX_CREDIT = 0, max_balance: MAX_BALANCE = 0,
    not_enrolled: Annotated[bool, typer.Option(help="An SMSO serves it until it is handed over.")] = False,
    since: Annotated[str, typer.Option(help="Since when it is theirs; may have passed. Left out: at once.")] = "",
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Register a meter. Amounts are in pence."""
    from utrn.v1 import meter_service_pb2 as pb

    request = pb.AddMeterRequest(
        meter=meter_of(
            meter_id, kind=kind, generation=generation, make=make, model=model, scheme=scheme, point=point
        ),
        supplier_id=supplier,
        settings=settings_of(
            mode=mode, head_end=head_end, zone=zone, firmware=firmware, cohort=cohort, max_credit=max_credit,
            max_balance=max_balance,
        ),
        not_enrolled=not_enrolled, since=moment(since),
    )  # fmt: skip
    print_result(call(request, target, (cert, key, ca)).result, as_json=as_json)


@meter.command("set")
def change(
    meter_id: METER, target: TARGET, cert: CERT, key: KEY, ca: CA, mode: MODE = "", head_end: HEAD_END = "",
    zone: ZONE = "", firmware: FIRMWARE = "", cohort: COHORT = "", max_credit: MAX_CREDIT = 0,
    max_balance: MAX_BALANCE = 0, since: Instant = "", as_json: JSON = False,
) -> None:  # fmt: skip
    """Change what can change of a meter; what is left out stays. Amounts are in pence."""
    from utrn.v1 import meter_service_pb2 as pb

    settings = settings_of(
        mode=mode, head_end=head_end, zone=zone, firmware=firmware, cohort=cohort, max_credit=max_credit,
        max_balance=max_balance,
    )  # fmt: skip
    if not settings.ByteSize():
        names = "--mode, --head-end, --zone, --firmware, --cohort, --max-credit, --max-balance"
        fail(f"nothing changes; say what: one or more of {names}", code=EXIT_USAGE)
    request = pb.ChangeMeterRequest(meter_id=meter_id, settings=settings, since=moment(since))
    print_result(call(request, target, (cert, key, ca)).result, as_json=as_json)


@meter.command("exchange", for_good="exchanges meter {meter_id} for {new}")
def exchange(
    meter_id: METER,
    new: Annotated[str, typer.Option(help="EUI-64 of the new meter.")],
    supplier: _Supplier, head_end: HEAD_END, point: POINT,
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    kind: KIND = "esme", generation: GENERATION = "smets2", make: MAKE = "", model: MODEL = "",
    scheme: _Scheme = "gbcs", mode: MODE = "", zone: ZONE = "", firmware: FIRMWARE = "", cohort: COHORT = "",
    max_credit: MAX_CREDIT = 0, max_balance: MAX_BALANCE = 0,
    pan: Annotated[list[str], typer.Option(help="PAN that stands for the new one; repeat it.")] = [],  # noqa: B006  # typer's way
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Exchange a meter, at once; every option but the first argument is about the new one."""
    from utrn.v1 import meter_service_pb2 as pb

    request = pb.ExchangeMeterRequest(
        old_meter_id=meter_id,
        new_meter=meter_of(
            new, kind=kind, generation=generation, make=make, model=model, scheme=scheme, point=point
        ),
        supplier_id=supplier,
        settings=settings_of(
            mode=mode, head_end=head_end, zone=zone, firmware=firmware, cohort=cohort, max_credit=max_credit,
            max_balance=max_balance,
        ),
        pans=pan,
    )  # fmt: skip
    print_result(call(request, target, (cert, key, ca)).result, as_json=as_json)


@meter.command("end", for_good="takes meter {meter_id} out of service")
def end(meter_id: METER, target: TARGET, cert: CERT, key: KEY, ca: CA, at: Instant = "", as_json: JSON = False) -> None:
    """Take a meter out of service."""
    from utrn.v1 import meter_service_pb2 as pb

    request = pb.EndMeterRequest(meter_id=meter_id, at=moment(at))
    print_result(call(request, target, (cert, key, ca)).result, as_json=as_json)


@meter.command("balance")
def balance(
    meter_id: METER,
    pence: Annotated[int, pence_option("What it showed; negative for debt.", -(2**53), 2**53)],
    at: Annotated[str, typer.Option(help="When it was read, as 2026-11-24T12:00:00Z.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False,
) -> None:  # fmt: skip
    """Tell the balance that was read at a meter; it is trusted for 24 hours."""
    from utrn.v1 import meter_service_pb2 as pb

    request = pb.RecordBalanceRequest(meter_id=meter_id, balance_pence=pence, at=moment(at))
    print_result(call(request, target, (cert, key, ca)).result, as_json=as_json)


@meter.command("show")
def show(meter_id: METER, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """Show a meter and its history."""
    from utrn.v1 import meter_service_pb2 as pb

    from core.domain.meter import Custody, Generation, MeterKind, PaymentMode

    one = call(pb.GetMeterRequest(meter_id=meter_id), target, (cert, key, ca)).meter
    if as_json:
        print_json(message_json(one))
        return
    kind, generation = enum_name(one.kind, MeterKind), enum_name(one.generation, Generation)
    model = f"{one.make} {one.model}".strip() or "model not told"
    console.print(f"meter {one.meter_id}, {kind}, {generation}, {model}, {one.scheme}", highlight=False)
    rows: list[tuple[Any, ...]] = [
        (*period_of(period.period), period.supplier_id, enum_name(period.custody, Custody))
        for period in one.registrations
    ]
    print_table("Whose it is", ("since", "until", "by", "supplier", "counters with"), rows)
    rows = [
        (
            *period_of(period.period), enum_name(period.settings.payment_mode, PaymentMode), period.settings.head_end,
            period.settings.enrolled, period.settings.tenancy, period.settings.max_credit_pence or "-",
            period.settings.max_balance_pence or "-", _labels(period.settings),
        )
        for period in one.settings
    ]  # fmt: skip
    columns = ("since", "until", "by", "mode", "head end", "enrolled", "tenancy", "max credit", "max balance", "else")
    print_table("Settings", columns, rows)
    if one.HasField("balance_at"):
        console.print(f"balance {one.balance_pence} pence at {instant_text(one.balance_at)}", highlight=False)
    console.print(f"carried out up to {instant_text(one.carried_out_to)}", highlight=False)


def _labels(settings: Any) -> str:
    """Return what is known of zone, firmware and cohort."""
    known = [f"{name} {getattr(settings, name)}" for name in ("zone", "firmware", "cohort") if getattr(settings, name)]
    return ", ".join(known) or "-"


@meter.command("list")
def list_all(
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    page_token: PageToken = "",
    limit: Most = 0, page: Page = 1000, as_json: JSON = False,
) -> None:  # fmt: skip
    """List meters in the order of their ids."""
    from utrn.v1 import meter_service_pb2 as pb

    from core.domain.meter import MeterKind
    from core.gateways.system_clock import SystemClock

    now_ms = int(SystemClock().now().timestamp() * 1000)

    def row(one: pb.Meter) -> tuple[object, ...]:
        began = [period for period in one.registrations if period.period.since.ToMilliseconds() <= now_ms]
        holds = (began or list(one.registrations))[-1]
        return (
            one.meter_id, enum_name(one.kind, MeterKind), holds.supplier_id, instant_text(holds.period.since),
            instant_text(holds.period.until), one.settings[-1].settings.head_end,
        )  # fmt: skip

    listing = Listing(
        request=pb.ListMetersRequest(page_token=page_token), field="meters",
        title="Meters", columns=("meter", "kind", "supplier", "since", "until", "head end"), row=row, most=limit,
        page=page,
    )  # fmt: skip
    print_listing(listing, target, (cert, key, ca), as_json=as_json)


meter.command("change-supplier", for_good="moves meter {meter_id} from {losing} to {gaining}")(change_supplier)
meter.command("change-tenant", for_good="ends tenancy {tenancy} of meter {meter_id} with its PANs")(change_tenant)
meter.command("cancel")(cancel)
meter.command("sellers")(sellers)
meter.command("changes")(changes)
meter.command("transfer-counters", for_good="hands the counters of meter {meter_id} from {from_} to {to}")(hand_over)
