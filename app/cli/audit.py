"""`utrn audit`: the trail of decisions, verified and read."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.output import console, fail, print_json, print_table

app = typer.Typer(no_args_is_help=True, help="The trail of decisions: who asked for what, and which rule decided.")

_Files = Annotated[list[Path], typer.Argument(help="Trail files.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.command("verify")
def verify(files: _Files, as_json: _Json = False) -> None:
    """Check that trails are what was written: no line changed, taken out or put in."""
    from app.trail import BadTrail, verified

    try:
        counts = {str(file): sum(1 for _ in verified(file)) for file in files}
    except (OSError, BadTrail) as error:
        fail(str(error))
    if as_json:
        print_json({"ok": True, "decisions": counts})
    else:
        for name, count in counts.items():
            console.print(f"{name}: {count} decisions, the chain holds", highlight=False)


@app.command("show")
def show(
    files: _Files,
    subject: Annotated[str, typer.Option(help="Only about this meter.")] = "",
    caller: Annotated[str, typer.Option(help="Only asked by this participant.")] = "",
    refused: Annotated[bool, typer.Option(help="Only what was refused.")] = False,
    as_json: _Json = False,
) -> None:
    """Show decisions, oldest first."""
    from app.trail import BadTrail, verified

    try:
        found = [
            one
            for file in files
            for one in verified(file)
            if subject in ("", one["subject"]) and caller in ("", one["caller"])
            if not refused or one["outcome"] != "allowed"
        ]
    except (OSError, BadTrail) as error:
        fail(str(error))
    names = ("at", "caller", "act", "subject", "pence", "outcome", "rule")
    if as_json:
        print_json({"decisions": found})
    else:
        print_table("Decisions", names, [[one[name] for name in names] for one in found])
