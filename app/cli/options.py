"""Options that commands share: whom to ask, as whom, and how the answer is printed.

Each of the connection's can also come from the environment or from the profile; see app/cli/profile.py.
"""

from pathlib import Path
from typing import Annotated

import typer

TARGET = Annotated[
    str, typer.Option("--target", envvar="UTRN_TARGET", help="host:port of nodes, comma between them; any one answers.")
]
CERT = Annotated[Path, typer.Option("--cert", envvar="UTRN_CERT", help="PEM file of the caller's certificate.")]
KEY = Annotated[Path, typer.Option("--key", envvar="UTRN_KEY", help="PEM file of its private key.")]
CA = Annotated[Path, typer.Option("--ca", envvar="UTRN_CA", help="PEM file of the nodes' authority.")]
SERVER_NAME = Annotated[
    str,
    typer.Option(
        "--server-name",
        envvar="UTRN_SERVER_NAME",
        help="Name in the nodes' certificates; left out: the host of each target.",
    ),
]
JSON = Annotated[bool, typer.Option("--json", help="One JSON object, with the names of the contract.")]
YES = Annotated[bool, typer.Option("--yes", help="Do not ask first whether to do what cannot be undone.")]
DRY_RUN = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
# Whom a command asks and as whom, by its parameters; the profile can say each of them.
CONNECTION = ("target", "cert", "key", "ca", "server_name")
