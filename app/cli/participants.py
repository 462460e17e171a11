"""`utrn supplier` and `utrn participant`: bring on board, suspend, offboard; certificates; profiles; history."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.command import Commands
from app.cli.options import CA, CERT, JSON, KEY, TARGET
from app.cli.paging import Listing, print_listing
from app.cli.requests import (
    Files,
    Instant,
    Page,
    call,
    choice,
    enum_name,
    instant_text,
    message_json,
    moment,
    pence_option,
    period_of,
    point_of,
    print_result,
)
from app.terminal.output import EXIT_USAGE, console, fail, print_json, print_table

if TYPE_CHECKING:
    from utrn.v1 import participant_service_pb2 as pb

supplier = Commands(help="Suppliers: on board, suspended, offboarded; their profiles.")
participant = Commands(help="PSPs and other participants: on board, suspended, offboarded.")

_Id = Annotated[str, typer.Argument(help="Participant id.")]
_Identities = Annotated[list[str], typer.Option("--identity", help="SAN URI of a certificate; repeat it.")]
_Name = Annotated[str, typer.Option(help="For people.")]
_CreditPence = Annotated[int, pence_option("Credit without payment: most pence at once.", 0, 2**53)]
_CreditDay = Annotated[int, pence_option("Credit without payment: most pence a day.", 0, 2**53)]

_LEAST_PENCE, _MOST_PENCE = 1, 819_100
_LIMIT_FORMS = "CHANNEL:MIN:MAX, CHANNEL:MIN:MAX:whole or CHANNEL:closed"


@supplier.command(
    "add", for_good="registers {participant_id} with originator {originator} and key {key_id}, which stay as they are"
)
def add_supplier(
    participant_id: _Id, name: _Name, identity: _Identities,
    originator: Annotated[str, typer.Option(help="EUI-64 under which its codes are made.")],
    key_id: Annotated[str, typer.Option(help="CKA_ID of its key in the HSM, hex.")],
    point: Annotated[str, typer.Option(help="Public point of that key, hex.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False,
) -> None:  # fmt: skip
    """Bring a supplier on board; its key must be in the HSM (`utrn hsm import-key`)."""
    from utrn.v1 import participant_service_pb2 as pb

    supplier_key = pb.SupplierKey(originator_id=originator, key_id=key_id, public_point=point_of(point))
    one = pb.Participant(
        participant_id=participant_id, role=pb.ROLE_SUPPLIER, name=name, identities=identity, supplier_key=supplier_key
    )
    reply = call(pb.AddParticipantRequest(participant=one), target, (cert, key, ca))
    print_result(reply.result, as_json=as_json)


@supplier.command("key", for_good="has the codes of {participant_id} made with the key {key_id}")
def supplier_key(
    participant_id: _Id,
    originator: Annotated[str, typer.Option(help="EUI-64 under which its codes are made; it stays as it is.")],
    key_id: Annotated[str, typer.Option(help="CKA_ID of its key in the HSM, hex.")],
    point: Annotated[str, typer.Option(help="Public point of that key, hex: the one its meters know.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False,
) -> None:  # fmt: skip
    """Correct which HSM key a supplier's codes are made with; needs two operators."""
    from utrn.v1 import participant_service_pb2 as pb

    one = pb.SupplierKey(originator_id=originator, key_id=key_id, public_point=point_of(point))
    request = pb.SetSupplierKeyRequest(participant_id=participant_id, supplier_key=one)
    print_result(call(request, target, (cert, key, ca)).result, as_json=as_json)


@participant.command("add")
def add_participant(
    participant_id: _Id, name: _Name, identity: _Identities, target: TARGET, cert: CERT, key: KEY, ca: CA,
    role: Annotated[str, typer.Option(help="psp, operator, helpdesk or auditor.")] = "psp", as_json: JSON = False,
) -> None:  # fmt: skip
    """Bring a PSP, or another participant that is no supplier, on board."""
    from utrn.v1 import participant_service_pb2 as pb

    from core.domain.participant import Role

    if role.lower() == Role.SUPPLIER.name.lower():
        fail("--role supplier: a supplier has a key; use utrn supplier add", code=EXIT_USAGE)
    number = pb.Role.ValueType(choice(role, set(Role) - {Role.SUPPLIER}, "--role"))
    one = pb.Participant(participant_id=participant_id, role=number, name=name, identities=identity)
    reply = call(pb.AddParticipantRequest(participant=one), target, (cert, key, ca))
    print_result(reply.result, as_json=as_json)


