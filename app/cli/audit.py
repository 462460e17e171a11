"""`utrn audit`: the trail of decisions, verified and read."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.command import Commands
from app.cli.output import console, fail, print_json, print_table

if TYPE_CHECKING:
    from cluster.anchors import Anchor

app = Commands(help="The trail of decisions: who asked for what, and which rule decided.")

_Files = Annotated[list[Path], typer.Argument(help="Trail files.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.command("verify")
def verify(
    files: _Files,
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration of the node that wrote them: compare with the anchors in etcd too."),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Check that trails are what was written: no line changed, taken out or put in; no file cut off or missing."""
    from app.trail import BadTrail, verified

    anchors = {} if config is None else _anchors(config)
    missing = sorted(set(anchors) - {file.name for file in files})
    try:
        counts = {str(file): sum(1 for _ in verified(file, anchors.get(file.name))) for file in files}
    except (OSError, BadTrail) as error:
        fail(str(error))
    unread = sorted(name for name, anchor in anchors.items() if anchor is None)
    if unread:
        fail(f"anchored in a form that this program cannot understand: {', '.join(unread)}; use a newer one")
    if missing:
        fail(f"anchored, and not among the files: {', '.join(missing)}; name them too, or say where they went")
    if as_json:
        print_json({"ok": True, "decisions": counts, "anchored": sorted(anchors)})
        return
    for name, count in counts.items():
        known = ", anchored" if Path(name).name in anchors else ""
        console.print(f"{name}: {count} decisions, the chain holds{known}", highlight=False)


def _anchors(config: Path) -> "dict[str, Anchor | None]":
    import asyncio

    from app.clock import SystemClock
    from app.config import load_config
    from cluster.anchors import TrailAnchors
    from cluster.client import EtcdClient
    from core.domain.errors import LedgerUnavailable

    loaded = load_config(config)

    async def read() -> "dict[str, Anchor | None]":
        client = EtcdClient(loaded.etcd)
        try:
            return await TrailAnchors(client, loaded.etcd, SystemClock()).all_of(loaded.node.node_id)
        finally:
            await client.close()

    try:
        return asyncio.run(read())
    except LedgerUnavailable as error:
        fail(error.message)


@app.command("show")
def show(
    files: _Files,
    subject: Annotated[str, typer.Option(help="Only about this meter.")] = "",
    caller: Annotated[str, typer.Option(help="Only asked by this participant.")] = "",
    refused: Annotated[bool, typer.Option(help="Only what was refused.")] = False,
    as_json: _Json = False,
) -> None:
    """Show decisions, oldest first."""
    from app.trail import BadTrail, verified

    try:
        found = [
            one
            for file in files
            for one in verified(file)
            if subject in ("", one["subject"]) and caller in ("", one["caller"])
            if not refused or one["outcome"] != "allowed"
        ]
    except (OSError, BadTrail) as error:
        fail(str(error))
    names = ("at", "caller", "act", "subject", "pence", "outcome", "rule")
    if as_json:
        print_json({"decisions": found})
    else:
        print_table("Decisions", names, [[one[name] for name in names] for one in found])
