"""`utrn registry`: who takes part, which meters there are, and which PANs stand for them."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from app.cli.output import EXIT_FAILED, console, errors, fail, print_json
from core.domain.meter import Card, Meter
from core.domain.party import Participant

app = typer.Typer(no_args_is_help=True, help="Participants, meters and PANs.")

_File = Annotated[Path, typer.Argument(help="JSON lines; see docs/registry-file.md.")]
_Config = Annotated[Path, typer.Option("--config", "-c", help="A node's TOML file: says where etcd is.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]


@app.command("check")
def check(file: _File, config: _Config, as_json: _Json = False) -> None:
    """Check a file against itself and against what is registered; load nothing."""
    _report(asyncio.run(_load(file, config, write=False, as_json=as_json)), "fit", as_json=as_json)


@app.command("load")
def load(file: _File, config: _Config, as_json: _Json = False) -> None:
    """Load a file: all of its lines or none. Loading it again changes nothing."""
    _report(asyncio.run(_load(file, config, write=True, as_json=as_json)), "loaded", as_json=as_json)


async def _load(file: Path, config_file: Path, *, write: bool, as_json: bool) -> dict[str, int]:
    from app.config import BadConfig, load_config
    from app.registry_file import BadRegistryFile, read_registry_file
    from cluster.client import EtcdClient, EtcdRefused, EtcdUnknown, EtcdUnreachable
    from cluster.registry import RegistryWriter

    try:
        config = load_config(config_file)
    except BadConfig as error:
        fail(str(error))
    client = EtcdClient(config.etcd)
    try:
        writer = RegistryWriter(client, config.etcd)
        participants, meters = await writer.known()
        records = read_registry_file(
            file, pan_rule=config.flow.pan, known_participants=participants, known_meters=meters
        )
        if write:
            with Progress(console=errors, disable=as_json) as progress:
                task = progress.add_task("loading", total=len(records))
                await writer.load(records, progress=lambda done: progress.update(task, completed=done))
    except BadRegistryFile as bad:
        if as_json:
            print_json({"ok": False, "problems": bad.problems})
            raise typer.Exit(EXIT_FAILED) from bad
        fail("\n".join([f"{file}: nothing was loaded:", *bad.problems]))
    except (EtcdUnreachable, EtcdUnknown, EtcdRefused) as error:
        fail(f"etcd: {error}; load the file again when it is back")
    finally:
        await client.close()
    return {kind.__name__: sum(isinstance(one, kind) for one in records) for kind in (Participant, Meter, Card)}


def _report(counts: dict[str, int], word: str, *, as_json: bool) -> None:
    plain = {"participants": counts["Participant"], "meters": counts["Meter"], "pans": counts["Card"]}
    if as_json:
        print_json({"ok": True, **plain})
    else:
        console.print(", ".join(f"{count} {kind}" for kind, count in plain.items()), f"{word}.", highlight=False)