@supplier.command("profile")
def profile(
    participant_id: _Id,
    option: Annotated[
        str, typer.Option(help="supplier_only, psp_issues, psp_issues_and_delivers or supplier_generates.")
    ],
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    limit: Annotated[
        list[str], typer.Option(help=f"{_LIMIT_FORMS}, in pence; channel 'all' or its name. Repeat it.")
    ] = [],  # noqa: B006  # typer's way
    credit_each: _CreditPence = 0, credit_day: _CreditDay = 0,
    approver: Annotated[list[str], typer.Option(help="SAN URI that may approve it; repeat it.")] = [],  # noqa: B006  # typer's way
    since: Instant = "", as_json: JSON = False,
) -> None:  # fmt: skip
    """Choose who may issue and who may deliver; everything that is not said is cleared."""
    from utrn.v1 import participant_service_pb2 as pb

    from core.domain.participant import SellingModel

    chosen = pb.Profile(
        selling_model=pb.SellingModel.ValueType(choice(option, SellingModel, "--option")),
        limits=[limit_of(one) for one in limit],
        credit_each_max_pence=credit_each,
        credit_day_max_pence=credit_day,
        credit_approvers=approver,
    )
    request = pb.SetProfileRequest(supplier_id=participant_id, profile=chosen, since=moment(since))
    print_result(call(request, target, (cert, key, ca)).result, as_json=as_json)


def limit_of(text: str) -> "pb.ChannelLimit":
    """Return a channel's limit as it is typed: counter_cash:200:4900, online:100:20000:whole, app:closed."""
    from utrn.v1 import participant_service_pb2 as pb
    from utrn_client.amounts import parse_pence

    from core.domain.vend import SOLD_THROUGH

    name, *amounts = text.split(":")
    channel = 0 if name == "all" else choice(name, SOLD_THROUGH, f"--limit {text}: channel")
    if amounts == ["closed"]:
        return pb.ChannelLimit(channel=channel, min_pence=_LEAST_PENCE, max_pence=_MOST_PENCE, closed=True)
    whole = amounts[2:] == ["whole"]
    try:
        least, most = (parse_pence(amount, least=0, most=2**53) for amount in (amounts[:2] if whole else amounts))
        return pb.ChannelLimit(channel=channel, min_pence=least, max_pence=most, whole_pounds=whole)
    except ValueError:
        fail(f"--limit {text}: {_LIMIT_FORMS} is needed, as counter_cash:200:4900:whole", code=EXIT_USAGE)


