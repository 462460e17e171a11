"""`utrn appoint`: sign, propose, accept, suspend, end, show and verify appointments."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.command import Commands
from app.cli.options import CA, CERT, JSON, KEY, TARGET
from app.cli.paging import Listing, print_listing
from app.cli.requests import (
    Instant,
    call,
    choice,
    enum_name,
    instant_text,
    message_json,
    moment,
    pence_option,
)
from app.cli.rpc import check_certificates
from app.terminal.output import EXIT_FAILED, EXIT_USAGE, console, fail, print_json, print_table

if TYPE_CHECKING:
    from utrn.v1 import appointment_service_pb2 as pb

app = Commands(help="Appointments of PSPs by suppliers.")

_Supplier = Annotated[str, typer.Argument(help="Who appoints.")]
_Psp = Annotated[str, typer.Argument(help="Who is appointed.")]
_Id = Annotated[str, typer.Argument(help="The supplier's own id of it.")]
_Level = Annotated[str, typer.Option(help="issue, or issue_and_deliver.")]
_Channels = Annotated[list[str], typer.Option("--channel", help="Only this channel; repeat it. None: all.")]
_Least = Annotated[int, pence_option("Least pence of one sale.", 1, 819_100)]
_Most = Annotated[int, pence_option("Most pence of one sale.", 1, 819_100)]
_CallersCa = Annotated[Path, typer.Option("--callers-ca", help="PEM file of the authority of participants.")]
_Until = Annotated[str, typer.Option(help="As 2026-11-24T12:00:00Z; left out for open.")]


@app.command("propose")
def propose(
    supplier: _Supplier, psp: _Psp, appointment_id: _Id, target: TARGET, cert: CERT, key: KEY, ca: CA,
    level: _Level = "issue", channel: _Channels = [],  # noqa: B006  # typer's way
    min_pence: _Least = 1, max_pence: _Most = 819_100, since: Instant = "", until: _Until = "",
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Appoint a PSP: sign the terms with the supplier's certificate, and propose them."""
    from utrn.v1 import appointment_service_pb2 as pb

    check_certificates(cert, key, ca)
    signed = _signed(
        (supplier, psp, appointment_id), cert, key, level=level, channels=channel, amounts=(min_pence, max_pence),
        dates=(since, until),
    )  # fmt: skip
    reply = call(pb.AppointRequest(signed_terms=signed), target, (cert, key, ca))
    _done(changed=reply.changed, as_json=as_json)


@app.command("sign")
def sign(
    supplier: _Supplier, psp: _Psp, appointment_id: _Id, cert: CERT, key: KEY,
    level: _Level = "issue", channel: _Channels = [],  # noqa: B006  # typer's way
    min_pence: _Least = 1, max_pence: _Most = 819_100, since: Instant = "", until: _Until = "",
) -> None:  # fmt: skip
    """Print signed terms as a line of a registry file, for an operator to load."""
    from google.protobuf.json_format import MessageToJson
    from utrn.v1 import appointment_service_pb2 as pb
    from utrn.v1 import registry_service_pb2 as registry_pb

    signed = _signed(
        (supplier, psp, appointment_id), cert, key, level=level, channels=channel, amounts=(min_pence, max_pence),
        dates=(since, until),
    )  # fmt: skip
    record = registry_pb.RegistryRecord(appoint=pb.AppointRequest(signed_terms=signed))
    typer.echo(MessageToJson(record, preserving_proto_field_name=True, indent=None))


def _signed(
    name: tuple[str, str, str], cert: Path, key: Path, *, level: str, channels: list[str], amounts: tuple[int, int],
    dates: tuple[str, str],
) -> "pb.SignedTerms":  # fmt: skip
    from utrn.v1 import appointment_service_pb2 as pb
    from utrn_client.appointing import sign_terms

    from core.domain.participant import PspPermission
    from core.domain.vend import SOLD_THROUGH
    from core.gateways.system_clock import SystemClock

    since = moment(dates[0] or SystemClock().now().isoformat(timespec="milliseconds"))
    terms = pb.AppointmentTerms(
        supplier_id=name[0], psp_id=name[1], appointment_id=name[2],
        level=pb.Level.ValueType(choice(level, PspPermission, "--level")),
        channels=[choice(channel, SOLD_THROUGH, "--channel") for channel in channels],
        min_pence=amounts[0], max_pence=amounts[1], since=since, until=moment(dates[1]),
    )  # fmt: skip
    try:
        return sign_terms(terms, cert=cert, key=key)
    except (OSError, ValueError) as error:
        fail(f"cannot sign with {key}: {error}; name the supplier's certificate and key in PEM", code=EXIT_USAGE)


