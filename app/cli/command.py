"""Commands: what every command of `utrn` has beside its own arguments.

A command that asks nodes gets `--server-name`, and takes whom it asks from the profile. One that does what cannot be
undone (`for_good`) gets `--yes` and `--dry-run`, and asks first. A wrong use has its JSON under `--json`.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, TypeVar, get_type_hints

import typer
from typer.core import TyperCommand

from app.cli.options import CA, CERT, DRY_RUN, SERVER_NAME, TARGET, YES
from app.cli.profile import ProfileDefaults
from app.terminal.invocation import Invocation, invoked_as
from app.terminal.output import EXIT_USAGE, console, fail, print_json, print_problem

_Function = TypeVar("_Function", bound=Callable[..., Any])
# What a command does for good, as a sentence that ends with "...", of its arguments; "" for nothing this time.
ForGood = str | Callable[[Mapping[str, Any]], str]


class UtrnCommand(TyperCommand):
    """One command; wrong arguments are told in JSON too if that was asked for."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # typer has its own copy of click's types
        """Parse what was typed."""
        as_json = "--json" in args
        try:
            return super().parse_args(ctx, args)
        except typer.TyperException as error:
            if as_json:
                print_problem(error.format_message(), code=EXIT_USAGE)
            raise


class Commands(typer.Typer):
    """A group of commands."""

    def __init__(self, *, help: str) -> None:  # noqa: A002  # typer's name
        super().__init__(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False, help=help)

    def command(  # type: ignore[override]  # fewer settings than typer's
        self,
        name: str,
        *,
        for_good: ForGood = "",
        help: str | None = None,  # noqa: A002  # typer's name
    ) -> Callable[[_Function], _Function]:
        """Make a function a command.

        Args:
            name: As it is typed.
            for_good: What it does that cannot be undone, as a format of its arguments ("offboards {participant_id}")
                or a function of them; then it asks first.
            help: Instead of the function's docstring.
        """

        def register(function: _Function) -> _Function:
            hints = get_type_hints(function, include_extras=True)
            settings = {"default_map": ProfileDefaults()} if hints.get("cert") == CERT else None
            make = super(Commands, self).command(name, cls=UtrnCommand, help=help, context_settings=settings)
            make(_whole(function, hints, for_good))
            return function

        return register


def _whole(function: Callable[..., Any], hints: Mapping[str, Any], for_good: ForGood) -> Callable[..., None]:
    """Return a function that also takes the shared options, and does what they say before it calls `function`."""
    added: dict[str, tuple[Any, Any]] = {}
    if hints.get("target") == TARGET and hints.get("ca") == CA:
        added["server_name"] = (SERVER_NAME, "")
    if for_good:
        added |= {"yes": (YES, False), "dry_run": (DRY_RUN, False)}
    signature = inspect.signature(function)
    own = [parameter.replace(annotation=hints[parameter.name]) for parameter in signature.parameters.values()]
    keyword = inspect.Parameter.KEYWORD_ONLY
    more = [inspect.Parameter(name, keyword, default=value, annotation=kind) for name, (kind, value) in added.items()]

    @wraps(function)
    def run(**values: Any) -> None:
        shared = {name: values.pop(name) for name in added}
        as_json = bool(values.get("as_json", False))
        with invoked_as(Invocation(as_json=as_json, server_name=str(shared.get("server_name", "")))):
            if for_good:
                told = {name: ", ".join(one) if isinstance(one, list) else one for name, one in values.items()}
                what = for_good.format(**told) if isinstance(for_good, str) else for_good(told)
                if what:
                    _ask_first(what, yes=shared["yes"], dry_run=shared["dry_run"], as_json=as_json)
            function(**values)

    run.__signature__ = signature.replace(  # type: ignore[attr-defined]  # what typer looks at
        parameters=_in_order([*own, *more])
    )
    run.__annotations__ = {one.name: one.annotation for one in [*own, *more]}
    return run


def _in_order(parameters: Sequence[inspect.Parameter]) -> list[inspect.Parameter]:
    """Return parameters as keywords: typer calls by name, and one without a default may follow one with."""
    return [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]


def _ask_first(what: str, *, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Return if it is to be done; end the command if not."""
    if dry_run:
        if as_json:
            print_json({"dry_run": True, "would": what})
        else:
            console.print(f"would: {what}; nothing was done", highlight=False, soft_wrap=True)
        raise typer.Exit
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        fail(
            f"{what}: that cannot be undone; repeat with --yes if it is meant, with --dry-run to see; nothing was done",
            code=EXIT_USAGE,
        )
    if not typer.confirm(f"{what}: that cannot be undone. Go on?", err=True):
        fail("nothing was done", code=EXIT_USAGE)
