"""The load test's verdict: figures from Locust's counts, objectives from slo.toml, shapes over time."""

from pathlib import Path
from typing import Any

import pytest

from loadtest.shapes import SHAPES
from loadtest.slo import figures_of, missed, quantile_ms

GOOD = {
    "issue.p50_ms": 10.0, "issue.p99_ms": 50.0, "issue.failed_share": 0.0, "status.p99_ms": 50.0,
    "status.failed_share": 0.0, "throughput.served_share": 1.0, "audit.credited_twice": 0.0, "audit.lost": 0.0,
    "audit.several_codes": 0.0, "audit.owed_after_s": 1.0, "cluster.false_takeovers": 0.0,
}  # fmt: skip


def _entry(name: str, times: dict[str, int], failures: int = 0) -> dict[str, Any]:
    return {"name": name, "num_requests": sum(times.values()), "num_failures": failures, "response_times": times}


def test_quantiles_are_read_from_counts() -> None:
    times = {"10": 50, "20": 49, "900": 1}
    assert [quantile_ms(times, share) for share in (0.5, 0.99, 1.0)] == [10.0, 20.0, 900.0]


def test_a_groups_quantile_is_the_worst_of_its_kinds_and_failures_are_shared() -> None:
    figures = figures_of([_entry("TopUp", {"10": 90}), _entry("IssueUtrn", {"40": 10}, 1), _entry("GetVend", {"5": 4})])
    assert (figures["issue.requests"], figures["issue.p50_ms"], figures["issue.failed_share"]) == (100, 40.0, 0.01)
    assert figures["status.p99_ms"] == 5.0


def test_what_is_good_misses_nothing() -> None:
    assert missed(GOOD) == []


@pytest.mark.parametrize("figure", sorted(GOOD))
def test_each_objective_can_be_missed_and_must_be_measured(figure: str) -> None:
    worse = 0.0 if figure == "throughput.served_share" else 1e6
    assert [one.split(":")[0] for one in missed({**GOOD, figure: worse})] == [figure]
    without = {name: value for name, value in GOOD.items() if name != figure}
    assert missed(without) == [f"{figure} was not measured"]


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_shapes_begin_and_end_with_some_users_and_reach_all(name: str) -> None:
    shape = SHAPES[name]
    users = [shape.users_at(share / 100) for share in range(101)]
    assert min(users) >= 1
    assert max(users) == shape.users
    assert (shape.course[0][0], shape.course[-1][0]) == (0.0, 1.0)


def test_the_load_test_reads_the_policy_that_every_caller_reads() -> None:
    from loadtest.client import SERVICE_CONFIG

    assert Path(__file__).parents[3] / "proto" / "service_config.json" == SERVICE_CONFIG


@pytest.mark.parametrize("final", ["", "if-first", "fenced"])
@pytest.mark.parametrize("repeat", [False, True])
def test_the_load_test_asks_again_where_the_kit_does(final: str, repeat: bool) -> None:
    """It imports nothing of the kit: two programs, one rule over one table."""
    from google.protobuf import any_pb2
    from google.rpc import error_details_pb2, status_pb2
    from grpc_status import rpc_status
    from utrn_client.outcomes import OUTCOMES
    from utrn_client.verdict import Verdict, failure_of, judge_sale

    from loadtest.client import may_ask_again

    for reason in (*OUTCOMES, "A_REASON_OF_A_NEWER_VERSION", ""):
        for domain in ("utrn.v1", "proxy.example"):
            info = error_details_pb2.ErrorInfo(reason=reason, domain=domain)
            if final:
                info.metadata["final"] = final
            packed = any_pb2.Any()
            packed.Pack(info)
            error: Any = _Error(rpc_status.to_status(status_pb2.Status(code=9, details=[packed] if reason else [])))
            again = judge_sale(failure_of(error), repeat=repeat) is Verdict.ASK_AGAIN
            assert may_ask_again(error, repeat=repeat) is again, (reason, domain)


class _Error:
    """What gRPC raises, of a status."""

    def __init__(self, status: Any) -> None:
        self.code = lambda: status.code
        self.details = lambda: status.details
        self.trailing_metadata = lambda: status.trailing_metadata
