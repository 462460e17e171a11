"""`utrn check-config`: checks a node's configuration with the code that a node starts with."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.terminal.output import EXIT_FAILED, console, errors, fail, print_json, print_table

if TYPE_CHECKING:
    from app.node.config import Config
    from app.node.tls import Shown


def check_config(
    file: Annotated[Path, typer.Argument(help="The node's TOML file.")],
    files: Annotated[bool, typer.Option(help="Also read the files it names, as a node does.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Check a node's configuration: every key, every rule, its files; show what TLS will use."""
    from app.node.config import BadConfig, load_config
    from app.node.tls import ends_of
    from core.gateways.system_clock import SystemClock

    shown: tuple[Shown, ...] = ()
    try:
        problems, shown = _read(load_config(file), files=files)
    except BadConfig as error:
        problems = str(error).splitlines()
    ends = ends_of(shown, SystemClock().now())
    if as_json:
        certificates = [
            {"key": one.key, "use": one.use, "subject": one.subject, "ends": one.ends.isoformat()} for one in shown
        ]
        print_json({"ok": not problems, "problems": problems, "ends_soon": ends, "certificates": certificates})
    elif problems:
        fail("\n".join(problems))
    else:
        console.print(f"{file}: every key is known and fits.", highlight=False)
        rows = [(one.key, one.use, one.subject, f"{one.ends:%Y-%m-%d}") for one in shown]
        if rows:
            print_table("What TLS will use", ("key", "use", "subject", "ends"), rows)
        for line in ends:
            errors.print(line, style="yellow", highlight=False)
    if problems:
        raise typer.Exit(EXIT_FAILED)


def _read(config: "Config", *, files: bool) -> "tuple[list[str], tuple[Shown, ...]]":
    """Return what is wrong with the files of a configuration, and the certificates in them."""
    from app.node.config import problems_of
    from app.node.tls import BadTls, read_tls

    if not files:
        return [], ()
    problems = problems_of(config)
    try:
        return problems, read_tls(config).shown
    except BadTls as error:
        return [*problems, *str(error).splitlines()], ()
