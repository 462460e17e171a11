"""Tells stories with the command line: commands run in this process, as participants of a running stack."""

import contextlib
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import typer

from app.__main__ import app
from app.devstack.ca import CertPaths
from app.devstack.stack import DevStack
from app.terminal import output
from core.domain.meter import luhn_digit
from core.gateways.system_clock import SystemClock

WEST_SECOND = "west-second"
GROUPS = ("registry", "meter-model", "supplier", "participant", "appoint", "meter", "pan", "credit", "vend")
# A line of a registry file is JSON already.
WITHOUT_JSON = {"appoint sign"}
CLOCK = SystemClock()
# Made once: making it takes as long as most commands do.
COMMAND = typer.main.get_command(app)


def in_(**shift: float) -> str:
    """An instant so far from now, as it is typed."""
    return (CLOCK.now() + timedelta(**shift)).isoformat(timespec="milliseconds")


def meter_id_of(number: int) -> str:
    return f"00db17{number:010x}"


def pan_of(number: int) -> str:
    digits = f"9826000000007{number:05d}"
    return digits + luhn_digit(digits)


@dataclass
class Teller:
    """Runs commands in this process, as participants of a stack, and remembers which ran in which form."""

    stack: DevStack
    runs: set[tuple[str, bool]] = field(default_factory=set)
    others: dict[str, CertPaths] = field(default_factory=dict)
    errors: str = ""

    def options(self, who: str) -> list[str]:
        certs = self.others.get(who) or self.stack.certs(who)
        return [
            "--target", self.stack.node_target("node-a"), "--cert", str(certs.cert), "--key", str(certs.key),
            "--ca", str(certs.ca),
        ]  # fmt: skip

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run a command and return what it printed; its errors are left in `errors`."""
        ended, printed, self.errors = invoke(arguments)
        assert ended == code, (arguments, printed, self.errors)
        self.runs.add((command_of(arguments), "--json" in arguments))
        return printed

    def table(self, who: str, *arguments: str, code: int = 0) -> str:
        """Run a command as a participant; return what people read."""
        return self.run(*arguments, *self.options(who), code=code)

    def json(self, who: str, *arguments: str, code: int = 0) -> dict[str, Any]:
        """Run a command as a participant; return the one object that it printed, whose keys are the contract's."""
        return one_object(self.run(*arguments, *self.options(who), "--json", code=code))

    def both(self, who: str, *arguments: str) -> dict[str, Any]:
        """Run a change twice: with --json it is made, with a table there is nothing left to do."""
        done = self.json(who, *arguments)
        assert done["changed"], arguments
        assert "nothing to do" in self.table(who, *arguments)
        return done

    def refused(self, who: str, *arguments: str) -> str:
        """Run a command that a node refuses, and return its one line, without what it says of transaction ids."""
        self.table(who, *arguments, code=1)
        lines = [line for line in self.errors.splitlines() if not line.startswith("transaction_id")]
        assert len(lines) == 1, self.errors
        return lines[0]

    def works(self, who: str, *arguments: str) -> bool:
        """Return whether a command ends well, whatever it prints."""
        return invoke((*arguments, *self.options(who)))[0] == 0

    def until(self, question: Callable[[], bool]) -> None:
        """Ask a node until it knows what another call has written; it knows within a second."""
        end = CLOCK.monotonic() + 10
        while not question():
            assert CLOCK.monotonic() < end, "the node does not come to know it"


def invoke(arguments: Sequence[str]) -> tuple[int, str, str]:
    """Run a command; return its exit code, what it printed, and its errors. What asks first is told to go on."""
    arguments = meant(arguments)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            COMMAND(list(arguments), prog_name="utrn")
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), err.getvalue()


def meant(arguments: Sequence[str]) -> list[str]:
    """Return arguments with --yes if the command asks before what cannot be undone: nobody answers here."""
    here: Any = COMMAND
    for argument in arguments:
        here = getattr(here, "commands", {}).get(argument) or here
    asks = any("--yes" in param.opts for param in here.params)
    return [*arguments, *(["--yes"] if asks and not {"--yes", "--dry-run"} & {*arguments} else [])]


def one_object(text: str) -> dict[str, Any]:
    """Return the object that is all of a text."""
    found: dict[str, Any] = json.loads(text)
    assert text.count("\n") == 1, "one object, one line"
    assert all(re.fullmatch(r"[a-z0-9_-]+", key) for key in _keys(found)), "names of the contract, nothing of a table"
    return found


def _keys(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _keys(inner)


def command_of(arguments: tuple[str, ...]) -> str:
    """Return which command arguments name."""
    names, here = [], COMMAND
    for argument in arguments:
        inner = getattr(here, "commands", {}).get(argument)
        if inner is None:
            break
        names.append(argument)
        here = inner
    return " ".join(names)


def commands() -> set[str]:
    """Return every command of the market's groups."""
    groups = COMMAND.commands  # type: ignore[attr-defined]  # a group has them
    return {f"{group} {name}" for group in GROUPS for name in groups[group].commands}


def never_run(runs: set[tuple[str, bool]]) -> set[tuple[str, bool]]:
    """Return the commands that are missing in a form: with a table (False), with --json (True)."""
    forms = {(name, True) for name in commands() - WITHOUT_JSON} | {(name, False) for name in commands()}
    return forms - runs


def teller_of(stack: DevStack, monkeypatch: pytest.MonkeyPatch) -> Teller:
    """Return a teller that prints so wide that no cell is folded, and has the second person of the story's supplier."""
    monkeypatch.setattr(output.console, "_width", 400)
    monkeypatch.setattr(output.errors, "_width", 400)
    return Teller(stack, others={WEST_SECOND: stack.pki.participant(WEST_SECOND)})
