"""`utrn check-config`: checks a node's configuration with the code that a node starts with."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.output import EXIT_FAILED, console, fail, print_json


def check_config(
    file: Annotated[Path, typer.Argument(help="The node's TOML file.")],
    files: Annotated[bool, typer.Option(help="Also look whether the files it names are there and private.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Check a node's configuration: every key, every rule, and the files it names."""
    from app.config import BadConfig, load_config, problems_of

    try:
        config = load_config(file)
        problems = problems_of(config) if files else []
    except BadConfig as error:
        problems = str(error).splitlines()
    if as_json:
        print_json({"ok": not problems, "problems": problems})
    elif not problems:
        console.print(f"{file}: every key is known and fits.", highlight=False)
    else:
        fail("\n".join(problems))
    if problems:
        raise typer.Exit(EXIT_FAILED)
