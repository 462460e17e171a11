"""`utrn pki`: certificates for development."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.command import Commands
from app.terminal.output import errors, print_json, print_table

app = Commands(help="Certificates for development.")


@app.callback()
def _group() -> None:
    """Certificates for development."""


@app.command("dev")
def dev(
    folder: Annotated[Path, typer.Option("--dir", help="Where the authorities and their certificates live.")],
    participant: Annotated[list[str] | None, typer.Option(help="Participant id; may be repeated.")] = None,
    node: Annotated[list[str] | None, typer.Option(help="Node id; may be repeated.")] = None,
    etcd: Annotated[list[str] | None, typer.Option(help="Host name of an etcd member; may be repeated.")] = None,
    head_end: Annotated[list[str] | None, typer.Option(help="Host name of a head end; may be repeated.")] = None,
    renew: Annotated[bool, typer.Option(help="Make certificates anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Make development authorities (callers, nodes, head ends, etcd), and certificates of each.

    A node gets three: its own, and one each by which it reaches etcd and head ends.
    """
    from app.devstack.ca import DevPki
    from core.gateways.system_clock import SystemClock

    pki = DevPki.load_or_create(folder, now=SystemClock().now())
    made = [pki.participant(name, renew=renew) for name in participant or ()]
    for name in node or ():
        made += [issue(name, renew=renew) for issue in (pki.node, pki.etcd_client, pki.head_end_client)]
    made += [pki.etcd_member(name, renew=renew) for name in etcd or ()]
    made += [pki.head_end(name, renew=renew) for name in head_end or ()]
    names = ("name", "cert", "key", "ca")
    rows = [(paths.cert.stem, str(paths.cert), str(paths.key), str(paths.ca)) for paths in made]
    if as_json:
        authorities = {"callers": pki.callers, "nodes": pki.nodes, "head_ends": pki.head_ends, "etcd": pki.etcd}
        print_json(
            {
                "authorities": {name: str(one.ca_file) for name, one in authorities.items()},
                "certificates": [dict(zip(names, row, strict=True)) for row in rows],
            }
        )
    else:
        print_table(
            f"Certificates in {folder}", ("name", "certificate", "private key", "authority of the other side"), rows
        )
        errors.print("For development only: the authorities' keys lie beside their certificates.", style="yellow")
