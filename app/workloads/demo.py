"""The main job on one machine: three nodes, thousands of sales, a bad network, a killed node, an audit to the penny."""

import asyncio
import json
import random
import signal
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from utrn.sandbox.v1 import sandbox_pb2 as pb
from utrn.sandbox.v1 import sandbox_pb2_grpc as rpc

from app.devstack.files import NODES, PSP, StackPlan
from app.devstack.fleet import meter_by_pan
from app.devstack.stack import DevStack
from app.node.config import load_config
from app.verification.ledger_watch import LedgerWatch, longest_gap_ms
from app.verification.money import AuditResult, audit_all
from app.workloads.sale_driver import Journal, PlannedSale, Seller, Sold, Step, secure_channel
from cluster.audit.ledger_scan import all_vends
from cluster.config import EtcdConfig
from cluster.etcd.client import EtcdClient
from core.domain.delivery import DeliveryState
from core.domain.transaction_id import make_transaction_id
from core.domain.vend import Vend
from core.gateways.system_clock import SystemClock
from sandbox.servers import Tls

_CALLERS = 16
_DRAIN_WAIT_S = 180.0
_LOOK_EVERY_S = 0.5
_SELLER_GIVES_UP_S = 60.0
_TAKEOVER_WAIT_S = 30.0
_ACCOUNT_HIGH = "ACCOUNT HIGH"

