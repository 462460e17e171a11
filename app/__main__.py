"""The `utrn` command: what it can do, and nothing more; each group of commands has its file in app/cli."""

import sys

import typer

from app.cli import (
    appoint,
    audit,
    callers,
    cases,
    check_config,
    cluster,
    conformance,
    credit,
    demo,
    drill,
    hsm,
    ledger,
    meters,
    pans,
    parties,
    pki,
    registry,
    sales,
    sandbox,
    serve,
)
from app.cli.output import EXIT_USAGE, errors

app = typer.Typer(
    name="utrn",
    help="UTRN core: turns paid energy top-ups into credited prepayment meters, once each.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.command("serve")(serve.serve)
app.command("check-config")(check_config.check_config)
app.command("topup")(callers.topup)
app.command("issue")(callers.issue)
callers.vend.command("cases")(cases.cases)
callers.vend.command("settle")(cases.settle)
app.add_typer(callers.vend, name="vend")
app.command("conformance")(conformance.conformance)
app.command("demo")(demo.demo)
app.add_typer(cluster.app, name="cluster")
app.add_typer(drill.app, name="drill")
app.add_typer(hsm.app, name="hsm")
app.add_typer(ledger.app, name="ledger")
app.add_typer(pki.app, name="pki")
app.add_typer(registry.app, name="registry")
app.add_typer(parties.supplier, name="supplier")
app.add_typer(parties.psp, name="psp")
app.add_typer(appoint.app, name="appoint")
app.add_typer(meters.meter, name="meter")
app.add_typer(pans.pan, name="pan")
app.add_typer(audit.app, name="audit")
app.add_typer(credit.app, name="credit")
app.add_typer(sales.app, name="sales")
app.add_typer(sandbox.app, name="sandbox")


def main() -> None:
    """Run the command line."""
    try:
        app()
    except UnicodeEncodeError:
        errors.print("an argument is no text in UTF-8; mend it, and repeat", style="red")
        sys.exit(EXIT_USAGE)


if __name__ == "__main__":
    main()
