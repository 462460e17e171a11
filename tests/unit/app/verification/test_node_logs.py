"""Which lost leases are false takeovers: those of a node that did not stand still."""

import json

from app.verification.node_logs import LostLeases, lost_leases

GONE, STILL = "the lease is gone, and every shard with it", "this node stood still"


def log(*lines: tuple[str, int]) -> str:
    told = [{"event": event, "timestamp": f"2026-11-26T02:00:{second:02d}.500000Z"} for event, second in lines]
    return "\n".join([json.dumps(line) for line in told] + ["not JSON"])


def test_a_lease_lost_by_a_node_that_ran_is_a_false_takeover_and_one_that_stood_still_is_none() -> None:
    assert lost_leases(log((STILL, 10), (GONE, 11), (GONE, 40))) == LostLeases(2, 1)
    assert lost_leases(log((GONE, 10), (STILL, 11))) == LostLeases(1, 0), "it says so when it goes on"
    assert lost_leases("") == LostLeases(0, 0)