@supplier.command("cancel-profile")
def cancel_profile(participant_id: _Id, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """Cancel the profile that waits for its instant."""
    from utrn.v1 import participant_service_pb2 as pb

    request = pb.CancelProfileRequest(supplier_id=participant_id)
    print_result(call(request, target, (cert, key, ca)).result, as_json=as_json)


def certificates(
    participant_id: _Id, name: _Name, identity: _Identities, target: TARGET, cert: CERT, key: KEY, ca: CA,
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Change name and certificates, at once: every --identity from now on; one that is left out stops working.

    To rotate a certificate, name the old and the new one; once the new one is in use, name it alone.
    """
    from utrn.v1 import participant_service_pb2 as pb

    request = pb.SetIdentitiesRequest(participant_id=participant_id, name=name, identities=identity)
    print_result(call(request, target, (cert, key, ca)).result, as_json=as_json)


def revoke(
    participant_id: _Id,
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    fingerprint: Annotated[
        list[str] | None, typer.Option(help="SHA-256 of a certificate, 64 hex digits, colons or not; may be repeated.")
    ] = None,
    issued_before: Annotated[str, typer.Option(help="Every one made before, as 2026-11-24T12:00:00Z.")] = "",
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Revoke certificates at once, for good; the participant goes on with new ones under the same name."""
    from utrn.v1 import participant_service_pb2 as pb

    plain = [one.replace(":", "").lower() for one in fingerprint or ()]
    request = pb.RevokeCertificatesRequest(
        participant_id=participant_id, fingerprints=plain, issued_before=moment(issued_before)
    )
    print_result(call(request, target, (cert, key, ca)).result, as_json=as_json)


def _set_status(participant_id: str, status: str, target: str, tls: Files, *, as_json: bool) -> None:
    from utrn.v1 import participant_service_pb2 as pb

    request = pb.SetParticipantStatusRequest(
        participant_id=participant_id, status=pb.ParticipantStatus.Value(f"PARTICIPANT_STATUS_{status.upper()}")
    )
    print_result(call(request, target, tls).result, as_json=as_json)


def suspend(participant_id: _Id, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """Suspend at once; nothing is lost, and `resume` ends it."""
    _set_status(participant_id, "suspended", target, (cert, key, ca), as_json=as_json)


def resume(participant_id: _Id, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """End a suspension."""
    _set_status(participant_id, "active", target, (cert, key, ca), as_json=as_json)


def offboard(participant_id: _Id, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """Offboard for good."""
    _set_status(participant_id, "left", target, (cert, key, ca), as_json=as_json)


def ceiling(
    participant_id: _Id,
    pence: Annotated[int, pence_option("Most pence in an hour; 0 for the agreed ceiling.", 0, 10**13)],
    target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False,
) -> None:  # fmt: skip
    """Set the most that a seller may sell in an hour, at once."""
    from utrn.v1 import participant_service_pb2 as pb

    request = pb.SetCeilingRequest(participant_id=participant_id, ceiling_pence=pence)
    print_result(call(request, target, (cert, key, ca)).result, as_json=as_json)


def show(
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    participant_id: Annotated[str, typer.Argument(help="Participant id; your own if left out.")] = "",
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Show a participant and its history."""
    from utrn.v1 import participant_service_pb2 as pb

    from core.domain.participant import ParticipantStatus, Role

    request = pb.GetParticipantRequest(participant_id=participant_id)
    one = call(request, target, (cert, key, ca)).participant
    if as_json:
        print_json(message_json(one))
        return
    console.print(f"{one.participant_id}, {enum_name(one.role, Role)}: {one.name}", highlight=False)
    if one.HasField("supplier_key"):
        key_of = one.supplier_key
        console.print(f"originator {key_of.originator_id}, key {key_of.key_id}", highlight=False)
    rows = [(*period_of(period.period), period.name, "\n".join(period.identities)) for period in one.identity_history]
    print_table("Name and certificates", ("since", "until", "by", "name", "certificates"), rows)
    last = one.identity_history[-1]
    if last.HasField("revoked_before"):
        console.print(f"revoked: issued before {instant_text(last.revoked_before)}", highlight=False)
    for revoked in last.revoked_fingerprints:
        console.print(f"revoked: {revoked}", highlight=False)
    stood = [(*period_of(period.period), enum_name(period.status, ParticipantStatus)) for period in one.statuses]
    print_table("Status", ("since", "until", "by", "status"), stood)
    if one.role in (pb.ROLE_PSP, pb.ROLE_SUPPLIER):
        told = f"{one.ceiling_pence} pence" if one.ceiling_pence else "as agreed (flow.ceiling_pence)"
        console.print(f"ceiling in an hour: {told}", highlight=False)
    if one.role == pb.ROLE_SUPPLIER and not one.profiles:
        console.print("no profile chosen: supplier_only", highlight=False)
    if one.profiles:
        print_table(
            "Profile",
            ("since", "until", "by", "selling model", "limits in pence", "credit at once, a day", "approvers"),
            [(*period_of(period.period), *_profile_cells(period.profile)) for period in one.profiles],
        )


def _profile_cells(chosen: "pb.Profile") -> tuple[str, ...]:
    from core.domain.participant import SellingModel

    credit = f"{chosen.credit_each_max_pence}, {chosen.credit_day_max_pence}"
    limits = "\n".join(map(_limit_text, chosen.limits)) or "-"
    return (
        enum_name(chosen.selling_model, SellingModel),
        limits,
        credit,
        "\n".join(chosen.credit_approvers) or "any other",
    )


def _limit_text(limit: "pb.ChannelLimit") -> str:
    from core.domain.vend import Channel

    name = enum_name(limit.channel, Channel) if limit.channel else "all"
    if limit.closed:
        return f"{name} closed"
    return f"{name} {limit.min_pence} to {limit.max_pence}{', whole pounds' if limit.whole_pounds else ''}"


def list_all(target: TARGET, cert: CERT, key: KEY, ca: CA, page: Page = 1000, as_json: JSON = False) -> None:
    """List participants of every role."""
    from utrn.v1 import participant_service_pb2 as pb

    from core.domain.participant import ParticipantStatus, Role

    def row(one: pb.Participant) -> tuple[object, ...]:
        status = enum_name(one.statuses[-1].status, ParticipantStatus)
        return one.participant_id, enum_name(one.role, Role), one.name, status

    listing = Listing(
        request=pb.ListParticipantsRequest(),
        field="participants", title="Participants", columns=("participant", "role", "name", "status"), row=row,
        page=page,
    )  # fmt: skip
    print_listing(listing, target, (cert, key, ca), as_json=as_json)


for _app in (supplier, participant):
    _app.command("certificates", for_good="lets {participant_id} in with {identity} alone")(certificates)
    _app.command("revoke", for_good="revokes certificates of {participant_id}, which never work again")(revoke)
    _app.command("suspend")(suspend)
    _app.command("resume")(resume)
    _app.command("offboard", for_good="offboards {participant_id} for good")(offboard)
    _app.command("ceiling")(ceiling)
    _app.command("show")(show)
    _app.command("list")(list_all)
