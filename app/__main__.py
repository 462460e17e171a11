"""The `utrn` command: what it can do, and nothing more; each group of commands has its file in app/cli.

Only the file of the command that was asked for is imported: a command starts as fast as what it needs.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any, Final, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from app.terminal.invocation import PROFILE
from app.terminal.output import EXIT_USAGE, errors


class _Place(NamedTuple):
    """Where a command or a group of them is, and its line in the list of all."""

    module: str
    name: str
    help: str


_PLACES: Final = {
    "serve": _Place("serve", "serve", "Run one node until SIGTERM; logs are JSON lines on standard error."),
    "check-config": _Place(
        "check_config", "check_config",
        "Check a node's configuration: every key, every rule, its files; show what TLS will use."
    ),
    "conformance": _Place(
        "conformance", "conformance", "Compute every vector of FILE through the HSM path, and compare."
    ),
    "demo": _Place(
        "demo", "demo",
        "Start three etcd, three nodes and the sandbox; sell over a bad network; kill a node; audit to the penny.",
    ),
    "cluster": _Place("cluster", "app", "Nodes, shards, etcd members; with an operator's certificate."),
    "drill": _Place("drill", "app", "Failover drills: real processes, steady load, one fault, the audit."),
    "hsm": _Place("hsm", "app", "The HSM token and the suppliers' keys."),
    "ledger": _Place("ledger", "app", "The ledger itself; on a node's machine, with its configuration."),
    "pki": _Place("pki", "app", "Certificates for development."),
    "registry": _Place("registry", "app", "Registry files: check and load them."),
    "supplier": _Place("participants", "supplier", "Suppliers: on board, suspended, offboarded; their profiles."),
    "participant": _Place(
        "participants", "participant", "PSPs and other participants: on board, suspended, offboarded."
    ),
    "appoint": _Place("appoint", "app", "Appointments of PSPs by suppliers."),
    "meter": _Place("meters", "meter", "Meters: registered, changed, handed from one to another; who could sell."),
    "meter-model": _Place("meter_models", "app", "The capability matrix: what the meters of a make and model can do."),
    "pan": _Place("pans", "pan", "PANs: given, replaced, blocked, pointed elsewhere."),
    "vend": _Place("vends", "vend", "Vends: issued, delivered, shown, settled."),
    "approval": _Place("approval", "app", "What needs two operators: list, approve, withdraw."),
    "audit": _Place("audit", "app", "The audit files: who asked for what, which rule decided, what was sold."),
    "credit": _Place("credit", "app", "Credit without payment: two people of a supplier."),
    "sales": _Place("sales", "app", "What commands have asked for and have no final answer to."),
    "sandbox": _Place("sandbox", "app", "A head end and a fleet of meters, emulated."),
}  # fmt: skip


class _OnDemand(Mapping[str, Any]):
    """Every command by its name, made when it is asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """Return a command."""
        if name not in self._made:
            self._made[name] = _make(name, _PLACES[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(_PLACES)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(_PLACES)


def _make(name: str, place: _Place) -> Any:
    from app.cli.command import Commands

    found = getattr(import_module(f"app.cli.{place.module}"), place.name)
    if isinstance(found, Commands):
        group = typer.main.get_command(found)
        group.name = name
        return group
    one = Commands(help=place.help)
    one.command(name)(found)
    return typer.main.get_command(one)


class _Utrn(TyperGroup):
    """All commands; the list of them imports none."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = _OnDemand()  # type: ignore[assignment]  # nothing is added to it
        self._listing = False

    def list_commands(self, ctx: Any) -> list[str]:  # typer has its own copy of click's types
        """Return the names."""
        return list(_PLACES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; in the list of all, only its name and its line."""
        if self._listing:
            return TyperCommand(name=cmd_name, help=_PLACES[cmd_name].help)
        return super().get_command(ctx, cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        with self._names_alone():
            super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Return what may follow: a shell waits for it at each press of the tab key."""
        with self._names_alone():
            return super().shell_complete(ctx, incomplete)

    @contextmanager
    def _names_alone(self) -> Iterator[None]:
        self._listing = True
        try:
            yield
        finally:
            self._listing = False


app = typer.Typer(
    name="utrn",
    cls=_Utrn,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_show_locals=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"utrn {metadata.version('utrn')}")
        raise typer.Exit


@app.callback()
def _utrn(
    profile: Annotated[
        str, typer.Option(help="Table of ~/.config/utrn/config.toml that says whom to ask, and as whom.")
    ] = "",
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and end.")
    ] = False,
) -> None:
    """UTRN core: turns paid energy top-ups into credited prepayment meters, once each."""
    PROFILE.set(profile)


def main() -> None:
    """Run the command line."""
    try:
        app()
    except UnicodeEncodeError:
        errors.print("an argument is no text in UTF-8; mend it, and repeat", style="red")
        sys.exit(EXIT_USAGE)


if __name__ == "__main__":
    main()
