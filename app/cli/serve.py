"""`utrn serve`: runs one node."""

from pathlib import Path
from typing import Annotated

import typer

from app.terminal.output import fail


def serve(config: Annotated[Path, typer.Option("--config", "-c", help="The node's TOML file.")]) -> None:
    """Run one node until SIGTERM; logs are JSON lines on standard error."""
    from app.node.assembly import build
    from app.node.config import BadConfig, load_config, problems_of
    from app.node.logging import all_of_it_json
    from app.node.process_lock import FolderInUse, ProcessLock
    from app.node.run import EXIT_REFUSED, raise_descriptors
    from app.node.run import serve as run
    from app.node.tls import BadTls
    from hsm.errors import HsmRefused

    try:
        settings = load_config(config)
    except BadConfig as error:
        fail(str(error), code=EXIT_REFUSED)
    problems = problems_of(settings)
    if problems:
        fail("\n".join(problems), code=EXIT_REFUSED)
    try:
        # Two processes of one node would take each other's lease, and write over what it last knew of the ledger.
        with (
            ProcessLock(settings.node.trail / f"{settings.node.node_id}.lock"),
            all_of_it_json(settings.node.log_level),
        ):
            raise_descriptors()
            code = run(lambda: build(settings))
    except (BadTls, FolderInUse, HsmRefused, OSError) as error:
        fail(str(error), code=EXIT_REFUSED)
    raise typer.Exit(code)
