"""`utrn meter`, what changes hands: supplier, tenant, who spends the counters; and a change that waits, cancelled."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.meter_options import COHORT, FIRMWARE, HEAD_END, MAX_BALANCE, MAX_CREDIT, METER, MODE, ZONE, settings_of
from app.cli.options import CA, CERT, JSON, KEY, TARGET
from app.cli.requests import (
    Instant,
    call,
    choice,
    instant_text,
    message_json,
    moment,
    point_of,
    print_result,
)
from app.terminal.output import EXIT_USAGE, console, fail, print_json, print_table
from app.terminal.secret_file import write_secret

if TYPE_CHECKING:
    from collections.abc import Iterable

    from utrn.v1 import meter_service_pb2 as pb

_COUNTER_MAX = 2**32 - 1

_Counter = Annotated[
    int | None,
    typer.Option(min=0, max=_COUNTER_MAX, help="To central, must be said: last counter spent before; 0 for none ever."),
]
_Applied = Annotated[int, typer.Option(min=0, max=_COUNTER_MAX, help="To central: highest counter known credited.")]


def change_supplier(
    meter_id: METER,
    losing: Annotated[str, typer.Option(help="Whose it is.")],
    gaining: Annotated[str, typer.Option(help="Whose it becomes.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA, since: Instant = "", as_json: JSON = False,
) -> None:  # fmt: skip
    """Change of Supplier."""
    from utrn.v1 import meter_service_pb2 as pb

    request = pb.ChangeSupplierRequest(
        meter_id=meter_id, losing_supplier_id=losing, gaining_supplier_id=gaining, since=moment(since)
    )
    print_result(call(request, target, (cert, key, ca)).result, as_json=as_json)


def change_tenant(
    meter_id: METER,
    tenancy: Annotated[
        int, typer.Option(min=1, max=2**31 - 1, help="The tenancy that ends; `utrn meter show` has it.")
    ],
    target: TARGET, cert: CERT, key: KEY, ca: CA, since: Instant = "", as_json: JSON = False,
) -> None:  # fmt: skip
    """Change of Tenancy: PANs of earlier tenants are refused from then on."""
    from utrn.v1 import meter_service_pb2 as pb

    request = pb.ChangeTenantRequest(meter_id=meter_id, tenancy_before=tenancy, since=moment(since))
    print_result(call(request, target, (cert, key, ca)).result, as_json=as_json)


def cancel(
    meter_id: METER, target: TARGET, cert: CERT, key: KEY, ca: CA,
    registration: Annotated[bool, typer.Option(help="The change of supplier or the end, not of settings.")] = False,
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Cancel the change that waits for its instant."""
    from utrn.v1 import meter_service_pb2 as pb

    request = pb.CancelChangeRequest(meter_id=meter_id, registration=registration)
    print_result(call(request, target, (cert, key, ca)).result, as_json=as_json)


