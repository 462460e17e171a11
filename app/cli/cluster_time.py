"""`utrn cluster time` and `accept-time`: what the cluster goes by, and setting it where no node may do so by itself."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.options import CA, CERT, JSON, KEY, TARGET
from app.cli.rpc import ask_nodes
from app.terminal.output import console, print_json

if TYPE_CHECKING:
    import grpc
    from utrn.admin.v1 import admin_service_pb2 as pb

_OFF_MS = 60_000


def time(target: TARGET, cert: CERT, key: KEY, ca: CA, as_json: JSON = False) -> None:
    """Show cluster time, and how far the nodes' wall clocks are from it."""
    found = ask_nodes(get_status, target, (cert, key, ca))
    now, off = found.time, {node.node_id: node.clock_off_ms / 1000 for node in found.nodes if node.alive}
    if as_json:
        print_json(
            {
                "known": now.known, "now_ms": now.now_ms, "ledger_ms": now.ledger_ms, "doubt": now.doubt,
                "clocks_agree": now.clocks_agree, "clocks_off_s": now.clocks_off_ms / 1000, "nodes": off,
            }
        )  # fmt: skip
        return
    console.print(time_line(found), highlight=False)
    for node_id, seconds in sorted(off.items()):
        console.print(f"{node_id}: its wall clock is {_off(seconds)}", highlight=False)


def accept_time(
    target: TARGET, cert: CERT, key: KEY, ca: CA,
    seconds: Annotated[int | None, typer.Option(help="How far ahead the wall clocks are; absent: only ask.")] = None,
    as_json: JSON = False,
) -> None:  # fmt: skip
    """Set cluster time to the wall clocks that agree; without --seconds, say what that would do."""

    async def ask(channel: "grpc.aio.Channel") -> "pb.AcceptClusterTimeResponse":
        from utrn.admin.v1 import admin_service_pb2 as pb
        from utrn.admin.v1 import admin_service_pb2_grpc as rpc

        request = pb.AcceptClusterTimeRequest(seconds=seconds)
        return await rpc.AdminServiceStub(channel).AcceptClusterTime(request, timeout=10.0)

    reply = ask_nodes(ask, target, (cert, key, ca))
    if as_json:
        print_json({"done": reply.done, "seconds": reply.seconds, "changes_due": reply.changes_due})
        return
    if not reply.seconds and not reply.done:
        console.print("cluster time and the wall clocks agree: there is nothing to set", highlight=False)
        return
    how = "forward at once" if reply.seconds >= 0 else "back, by running at a quarter of its speed"
    word = "is set" if reply.done else "would be set"
    due = "1000 or more" if reply.changes_due >= 1000 else str(reply.changes_due)
    console.print(f"cluster time {word} {abs(reply.seconds)} s {how}; changes due by it: {due}", highlight=False)
    if not reply.done:
        console.print(f"nothing was done; add --seconds {reply.seconds} to do it", highlight=False)


def sets_time(values: Mapping[str, Any]) -> str:
    """Return what `accept_time` does for good; nothing without --seconds."""
    return "" if values["seconds"] is None else f"sets cluster time by {values['seconds']} s"


async def get_status(channel: "grpc.aio.Channel") -> "pb.GetClusterStatusResponse":
    """Return the state of the cluster."""
    from utrn.admin.v1 import admin_service_pb2 as pb
    from utrn.admin.v1 import admin_service_pb2_grpc as rpc

    return await rpc.AdminServiceStub(channel).GetClusterStatus(pb.GetClusterStatusRequest(), timeout=5.0)


def time_line(found: "pb.GetClusterStatusResponse") -> str:
    """Return the line about cluster time."""
    now = found.time
    if not now.now_ms:
        return "cluster time: not known"
    at = datetime.fromtimestamp(now.now_ms / 1000, UTC).isoformat(timespec="seconds")
    clocks = "no majority of wall clocks agrees"
    if now.clocks_agree:
        clocks = f"the wall clocks are {_off(now.clocks_off_ms / 1000)}"
    return f"cluster time {at}; {clocks}" + (f"; in doubt: {now.doubt}" if now.doubt else "")


def time_problems(found: "pb.GetClusterStatusResponse") -> list[str]:
    """Return a sentence for everything about the time that an operator should look at."""
    now, page = found.time, "docs/runbooks/clock.md"
    problems = []
    if now.clocks_agree and abs(now.clocks_off_ms) > _OFF_MS:
        problems.append(f"the wall clocks are {_off(now.clocks_off_ms / 1000)}: {page}")
    if now.doubt:
        problems.append(f"cluster time may be wrong ({now.doubt}): {page}")
    for node in found.nodes:
        if node.alive and abs(node.clock_off_ms) > _OFF_MS:
            problems.append(f"{node.node_id}: its wall clock is {_off(node.clock_off_ms / 1000)}: {page}")
    return problems


def _off(seconds: float) -> str:
    return f"{abs(seconds):.1f} s {'ahead of' if seconds >= 0 else 'behind'} cluster time"
