"""`utrn pki`: certificates for development."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.command import Commands
from app.cli.output import errors, print_json, print_table

app = Commands(help="Certificates for development.")


@app.callback()
def _group() -> None:
    """Certificates for development."""


@app.command("dev")
def dev(
    folder: Annotated[Path, typer.Option("--dir", help="Where the authority and its certificates live.")],
    participant: Annotated[list[str] | None, typer.Option(help="Participant id; may be repeated.")] = None,
    server: Annotated[list[str] | None, typer.Option(help="Name of a server (node, etcd, head end).")] = None,
    renew: Annotated[bool, typer.Option(help="Make certificates anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Make a development authority, and certificates for participants and servers."""
    from app.clock import SystemClock
    from app.pki import DevCa, participant_uri

    ca = DevCa.load_or_create(folder, now=SystemClock().now())
    made = {name: ca.issue(name, uri=participant_uri(name), renew=renew) for name in participant or ()}
    made |= {name: ca.issue(name, server=True, renew=renew) for name in server or ()}
    rows = [(name, str(paths.cert), str(paths.key)) for name, paths in made.items()]
    if as_json:
        print_json(
            {
                "ca": str(ca.ca_file),
                "certificates": [dict(zip(("name", "cert", "key"), row, strict=True)) for row in rows],
            }
        )
    else:
        print_table(f"Issued by {ca.ca_file}", ("name", "certificate", "private key"), rows)
        errors.print("For development only: the authority's key lies beside its certificates.", style="yellow")
