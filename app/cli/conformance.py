"""`utrn conformance`: computes known answers through the HSM, on a token made for the purpose."""

from pathlib import Path
from typing import Annotated

import typer

from app.terminal.output import EXIT_FAILED, EXIT_USAGE, console, errors, fail, print_json


def conformance(
    file: Annotated[Path, typer.Argument(help="A utrn-conformance/1 file.")],
    module: Annotated[Path | None, typer.Option("--module", help="PKCS#11 library; SoftHSM's if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Compute every vector of FILE through the HSM path, and compare."""
    from app.verification.conformance import BadVectorFile, run_conformance
    from hsm.errors import HsmRefused

    try:
        with errors.status("computing", spinner="dots"):
            failures, passed = run_conformance(file, module)
    except (BadVectorFile, FileNotFoundError, HsmRefused) as error:
        fail(str(error), code=EXIT_USAGE)
    if as_json:
        print_json({"passed": passed, "failed": len(failures), "failures": failures})
    else:
        for failure in failures:
            console.print(failure, style="red", markup=False, highlight=False)
        console.print(f"{passed} passed, {len(failures)} failed", highlight=False)
    if failures:
        raise typer.Exit(EXIT_FAILED)
