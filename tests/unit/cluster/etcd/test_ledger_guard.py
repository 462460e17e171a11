"""What a reply's header proves of the ledger, and what it does not."""

import pytest
from etcdpb import rpc_pb2 as pb

from cluster.etcd.ledger_guard import Floor, LedgerGuard


def header(revision: int, term: int = 3, cluster_id: int = 7) -> pb.ResponseHeader:
    return pb.ResponseHeader(cluster_id=cluster_id, revision=revision, raft_term=term)


def knowing(revision: int = 100) -> LedgerGuard:
    guard = LedgerGuard()
    guard.know("abc", (b"config/ledger", b"record"), revision, 7)
    assert guard.judge(header(revision), guard.floor(), proposed=False)
    return guard


def test_nothing_is_read_or_written_before_the_ledger_is_known() -> None:
    guard = LedgerGuard()
    assert guard.why_closed
    assert guard.why_unreadable
    guard.know("abc", (b"config/ledger", b"record"), 5, 7)
    assert not guard.why_closed
    assert not guard.why_unreadable


def test_a_proposal_from_before_its_floor_closes_for_good() -> None:
    guard = knowing(100)
    assert not guard.judge(header(99), guard.floor(), proposed=True)
    assert "gone back" in guard.lost
    guard.trust_again()
    guard.hold("")
    assert guard.why_closed
    assert guard.why_unreadable


def test_a_read_from_before_its_floor_is_looked_into_and_stops_everything_meanwhile() -> None:
    guard = knowing(100)
    assert not guard.judge(header(99), guard.floor(), proposed=False)
    assert guard.doubt.is_set()
    assert guard.why_closed
    assert not guard.lost
    # The proposal that settles it: the ledger is where it was, a member had answered a stale read.
    assert guard.judge(header(101), guard.floor(), proposed=True)
    guard.trust_again()
    assert not guard.why_closed


def test_replies_that_overtake_one_another_raise_no_alarm() -> None:
    guard = knowing(100)
    early = guard.floor()
    # Sent later, answered earlier.
    assert guard.judge(header(105), guard.floor(), proposed=True)
    assert guard.judge(header(101), early, proposed=True)
    assert not guard.why_closed


def test_what_lagging_members_say_in_watches_and_leases_raises_no_alarm() -> None:
    guard = knowing(100)
    guard.see(header(40))
    assert not guard.why_closed
    guard.see(header(140))
    assert guard.floor() == Floor(140, 3)


def test_another_cluster_closes_for_good_however_it_answers() -> None:
    guard = knowing(100)
    guard.see(header(500, cluster_id=8))
    assert "another etcd cluster" in guard.lost


def test_a_term_that_is_behind_proves_nothing_at_once() -> None:
    guard = knowing(100)
    assert not guard.judge(header(101, term=2), guard.floor(), proposed=True)
    assert not guard.lost
    assert guard.doubt.is_set()


def test_two_peers_are_believed_of_their_own_ledger_and_not_kept() -> None:
    guard = knowing(100)
    for peer in ("node-b", "node-c"):
        guard.hear_of(peer, "another", 10_000)
    assert guard.floor().revision == 100
    guard.hear_of("node-b", "abc", 200)
    guard.hear_of("node-c", "abc", 250)
    assert guard.floor().revision == 200
    assert guard.revision == 100, "what this node keeps over a restart is what etcd told it"


def test_one_peer_that_names_a_revision_the_ledger_never_had_closes_nobody() -> None:
    guard = knowing(100)
    for revision in (120, 2**62):
        guard.hear_of("node-b", "abc", revision)
    assert guard.floor().revision == 100
    guard.hear_of("node-c", "abc", 130)
    assert guard.floor().revision == 130
    assert guard.judge(header(131), guard.floor(), proposed=True)
    assert not guard.lost


@pytest.mark.parametrize("why", ["flow.hot_window_days: 7 here, 30 agreed in the ledger"])
def test_a_setting_that_differs_stops_writes_and_not_reads(why: str) -> None:
    guard = knowing()
    guard.hold(why)
    assert guard.why_closed == why
    assert not guard.why_unreadable
    guard.hold("")
    assert not guard.why_closed
