"""`utrn pan`: give, replace, block, point elsewhere, cancel; whether a sale would be allowed; history.

Reconciliation is in reconcile.py.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.command import Commands
from app.cli.options import CA, CERT, JSON, KEY, TARGET
from app.cli.reconcile import reconcile
from app.cli.remedies import ADVICE
from app.cli.requests import (
    Files,
    Instant,
    call,
    choice,
    enum_name,
    message_json,
    moment,
    pence_of,
    period_of,
    print_result,
)
from app.cli.rpc import facts_text
from app.terminal.output import EXIT_FAILED, console, print_json, print_table

if TYPE_CHECKING:
    from utrn.v1 import pan_service_pb2 as pb
    from utrn.v1 import top_up_service_pb2 as top_up_pb

pan = Commands(help="PANs: given, replaced, blocked, pointed elsewhere.")

_Pan = Annotated[str, typer.Argument(help="The number.")]
_Form = Annotated[str, typer.Option(help="plastic, virtual or app.")]


@pan.command("assign")
def give(
    number: _Pan, meter_id: Annotated[str, typer.Option("--meter", help="EUI-64.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA, form: _Form = "plastic", since: Instant = "", as_json: JSON = False,
) -> None:  # fmt: skip
    """Give a PAN to the tenant that a meter has then."""
    from utrn.v1 import pan_service_pb2 as pb

    request = pb.AssignPanRequest(pan=number, form=_form(form), meter_id=meter_id, since=moment(since))
    print_result(call(request, target, (cert, key, ca)).result, as_json=as_json)


@pan.command("replace", for_good="ends PAN {lost}, and gives {new} in its place")
def replace(
    lost: _Pan, new: _Pan, target: TARGET, cert: CERT, key: KEY, ca: CA, form: _Form = "plastic",
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Replace a lost PAN by a new one, at once."""
    from utrn.v1 import pan_service_pb2 as pb

    request = pb.ReplacePanRequest(lost_pan=lost, new_pan=new, form=_form(form))
    print_result(call(request, target, (cert, key, ca)).result, as_json=as_json)


def _form(text: str) -> "pb.PanForm.ValueType":
    from utrn.v1 import pan_service_pb2 as pb

    from core.domain.meter import PanForm

    return pb.PanForm.ValueType(choice(text, PanForm, "--form"))


@pan.command("block")
def block(number: _Pan, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """Block a PAN, at once."""
    _set_blocked(number, target, (cert, key, ca), blocked=True, as_json=as_json)


@pan.command("unblock")
def unblock(number: _Pan, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """Lift a PAN's block."""
    _set_blocked(number, target, (cert, key, ca), blocked=False, as_json=as_json)


def _set_blocked(number: str, target: str, tls: Files, *, blocked: bool, as_json: bool) -> None:
    from utrn.v1 import pan_service_pb2 as pb

    request = pb.SetPanBlockedRequest(pan=number, blocked=blocked)
    print_result(call(request, target, tls).result, as_json=as_json)


@pan.command("repoint")
def repoint(
    number: _Pan,
    from_: Annotated[str, typer.Option("--from", help="The meter it stands for.")],
    to: Annotated[str, typer.Option(help="The meter it is to stand for.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA, since: Instant = "", as_json: JSON = False,
) -> None:  # fmt: skip
    """Point a PAN to another meter, or anew to the same one after a change of supplier or tenant."""
    from utrn.v1 import pan_service_pb2 as pb

    request = pb.RepointPanRequest(pan=number, from_meter_id=from_, to_meter_id=to, since=moment(since))
    print_result(call(request, target, (cert, key, ca)).result, as_json=as_json)


@pan.command("cancel")
def cancel(number: _Pan, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """Cancel what a PAN was going to stand for."""
    from utrn.v1 import pan_service_pb2 as pb

    reply = call(pb.CancelPanRequest(pan=number), target, (cert, key, ca))
    print_result(reply.result, as_json=as_json)


@pan.command("show")
def show(number: _Pan, target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """Show a PAN and its history."""
    from utrn.v1 import pan_service_pb2 as pb

    one = call(pb.GetPanRequest(pan=number), target, (cert, key, ca)).pan
    if as_json:
        print_json(message_json(one))
        return
    _print_pans([one])
    if one.replaced_by:
        console.print(f"replaced by {one.replaced_by}", highlight=False)


@pan.command("list")
def list_all(
    meter_id: Annotated[str, typer.Option("--meter", help="EUI-64.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False,
) -> None:  # fmt: skip
    """List every PAN of a meter: past, present and future."""
    from utrn.v1 import pan_service_pb2 as pb

    reply = call(pb.ListPansRequest(meter_id=meter_id), target, (cert, key, ca))
    if as_json:
        print_json(message_json(reply))
    else:
        _print_pans(reply.pans)


def _print_pans(found: "Sequence[pb.Pan]") -> None:
    from core.domain.meter import PanForm, PanStatus

    rows = [
        (
            one.pan, enum_name(one.form, PanForm), *period_of(use.period), use.meter_id, use.supplier_id, use.tenancy,
            enum_name(use.status, PanStatus),
        )
        for one in found
        for use in one.uses
    ]  # fmt: skip
    columns = ("PAN", "form", "since", "until", "by", "meter", "given by", "tenancy", "status")
    print_table("PANs", columns, rows)


@pan.command("eligible")
def eligible(
    number: _Pan, target: TARGET, cert: CERT, key: KEY, ca: CA,
    amount: Annotated[str, typer.Option(help="Pounds, such as 10 or 12.34; left out for any.")] = "0",
    channel: Annotated[str, typer.Option(help="Where the consumer pays, such as online; left out for any.")] = "",
    deliver: Annotated[bool, typer.Option(help="Ask for a sale in one step, which also delivers.")] = False,
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Ask, before money is taken, whether a sale would be allowed now; the exit code is 1 if not."""
    from utrn.v1 import top_up_service_pb2 as pb
    from utrn.v1 import types_pb2

    from core.domain.vend import SOLD_THROUGH

    through = types_pb2.Channel.ValueType(choice(channel, SOLD_THROUGH, "--channel") if channel else 0)
    request = pb.CheckEligibilityRequest(pan=number, amount_pence=pence_of(amount), channel=through, deliver=deliver)
    reply = call(request, target, (cert, key, ca))
    if as_json:
        print_json(message_json(reply))
    elif reply.eligible:
        console.print(f"eligible; the meter's supplier is {reply.supplier_id}", highlight=False)
    else:
        _print_objections(reply.objections)
    if not reply.eligible:
        raise typer.Exit(EXIT_FAILED)


def _print_objections(objections: "Sequence[top_up_pb.Objection]") -> None:
    from utrn.v1 import errors_pb2

    known = errors_pb2.ErrorReason.DESCRIPTOR.values_by_number
    rows = []
    for objection in objections:
        reason = (
            known[objection.reason].name.removeprefix("ERROR_REASON_")
            if objection.reason in known
            else str(objection.reason)
        )
        rows.append(
            (reason, f"{objection.message}{facts_text(objection.facts)}", ADVICE.get(reason, "see docs/errors.md"))
        )
    print_table("Not eligible", ("reason", "because", "what to do"), rows)


pan.command("reconcile")(reconcile)
