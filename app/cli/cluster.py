"""`utrn cluster`: what the nodes are doing, and taking one out of service."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from app.cli.asking import ask_nodes
from app.cli.output import EXIT_FAILED, console, print_json

if TYPE_CHECKING:
    import grpc
    from rich.table import Table
    from utrn.admin.v1 import admin_service_pb2 as pb

_T = TypeVar("_T")

app = typer.Typer(no_args_is_help=True, help="Nodes, shards, etcd members; with an operator's certificate.")

_Target = Annotated[str, typer.Option("--target", help="host:port of nodes, comma between them; any one answers.")]
_Cert = Annotated[Path, typer.Option("--cert", help="PEM file of an operator's certificate.")]
_Key = Annotated[Path, typer.Option("--key", help="PEM file of its private key.")]
_Ca = Annotated[Path, typer.Option("--ca", help="PEM file of the nodes' authority.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON object.")]

_NODE_COLUMNS = (
    "node", "zone", "address", "state", "HSM", "mirror lag", "shards", "lease left", "beat", "issues", "deliveries",
)  # fmt: skip


@app.command("status")
def status(target: _Target, cert: _Cert, key: _Key, ca: _Ca, as_json: _Json = False) -> None:
    """Show nodes, shards and etcd members as one node sees them. Exit code 1 if anything is not as it should be."""
    from google.protobuf.json_format import MessageToDict

    found = ask_nodes(_status, target, (cert, key, ca))
    problems = problems_of(found)
    if as_json:
        plain = MessageToDict(found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        print_json({**plain, "problems": problems})
    else:
        for table in _tables(found):
            console.print(table)
        for problem in problems:
            console.print(problem, style="yellow", markup=False, highlight=False)
        if not problems:
            console.print("All is well.", style="green")
    if problems:
        raise typer.Exit(EXIT_FAILED)


@app.command("watch")
def watch(
    target: _Target, cert: _Cert, key: _Key, ca: _Ca,
    every: Annotated[float, typer.Option(min=0.2, max=60, help="Seconds between looks.")] = 1.0,
    times: Annotated[int, typer.Option(help="How often; 0 until Ctrl-C.")] = 0,
) -> None:  # fmt: skip
    """Show the same, live."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    looks = 0
    with Live(console=console, auto_refresh=False) as live:
        while not times or looks < times:
            found = ask_nodes(_status, target, (cert, key, ca))
            problems = [Text(problem, style="yellow") for problem in problems_of(found)]
            live.update(Group(*_tables(found), *problems), refresh=True)
            looks += 1
            if not times or looks < times:
                time.sleep(every)


@app.command("drain")
def drain(
    node: Annotated[str, typer.Argument(help="The node.")],
    target: _Target, cert: _Cert, key: _Key, ca: _Ca,
    undo: Annotated[bool, typer.Option("--undo", help="Bring it back into service.")] = False,
    as_json: _Json = False,
) -> None:  # fmt: skip
    """Send a node's callers elsewhere and give its shards to others, until --undo."""

    async def ask(channel: "grpc.aio.Channel") -> "pb.SetDrainResponse":
        from utrn.admin.v1 import admin_service_pb2 as pb
        from utrn.admin.v1 import admin_service_pb2_grpc as rpc

        request = pb.SetDrainRequest(node_id=node, drained=not undo)
        return await rpc.AdminServiceStub(channel).SetDrain(request, timeout=5.0)

    reply = ask_nodes(ask, target, (cert, key, ca))
    if as_json:
        print_json({"node": node, "drained": reply.drained, "by": reply.by})
    elif reply.drained:
        console.print(f"{node} is drained: no new callers, no shards. `--undo` ends it.", highlight=False)
    else:
        console.print(f"{node} is back in service.", highlight=False)


@app.command("forget")
def forget(
    node: Annotated[str, typer.Argument(help="A node that will not come back.")],
    target: _Target, cert: _Cert, key: _Key, ca: _Ca,
    as_json: _Json = False,
) -> None:  # fmt: skip
    """Take a node that is gone for good off the roster; refused while it is alive."""

    async def ask(channel: "grpc.aio.Channel") -> None:
        from utrn.admin.v1 import admin_service_pb2 as pb
        from utrn.admin.v1 import admin_service_pb2_grpc as rpc

        await rpc.AdminServiceStub(channel).ForgetNode(pb.ForgetNodeRequest(node_id=node), timeout=5.0)

    ask_nodes(ask, target, (cert, key, ca))
    if as_json:
        print_json({"node": node, "forgotten": True})
    else:
        console.print(f"{node} is off the roster: it is expected no more.", highlight=False)


@app.command("forget-head-end")
def forget_head_end(
    name: Annotated[str, typer.Argument(help="A head end that no node is configured with any more.")],
    target: _Target, cert: _Cert, key: _Key, ca: _Ca,
    as_json: _Json = False,
) -> None:  # fmt: skip
    """Take a head end's name away: no meter is registered under it any more, and nothing sold to be sent by it."""

    async def ask(channel: "grpc.aio.Channel") -> None:
        from utrn.admin.v1 import admin_service_pb2 as pb
        from utrn.admin.v1 import admin_service_pb2_grpc as rpc

        await rpc.AdminServiceStub(channel).ForgetHeadEnd(pb.ForgetHeadEndRequest(name=name), timeout=5.0)

    ask_nodes(ask, target, (cert, key, ca))
    if as_json:
        print_json({"head_end": name, "forgotten": True})
    else:
        console.print(f"There is no head end {name} any more.", highlight=False)