KNOBS = (
    "latency_median_ms=15", "loss_before=0.04", "loss_after=0.04", "duplicate_commands=0.03", "duplicate_answers=0.03",
    "reorder_answers=0.03", "temporary_failure=0.02", "unreachable=0.04", "give_up_after_ms=400",
)  # fmt: skip
DELIVERY = (
    "attempts_max = 6", "answer_wait_ms = 2000", "explain_wait_ms = 500", "back_off_first_ms = 200",
    "back_off_most_ms = 2000",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlan:
    """How much of everything. `max_balance_pence` is low enough that some meters refuse some credit."""

    vends: int = 2400
    meters: int = 200
    seed: int = 1
    kill_node: bool = True
    max_balance_pence: int = 90_000

    @property
    def stack(self) -> StackPlan:
        """The stack to run on."""
        return StackPlan(
            meters=self.meters,
            seed=self.seed,
            knobs=KNOBS,
            delivery=DELIVERY,
            max_balance_pence=self.max_balance_pence,
            etcd_members=3,
            nodes=NODES,
        )


@dataclass(slots=True)
class DemoResult:
    """What happened, and what was promised and not kept."""

    figures: dict[str, Any] = field(default_factory=dict)
    stages: list[tuple[str, float, float]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def run_demo(plan: DemoPlan, folder: Path, console: Console, *, quiet: bool) -> DemoResult:
    """Return the result of the demo; everything it started has ended by then.

    Raises:
        StackFailed: a part did not start.
    """
    stack = DevStack(folder, plan.stack)
    try:
        with console.status("starting", spinner="dots") as status:
            stack.start_all(say=lambda part: status.update(f"starting {part}"))
        columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, disable=quiet) as progress:
            return asyncio.run(_Demo(plan, stack, progress).run())
    finally:
        stack.stop_all()


class _Demo:
    """One run."""

    def __init__(self, plan: DemoPlan, stack: DevStack, progress: Progress) -> None:
        self._plan = plan
        self._stack = stack
        self._progress = progress
        self._clock = SystemClock()
        self._random = random.Random(plan.seed)  # noqa: S311  # play, not protection
        self._etcd: EtcdConfig = load_config(stack.node_config(NODES[0])).etcd
        self._watch = LedgerWatch(self._etcd)
        self._killed_at = 0.0
        self._takeover_ms = 0.0
        tools = stack.tool_certs
        self._tls = Tls(cert=tools.cert, key=tools.key, ca=tools.ca)
        self._sold: list[Sold] = []
        self._done = 0
        self._keypad: asyncio.Queue[tuple[str, str]] = asyncio.Queue(maxsize=plan.vends)
        self._kill_at = plan.vends // 2
        self._half_sold = asyncio.Event()
        self._refused_at_keypad: set[str] = set()
        self._meter_of: dict[str, str] = {}

    async def run(self) -> DemoResult:
        """Sell, deliver, enter by hand, audit."""
        certs = self._stack.certs(PSP)
        sales = self._sales()
        journal = Journal(self._stack.folder / "journal.jsonl", self._clock)
        started = self._clock.monotonic()
        nodes = [self._stack.node_target(node) for node in NODES]
        channel = secure_channel(nodes, ca=certs.ca, cert=certs.cert, key=certs.key, by_health=True)
        async with channel, self._tls.channel(self._stack.fleet_target) as fleet:
            seller = Seller(channel, journal, self._clock, give_up_after_s=_SELLER_GIVES_UP_S)
            async with asyncio.TaskGroup() as tasks:
                watching = tasks.create_task(self._watch.run())
                await self._watch.begin_settled(len(NODES))
                consumers = tasks.create_task(self._consumers(rpc.FleetServiceStub(fleet)))
                await self._sell_all(seller, sales)
                selling_s = self._clock.monotonic() - started
                await self._restore_wan()
                await self._drain()
                await self._enter_the_rest()
                await self._keypad.join()
                consumers.cancel()
                watching.cancel()
            counts = await rpc.FleetServiceStub(fleet).CountResults(pb.CountResultsRequest(), timeout=5.0)
        journal.close()
        audit = await self._audit()
        # A clean leave, by which the node also reports its stage times.
        for node in NODES:
            await asyncio.to_thread(self._stack.kill, node, signal.SIGTERM)
        return await self._result(seller, audit, dict(counts.counts), selling_s)

    def _sales(self) -> list[PlannedSale]:
        """Return the sales: pence and whole pounds, one step and two, some asked for twice, some impatiently."""
        chance = self._random
        self._meter_of = meter_by_pan(self._stack.folder / "sandbox")
        pans = list(self._meter_of)
        now_ms = int(self._clock.now().timestamp() * 1000)
        return [
            PlannedSale(
                transaction_id=make_transaction_id(now_ms, chance.getrandbits(74)),
                pan=pans[index % len(pans)] if index < 2 * len(pans) else chance.choice(pans),
                amount_pence=100 * chance.randint(82, 200) if chance.random() < 0.15 else chance.randint(100, 8191),
                step=chance.choices(list(Step), (80, 12, 8))[0],
                asked_times=chance.choices((1, 2, 3), (80, 15, 5))[0],
                impatient=chance.random() < 0.05,
            )
            for index in range(self._plan.vends)
        ]

    async def _sell_all(self, seller: Seller, sales: Sequence[PlannedSale]) -> None:
        bar = self._progress.add_task("sold", total=len(sales))
        waiting: asyncio.Queue[PlannedSale] = asyncio.Queue(maxsize=len(sales))
        for sale in sales:
            waiting.put_nowait(sale)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(_CALLERS):
                tasks.create_task(self._caller(seller, waiting, bar))
            if self._plan.kill_node:
                tasks.create_task(self._kill_in_the_middle())

    async def _caller(self, seller: Seller, waiting: asyncio.Queue[PlannedSale], bar: TaskID) -> None:
        while not waiting.empty():
            sold = await seller.sell(waiting.get_nowait())
            self._sold.append(sold)
            self._done += 1
            if self._done >= self._kill_at:
                self._half_sold.set()
            self._progress.update(bar, completed=self._done)
            # Codes that are not sent, and some that are, the consumer enters by hand at once.
            by_hand = sold.plan.step is Step.CODE_ONLY or self._random.random() < 0.08
            if sold.utrn is not None and by_hand:
                self._keypad.put_nowait((self._meter_of[sold.plan.pan], sold.utrn))

    async def _kill_in_the_middle(self) -> None:
        await self._half_sold.wait()
        node = self._watch.busiest()
        before = {shard: self._watch.owners[shard] for shard in self._watch.shards_of(node)}
        self._progress.console.print(
            f"kill -9 {node}, which owns {len(before)} of {self._etcd.shards} shards, in the middle of {_CALLERS} calls"
        )
        self._killed_at = self._clock.monotonic()
        self._stack.kill(node, signal.SIGKILL)
        await self._watch.until(
            lambda: all(self._watch.owners.get(shard, was)[1] > was[1] for shard, was in before.items()),
            _TAKEOVER_WAIT_S,
        )
        self._takeover_ms = (self._clock.monotonic() - self._killed_at) * 1000
        await asyncio.to_thread(self._stack.start_node, node)

    async def _consumers(self, fleet: "rpc.FleetServiceAsyncStub") -> None:
        """Enter codes at keypads, for ever."""
        while True:
            meter_id, utrn = await self._keypad.get()
            request = pb.EnterAtKeypadRequest(meter_id=meter_id, digits=utrn)
            reply = await fleet.EnterAtKeypad(request, timeout=5.0)
            if reply.display == _ACCOUNT_HIGH:
                self._refused_at_keypad.add(utrn)
            self._keypad.task_done()

    async def _restore_wan(self) -> None:
        """Let the unreachable meters be reached again, as the outage of a day ends."""
        async with self._tls.channel(self._stack.head_end_target) as channel:
            request = pb.SetKnobsRequest(knobs=pb.Knobs(unreachable=0.0))
            await rpc.HeadEndControlServiceStub(channel).SetKnobs(request, timeout=5.0)

    async def _drain(self) -> None:
        """Return when nothing is owed to any meter, or when waiting longer is no use."""
        bar = self._progress.add_task("delivered", total=None)
        until = self._clock.monotonic() + _DRAIN_WAIT_S
        while True:
            audit = await self._audit()
            self._progress.update(bar, total=audit.vends, completed=audit.vends - audit.owed)
            if not audit.owed or self._clock.monotonic() > until:
                return
            await asyncio.sleep(_LOOK_EVERY_S)

    async def _enter_the_rest(self) -> None:
        """Have consumers enter the codes that could not be sent."""
        for vend in await self._vends():
            if vend.delivery.state is DeliveryState.ENTER_BY_HAND:
                await self._keypad.put((vend.meter_id, vend.utrn))

    async def _audit(self) -> AuditResult:
        return await audit_all(self._etcd, self._stack.fleet_target, self._tls.channel)

    async def _vends(self) -> list[Vend]:
        client = EtcdClient(self._etcd)
        try:
            return [stored.vend async for stored in all_vends(client, self._etcd)]
        finally:
            await client.close()

    async def _result(self, seller: Seller, audit: AuditResult, meters: dict[str, int], selling_s: float) -> DemoResult:
        vends = await self._vends()
        ledger: dict[str, Vend] = {vend.sale.transaction_id: vend for vend in vends}
        refused_pence = sum(vend.sale.amount for vend in vends if self._refused(vend, audit))
        missing = [one for one in self._sold if one.utrn and not _is_committed(one, ledger)]
        latencies = sorted(one.first_answer_ms for one in self._sold if one.first_answer_ms is not None)
        result = DemoResult()
        result.figures = {
            "requests": sum(one.requests for one in self._sold),
            "distinct_vends": len({one.plan.transaction_id for one in self._sold}),
            "codes_issued": audit.vends,
            "replayed": seller.outcomes["replayed"],
            "applied": audit.applied,
            "credited": audit.credited,
            "credited_by_keypad": audit.credited_by_keypad,
            "refused": audit.refused,
            "enter_by_hand": audit.enter_by_hand,
            "not_requested": audit.not_requested,
            "open_cases": audit.open_cases,
            "owed": audit.owed,
            "duplicates_refused_by_meters": meters.get("duplicate", 0),
            "taken_pence": sum(one.plan.amount_pence for one in self._sold if one.utrn),
            "refused_pence": refused_pence,
            "expected_pence": sum(one.plan.amount_pence for one in self._sold if one.utrn) - refused_pence,
            "credited_pence": audit.credited_pence,
            "credited_twice": audit.credited_twice,
            "lost": audit.lost + len(missing),
            "vends_per_s": round(len(self._sold) / selling_s, 1),
            "issue_p50_ms": round(_quantile(latencies, 50), 2),
            "issue_p99_ms": round(_quantile(latencies, 99), 2),
            "takeover_ms": round(self._takeover_ms),
            "issue_gap_ms": round(self._gap_ms()),
            "failed_calls": {k: v for k, v in seller.outcomes.items() if k not in ("issued", "replayed")},
        }
        result.stages = [("issue, as callers saw it", result.figures["issue_p50_ms"], result.figures["issue_p99_ms"])]
        result.stages += _node_stages(self._stack.log_file(NODES[-1])) + _ledger_stages(vends)
        result.broken = audit.findings + self._broken(result.figures, missing)
        return result

    def _gap_ms(self) -> float:
        """Return the longest stretch, from the kill on, in which no caller got a code."""
        times = sorted(one.first_answer_at for one in self._sold if one.first_answer_at is not None)
        return longest_gap_ms(times, since=self._killed_at, until=times[-1]) if self._killed_at else 0.0

    def _refused(self, vend: Vend, audit: AuditResult) -> bool:
        """Return whether no meter has credited `vend` because its own meter said no, over the air or at the keypad."""
        uncredited = (vend.meter_id, vend.originator_id, vend.counter) in audit.uncredited
        said_no = vend.delivery.state is DeliveryState.REFUSED or vend.utrn in self._refused_at_keypad
        return uncredited and said_no

    def _broken(self, figures: dict[str, Any], missing: list[Sold]) -> list[str]:
        """Return the promises that were not kept."""
        broken = [f"INV-3: {sold.plan.transaction_id} was answered and is not in the ledger" for sold in missing]
        broken += [f"INV-1: {one.plan.transaction_id} was answered twice, differently" for one in self._sold
                   if not one.consistent]  # fmt: skip
        broken += [f"{one.plan.transaction_id} was refused: {one.refused}" for one in self._sold if one.refused]
        broken += [f"{one.plan.transaction_id}: no final answer: {one.unknown}" for one in self._sold if one.unknown]
        if figures["credited_pence"] != figures["expected_pence"]:
            broken.append(f"INV-6: {figures['expected_pence']} pence expected, {figures['credited_pence']} credited")
        if figures["codes_issued"] != figures["distinct_vends"]:
            broken.append(f"INV-1: {figures['distinct_vends']} vends, {figures['codes_issued']} codes")
        left = {node: self._stack.exit_code(node) for node in NODES}
        broken += [f"{node} left with exit code {code}" for node, code in left.items() if code != 0]
        if figures["owed"]:
            broken.append(f"INV-9: {figures['owed']} deliveries are still owed")
        return broken


def _is_committed(sold: Sold, ledger: dict[str, Vend]) -> bool:
    """Return whether the ledger has what the caller was told."""
    vend = ledger.get(sold.plan.transaction_id)
    return vend is not None and vend.utrn == sold.utrn


def _node_stages(log: Path) -> list[tuple[str, float, float]]:
    """Return the stage times that the node last reported, since its last start."""
    reports: list[dict[str, Any]] = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if '"stage times"' in line:
            reports.append(json.loads(line)["stages"])
    latest = reports[-1] if reports else {}
    names = {"wait": "wait for a batch", "sign": "sign a batch (HSM)", "commit": "commit a batch (etcd)"}
    return [(name, latest[key]["p50_ms"], latest[key]["p99_ms"]) for key, name in names.items() if key in latest]


def _ledger_stages(vends: Sequence[Vend]) -> list[tuple[str, float, float]]:
    """Return how long deliveries took to be sent and to end, from the ledger."""
    sent, ended = [], []
    for vend in vends:
        delivery = vend.delivery
        if delivery.queued_at and delivery.first_sent_at:
            sent.append((delivery.first_sent_at - delivery.queued_at).total_seconds() * 1000)
        if delivery.queued_at and delivery.closed_at and delivery.state is DeliveryState.APPLIED:
            ended.append((delivery.closed_at - delivery.queued_at).total_seconds() * 1000)
    return [
        ("from payment to first send", _quantile(sorted(sent), 50), _quantile(sorted(sent), 99)),
        ("from payment to known credit", _quantile(sorted(ended), 50), _quantile(sorted(ended), 99)),
    ]


def _quantile(values: Sequence[float], percent: int) -> float:
    if len(values) < 2:
        return values[0] if values else 0.0
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def reasons(figures: dict[str, int]) -> str:
    """Return counts by name as one text."""
    return ", ".join(f"{count} {name}" for name, count in sorted(Counter(figures).items())) or "none"
