"""`utrn ledger`: makes a ledger, agrees on settings, and accepts one that is not what its nodes knew. Offline."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from app.cli.command import Commands
from app.terminal.output import EXIT_USAGE, console, fail, print_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cluster.etcd.client import EtcdClient
    from cluster.etcd.keys import Keys
    from cluster.etcd.ledger_guard import LedgerGuard
    from cluster.ledger.identity import LedgerSeen
    from cluster.ledger.state_file import LedgerState

app = Commands(help="The ledger itself; on a node's machine, with its configuration.")

_Config = Annotated[Path, typer.Option("--config", "-c", help="A node's TOML file.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]
_T = TypeVar("_T")
_WORDS = "counters may be given out again"


@dataclass(frozen=True, kw_only=True)
class _Bench:
    """What a command works with."""

    client: "EtcdClient"
    guard: "LedgerGuard"
    keys: "Keys"
    seen: "LedgerSeen"
    known: "LedgerState | None"
    settings: "Mapping[str, str]"


@app.command("create")
def create(config: _Config, as_json: _Json = False) -> None:
    """Make the ledger, once ever: its identity, and the settings that every node must have. Nodes start on no other."""
    from cluster.ledger.identity import create as make
    from cluster.ledger.identity import differences
    from core.gateways.system_clock import SystemClock

    async def work(bench: _Bench) -> tuple[str, bool]:
        if bench.seen.value is not None:
            differing = differences(bench.settings, bench.seen.settings)
            if differing:
                fail("\n".join(["there is a ledger already, and this configuration differs:", *differing]))
            return bench.seen.record.incarnation, False
        if bench.known is not None:
            fail(
                f"etcd.prefix is empty, and this node knows ledger {bench.known.incarnation}: "
                "see docs/runbooks/ledger-identity.md"
            )
        return await make(bench.client, bench.keys, bench.settings, SystemClock().now()), True

    incarnation, made = _run(config, work)
    if as_json:
        print_json({"incarnation": incarnation, "made": made})
    else:
        console.print(f"ledger {incarnation}: {'made' if made else 'it is there already'}", highlight=False)


@app.command("show")
def show(config: _Config, as_json: _Json = False) -> None:
    """Show the ledger's identity, the agreed settings, and what this node knew of it. Exit code 1 if they differ."""
    from cluster.ledger.identity import differences, unfit

    async def work(bench: _Bench) -> tuple[dict[str, Any], list[str]]:
        why = unfit(bench.keys, bench.seen, bench.known)
        settings = {} if bench.seen.agreed is None else dict(bench.seen.settings)
        problems = [why] if why else differences(bench.settings, settings)
        record = None if bench.seen.value is None else bench.seen.record
        return {
            "incarnation": "" if record is None else record.incarnation,
            "sequence": 0 if record is None else record.sequence,
            "before": [] if record is None else list(record.before),
            "revision": bench.seen.revision,
            "cluster_id": f"{bench.seen.cluster_id:x}",
            "known": None if bench.known is None else bench.known.incarnation,
            "known_revision": 0 if bench.known is None else bench.known.revision,
            "agreed": settings,
        }, problems

    found, problems = _run(config, work)
    if as_json:
        print_json({**found, "problems": problems})
    else:
        agreed = found.pop("agreed")
        for name, value in {**found, **{f"agreed {name}": value for name, value in sorted(agreed.items())}}.items():
            console.print(f"{name}: {value}", highlight=False, soft_wrap=True)
    if problems:
        fail("\n".join([*problems, "see docs/runbooks/ledger-identity.md"]))