def problems_of(found: "pb.GetClusterStatusResponse") -> list[str]:
    """Return a sentence for everything an operator should look at."""
    problems = []
    if not found.revision:
        problems.append("etcd does not answer: nothing is issued; docs/runbooks/etcd-quorum.md")
    for node in found.nodes:
        if not node.alive:
            problems.append(f"{node.node_id} is not there: docs/runbooks/node-lost.md")
        elif not node.hsm_ready:
            problems.append(f"{node.node_id} has no HSM: docs/runbooks/hsm.md")
        elif not node.mirror_ready:
            problems.append(f"{node.node_id} has not read the outbox yet")
        if node.missing_keys:
            problems.append(f"{node.node_id} lacks {', '.join(node.missing_keys)}: docs/runbooks/hsm.md")
    if not any(node.serving for node in found.nodes):
        problems.append("no node serves")
    free = [str(shard.shard) for shard in found.shards if not shard.owner]
    if free:
        problems.append(f"shards without an owner: {', '.join(free)}")
    problems += [f"etcd member {one.endpoint} does not answer" for one in found.etcd_members if not one.healthy]
    if found.revision and not any(one.leader for one in found.etcd_members):
        problems.append("no etcd member leads")
    for head_end in found.head_ends:
        problems += _problems_of_head_end(head_end)
    return problems


def _problems_of_head_end(one: "pb.HeadEnd") -> list[str]:
    """Return a sentence for everything that is wrong with a head end."""
    problems = []
    if not one.configured_at:
        problems.append(f"no node is configured with head end {one.name}: docs/runbooks/head-end.md")
    elif one.missing_at:
        problems.append(f"head end {one.name} is not configured at {', '.join(one.missing_at)}")
    if unreached := sorted(set(one.configured_at) - set(one.reached_by)):
        problems.append(f"head end {one.name} is not reached by {', '.join(unreached)}: docs/runbooks/head-end.md")
    if one.parked:
        minutes = one.oldest_parked_ms / 60_000
        problems.append(f"{one.parked} deliveries wait for head end {one.name}, the oldest for {minutes:.0f} min")
    return problems


def _tables(found: "pb.GetClusterStatusResponse") -> "list[Table]":
    from rich.table import Table

    nodes = Table(title=f"Nodes, as {found.asked_node_id} sees them", title_justify="left")
    for column in _NODE_COLUMNS:
        nodes.add_column(column)
    for node in found.nodes:
        nodes.add_row(*_node_row(node))
    owners: dict[str, list[pb.Shard]] = {}
    for shard in found.shards:
        owners.setdefault(shard.owner, []).append(shard)
    shards = Table(title="Shards", title_justify="left")
    for column in ("owner", "shards (epoch)", "owed"):
        shards.add_column(column)
    for owner, owned in sorted(owners.items()):
        names = ", ".join(f"{one.shard} ({one.epoch})" for one in owned)
        shards.add_row(owner or "nobody", names, str(sum(one.owed for one in owned)))
    members = Table(title=f"etcd, revision {found.revision or 'unknown'}", title_justify="left")
    for column in ("member", "state", "version", "MB", "term", "index"):
        members.add_column(column)
    for one in found.etcd_members:
        state = "leader" if one.leader else "follower" if one.healthy else "DOWN"
        size = f"{one.db_bytes / 1e6:.1f}"
        members.add_row(one.endpoint, state, one.version, size, str(one.raft_term), str(one.raft_index))
    head_ends = Table(title="Head ends", title_justify="left")
    for column in ("head end", "reached by", "waiting", "oldest"):
        head_ends.add_column(column)
    for head_end in found.head_ends:
        reached = ", ".join(head_end.reached_by) or "nobody"
        head_ends.add_row(head_end.name, reached, str(head_end.parked), f"{head_end.oldest_parked_ms / 1000:.0f} s")
    return [nodes, shards, members, head_ends]


def _node_row(node: "pb.Node") -> list[str]:
    state = "not alive" if not node.alive else "serving" if node.serving else "not serving"
    return [
        node.node_id,
        node.zone,
        node.address,
        f"{state}, drained" if node.drained else state,
        "ready" if node.hsm_ready else "-",
        str(node.mirror_lag) if node.mirror_lag >= 0 else "?",
        str(node.shards),
        f"{node.lease_left_ms / 1000:.0f} of {node.lease_ttl_ms / 1000:.0f} s",
        f"{node.beat_age_ms} ms" if node.beat_age_ms >= 0 else "never",
        str(node.issues_in_flight),
        str(node.deliveries_in_flight),
    ]


async def _status(channel: "grpc.aio.Channel") -> "pb.GetClusterStatusResponse":
    from utrn.admin.v1 import admin_service_pb2 as pb
    from utrn.admin.v1 import admin_service_pb2_grpc as rpc

    return await rpc.AdminServiceStub(channel).GetClusterStatus(pb.GetClusterStatusRequest(), timeout=5.0)
