"""What commands print: tables for people, one JSON object for scripts, one sentence for errors."""

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

EXIT_FAILED = 1
EXIT_USAGE = 2
# Nobody knows yet whether it was done; the same command asks again.
EXIT_NO_ANSWER = 75
EXIT_TERMINATED = 143
_PIPE_COLUMNS = 10_000

# What is printed are names and ids of others: nothing in them is mark-up.
console = Console(markup=False, emoji=False)
errors = Console(stderr=True, markup=False, emoji=False)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on one line."""
    typer.echo(json.dumps(value))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        # On a narrow screen a long id goes on in the next line: nothing is cut off.
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    if console.is_terminal:
        console.print(table)
        return
    # In a pipe a row is one line, however long.
    wide = Console(file=console.file, markup=False, emoji=False, width=_PIPE_COLUMNS)
    wide.print(table)


def fail(message: str, *, code: int = EXIT_FAILED) -> NoReturn:
    """Print why nothing was done, on standard error, and end."""
    errors.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def end_on_sigterm() -> None:
    """Let SIGTERM end this command as Ctrl-C does: by way of every `finally`, so that nothing it started is left."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