@app.command("agree", for_good="makes the settings of {config} those that every node must have")
def agree(config: _Config) -> None:
    """Make this configuration's settings the agreed ones. Nodes that differ stop serving until they have them."""
    from cluster.ledger.identity import agree as write
    from cluster.ledger.identity import unfit
    from core.gateways.system_clock import SystemClock

    async def work(bench: _Bench) -> list[str]:
        why = unfit(bench.keys, bench.seen, bench.known)
        if why:
            fail(why)
        agreed = {} if bench.seen.agreed is None else bench.seen.settings
        if agreed and agreed.get("etcd.shards") != bench.settings["etcd.shards"]:
            fail("etcd.shards: the number of shards can never change: outbox and owners are filed under it")
        # Those that only another version knows too: they are gone by it.
        changed = [f"{name}: {agreed.get(name, 'nothing')} -> {bench.settings.get(name, 'nothing')}"
                   for name in sorted(agreed.keys() | bench.settings.keys())
                   if agreed.get(name) != bench.settings.get(name)]  # fmt: skip
        record = bench.seen.record
        there = bench.keys.ledger(), bench.seen.value or b""
        bench.guard.know(record.incarnation, there, bench.seen.revision, bench.seen.cluster_id)
        if changed:
            await write(bench.client, bench.keys, bench.settings, SystemClock().now(), seen=bench.seen)
        return changed

    changed = _run(config, work)
    for one in changed or ["nothing differs"]:
        console.print(one, highlight=False, soft_wrap=True)
    if changed:
        console.print("agreed: restart every node, with this configuration; one that differs serves nothing until then")


@app.command("accept")
def accept(
    config: _Config,
    i_know: Annotated[str, typer.Option("--i-know", help=f'"{_WORDS}", word for word.')] = "",
) -> None:
    """Take a ledger that is not what its nodes knew (restored, moved, emptied) as the ledger from now on.

    It gets a new incarnation; nodes that run go on refusing it until they are restarted.
    """
    from cluster.ledger.identity import accept as write
    from core.gateways.system_clock import SystemClock

    if i_know != _WORDS:
        fail(
            "A ledger that was put back has forgotten codes that were sold after it was saved. Their counters will be\n"
            "given out again with other content: a consumer who enters the later code pays for nothing, and what was\n"
            "sold may stand for another payment. Stop every node, and reconcile first:\n"
            "docs/runbooks/ledger-identity.md. Then repeat with\n"
            f'  --i-know "{_WORDS}"',
            code=EXIT_USAGE,
        )

    async def work(bench: _Bench) -> str:
        now = SystemClock().now()
        return await write(bench.client, bench.keys, bench.seen, bench.known, bench.settings, now)

    console.print(f"ledger {_run(config, work)}: accepted; start the nodes again", highlight=False)


def _run(config: Path, work: Callable[[_Bench], Awaitable[_T]]) -> _T:
    """Look at the ledger and this node's state, and do `work`; end with a sentence if that is not possible."""
    from app.node.agreed_settings import agreed_settings
    from app.node.config import BadConfig, load_config
    from cluster.codec.vend import Unreadable
    from cluster.etcd.client import EtcdClient, EtcdRefused, EtcdUnknown, EtcdUnreachable
    from cluster.etcd.keys import Keys
    from cluster.etcd.ledger_guard import LedgerGuard
    from cluster.ledger.identity import LedgerThere, LedgerUnfit, look
    from cluster.ledger.state_file import StateFile, UnreadableState

    try:
        loaded = load_config(config)
    except BadConfig as error:
        fail(str(error), code=EXIT_USAGE)

    async def run() -> _T:
        guard, keys = LedgerGuard(), Keys(loaded.etcd.prefix)
        client = EtcdClient(loaded.etcd, guard)
        try:
            known = StateFile(loaded.node.trail, loaded.node.node_id).read()
            seen = await look(client, keys)
            settings = agreed_settings(loaded)
            return await work(_Bench(client=client, guard=guard, keys=keys, seen=seen, known=known, settings=settings))
        finally:
            await client.close()

    try:
        return asyncio.run(run())
    except (LedgerThere, LedgerUnfit, UnreadableState, Unreadable, EtcdUnreachable, EtcdRefused) as error:
        fail(str(error))
    except EtcdUnknown as error:
        fail(f"{error}: it may have been done; look with `utrn ledger show`, and repeat")
