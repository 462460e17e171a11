"""Runs a drill: a fresh cluster, steady load, one fault, the checker, and the figures an SRE reads."""

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.devstack.files import NODES, StackPlan, module_command
from app.devstack.stack import DevStack, etcd_config
from app.drills.catalogue import Drill
from app.drills.environment import Load, World
from app.drills.faults import Fault
from app.node.config import load_config
from app.verification.call_log import History, read_history, successes
from app.verification.checker import GiveUp, Run, check_run
from app.verification.ledger_watch import LedgerWatch, applied_times, longest_gap_ms
from app.verification.money import AuditResult, audit_all
from app.verification.node_logs import log_texts, revoked_leases
from cluster.audit.change_feed import OwnerGone, OwnerSeen
from cluster.membership.placement import shard_of
from core.domain.meter import MeterId

WARM_UP_S = 2.0
_DRAIN_S = 60.0
_DELIVERY = (
    "answer_wait_ms = 1500", "explain_wait_ms = 300", "back_off_first_ms = 150", "back_off_most_ms = 1500",
    "attempts_max = 1000",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillPlan:
    """How a drill is run.

    Attributes:
        rate: Sales a second.
        meters: Of the fleet.
        seed: Of sales and random faults.
        keep: A folder for states and logs; absent, a temporary one.
        delivery: Lines of the nodes' [delivery] section that come after the drills' own.
        node_command: What to run for a node; for positive controls.
    """

    rate: float = 60.0
    meters: int = 240
    seed: int = 1
    keep: Path | None = None
    delivery: tuple[str, ...] = _DELIVERY
    node_command: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class DrillResult:
    """One run. `figures` has the documented keys; `timeline` what the report draws; `broken` the checker's findings."""

    drill: str
    run: int
    figures: dict[str, float | None]
    broken: list[str]
    missed: list[str]
    timeline: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return one flat object."""
        return {"drill": self.drill, "run": self.run, **self.figures, "missed": self.missed, "broken": self.broken}


def run_drill(drill: Drill, plan: DrillPlan, run: int, say: Callable[[str], None] = lambda _: None) -> DrillResult:
    """Return the result of one run; everything it started has ended by then.

    Raises:
        StackFailed: a part did not start.
        PermissionError: the drill needs root.
    """
    with _folder(plan, drill, run) as folder:
        stack = DevStack(
            folder,
            StackPlan(
                meters=plan.meters,
                seed=plan.seed,
                knobs=drill.knobs,
                delivery=plan.delivery,
                node_command=plan.node_command or _program(drill),
                etcd_members=3,
                nodes=NODES,
                own_tokens=drill.own_tokens,
                namespaces=drill.namespaces,
                fake_clocks=drill.fake_clocks,
            ),
        )
        try:
            stack.start_all(say=lambda part: say(f"starting {part}"))
            return asyncio.run(_Run(drill, plan, run, stack, say).run())
        finally:
            stack.stop_all()


def _program(drill: Drill) -> tuple[str, ...]:
    return tuple(module_command(drill.node_program)) if drill.node_program else ()


@contextmanager
def _folder(plan: DrillPlan, drill: Drill, run: int) -> Iterator[Path]:
    if plan.keep is not None:
        folder = plan.keep / f"{drill.name}-{run}"
        # A run begins with an empty ledger and meters that never had credit.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="utrn-drill-") as scratch:
        yield Path(scratch)


class _Run:
    """One run under way."""

    def __init__(self, drill: Drill, plan: DrillPlan, run: int, stack: DevStack, say: Callable[[str], None]) -> None:
        self._drill = drill
        self._plan = plan
        self._run = run
        self._stack = stack
        self._say = say
        self._config = etcd_config(stack)
        self._watch = LedgerWatch(self._config)
        self._history = History(stack.folder / "history.jsonl")
        self._load = Load(stack, self._history, plan.rate, plan.seed + run)

    async def run(self) -> DrillResult:
        """Load, break, mend, wait, check."""
        world = World(stack=self._stack, watch=self._watch, load=self._load, seed=self._plan.seed + run_seed(self._run))
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self._watch.run())
            await self._watch.begin_settled(len(NODES))
            owners = dict(self._watch.owners)
            loading = tasks.create_task(self._load.run())
            self._say("warming up")
            await asyncio.sleep(WARM_UP_S)
            self._say(self._drill.what)
            fault = await self._drill.fault(world)
            self._say("going on")
            await asyncio.sleep(self._drill.after_s)
            self._load.stopping.set()
            load_ended = time.monotonic()
            await loading
            self._say("waiting for what is owed")
            await self._watch.until(lambda: self._heard_all() and not self._watch.owed and self._whole(), _DRAIN_S)
            moved = sum(self._watch.owners.get(shard) != was for shard, was in owners.items())
            fault.facts.setdefault("shards_moved", moved)
            fault.facts["owner_changes"] = sum(
                isinstance(event.change, OwnerSeen) and event.heard_at > fault.at for event in self._watch.events
            )
            self._history.close()
            result = await self._result(world, fault, load_ended)
            watching.cancel()
        return result

    def _heard_all(self) -> bool:
        """Return whether the watch has every sale that was answered: only then does it know what is owed."""
        return not self._not_in_ledger()

    def _whole(self) -> bool:
        return len(self._watch.owners) == self._config.shards

    async def _result(self, world: World, fault: Fault, load_ended: float) -> DrillResult:
        credited, counts = await world.credits()
        audit = await self._audit(world)
        delivery = load_config(self._stack.node_config(NODES[0])).delivery
        findings = check_run(
            Run(
                shards=self._config.shards,
                give_up=GiveUp(attempts_max=delivery.attempts_max, after_s=delivery.give_up_after_s),
                calls=read_history(self._stack.folder / "history.jsonl"),
                ledger=self._watch.events,
                credits=credited,
                not_authentic=counts.get("not authentic", 0),
                logs=log_texts(self._stack.folder),
                free_shards=self._config.shards - len(self._watch.owners),
                late=fault.late,
            )
        )
        broken = sorted({*map(str, findings), *audit.findings})
        figures = self._figures(fault, load_ended, audit)
        missed = [
            f"{name} {figures.get(name)} > {limit:g}"
            for name, limit in self._drill.aims.items()
            if (figures.get(name) if figures.get(name) is not None else float("inf")) > limit  # type: ignore[operator]
        ]
        if missed:
            missed += [f"a sale failed: {reason}" for reason in sorted(set(self._load.failed))]
        return DrillResult(
            drill=self._drill.name,
            run=self._run,
            figures=figures,
            broken=broken,
            missed=missed,
            timeline=self._timeline(fault),
        )

    def _figures(self, fault: Fault, load_ended: float, audit: AuditResult) -> dict[str, float | None]:
        issued = successes(self._history.calls)
        delivered = applied_times(self._watch.events, fault.shards, self._shard_of)
        ends = min(load_ended, max(issued, default=load_ended))
        return {
            "issue_gap_ms": round(longest_gap_ms(issued, since=fault.at, until=ends)),
            "issue_failed": len(self._load.failed),
            "delivery_gap_ms": round(longest_gap_ms(delivered, since=fault.at, until=load_ended))
            if delivered
            else None,
            "takeover_ms": None if fault.takeover_ms is None else round(fault.takeover_ms),
            "vends": len(self._watch.vends),
            "credited_twice": audit.credited_twice,
            "lost": audit.lost + self._not_in_ledger(),
            "false_takeovers": sum(node not in fault.hit for node, _ in revoked_leases(log_texts(self._stack.folder))),
            **fault.facts,
        }

    def _shard_of(self, meter_id: MeterId) -> int:
        return shard_of(meter_id, self._config.shards)

    def _not_in_ledger(self) -> int:
        answered = {call.key for call in self._history.calls if call.outcome == "ok"}
        return len(answered - {(str(participant), str(one)) for participant, one in self._watch.vends})

    async def _audit(self, world: World) -> AuditResult:
        return await audit_all(self._config, self._stack.fleet_target, world.tls().channel)

    def _timeline(self, fault: Fault) -> dict[str, Any]:
        """Return what the report draws, in seconds from the fault."""
        at = fault.at
        owners: list[tuple[float, int, str]] = []
        for event in self._watch.events:
            match event.change:
                case OwnerSeen(shard=shard, node_id=node):
                    owners.append((round(event.heard_at - at, 3), shard, node))
                case OwnerGone(shard=shard):
                    owners.append((round(event.heard_at - at, 3), shard, ""))
        delivered = applied_times(self._watch.events, set(range(self._config.shards)), self._shard_of)
        return {
            "issued": [round(success - at, 3) for success in successes(self._history.calls)],
            "delivered": [round(one - at, 3) for one in delivered],
            "owners": owners,
            "healed": None if fault.healed_at is None else round(fault.healed_at - at, 3),
        }


def run_seed(run: int) -> int:
    """Return what a run adds to the plan's seed, so that every run of a drill differs and can be repeated."""
    return 1000 * run
