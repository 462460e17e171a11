"""Options of the commands that an operator asks any node of the cluster with."""

from pathlib import Path
from typing import Annotated

import typer

Target = Annotated[str, typer.Option("--target", help="host:port of nodes, comma between them; any one answers.")]
Cert = Annotated[Path, typer.Option("--cert", help="PEM file of an operator's certificate.")]
Key = Annotated[Path, typer.Option("--key", help="PEM file of its private key.")]
Ca = Annotated[Path, typer.Option("--ca", help="PEM file of the nodes' authority.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]
