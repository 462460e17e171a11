"""`utrn registry`: load files of participants, meters and PANs; models; who could sell; what changed hands."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.command import Commands
from app.cli.options import CA, CERT, JSON, KEY, TARGET
from app.cli.paging import Listing, print_listing
from app.cli.requests import (
    Instant,
    Most,
    Page,
    ask,
    dates_of,
    enum_name,
    instant_text,
    message_json,
    moment,
    print_written,
    registry,
)
from app.terminal.output import EXIT_FAILED, EXIT_USAGE, console, errors, fail, print_json, print_table

if TYPE_CHECKING:
    from app.cli.registry_files import Total

app = Commands(help="Registry files, the capability matrix, and who could sell when.")

_File = Annotated[Path, typer.Argument(help="JSON lines, or CSV by its ending; see docs/registry-file.md.")]
_Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="A node's TOML file: write straight into its etcd.")
]
_Rules = Annotated[Path | None, typer.Option("--config", "-c", help="A node's TOML file: its rule for PANs.")]
_SHOWN = 20


@app.command("check")
def check(file: _File, config: _Rules = None, as_json: JSON = False) -> None:
    """Read every line of a file; load nothing."""
    from app.cli.registry_files import UnreadableFile, check_lines, read_lines
    from app.node.config import BadConfig, load_config
    from core.domain.meter import PanRule

    try:
        rule = load_config(config).flow.pan if config is not None else PanRule()
        total = check_lines(read_lines(file), rule)
    except (BadConfig, UnreadableFile) as error:
        fail(str(error), code=EXIT_USAGE)
    _report(total, "well-formed", as_json=as_json)


@app.command("load")
def load(
    context: typer.Context,
    file: _File,
    target: TARGET = "",
    cert: CERT = Path("participant.pem"),
    key: KEY = Path("participant.key"),
    ca: CA = Path("ca.pem"),
    config: _Config = None,
    after_line: Annotated[int, typer.Option(min=0, help="Go on after this line.")] = 0,
    as_json: JSON = False,
) -> None:
    """Load a file, through a node, or with --config straight into etcd (for the first operator).

    Lines stand alone: wrong ones are named, the others are loaded. Loading a line again changes nothing.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from app.cli.registry_files import Total, UnreadableFile, load_remote, read_lines
    from cluster.etcd.client import EtcdUnreachable
    from cluster.ledger.identity import LedgerUnfit
    from core.domain.errors import UtrnError

    # A target of the environment or the profile is whom to ask if nothing else is said.
    source = context.get_parameter_source("target")
    typed = source is not None and source.name == "COMMANDLINE"
    if (config is not None and typed) or (config is None and not target):
        fail("--target with --cert, --key and --ca, or --config: one of the two is needed", code=EXIT_USAGE)
    seen = Total(last_line=after_line)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[note]}"))
    try:
        lines = sum(1 for _ in read_lines(file))
        with Progress(*columns, console=errors, disable=as_json) as progress:
            task = progress.add_task("loading", total=lines, completed=after_line, note="")

            def heard(total: Total) -> None:
                seen.last_line = total.last_line
                note = f"{total.problem_count} wrong" if total.problem_count else ""
                progress.update(task, completed=total.last_line, note=note)

            if config is not None:
                total = asyncio.run(_direct(config, file, after_line, heard))
            else:
                rest = read_lines(file, after=after_line)
                total = ask(lambda channel: load_remote(channel, rest, heard), target, (cert, key, ca))
    except UnreadableFile as error:
        fail(str(error), code=EXIT_USAGE)
    except (LedgerUnfit, EtcdUnreachable) as error:
        fail(str(error))
    except UtrnError as error:
        fail(f"{error.reason}: {error.message}; go on with --after-line {seen.last_line}")
    except typer.Exit as end:
        if end.exit_code == EXIT_FAILED:
            errors.print(f"go on with --after-line {seen.last_line}")
        raise
    _report(total, "loaded", as_json=as_json)


async def _direct(config_file: Path, file: Path, after: int, heard: "Callable[[Total], None]") -> "Total":
    from app.cli.registry_files import load_direct, read_lines
    from app.node.config import BadConfig, load_config

    try:
        config = load_config(config_file)
    except BadConfig as error:
        fail(str(error), code=EXIT_USAGE)
    return await load_direct(config, read_lines(file, after=after), heard)


