"""What commands print: tables for people, one JSON object for scripts, one sentence for errors."""

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import typer
from rich.console import Console

from app.terminal.invocation import invocation

EXIT_FAILED = 1
EXIT_USAGE = 2
# Nobody knows yet whether it was done; the same command asks again.
EXIT_NO_ANSWER = 75
EXIT_TERMINATED = 143
_PIPE_COLUMNS = 10_000

_KEPT = "\n"


def visible(text: str) -> str:
    """Return `text` with every character escaped that a terminal would obey or not show.

    Strangers choose names, ids and whole requests: none of them may move a cursor, set a title, or turn the line round.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in _KEPT else one.encode("unicode_escape").decode() for one in text)


class _Terminal(Console):
    """A console on which nothing that is printed is mark-up, and nothing is obeyed."""

    def print(self, *objects: Any, **how: Any) -> None:
        """Print, with what is text made visible."""
        super().print(*(visible(object_) if isinstance(object_, str) else object_ for object_ in objects), **how)


console = _Terminal(markup=False, emoji=False)
errors = _Terminal(stderr=True, markup=False, emoji=False)


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on one line."""
    typer.echo(json.dumps(value))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table."""
    from rich.table import Table

    table = Table(title=visible(title), title_justify="left")
    for column in columns:
        # On a narrow screen a long id goes on in the next line: nothing is cut off.
        table.add_column(visible(column), overflow="fold")
    for row in rows:
        table.add_row(*(visible(str(cell)).replace("\n", "\\n") for cell in row))
    if console.is_terminal:
        console.print(table)
        return
    # In a pipe a row is one line, however long.
    wide = Console(file=console.file, markup=False, emoji=False, width=_PIPE_COLUMNS)
    wide.print(table)


def fail(message: str, *, code: int = EXIT_FAILED, refusal: Mapping[str, Any] | None = None) -> NoReturn:
    """Print why nothing was done, on standard error, and as one JSON object on standard output if that was asked for.

    Args:
        message: The sentence.
        code: With which the command ends.
        refusal: What is known of it where a node refused; see app.cli.rpc.refusal_json.
    """
    errors.print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    if invocation().as_json:
        print_problem(message, code=code, refusal=refusal)
    raise typer.Exit(code)


def print_problem(message: str, *, code: int, refusal: Mapping[str, Any] | None = None) -> None:
    """Print why a command ends as a JSON object whose keys are always the same.

    `reason` is a node's (docs/errors.md), else USAGE or FAILED; `status` is gRPC's, "" if no node was asked; `final`
    says that under this id nothing is ever sold; `retry_ms` when to ask again, null if nothing was said.
    """
    known = refusal or {
        "reason": "USAGE" if code == EXIT_USAGE else "FAILED", "status": "", "message": message, "final": False,
        "retry_ms": None, "facts": {}, "field_violations": [], "advice": "",
    }  # fmt: skip
    print_json({"error": {**known, "text": message, "exit_code": code}})


def end_on_sigterm() -> None:
    """Make SIGTERM end this command as Ctrl-C does: by way of every `finally`, so that nothing it started is left."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