def hand_over(
    meter_id: METER,
    from_: Annotated[str, typer.Option("--from", help="central, supplier or smso: who has the counters.")],
    to: Annotated[str, typer.Option(help="central, supplier or smso: who gets them.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA, last_issued: _Counter = None, highest_applied: _Applied = 0,
    codes: Annotated[
        Path | None,
        typer.Option(
            help="To central: codes not known to be used, JSON lines with participant_id, transaction_id, pan, utrn, "
            "utrn_counter, issued_at, deliver, channel, reference."
        ),
    ] = None,
    mode: MODE = "", head_end: HEAD_END = "", zone: ZONE = "", firmware: FIRMWARE = "", cohort: COHORT = "",
    max_credit: MAX_CREDIT = 0, max_balance: MAX_BALANCE = 0,
    save_codes: Annotated[
        Path | None, typer.Option(help="To an SMSO: write the codes that are its to send here, as --codes reads them.")
    ] = None,
    point: Annotated[str, typer.Option(help="Its public point from now on, hex; left out for as it is.")] = "",
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Hand a meter's counters to another generator; enrol it from an SMSO, or back it out.

    Settings and --point are for an enrolment: what an SMSO knows of the meter. What is left out stays.
    """
    from utrn.v1 import meter_service_pb2 as pb

    from core.domain.meter import Custody

    before, after = choice(from_, Custody, "--from"), choice(to, Custody, "--to")
    settings = settings_of(
        mode=mode, head_end=head_end, zone=zone, firmware=firmware, cohort=cohort, max_credit=max_credit,
        max_balance=max_balance,
    )  # fmt: skip
    if before != Custody.SMSO and (settings.ByteSize() or point):
        fail("settings and --point go with --from smso; else use utrn meter set", code=EXIT_USAGE)
    if after == Custody.CENTRAL and last_issued is None:
        fail("--last-issued must be said: the last counter that was spent, 0 if none ever was", code=EXIT_USAGE)
    if after != Custody.CENTRAL and (last_issued is not None or highest_applied or codes):
        fail("--last-issued, --highest-applied and --codes go with --to central; leave them out", code=EXIT_USAGE)
    if after != Custody.SMSO and save_codes:
        fail("--save-codes goes with --to smso; leave it out", code=EXIT_USAGE)
    request = pb.TransferCountersRequest(
        meter_id=meter_id, custody_before=pb.Custody.ValueType(before), custody=pb.Custody.ValueType(after),
        last_issued=last_issued, highest_applied=highest_applied, codes=[] if codes is None else read_codes(codes),
        settings=settings if settings.ByteSize() else None, public_point=point_of(point),
    )  # fmt: skip
    reply = call(request, target, (cert, key, ca))
    if save_codes is not None:
        _save(reply.open_codes, save_codes)
    if as_json:
        print_json(message_json(reply))
        return
    print_result(reply.result, as_json=False)
    _print_change(reply.change)


def _print_change(change: "pb.RegistrationChange") -> None:
    """Print what the next generator must know."""
    if not change.meter_id:
        return
    text = f"since {instant_text(change.at)}: counters spent up to {change.last_issued}, credited up to"
    console.print(f"{text} {change.highest_applied}, originator {change.originator_id or '-'}", highlight=False)
    rows = [(one.participant_id, one.transaction_id, one.utrn_counter) for one in change.in_flight]
    print_table("Deliveries that were owed", ("sold by", "transaction id", "counter"), rows)
    rows = [(one.participant_id, one.transaction_id, one.utrn_counter) for one in change.uncredited]
    more = f" (and {change.uncredited_more} more)" if change.uncredited_more else ""
    print_table(f"Codes not known to be credited{more}", ("sold by", "transaction id", "counter"), rows)


def _save(codes: "Iterable[pb.UnspentCode]", file: Path) -> None:
    """Write codes as JSON lines that only their owner may read: whoever has a code can spend it."""
    lines = "".join(json.dumps(message_json(code)) + "\n" for code in codes)
    try:
        write_secret(file, lines)
    except OSError as error:
        fail(f"--save-codes {file}: cannot be written: {error}; the meter is handed over: repeat the same command")


def read_codes(file: Path) -> "list[pb.UnspentCode]":
    """Return the codes of a file of JSON lines; end with the line that is none."""
    from google.protobuf.json_format import Parse, ParseError
    from utrn.v1 import meter_service_pb2 as pb

    try:
        lines = [(at, line) for at, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        fail(f"--codes {file}: cannot be read: {error}; name a file of JSON lines", code=EXIT_USAGE)
    found = []
    for at, line in lines:
        try:
            found.append(Parse(line, pb.UnspentCode()))
        except ParseError as error:
            # The parser quotes what it could not read, which may be a code.
            fields = pb.UnspentCode.DESCRIPTOR.fields
            wrong = [one.name for one in fields if re.search(rf"\b({one.name}|{one.json_name}) field", str(error))]
            why = f"{wrong[0]} has no value of its type" if wrong else "this is none"
            names = ", ".join(field.name for field in fields)
            fail(f"--codes {file}, line {at}: an object with {names} is needed; {why}", code=EXIT_USAGE)
    return found
