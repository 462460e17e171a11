"""`utrn supplier` and `utrn psp`: bring on board, suspend, offboard; profiles; history."""

from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.market import (
    CA,
    CERT,
    JSON,
    KEY,
    TARGET,
    Files,
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

if TYPE_CHECKING:
    from utrn.v1 import registry_service_pb2 as pb

supplier = typer.Typer(no_args_is_help=True, help="Suppliers: on board, suspended, offboarded; their profiles.")
psp = typer.Typer(no_args_is_help=True, help="PSPs and other participants: on board, suspended, offboarded.")

_Id = Annotated[str, typer.Argument(help="Participant id.")]
_Identities = Annotated[list[str], typer.Option("--identity", help="SAN URI of a certificate; repeat it.")]
_Name = Annotated[str, typer.Option(help="For people.")]


@supplier.command("add")
def add_supplier(
    participant_id: _Id, name: _Name, identity: _Identities,
    originator: Annotated[str, typer.Option(help="EUI-64 under which its codes are made.")],
    key_id: Annotated[str, typer.Option(help="CKA_ID of its key in the HSM, hex.")],
    point: Annotated[str, typer.Option(help="Public point of that key, hex.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False,
) -> None:  # fmt: skip
    """Bring a supplier on board; its key must be in the HSM (`utrn hsm import`)."""
    from utrn.v1 import registry_service_pb2 as pb

    try:
        public_point = bytes.fromhex(point)
    except ValueError:
        fail("--point: hex is needed", code=EXIT_USAGE)
    supplier_key = pb.SupplierKey(originator_id=originator, key_id=key_id, public_point=public_point)
    one = pb.Participant(
        participant_id=participant_id, role=pb.ROLE_SUPPLIER, name=name, identities=identity, supplier_key=supplier_key
    )
    reply = registry("AddParticipant", pb.AddParticipantRequest(participant=one), target, (cert, key, ca))
    print_written(reply.written, as_json=as_json)


@psp.command("add")
def add_psp(
    participant_id: _Id, name: _Name, identity: _Identities, target: TARGET, cert: CERT, key: KEY, ca: CA,
    role: Annotated[str, typer.Option(help="psp, operator, helpdesk or auditor.")] = "psp", as_json: JSON = False,
) -> None:  # fmt: skip
    """Bring a PSP, or another participant that is no supplier, on board."""
    from utrn.v1 import registry_service_pb2 as pb

    from core.domain.party import Role

    number = pb.Role.ValueType(choice(role, Role, "--role"))
    one = pb.Participant(participant_id=participant_id, role=number, name=name, identities=identity)
    reply = registry("AddParticipant", pb.AddParticipantRequest(participant=one), target, (cert, key, ca))
    print_written(reply.written, as_json=as_json)


@supplier.command("profile")
def profile(
    participant_id: _Id,
    option: Annotated[
        str, typer.Option(help="supplier_only, psp_issues, psp_issues_and_delivers or supplier_generates.")
    ],
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    limit: Annotated[list[str], typer.Option(help="CHANNEL:MIN:MAX in pence; channel 'all' or its name.")] = [],  # noqa: B006  # typer's way
    credit_each: Annotated[int, typer.Option(help="Credit without payment: most pence at once.")] = 0,
    credit_day: Annotated[int, typer.Option(help="Credit without payment: most pence a day.")] = 0,
    approver: Annotated[list[str], typer.Option(help="SAN URI that may approve it; repeat it.")] = [],  # noqa: B006  # typer's way
    since: Instant = "", as_json: JSON = False,
) -> None:  # fmt: skip
    """Choose who may issue and who may deliver; everything that is not said is cleared."""
    from utrn.v1 import registry_service_pb2 as pb

    from core.domain.party import Option

    chosen = pb.Profile(
        option=pb.Option.ValueType(choice(option, Option, "--option")),
        limits=[_limit(one) for one in limit],
        credit_each_max_pence=credit_each,
        credit_day_max_pence=credit_day,
        credit_approvers=approver,
    )
    request = pb.SetProfileRequest(supplier_id=participant_id, profile=chosen, since=moment(since))
    print_written(registry("SetProfile", request, target, (cert, key, ca)).written, as_json=as_json)


def _limit(text: str) -> "pb.ChannelLimit":
    from utrn.v1 import registry_service_pb2 as pb

    from core.domain.vend import Channel

    try:
        name, least, most = text.split(":")
        channel = 0 if name == "all" else choice(name, Channel, "--limit")
        return pb.ChannelLimit(channel=channel, min_pence=int(least), max_pence=int(most))
    except ValueError:
        fail(f"--limit {text}: CHANNEL:MIN:MAX is needed, as counter_cash:200:4900", code=EXIT_USAGE)


def _set_standing(participant_id: str, standing: str, target: str, tls: Files, *, as_json: bool) -> None:
    from utrn.v1 import registry_service_pb2 as pb

    request = pb.SetStandingRequest(
        participant_id=participant_id, standing=pb.Standing.Value(f"STANDING_{standing.upper()}")
    )
    print_written(registry("SetStanding", request, target, tls).written, as_json=as_json)


def suspend(participant_id: _Id, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """Suspend at once; nothing is lost, and `resume` ends it."""
    _set_standing(participant_id, "suspended", target, (cert, key, ca), as_json=as_json)


def resume(participant_id: _Id, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """End a suspension."""
    _set_standing(participant_id, "active", target, (cert, key, ca), as_json=as_json)


def offboard(participant_id: _Id, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """Offboard for good."""
    _set_standing(participant_id, "left", target, (cert, key, ca), as_json=as_json)


def show(participant_id: _Id, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """Show a participant and its history."""
    from utrn.v1 import registry_service_pb2 as pb

    from core.domain.party import Option, Role, Standing

    request = pb.GetParticipantRequest(participant_id=participant_id)
    one = registry("GetParticipant", request, target, (cert, key, ca)).participant
    if as_json:
        print_json(message_json(one))
        return
    console.print(f"{one.participant_id}, {enum_name(one.role, Role)}: {one.name}", highlight=False)
    for identity in one.identities:
        console.print(f"  {identity}", highlight=False)
    rows = [(*dates_of(period.dates), enum_name(period.standing, Standing)) for period in one.standings]
    rows += [(*dates_of(period.dates), enum_name(period.profile.option, Option)) for period in one.profiles]
    print_table("History", ("since", "until", "by", "what"), rows)


def list_all(target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """List participants."""
    from utrn.v1 import registry_service_pb2 as pb

    from core.domain.party import Role, Standing

    found = registry("ListParticipants", pb.ListParticipantsRequest(limit=1000), target, (cert, key, ca)).participants
    if as_json:
        print_json({"participants": [message_json(one) for one in found]})
        return
    rows = [
        (one.participant_id, enum_name(one.role, Role), one.name, enum_name(one.standings[-1].standing, Standing))
        for one in found
    ]
    print_table("Participants", ("participant", "role", "name", "standing"), rows)


for _app in (supplier, psp):
    _app.command("suspend")(suspend)
    _app.command("resume")(resume)
    _app.command("offboard")(offboard)
    _app.command("show")(show)
    _app.command("list")(list_all)
