"""The state of a cluster as lines of plain text: they fit 80 columns on a screen, and are not folded in a pipe."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from app.cli.cluster_problems import unreached_by

if TYPE_CHECKING:
    from utrn.admin.v1 import admin_service_pb2 as pb

_GAP = "  "


def lines_of(found: "pb.GetClusterStatusResponse", *, width: int | None) -> list[str]:
    """Return nodes, their work, shards, etcd members and head ends.

    Args:
        found: What a node said.
        width: Columns of the screen; None for a pipe, where a line is as long as it must be.
    """
    where = [(node.node_id, node.zone or "-", node.address, _state(node)) for node in found.nodes]
    members = [
        (
            member.endpoint,
            member.version or "-",
            f"{member.db_bytes / 1e6:.1f}",
            member.raft_term,
            member.raft_index,
            _member(member),
        )
        for member in found.etcd_members
    ]
    head_ends = [(head_end.name, head_end.parked, _reached(unreached_by(head_end))) for head_end in found.head_ends]
    revision = found.revision or "unknown"
    parts = (
        (f"Nodes, as {found.asked_node_id} sees them", ("node", "zone", "address", "state"), where),
        ("Work", ("node", "shards", "lag", "lease", "beat", "issues", "deliveries"), map(_work, found.nodes)),
        ("Shards", ("owner", "count", "owed", "epochs", "shards"), _owners(found.shards)),
        (f"etcd, revision {revision}", ("member", "version", "MB", "term", "index", "state"), members),
        ("Head ends", ("name", "waiting", "state"), head_ends),
    )
    lines: list[str] = []
    for title, columns, rows in parts:
        lines += [title, *_columns(columns, [[str(cell) for cell in row] for row in rows], width), ""]
    return lines


def _state(node: "pb.Node") -> str:
    if not node.alive:
        state = "NOT THERE"
    elif not node.heard:
        state = "NOT HEARD"
    elif node.serving:
        state = "serving"
    else:
        state = f"NOT SERVING: {', '.join(node.failing) or 'it does not say why'}"
    return f"{state}, drained" if node.drained and "drained" not in node.failing else state


def _work(node: "pb.Node") -> tuple[object, ...]:
    beat = f"{node.beat_age_ms} ms" if node.beat_age_ms >= 0 else "never"
    if not node.alive:
        return (node.node_id, node.shards, "-", "-", "-", "-", "-")
    lease = f"{node.lease_left_ms / 1000:.0f} of {node.lease_ttl_ms / 1000:.0f} s" if node.lease_ttl_ms else "?"
    if not node.heard:
        return (node.node_id, node.shards, "?", lease, beat, "?", "?")
    lag = node.mirror_lag if node.mirror_lag >= 0 else "?"
    return (node.node_id, node.shards, lag, lease, beat, node.issues_in_flight, node.deliveries_in_flight)


def _owners(shards: "Iterable[pb.Shard]") -> list[tuple[object, ...]]:
    owned: dict[str, list[pb.Shard]] = {}
    for shard in shards:
        owned.setdefault(shard.owner, []).append(shard)
    rows: list[tuple[object, ...]] = []
    for owner, its in sorted(owned.items()):
        first, last = min(one.epoch for one in its), max(one.epoch for one in its)
        epochs = str(first) if first == last else f"{first}-{last}"
        rows.append(
            (owner or "NOBODY", len(its), sum(one.owed for one in its), epochs, ranges(one.shard for one in its))
        )
    return rows


def ranges(numbers: Iterable[int]) -> str:
    """Return numbers with their runs drawn together: 0-3, 7."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _member(member: "pb.EtcdMember") -> str:
    if not member.answers:
        return "DOWN"
    if not member.healthy:
        return "NO LEADER"
    return "leader" if member.leader else "follower"


def _reached(not_by: Sequence[str]) -> str:
    return f"NOT REACHED by {', '.join(not_by)}" if not_by else "reached"


def _columns(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Return a heading and rows, aligned; what does not fit in the last column goes on below it."""
    table = [list(columns), *rows]
    widths = [max(len(row[at]) for row in table) for at in range(len(columns) - 1)]
    lines: list[str] = []
    for row in table:
        start = _GAP + "".join(cell.ljust(most) + _GAP for cell, most in zip(row, widths, strict=False))
        room = None if width is None else max(10, width - len(start))
        for number, piece in enumerate(_folded(row[-1], room)):
            lines.append(((start if number == 0 else " " * len(start)) + piece).rstrip())
    return lines


def _folded(text: str, room: int | None) -> list[str]:
    if room is None or len(text) <= room:
        return [text]
    pieces, line = [], ""
    for word in text.split(" "):
        if line and len(line) + 1 + len(word) > room:
            pieces.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*pieces, line]
