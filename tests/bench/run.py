"""`make bench`: ratios within one run, medians of several rounds; a table, and JSON lines in build/bench.jsonl.

Ratios only: this is a shared machine, and the same second that slows the service slows what it is compared with.
"""

import asyncio
import gc
import json
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

import grpc
from etcdpb import rpc_pb2 as etcd_pb
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console
from rich.progress import track
from rich.table import Table
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc
from utrn.v1 import types_pb2

from app.devstack.files import PSP, StackPlan
from app.devstack.stack import DevStack
from app.node.config import load_config
from app.workloads.sale_driver import secure_channel
from cluster.config import EtcdConfig
from cluster.etcd import ops
from cluster.etcd.client import EtcdClient
from cluster.etcd.keys import Keys
from cluster.ledger.vends import EtcdLedger
from cluster.registry.snapshot import RegistrySnapshot
from core.domain.participant import Principal
from core.domain.vend import Operation
from core.gateways.audit_log_file import AuditLogFile
from core.gateways.system_clock import SystemClock
from core.issuing.authorize import Authorize
from core.ports.ledger import CounterState, Entry
from core.ports.registry import RegistryStore
from core.registry.due_changes import ApplyDueChange
from tests.bench.million import million_meters, pan_of
from tests.bench.peer import plain_peer
from tests.support.head_ends import known_head_ends
from tests.support.selling import new_id, pans
from tests.support.vends import PSP as PSP_PARTICIPANT
from tests.support.vends import new_meter_id, vend

ROUNDS = 15
ONE_BY_ONE = 80
AT_ONCE = 64
MANY = 640
RAW_BATCHES = 10
METERS = 1_000_000
AUTHORIZED = 5000

Call = Callable[[], Awaitable[object]]


class Bench:
    """Calls against one stack."""

    def __init__(self, stack: DevStack, channel: grpc.aio.Channel, peer: grpc.aio.Channel, etcd: EtcdClient) -> None:
        self.stack = stack
        self._top_up: rpc.TopUpServiceAsyncStub = rpc.TopUpServiceStub(channel)
        self._peer: rpc.TopUpServiceAsyncStub = rpc.TopUpServiceStub(peer)
        self._health = health_pb2_grpc.HealthStub(channel)
        self._etcd = etcd
        self._config = load_config(stack.node_config("node-a")).etcd
        self._pans = pans(stack)
        self._issued = 0

    async def issue(self) -> object:
        """Issue one code; deliver nothing."""
        return await self._top_up.IssueUtrn(self._request(), timeout=30)

    async def issue_at_peer(self) -> object:
        """Make the same call to the service that is written plainly on PostgreSQL."""
        return await self._peer.IssueUtrn(self._request(), timeout=30)

    def _request(self) -> pb.IssueUtrnRequest:
        self._issued += 1
        pan = self._pans[self._issued % len(self._pans)]
        return pb.IssueUtrnRequest(
            transaction_id=new_id(), pan=pan, amount_pence=1000, channel=types_pb2.CHANNEL_ONLINE
        )

    async def empty(self) -> object:
        """Call the server and have it do nothing."""
        return await self._health.Check(health_pb2.HealthCheckRequest(), timeout=30)  # type: ignore[attr-defined]

    async def put(self) -> object:
        """Put one value of a vend's size into etcd."""
        return await self._etcd.txn(etcd_pb.TxnRequest(success=[ops.put(b"bench/put", bytes(300))]))

    async def raw_group_commits_per_s(self) -> float:
        """Commit vends in full groups, and nothing else; return vends per second."""
        ledger = EtcdLedger(self._etcd, self._config, SystemClock())
        # Codes only, as issued above: an owed delivery would set the node to work.
        batches = [
            [
                Entry(
                    vend=vend(1, new_meter_id(), transaction_id=new_id(), operation=Operation.ISSUE),
                    seen=CounterState(),
                )
                for _ in range(AT_ONCE)
            ]
            for _ in range(RAW_BATCHES)
        ]
        started = time.perf_counter()
        for batch in batches:
            await ledger.commit(batch)
        return RAW_BATCHES * AT_ONCE / (time.perf_counter() - started)

    def server_cpu_s(self) -> float:
        """Return the CPU time that the node and its HSM workers have used."""
        pid = self.stack.pid("node-a")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return sum(_cpu_s(one) for one in (str(pid), *children))


