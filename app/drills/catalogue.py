"""The drills: their names, what each breaks, and what is to be seen afterwards. Aims are not moved; a miss is said."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from app.drills import faults, ledger_faults
from app.drills.cascade import cascade
from app.drills.clocks import clock_table
from app.drills.faults import LEASE_TTL_S, FaultMaker

_LEASE_MS = LEASE_TTL_S * 1000
_TAKEOVER_BY_LEASE = {"takeover_ms": _LEASE_MS + 1000}
_TAKEOVER_BY_PEERS = {"takeover_ms": 1000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """One drill.

    Attributes:
        name: On the command line, and of its runbook.
        what: A sentence.
        fault: Breaks things.
        aims: The highest value of each figure that is good enough.
        runbook: The page in docs/runbooks.
        after_s: Seconds of load after the fault has done its work.
        namespaces: Needs nodes in network namespaces, and so root.
        own_tokens: Needs a token per node.
        fake_clocks: Needs nodes whose clock can be set.
        knobs: Of the head end throughout.
        node_program: A module to run as a node instead of `utrn serve`.
    """

    name: str
    what: str
    fault: FaultMaker
    aims: Mapping[str, float] = field(default_factory=dict)
    runbook: str
    after_s: float = 3.0
    namespaces: bool = False
    own_tokens: bool = False
    fake_clocks: bool = False
    knobs: tuple[str, ...] = ("latency_median_ms=10",)
    node_program: str = ""


_LOSSY = ("latency_median_ms=10", "loss_before=0.03", "loss_after=0.03", "duplicate_commands=0.03",
          "duplicate_answers=0.03", "reorder_answers=0.03")  # fmt: skip

DRILLS: tuple[Drill, ...] = (
    Drill(
        name="crash",
        what="kill -9 the owner of the most shards",
        fault=faults.crash,
        aims={"issue_gap_ms": 300, "issue_failed": 0, "takeover_ms": 500},
        runbook="node-lost",
    ),
    Drill(
        name="pause-short",
        what="stop an owner in its tracks for 0.3 s",
        fault=faults.pause(0.3),
        aims={"issue_failed": 0, "shards_moved": 0, "false_takeovers": 0},
        runbook="node-frozen",
    ),
    Drill(
        name="pause",
        what="stop an owner in its tracks for 1 s",
        fault=faults.pause(1.0),
        aims={"issue_failed": 0},
        runbook="node-frozen",
    ),
    Drill(
        name="pause-long",
        what="stop an owner in its tracks for three leases; it wakes deposed",
        fault=faults.pause(3 * LEASE_TTL_S),
        aims={"issue_failed": 0, **_TAKEOVER_BY_PEERS},
        runbook="node-frozen",
    ),
    Drill(
        name="stop",
        what="SIGTERM the owner of the most shards",
        fault=faults.stop,
        aims={"issue_gap_ms": 200, "issue_failed": 0},
        runbook="rolling-restart",
    ),
    Drill(
        name="rolling-restart",
        what="SIGTERM and start every node in turn",
        fault=faults.rolling_restart,
        aims={"issue_gap_ms": 200, "issue_failed": 0},
        runbook="rolling-restart",
    ),
    Drill(
        name="node-loss",
        what="cut the busiest owner off from everything, without a reset",
        fault=faults.node_loss,
        aims={**_TAKEOVER_BY_PEERS, "false_takeovers": 0},
        runbook="node-lost",
        namespaces=True,
    ),
    Drill(
        name="partition-etcd",
        what="cut an owner off from etcd only",
        fault=faults.cut(etcd=True),
        aims=_TAKEOVER_BY_LEASE,
        runbook="partition",
        namespaces=True,
    ),
    Drill(
        name="partition-one-way",
        what="an owner hears etcd and is not heard",
        fault=faults.cut(etcd=True, both=False),
        aims=_TAKEOVER_BY_LEASE,
        runbook="partition",
        namespaces=True,
    ),
    Drill(
        name="partition-peers",
        what="cut an owner off from the other nodes only: nothing is to change hands",
        fault=faults.cut(peers=True),
        aims={"issue_failed": 0, "shards_moved": 0, "false_takeovers": 0},
        runbook="partition",
        namespaces=True,
    ),
    Drill(
        name="partition-callers",
        what="cut an owner off from callers only",
        fault=faults.cut(callers=True),
        aims={"issue_failed": 0, "shards_moved": 0, "false_takeovers": 0},
        runbook="partition",
        namespaces=True,
    ),
    Drill(
        name="etcd-leader",
        what="kill -9 the leader of etcd",
        fault=faults.etcd_leader_kill,
        aims={"issue_gap_ms": 2000, "issue_failed": 0, "false_takeovers": 0},
        runbook="etcd-member",
    ),
    Drill(
        name="etcd-leader-pause",
        what="stop the leader of etcd in its tracks for 5 s",
        fault=faults.etcd_leader_pause,
        aims={"issue_gap_ms": 2000, "issue_failed": 0, "false_takeovers": 0},
        runbook="etcd-member",
    ),
    Drill(
        name="double",
        what="kill -9 the busiest owner and the leader of etcd together",
        fault=faults.double,
        aims={"takeover_ms": 3000, "issue_failed": 0, "false_takeovers": 0},
        runbook="node-lost",
    ),
    Drill(
        name="quorum",
        what="take two of three etcd members away for 10 s",
        fault=faults.quorum,
        aims={"issued_meanwhile": 0, "recovery_ms": 3000},
        runbook="etcd-quorum",
        after_s=5.0,
    ),
    Drill(
        name="hsm-one",
        what="take the HSM of one node away for 4 s",
        fault=faults.hsm_lost(("node-a",), 4.0),
        aims={"issue_failed": 0},
        runbook="hsm",
        own_tokens=True,
    ),
    Drill(
        name="hsm-all",
        what="take the HSM of every node away for 4 s",
        fault=faults.hsm_lost(("node-a", "node-b", "node-c"), 4.0),
        # The nodes notice one after the other, so that a shard may pass over each of the three, and be taken once more
        # when the HSMs are back. A shard that goes round and round would be taken more often than that.
        aims={"issue_failed": 0, "owner_changes": 4 * 32},
        runbook="hsm",
        own_tokens=True,
        after_s=6.0,
    ),
    Drill(
        name="hsm-error",
        what="freeze the HSM sessions of one node under way",
        fault=faults.hsm_error,
        aims={"issue_failed": 0},
        runbook="hsm",
        own_tokens=True,
    ),
    Drill(
        name="hsm-shuffled",
        what="reset the HSM of one node so that other keys lie under the same ids",
        fault=faults.hsm_shuffled,
        aims={"issue_failed": 0},
        runbook="hsm",
        own_tokens=True,
    ),
    Drill(
        name="clock",
        what="one, two and all wall clocks wrong by an hour and two days; slewing, a pause, a wrong boot; changes due",
        fault=clock_table,
        aims={
            "issue_failed": 0,
            "changes_early": 0,
            "changes_missed": 0,
            "change_late_ms": 5000,
            "time_off_ms": 3000,
            "time_unknown": 0,
            "given_up": 0,
            "false_takeovers": 0,
        },
        runbook="clock",
        fake_clocks=True,
    ),
    Drill(
        name="clock-forward",
        what="set one node's clock an hour ahead for 5 s",
        fault=faults.clock_jump(3600),
        aims={"issue_failed": 0, "shards_moved": 0},
        runbook="clock",
        fake_clocks=True,
    ),
    Drill(
        name="clock-back",
        what="set one node's clock an hour back for 5 s",
        fault=faults.clock_jump(-3600),
        aims={"issue_failed": 0, "shards_moved": 0},
        runbook="clock",
        fake_clocks=True,
    ),
    Drill(
        name="head-end",
        what="the head end carries nothing for 60 s; lost and doubled messages throughout",
        fault=faults.head_end_outage(60.0),
        aims={"issue_failed": 0},
        runbook="head-end",
        knobs=_LOSSY,
    ),
    Drill(
        name="stale-copy",
        what="an owner's watches lose every event for 4 s, without a word",
        fault=ledger_faults.stale_copy(4.0),
        # Unhealed: 1 if the comparison found nothing. Drained: a comparison, its second look, and the sends.
        aims={"issue_failed": 0, "shards_moved": 0, "unhealed": 0, "drained_ms": 15_000},
        runbook="stale-copy",
        node_program="app.drills.deaf_node",
    ),
    Drill(
        name="head-end-lies",
        what="the head end lies beside every other answer for 15 s; nothing may come of it but an alarm",
        fault=faults.head_end_lies(15.0),
        aims={"issue_failed": 0, "nodes_ended": 0, "not_alarmed": 0, "kinds_not_told": 0, "shards_moved": 0},
        runbook="head-end",
    ),
    Drill(
        name="restore-noticed",
        what="put the ledger back as it was some sales ago, under running nodes; then the newest again",
        fault=ledger_faults.restore_noticed,
        aims={"issue_failed": 0, "unnoticed": 0, "issued_meanwhile": 0, "noticed_ms": 5_000},
        runbook="ledger-identity",
    ),
    Drill(
        name="cascade",
        what="random faults from a seed for 5 minutes",
        fault=cascade(300.0),
        runbook="cascade",
        own_tokens=True,
        knobs=_LOSSY,
        after_s=5.0,
    ),
    Drill(
        name="cascade-short",
        what="random faults from a seed for 25 s",
        fault=cascade(25.0),
        runbook="cascade",
        own_tokens=True,
        knobs=_LOSSY,
        after_s=5.0,
    ),
)


def drill_named(name: str) -> Drill:
    """Return a drill.

    Raises:
        KeyError: there is none of that name.
    """
    return {drill.name: drill for drill in DRILLS}[name]