def _report(total: "Total", word: str, *, as_json: bool) -> None:
    if as_json:
        problems = [{"line": line, "reason": reason, "message": text} for line, reason, text in total.problems]
        print_json(
            {
                "ok": not total.problem_count, "loaded": total.loaded, "unchanged": total.unchanged,
                "wrong": total.problem_count, "last_line": total.last_line, "problems": problems,
            }
        )  # fmt: skip
    else:
        text = f"{total.loaded} lines {word}, {total.unchanged} unchanged, {total.problem_count} wrong."
        console.print(text, highlight=False)
        for line, reason, message in total.problems[:_SHOWN]:
            errors.print(f"line {line}: {reason}: {message}", markup=False, highlight=False, soft_wrap=True)
        if total.problem_count > _SHOWN:
            errors.print(f"... and {total.problem_count - _SHOWN} more; --json has up to 1000")
    if total.problem_count:
        raise typer.Exit(EXIT_FAILED)


@app.command("sellers")
def sellers(
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    meter: Annotated[str, typer.Option(help="EUI-64.")] = "",
    pan: Annotated[str, typer.Option(help="Or a PAN.")] = "",
    at: Instant = "", as_json: JSON = False,
) -> None:  # fmt: skip
    """Who could sell to a meter at an instant, as the registry stood then."""
    from utrn.v1 import registry_service_pb2 as pb

    if bool(meter) == bool(pan):
        fail("--meter or --pan: one of the two is needed", code=EXIT_USAGE)
    request = pb.ListSellersRequest(meter_id=meter, pan=pan, at=moment(at))
    reply = registry("ListSellers", request, target, (cert, key, ca))
    if as_json:
        print_json(message_json(reply))
        return
    console.print(f"meter {reply.meter_id or '-'}, supplier {reply.supplier_id or '-'}", highlight=False)
    rows = [(one.participant_id, one.may_issue, one.may_deliver, one.allowed_by) for one in reply.sellers]
    print_table("Who could sell", ("participant", "issue", "deliver", "allowed by"), rows)


@app.command("changes")
def changes(
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    supplier: Annotated[str, typer.Option(help="Whose; your own if left out.")] = "",
    since: Annotated[str, typer.Option(help="Only at or after this instant, as 2026-11-24T12:00:00Z.")] = "",
    after: Annotated[str, typer.Option(help="Go on where another list has ended.")] = "",
    limit: Most = 0, page: Page = 1000, as_json: JSON = False,
) -> None:  # fmt: skip
    """Changes of hands that were carried out; --json names what was owed, and codes not known to be credited."""
    from utrn.v1 import registry_service_pb2 as pb

    from core.domain.registration_change import ChangeKind

    def row(one: pb.MarketChange) -> tuple[object, ...]:
        kinds = ", ".join(enum_name(kind, ChangeKind) for kind in one.kinds)
        return (
            one.meter_id, instant_text(one.at), instant_text(one.carried_out_at), kinds, one.responsible_supplier_id,
            one.supplier_id_after or "-", len(one.uncredited) + one.uncredited_more, len(one.in_flight),
        )  # fmt: skip

    listing = Listing(
        service="RegistryService", method="ListMarketChanges",
        request=pb.ListMarketChangesRequest(supplier_id=supplier, since=moment(since), after=after), field="changes",
        title="Changes of hands",
        columns=("meter", "at", "carried out", "what", "responsible", "supplier after", "uncredited", "in flight"),
        row=row, most=limit, page=page,
    )  # fmt: skip
    print_listing(listing, target, (cert, key, ca), as_json=as_json)


@app.command("model")
def model(
    make: Annotated[str, typer.Argument(help="Manufacturer.")],
    name: Annotated[str, typer.Argument(help="Model.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    scheme: Annotated[list[str], typer.Option(help="Token scheme its meters take; repeat it.")] = ["gbcs"],  # noqa: B006  # typer's way
    over_the_air: Annotated[bool, typer.Option(help="Whether codes can be sent to them.")] = True,
    central_issue: Annotated[bool, typer.Option(help="Whether codes for them can be made here.")] = True,
    since: Instant = "", as_json: JSON = False,
) -> None:  # fmt: skip
    """Say what the meters of a model can do."""
    from utrn.v1 import registry_service_pb2 as pb

    row = pb.Model(make=make, model=name, schemes=scheme, over_the_air=over_the_air, central_issue=central_issue)
    request = pb.SetModelRequest(model=row, since=moment(since))
    print_written(registry("SetModel", request, target, (cert, key, ca)).written, as_json=as_json)


@app.command("models")
def models(target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """The capability matrix, with what was so before and what will be so."""
    from utrn.v1 import registry_service_pb2 as pb

    reply = registry("ListModels", pb.ListModelsRequest(), target, (cert, key, ca))
    if as_json:
        print_json(message_json(reply))
        return
    rows = [
        (one.make, one.model, *dates_of(can.dates), " ".join(can.schemes) or "-", can.over_the_air, can.central_issue)
        for one in reply.models
        for can in one.history
    ]
    columns = ("make", "model", "since", "until", "by", "schemes", "over the air", "central issue")
    print_table("What meters can do", columns, rows)