@app.command("accept")
def accept(
    supplier: _Supplier, psp: _Psp, appointment_id: _Id, target: TARGET, cert: CERT, key: KEY, ca: CA,
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Accept an appointment, as the PSP."""
    from utrn.v1 import appointment_service_pb2 as pb

    request = pb.AcceptAppointmentRequest(name=_name(supplier, psp, appointment_id))
    _done(changed=call(request, target, (cert, key, ca)).changed, as_json=as_json)


@app.command("suspend")
def suspend(
    supplier: _Supplier, psp: _Psp, appointment_id: _Id, target: TARGET, cert: CERT, key: KEY, ca: CA,
    resume: Annotated[bool, typer.Option(help="Lift the suspension.")] = False, as_json: JSON = False,
) -> None:  # fmt: skip
    """Suspend an appointment at once, or lift the suspension."""
    from utrn.v1 import appointment_service_pb2 as pb

    request = pb.SuspendAppointmentRequest(name=_name(supplier, psp, appointment_id), suspended=not resume)
    _done(changed=call(request, target, (cert, key, ca)).changed, as_json=as_json)


@app.command("end", for_good="ends appointment {appointment_id} of {psp} by {supplier} for good")
def end(
    supplier: _Supplier, psp: _Psp, appointment_id: _Id, target: TARGET, cert: CERT, key: KEY, ca: CA,
    as_json: JSON = False,
) -> None:  # fmt: skip
    """End an appointment for good."""
    from utrn.v1 import appointment_service_pb2 as pb

    request = pb.EndAppointmentRequest(name=_name(supplier, psp, appointment_id))
    _done(changed=call(request, target, (cert, key, ca)).changed, as_json=as_json)


@app.command("show")
def show(supplier: _Supplier, psp: _Psp, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """Show every appointment between two, with its terms and its history."""
    from utrn.v1 import appointment_service_pb2 as pb

    from core.domain.appointment import AppointmentState

    request = pb.GetAppointmentsRequest(supplier_id=supplier, psp_id=psp)
    found = call(request, target, (cert, key, ca))
    if as_json:
        print_json(message_json(found))
        return
    print_table("Appointments", _COLUMNS, [_row(appointment) for appointment in found.appointments])
    rows = [
        (
            appointment.terms.appointment_id,
            enum_name(period.state, AppointmentState),
            instant_text(period.since),
            period.by,
        )
        for appointment in found.appointments
        for period in appointment.states
    ]
    print_table("History", ("appointment", "state", "since", "by"), rows)


@app.command("list")
def list_all(
    target: TARGET, cert: CERT, key: KEY, ca: CA, supplier: Annotated[str, typer.Option(help="Only of this one.")] = "",
    as_json: JSON = False,
) -> None:  # fmt: skip
    """List the appointments you may see."""
    from utrn.v1 import appointment_service_pb2 as pb

    listing = Listing(
        request=pb.ListAppointmentsRequest(supplier_id=supplier), field="appointments", title="Appointments",
        columns=_COLUMNS, row=_row,
    )  # fmt: skip
    print_listing(listing, target, (cert, key, ca), as_json=as_json)


_COLUMNS = ("supplier", "PSP", "appointment", "level", "state", "since", "until", "pence", "channels")


def _row(appointment: "pb.Appointment") -> tuple[object, ...]:
    from core.domain.appointment import AppointmentState
    from core.domain.participant import PspPermission
    from core.domain.vend import Channel

    terms = appointment.terms
    channels = ", ".join(enum_name(number, Channel) for number in terms.channels)
    return (
        terms.supplier_id, terms.psp_id, terms.appointment_id, enum_name(terms.level, PspPermission),
        enum_name(appointment.states[-1].state, AppointmentState), instant_text(terms.since),
        instant_text(terms.until), f"{terms.min_pence} to {terms.max_pence}", channels or "all",
    )  # fmt: skip


@app.command("verify")
def verify(
    supplier: _Supplier, psp: _Psp, target: TARGET, cert: CERT, key: KEY, ca: CA, callers_ca: _CallersCa,
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Verify the signatures of all appointments between two, here and not at the node, against --callers-ca."""
    from utrn.v1 import appointment_service_pb2 as pb
    from utrn_client.appointing import BadEvidence, verify_terms

    found = call(pb.GetAppointmentsRequest(supplier_id=supplier, psp_id=psp), target, (cert, key, ca))
    roots, verdicts = _read(callers_ca), dict[str, str]()
    for appointment in found.appointments:
        try:
            verdicts[appointment.terms.appointment_id] = f"signed by {verify_terms(appointment.evidence, roots=roots)}"
        except BadEvidence as error:
            verdicts[appointment.terms.appointment_id] = f"BROKEN: {error}"
    broken = any(text.startswith("BROKEN") for text in verdicts.values())
    if as_json:
        print_json({"ok": not broken, "appointments": verdicts})
    else:
        print_table("Signatures", ("appointment", "verdict"), list(verdicts.items()))
    if broken:
        raise typer.Exit(EXIT_FAILED)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        fail(f"--callers-ca {file}: {error.strerror}; name a PEM file that can be read", code=EXIT_USAGE)


def _name(supplier: str, psp: str, appointment_id: str) -> "pb.AppointmentName":
    from utrn.v1 import appointment_service_pb2 as pb

    return pb.AppointmentName(supplier_id=supplier, psp_id=psp, appointment_id=appointment_id)


def _done(*, changed: bool, as_json: bool) -> None:
    if as_json:
        print_json({"changed": changed})
    else:
        console.print("done" if changed else "nothing to do: it is so already", highlight=False)
