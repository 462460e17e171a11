"""`utrn registry`: check and load files of participants, models, meters, PANs and appointments."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.command import Commands
from app.cli.options import CA, CERT, JSON, KEY, TARGET
from app.cli.requests import (
    ask,
)
from app.terminal.output import EXIT_FAILED, EXIT_USAGE, console, errors, fail, print_json

if TYPE_CHECKING:
    from app.cli.registry_files import Total

app = Commands(help="Registry files: check and load them.")

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
