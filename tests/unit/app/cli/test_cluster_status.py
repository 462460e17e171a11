"""What `utrn cluster status` makes of what a node says: who is missing and why, the exit code, and lines that fit."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from utrn.admin.v1 import admin_service_pb2 as pb

from app.cli.cluster_lines import lines_of, ranges
from app.cli.cluster_problems import EXIT_MISSING, EXIT_NO_SERVICE, exit_code_of, problems_of

ROOT = Path(__file__).parents[4]
NAMES = ("node-a", "node-b", "node-c")
Change = Callable[[pb.GetClusterStatusResponse], Any]


def well() -> pb.GetClusterStatusResponse:
    """Return a cluster to which nothing is wrong."""
    return pb.GetClusterStatusResponse(
        asked_node_id="node-a",
        revision=123_456_789,
        nodes=[
            pb.Node(
                node_id=name, address=f"{name}.internal.example:7443", zone="zone-1", version="0.9", alive=True,
                heard=True, serving=True, hsm_ready=True, mirror_ready=True, lease_left_ms=1000, lease_ttl_ms=2000,
                beat_age_ms=120, mirror_lag=2, shards=11, issues_in_flight=64, deliveries_in_flight=120,
            )
            for name in NAMES
        ],
        shards=[pb.Shard(shard=number, owner=NAMES[number % 3], epoch=number + 10**9) for number in range(32)],
        etcd_members=[
            pb.EtcdMember(
                endpoint=f"etcd-{at}.internal.example:2379", healthy=True, answers=True, leader=at == 0,
                version="3.5.9", db_bytes=8_000_000_000, raft_term=12, raft_index=123_456_789,
            )
            for at in range(3)
        ],
        head_ends=[pb.HeadEnd(name="smso", configured_at=NAMES, reached_by=NAMES)],
    )  # fmt: skip


def changed(change: Change) -> pb.GetClusterStatusResponse:
    found = well()
    change(found)
    return found


def gone(found: pb.GetClusterStatusResponse) -> None:
    for node in found.nodes[1:]:
        node.CopyFrom(pb.Node(node_id=node.node_id, address=node.address, beat_age_ms=-1))


def unheard(found: pb.GetClusterStatusResponse) -> None:
    node = found.nodes[2]
    node.heard, node.serving, node.beat_age_ms = False, False, 12_300


def not_serving(found: pb.GetClusterStatusResponse) -> None:
    found.nodes[1].serving = False
    found.nodes[1].failing.extend(["hsm", "registry"])


def drained(found: pb.GetClusterStatusResponse) -> None:
    found.nodes[1].serving, found.nodes[1].drained = False, True
    found.nodes[1].failing.append("drained")


def nobody_serves(found: pb.GetClusterStatusResponse) -> None:
    for node in found.nodes:
        node.serving = False


def quorum_lost(found: pb.GetClusterStatusResponse) -> None:
    found.revision = 0
    for member in found.etcd_members[:2]:
        member.CopyFrom(pb.EtcdMember(endpoint=member.endpoint))
    found.etcd_members[2].healthy = False


def member_down(found: pb.GetClusterStatusResponse) -> None:
    found.etcd_members[1].CopyFrom(pb.EtcdMember(endpoint="etcd-1.internal.example:2379"))


def alarm(found: pb.GetClusterStatusResponse) -> None:
    found.etcd_members[0].errors.append("etcdserver: database space exceeded")


def head_end_down(found: pb.GetClusterStatusResponse) -> None:
    del found.head_ends[0].reached_by[:2]


def head_end_not_configured(found: pb.GetClusterStatusResponse) -> None:
    found.head_ends[0].missing_at.append(found.head_ends[0].configured_at.pop())
    found.head_ends[0].reached_by.pop()


def deliveries_wait(found: pb.GetClusterStatusResponse) -> None:
    found.head_ends[0].parked, found.head_ends[0].oldest_parked_ms = 12, 300_000


def key_missing(found: pb.GetClusterStatusResponse) -> None:
    found.nodes[0].missing_keys.append("supplier-north/0102")


def shard_free(found: pb.GetClusterStatusResponse) -> None:
    found.shards[7].owner = ""


def full(found: pb.GetClusterStatusResponse) -> None:
    found.ledger_full = True
    found.ledger_problems.append("etcd holds 95 of 100 MB: nothing is issued: docs/runbooks/etcd-space.md")


def filling(found: pb.GetClusterStatusResponse) -> None:
    found.ledger_problems.append("etcd holds 75 of 100 MB: issuing stops at 90%: docs/runbooks/etcd-space.md")


def keys(found: pb.GetClusterStatusResponse) -> None:
    found.nodes[1].serving = False
    found.nodes[1].failing.extend(["keys", "ledger", "time"])


def clocks_off(found: pb.GetClusterStatusResponse) -> None:
    found.time.CopyFrom(pb.ClusterTime(known=True, now_ms=1, clocks_agree=True, clocks_off_ms=-7_200_000, doubt="gap"))
    found.nodes[1].clock_off_ms = 3_600_000


def reading(found: pb.GetClusterStatusResponse) -> None:
    found.reading = True


CASES: tuple[tuple[Change, int, tuple[str, ...]], ...] = (
    (gone, EXIT_MISSING, ("node-b is not there", "node-c is not there")),
    (unheard, EXIT_MISSING, ("node-c has its lease and node-a has not heard it for 12 s",)),
    (not_serving, EXIT_MISSING, ("node-b does not serve: hsm (docs/runbooks/hsm.md), registry",)),
    (drained, EXIT_MISSING, ("node-b is drained: `utrn cluster drain node-b --undo` ends it",)),
    (nobody_serves, EXIT_NO_SERVICE, ("no node serves",)),
    (member_down, EXIT_MISSING, ("etcd member etcd-1.internal.example:2379 does not answer",)),
    (
        quorum_lost,
        EXIT_NO_SERVICE,
        (
            "etcd takes nothing: 1 of 3 members answer, none of them leads",
            "etcd member etcd-0.internal.example:2379 does not answer",
            "etcd member etcd-2.internal.example:2379 answers, and knows no leader",
        ),
    ),
    (alarm, EXIT_MISSING, ("etcd member etcd-0.internal.example:2379 says: etcdserver: database space exceeded",)),
    (head_end_down, EXIT_MISSING, ("head end smso is not reached by node-a, node-b: docs/runbooks/head-end.md",)),
    (head_end_not_configured, EXIT_MISSING, ("head end smso is not configured at node-c",)),
    (deliveries_wait, EXIT_MISSING, ("12 deliveries wait for head end smso, the oldest for 5 min",)),
    (key_missing, EXIT_MISSING, ("node-a lacks supplier-north/0102: docs/runbooks/hsm.md",)),
    (shard_free, EXIT_MISSING, ("shards without an owner: 7",)),
    (full, EXIT_NO_SERVICE, ("node-a: etcd holds 95 of 100 MB: nothing is issued",)),
    (filling, EXIT_MISSING, ("node-a: etcd holds 75 of 100 MB",)),
    (
        keys,
        EXIT_MISSING,
        ("node-b does not serve: keys (docs/runbooks/hsm.md), ledger (docs/runbooks/partition.md), time (",),
    ),
    (
        clocks_off,
        EXIT_MISSING,
        (
            "the wall clocks are 7200.0 s behind cluster time: docs/runbooks/clock.md",
            "cluster time may be wrong (gap): docs/runbooks/clock.md",
            "node-b: its wall clock is 3600.0 s ahead of cluster time: docs/runbooks/clock.md",
        ),
    ),
    (reading, EXIT_MISSING, ("node-a has not read yet who should be there",)),
)


def test_all_is_well_only_if_nothing_is_missing() -> None:
    assert problems_of(well()) == []
    assert exit_code_of([]) == 0


@pytest.mark.parametrize(("change", "code", "sentences"), CASES)
def test_what_is_missing_is_named_and_the_exit_code_says_how_bad_it_is(
    change: Change, code: int, sentences: tuple[str, ...]
) -> None:
    problems = problems_of(changed(change))
    assert exit_code_of(problems) == code
    told = [problem.text for problem in problems]
    for sentence in sentences:
        assert [text for text in told if text.startswith(sentence)], (sentence, told)
    assert [problem.no_service for problem in problems] == sorted(
        (problem.no_service for problem in problems), reverse=True
    )


@pytest.mark.parametrize("change", [case[0] for case in CASES])
def test_every_sentence_names_the_page_or_what_to_do(change: Change) -> None:
    for problem in problems_of(changed(change)):
        pages = re.findall(r"docs/runbooks/[a-z-]+\.md", problem.text)
        assert [page for page in pages if not (ROOT / page).is_file()] == []
        assert pages or "`utrn " in problem.text or "ask again" in problem.text or "its log" in problem.text, (
            problem.text
        )


def test_that_etcd_has_no_space_is_on_the_page_about_space() -> None:
    (problem,) = problems_of(changed(alarm))
    assert problem.text.endswith("docs/runbooks/etcd-space.md")


@pytest.mark.parametrize("change", [lambda _: None, *(case[0] for case in CASES)])
def test_it_fits_80_columns_on_a_screen_and_folds_nothing_in_a_pipe(change: Change) -> None:
    found = changed(change)
    screen, pipe = lines_of(found, width=80), lines_of(found, width=None)
    assert [line for line in screen if len(line) > 80] == []
    assert all(line.isascii() and line.isprintable() for line in pipe)
    assert len(pipe) <= len(screen)
    for node in found.nodes:
        assert any(node.node_id in line and node.address in line for line in pipe)


def test_a_node_that_is_not_heard_is_not_told_as_it_was() -> None:
    lines = lines_of(changed(unheard), width=None)
    assert any("node-c" in line and "NOT HEARD" in line for line in lines)
    (work,) = (line for line in lines if "node-c" in line and "12300 ms" in line)
    assert "64" not in work
    assert work.count("?") == 3


def test_runs_of_numbers_are_drawn_together() -> None:
    assert ranges([3, 1, 2, 7, 9, 10]) == "1-3, 7, 9-10"
    assert ranges([]) == ""
