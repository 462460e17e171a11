"""What an operator should look at, from the state of a cluster: a sentence each, its runbook, and how bad it is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.cli.cluster_time import time_problems

if TYPE_CHECKING:
    from utrn.admin.v1 import admin_service_pb2 as pb

# Of `utrn cluster status`, besides 0 (all is well), 1 (no node answered, or it refused) and 2 (wrong usage).
EXIT_MISSING = 3
EXIT_NO_SERVICE = 4

# What can keep a node from serving (core/api/health.py), and where it is explained.
_EXPLAINED = {
    "hsm": "docs/runbooks/hsm.md",
    "keys": "docs/runbooks/hsm.md",
    "ledger": "docs/runbooks/partition.md",
    "time": "docs/runbooks/clock.md",
    "ledger-identity": "docs/runbooks/ledger-identity.md",
    "agreed": "docs/runbooks/ledger-identity.md",
    "registry": "it is still being read: wait",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """A sentence. `no_service`: nothing is issued while it lasts."""

    text: str
    no_service: bool = False


def problems_of(found: "pb.GetClusterStatusResponse") -> list[Problem]:
    """Return everything that is not as it should be, the worst first."""
    problems = [*_service(found), *_nodes(found), *_shards(found), *_members(found), *_head_ends(found)]
    problems += map(Problem, time_problems(found))
    return sorted(problems, key=lambda one: not one.no_service)


def exit_code_of(problems: list[Problem]) -> int:
    """Return 0 if there is nothing; 3 if something is missing and the service goes on; 4 if nothing is issued."""
    if any(problem.no_service for problem in problems):
        return EXIT_NO_SERVICE
    return EXIT_MISSING if problems else 0


def _service(found: "pb.GetClusterStatusResponse") -> Iterator[Problem]:
    if not any(node.serving for node in found.nodes):
        yield Problem("no node serves: docs/runbooks/cascade.md", no_service=True)
    if not found.revision:
        members = found.etcd_members
        answer, lead = sum(member.answers for member in members), sum(member.leader for member in members)
        yield Problem(
            f"etcd takes nothing: {answer} of {len(members)} members answer, {lead or 'none'} of them "
            f"lead{'s' if lead < 2 else ''}: docs/runbooks/etcd-quorum.md",
            no_service=True,
        )
    for sentence in found.ledger_problems:
        yield Problem(f"{found.asked_node_id}: {sentence}", no_service=found.ledger_full)
    if found.reading:
        yield Problem(f"{found.asked_node_id} has not read yet who should be there: ask again, or another node")


def _nodes(found: "pb.GetClusterStatusResponse") -> Iterator[Problem]:
    for node in found.nodes:
        if not node.alive:
            yield Problem(f"{node.node_id} is not there: docs/runbooks/node-lost.md")
        elif not node.heard:
            since = f"for {node.beat_age_ms / 1000:.0f} s" if node.beat_age_ms >= 0 else "yet"
            yield Problem(
                f"{node.node_id} has its lease and {found.asked_node_id} has not heard it {since}: "
                "docs/runbooks/partition.md, node-frozen.md"
            )
        elif not node.serving and not node.drained:
            yield Problem(f"{node.node_id} does not serve: {_why(node)}")
        if node.missing_keys:
            yield Problem(f"{node.node_id} lacks {', '.join(node.missing_keys)}: docs/runbooks/hsm.md")
        if node.drained:
            yield Problem(f"{node.node_id} is drained: `utrn cluster drain {node.node_id} --undo` ends it")


def _why(node: "pb.Node") -> str:
    named = [
        f"{name} ({_EXPLAINED[name]})" if name in _EXPLAINED else name for name in node.failing if name != "drained"
    ]
    return ", ".join(named) or "it does not say why: look at its log"


def _shards(found: "pb.GetClusterStatusResponse") -> Iterator[Problem]:
    free = [str(shard.shard) for shard in found.shards if not shard.owner]
    if free:
        yield Problem(f"shards without an owner: {', '.join(free)}: docs/runbooks/partition.md")


def _members(found: "pb.GetClusterStatusResponse") -> Iterator[Problem]:
    for member in found.etcd_members:
        if not member.answers:
            yield Problem(f"etcd member {member.endpoint} does not answer: docs/runbooks/etcd-member.md")
        elif not member.healthy:
            yield Problem(f"etcd member {member.endpoint} answers, and knows no leader: docs/runbooks/etcd-quorum.md")
        for error in member.errors:
            if member.healthy:
                yield Problem(f"etcd member {member.endpoint} says: {error}: docs/runbooks/{_page_of(error)}.md")
    if found.revision and not any(member.leader for member in found.etcd_members):
        yield Problem("no etcd member that is configured here leads: docs/runbooks/etcd-member.md")


def _page_of(error: str) -> str:
    return "etcd-space" if "NOSPACE" in error or "space" in error else "etcd-member"


def _head_ends(found: "pb.GetClusterStatusResponse") -> Iterator[Problem]:
    page = "docs/runbooks/head-end.md"
    for head_end in found.head_ends:
        if not head_end.configured_at:
            yield Problem(f"no node is configured with head end {head_end.name}: {page}")
        elif head_end.missing_at:
            yield Problem(f"head end {head_end.name} is not configured at {', '.join(head_end.missing_at)}: {page}")
        if unreached := unreached_by(head_end):
            yield Problem(f"head end {head_end.name} is not reached by {', '.join(unreached)}: {page}")
        if head_end.parked:
            minutes = head_end.oldest_parked_ms / 60_000
            wait = "1 delivery waits" if head_end.parked == 1 else f"{head_end.parked} deliveries wait"
            yield Problem(f"{wait} for head end {head_end.name}, the oldest for {minutes:.0f} min: {page}")


def unreached_by(end: "pb.HeadEnd") -> list[str]:
    """Return the nodes that are configured with a head end and do not reach it."""
    return sorted(set(end.configured_at) - set(end.reached_by))
