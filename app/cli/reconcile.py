"""`utrn pan reconcile`: what does not fit of PANs, meters and suppliers, with the caller's own list beside them."""

from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.options import CA, CERT, JSON, KEY, TARGET
from app.cli.paging import JsonText
from app.cli.requests import (
    ask,
    enum_name,
    stub_of,
)
from app.terminal.output import EXIT_FAILED, EXIT_USAGE, console, errors, fail, print_table

if TYPE_CHECKING:
    import grpc
    from utrn.v1 import pan_service_pb2 as pb

_PART = 1000
_PARTS_A_LINE = 100


def reconcile(
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    supplier: Annotated[str, typer.Option(help="Whose PANs; left out: your own, or everybody's.")] = "",
    list_: Annotated[
        Path | None, typer.Option("--list", help="Your own list: a registry file, whose PANs are read.")
    ] = None,
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Reconcile PANs, meters and suppliers; changes nothing. The exit code is 1 if something does not fit."""
    from core.registry.reconcile import FindingKind

    claims = [] if list_ is None else list(_claims(list_))
    text, rows = JsonText("findings"), list[tuple[str, ...]]()

    def heard(findings: "Sequence[pb.PanFinding]") -> None:
        if as_json:
            text.add(findings)
        else:
            rows.extend(
                (enum_name(finding.kind, FindingKind), finding.pan or "-", finding.meter_id or "-")
                for finding in findings
            )

    async def call(channel: "grpc.aio.Channel") -> tuple[int, int, int]:
        from utrn.v1 import pan_service_pb2 as pb

        found, pans, meters, answers = 0, 0, 0, 0
        async for reply in stub_of(pb.ReconcilePansRequest(), channel).ReconcilePans(_requests(supplier, claims)):
            heard(reply.findings)
            found, pans, meters = found + len(reply.findings), pans + reply.pans, meters + reply.meters
            answers += 1
            if answers % _PARTS_A_LINE == 0:
                errors.print(f"{pans} PANs and {meters} meters so far, {found} found", highlight=False)
        return found, pans, meters

    found, pans, meters = ask(call, target, (cert, key, ca))
    if as_json:
        text.end({"pans": pans, "meters": meters})
    else:
        print_table("What does not fit", ("what", "PAN", "meter"), rows)
        console.print(f"{found} found; {pans} PANs and {meters} meters looked at", highlight=False)
    if found:
        raise typer.Exit(EXIT_FAILED)


async def _requests(supplier: str, claims: "Sequence[pb.PanClaim]") -> "AsyncIterator[pb.ReconcilePansRequest]":
    from utrn.v1 import pan_service_pb2 as pb

    yield pb.ReconcilePansRequest(supplier_id=supplier, claims=claims[:_PART])
    for begin in range(_PART, len(claims), _PART):
        yield pb.ReconcilePansRequest(claims=claims[begin : begin + _PART])


def _claims(file: Path) -> "Iterator[pb.PanClaim]":
    """Yield the PANs in use that a registry file names; end with the line that cannot be read."""
    from utrn.v1 import pan_service_pb2 as pb

    from app.cli.registry_files import UnreadableFile, read_lines
    from core.api.registry_file import parse_record
    from core.domain.errors import BadField

    number = 0
    try:
        for number, line in read_lines(file):  # noqa: B007  # named in the refusal
            if isinstance(line, BadField):
                raise line
            record = parse_record(line)
            if record.HasField("assign_pan") and not record.blocked:
                yield pb.PanClaim(pan=record.assign_pan.pan, meter_id=record.assign_pan.meter_id)
    except BadField as error:
        fail(f"--list {file}, line {number}: {error.message}", code=EXIT_USAGE)
    except UnreadableFile as error:
        fail(f"--list {error}; name a registry file", code=EXIT_USAGE)