def _code_only() -> Entry:
    """Return an entry as `Bench.issue` makes them: an owed delivery would set the node to work."""
    code = vend(1, new_meter_id(), transaction_id=new_id(), operation=Operation.ISSUE)
    return Entry(vend=code, seen=CounterState())


def _cpu_s(pid: str) -> float:
    """Return the CPU time of a process to the nanosecond, threads that have ended included (clock_getcpuclockid)."""
    return time.clock_gettime((~int(pid) << 3) | 2)


async def p50s_ms(*calls: Call) -> list[float]:
    """Return the median of each call, made by turns: what slows one for a while slows the others as much."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ONE_BY_ONE):
        for call, taken in zip(calls, times, strict=True):
            started = time.perf_counter()
            await call()
            taken.append((time.perf_counter() - started) * 1000)
    return [statistics.median(taken) for taken in times]


async def many(call: Call) -> float:
    """Make many calls, so many at once; return how many a second."""
    left = MANY

    async def one_after_the_other() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call()

    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(one_after_the_other())
    return MANY / (time.perf_counter() - started)


class Authorizing:
    """Authorization with a million meters in memory, one after another picked at random, and all that goes with it.

    What goes with it: understanding the records, deciding, the line in the audit log, and the compares of the commit.
    """

    def __init__(self, folder: Path) -> None:
        self._clock = SystemClock()
        self._keys = Keys("utrn/")
        self._copy = RegistrySnapshot(self._keys)
        self._audit_log = AuditLogFile(folder, "bench", self._clock)
        registry = million_meters(self._keys, self._copy, METERS)
        # As the node does once it has read its registry.
        gc.collect()
        gc.freeze()
        store = cast("RegistryStore", None)
        turn = ApplyDueChange(store=store, clock=self._clock)
        # Of which only the compares are made; no etcd is asked.
        self._ledger = EtcdLedger(cast("EtcdClient", None), EtcdConfig(endpoints=("none:1",)), self._clock)
        self._authorize = Authorize(
            registry=registry,
            store=store,
            turn=turn,
            clock=self._clock,
            audit_log=self._audit_log,
            head_ends=known_head_ends,
        )
        self._chance = random.Random(1)

    def cpu_us(self) -> float:
        """Return the CPU time of one authorization, in microseconds."""
        principal = Principal(PSP_PARTICIPANT, PSP_PARTICIPANT.identities[0])
        pans = [pan_of(self._chance.randrange(METERS)) for _ in range(AUTHORIZED)]
        ids = [new_id() for _ in pans]
        started = time.process_time()
        for pan, ask in zip(pans, ids, strict=True):
            permit = self._authorize.now(
                principal, Operation.TOP_UP, pan, amount=1000, channel=3, ask=ask, snapshot=None
            )
            if permit is None:
                raise RuntimeError("no change is due here")
            self._ledger.read_set_unmoved(permit.authorization.read_set)
        self._audit_log.flush()
        return (time.process_time() - started) / AUTHORIZED * 1e6


async def one_round(bench: Bench, authorizing: Authorizing) -> dict[str, float]:
    """Return the figures of one round."""
    issue_ms, put_ms, empty_ms = await p50s_ms(bench.issue, bench.put, bench.empty)
    cpu = [bench.server_cpu_s()]
    issues_per_s = await many(bench.issue)
    cpu.append(bench.server_cpu_s())
    await many(bench.empty)
    cpu.append(bench.server_cpu_s())
    peer_per_s = await many(bench.issue_at_peer)
    raw_per_s = await bench.raw_group_commits_per_s()
    issue_us, authorize_us = (cpu[1] - cpu[0]) / MANY * 1e6, authorizing.cpu_us()
    return {
        "issue_p50_ms": issue_ms,
        "put_p50_ms": put_ms,
        "empty_p50_ms": empty_ms,
        "issue_p50_ratio": issue_ms / (put_ms + empty_ms),
        "issue_cpu_us": issue_us,
        "authorize_cpu_us": authorize_us,
        # What an issue costs more than it would without it.
        "authorize_overhead": authorize_us / (issue_us - authorize_us),
        "empty_cpu_us": (cpu[2] - cpu[1]) / MANY * 1e6,
        "issue_cpu_ratio": (cpu[1] - cpu[0]) / max(cpu[2] - cpu[1], 1e-9),
        "issues_per_s": issues_per_s,
        "peer_issues_per_s": peer_per_s,
        "peer_ratio": issues_per_s / peer_per_s,
        "raw_commits_per_s": raw_per_s,
        "group_commit_share": issues_per_s / raw_per_s,
    }


async def run(stack: DevStack, console: Console) -> list[dict[str, float]]:
    """Return the figures of every round."""
    certs, etcd = stack.certs(PSP), EtcdClient(load_config(stack.node_config("node-a")).etcd)
    target = [stack.node_target("node-a")]
    with plain_peer(stack) as peer_target:
        channel = secure_channel(target, ca=certs.ca, cert=certs.cert, key=certs.key)
        peer = secure_channel([peer_target], ca=certs.ca, cert=certs.cert, key=certs.key)
        bench = Bench(stack, channel, peer, etcd)
        # Every meter once: what is measured is the steady state.
        await many(bench.issue)
        await many(bench.issue_at_peer)
        authorizing = Authorizing(stack.folder / "bench-trail")
        turns = track(range(ROUNDS), description="rounds", console=console)
        rounds = [await one_round(bench, authorizing) for _ in turns]
        await channel.close()
        await peer.close()
    await etcd.close()
    return rounds


_AIMS = {
    "issue_p50_ratio": "<= 1.5",
    "issue_cpu_ratio": "<= 1.8",
    "authorize_overhead": "<= 0.05",
    "group_commit_share": "as high as it goes",
    "peer_ratio": "> 1",
}


def report(rounds: list[dict[str, float]], console: Console) -> None:
    """Print medians, and write them as JSON lines."""
    table = Table(title=f"Medians of {ROUNDS} rounds")
    for column in ("figure", "median", "least", "most", "aim"):
        table.add_column(column, justify="right" if column != "figure" else "left")
    lines = []
    for figure in rounds[0]:
        values = [one[figure] for one in rounds]
        median = statistics.median(values)
        table.add_row(figure, f"{median:.2f}", f"{min(values):.2f}", f"{max(values):.2f}", _AIMS.get(figure, ""))
        name = "ratio" if figure in _AIMS else "value"
        lines.append(
            {"figure": figure, name: round(median, 3), "least": round(min(values), 3), "most": round(max(values), 3)}
        )
    console.print(table)
    folder = Path("build")
    folder.mkdir(exist_ok=True)
    (folder / "bench.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for line in lines:
        if line["figure"] in _AIMS:
            print(json.dumps(line))  # noqa: T201  # the lines are the result


def main() -> None:
    """Run the benchmark."""
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="utrn-bench-") as folder:
        # Limits out of the way: nothing is delivered here, so nothing is ever known to be applied.
        stack = DevStack(Path(folder), StackPlan(meters=400))
        try:
            stack.start_all()
            rounds = asyncio.run(run(stack, console))
        finally:
            stack.stop_all()
    report(rounds, console)


if __name__ == "__main__":
    main()
