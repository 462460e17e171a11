"""`utrn cluster`: what the nodes are doing, and taking one out of service."""

import time
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from app.cli.cluster_lines import lines_of
from app.cli.cluster_problems import exit_code_of, problems_of
from app.cli.cluster_time import accept_time, get_status, sets_time, time_line
from app.cli.cluster_time import time as show_time
from app.cli.command import Commands
from app.cli.options import CA, CERT, JSON, KEY, TARGET
from app.cli.rpc import ask_nodes
from app.terminal.output import console, print_json, visible

if TYPE_CHECKING:
    import grpc
    from utrn.admin.v1 import admin_service_pb2 as pb

_T = TypeVar("_T")

app = Commands(help="Nodes, shards, etcd members; with an operator's certificate.")
app.command("time")(show_time)
app.command("accept-time", for_good=sets_time)(accept_time)

_LOOK_AGAIN_S = 0.5

_STATUS_HELP = """Show nodes, shards, etcd members and head ends as one node sees them.

Exit codes: 0 all is well; 1 no node answered, or it refused; 2 wrong usage; 3 something is missing, and codes are
issued; 4 nothing is issued.
"""


@app.command("status", help=_STATUS_HELP)
def status(
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    wait: Annotated[float, typer.Option(min=0, max=3600, help="Seconds to wait until all is well.")] = 0.0,
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Show the state of the cluster; the exit code says whether all is well."""
    from google.protobuf.json_format import MessageToDict

    until = time.monotonic() + wait
    while True:
        found = ask_nodes(get_status, target, (cert, key, ca))
        problems = problems_of(found)
        if not problems or time.monotonic() >= until:
            break
        time.sleep(_LOOK_AGAIN_S)
    code = exit_code_of(problems)
    if as_json:
        plain = MessageToDict(found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        print_json({**plain, "problems": [one.text for one in problems], "exit_code": code})
    else:
        for line in lines_of(found, width=_width()):
            typer.echo(visible(line))
        typer.echo(visible(time_line(found)))
        for problem in problems:
            # In a pipe a sentence is one line, however long.
            style = "red" if problem.no_service else "yellow"
            console.print(problem.text, style=style, markup=False, highlight=False, soft_wrap=True)
        if not problems:
            console.print("All is well.", style="green")
    if code:
        raise typer.Exit(code)


@app.command("watch")
def watch(
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    every: Annotated[float, typer.Option(min=0.2, max=60, help="Seconds between looks.")] = 1.0,
    times: Annotated[int, typer.Option(help="How often; 0 until Ctrl-C.")] = 0,
) -> None:  # fmt: skip
    """Show the same, live."""
    from rich.live import Live
    from rich.text import Text

    looks = 0
    with Live(console=console, auto_refresh=False) as live:
        while not times or looks < times:
            found = ask_nodes(get_status, target, (cert, key, ca))
            lines = [*lines_of(found, width=_width()), *(one.text for one in problems_of(found))]
            live.update(Text("\n".join(lines)), refresh=True)
            looks += 1
            if not times or looks < times:
                time.sleep(every)


@app.command("drain")
def drain(
    node: Annotated[str, typer.Argument(help="The node.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    undo: Annotated[bool, typer.Option("--undo", help="Bring it back into service.")] = False,
    as_json: JSON = False,
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


@app.command("forget", for_good="takes node {node} off the roster")
def forget(
    node: Annotated[str, typer.Argument(help="A node that will not come back.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    as_json: JSON = False,
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


@app.command("forget-head-end", for_good="takes head end {name} away")
def forget_head_end(
    name: Annotated[str, typer.Argument(help="A head end that no node is configured with any more.")],
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    as_json: JSON = False,
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


def _width() -> int | None:
    """Return the columns of the screen; None for a pipe."""
    return console.width if console.is_terminal else None
