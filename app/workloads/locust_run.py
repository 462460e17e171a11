"""`make load`: a cluster on this machine, Locust against it, the exactly-once audit, and slo.toml held against it."""

import argparse
import asyncio
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from app.devstack.files import NODES, PSP, StackFailed, StackPlan, module_command
from app.devstack.fleet import pans_of
from app.devstack.stack import DevStack, etcd_config
from app.terminal.output import console, end_on_sigterm, print_json, print_table
from app.verification.money import AuditResult, audit_all
from app.verification.node_logs import log_texts, lost_leases
from cluster.audit.ledger_scan import all_owners, all_vends
from cluster.etcd.client import EtcdClient
from cluster.membership.placement import plan as planned_owners
from loadtest.shapes import SHAPES
from loadtest.slo import figures_of, missed
from sandbox.servers import Tls

_ROOT = Path(__file__).parents[2]
_KNOBS = ("latency_median_ms=15", "loss_before=0.01", "loss_after=0.01", "duplicate_answers=0.01")
_SETTLE_S = 20.0
_DELIVERY = ("answer_wait_ms = 2000", "explain_wait_ms = 300", "back_off_first_ms = 200", "back_off_most_ms = 2000",
             "attempts_max = 1000")  # fmt: skip


def load(shape: str, seconds: int, report: Path, keep: Path | None, *, as_json: bool) -> int:
    """Run one shape; return 0 if every objective was met, 1 if not. The logs go to `keep`, if that is given."""
    with tempfile.TemporaryDirectory(prefix="utrn-load-") as scratch:
        plan = StackPlan(meters=400, knobs=_KNOBS, delivery=_DELIVERY, etcd_members=3, nodes=NODES)
        stack = DevStack(Path(scratch), plan)
        try:
            with console.status("starting three etcd, three nodes, the sandbox"):
                stack.start_all()
            began = asyncio.run(_epochs(stack))
            with console.status(f"{shape}, {seconds or SHAPES[shape].seconds} s"):
                entries = _locust(stack, shape, seconds, report)
            ended = asyncio.run(_epochs(stack))
            with console.status("waiting for what is owed, and the audit"):
                audit, waited_s = asyncio.run(_audit_when_drained(stack))
                sold = asyncio.run(_sold_and_stored(stack))
        finally:
            stack.stop_all()
            if keep is not None:
                shutil.copytree(stack.folder / "logs", keep, dirs_exist_ok=True)
        lost = [lost_leases(text) for text in log_texts(stack.folder)]
    figures = figures_of(entries)
    figures |= {
        "throughput.sales": sold["planned"],
        "throughput.cut_off": sold["cut_off"],
        "throughput.served_share": round(sold["answered"] / max(1, sold["planned"]), 4),
        "throughput.sales_per_s": round(sold["planned"] / (seconds or SHAPES[shape].seconds), 1),
        # Nothing was broken: no node was to lose its lease, and no shard to change hands, unless a node stood still.
        "cluster.false_takeovers": sum(one.while_running for one in lost),
        "cluster.leases_lost": sum(one.all for one in lost),
        "cluster.shards_moved": sum(ended.get(shard) != epoch for shard, epoch in began.items()),
        "audit.vends": audit.vends,
        "audit.credited_twice": audit.credited_twice,
        "audit.lost": audit.lost + sold["not_in_ledger"],
        "audit.several_codes": sold["several_codes"],
        "audit.owed_after_s": waited_s if not audit.owed else float("inf"),
    }
    return _tell(figures, [*missed(figures), *audit.findings], report, as_json=as_json)


def _locust(stack: DevStack, shape: str, seconds: int, report: Path) -> list[dict[str, Any]]:
    """Run Locust in a process of its own; return its figures by kind of call."""
    certs, pans = stack.certs(PSP), stack.folder / "pans"
    pans.write_text("\n".join(pans_of(stack.folder / "sandbox")))
    report.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *module_command("locust"), "-f", str(_ROOT / "loadtest" / "locustfile.py"), "--headless", "--json",
        "--html", str(report), "--shape", shape, "--seconds", str(seconds), "--loglevel", "ERROR",
        "--nodes", ",".join(stack.node_target(node) for node in NODES), "--cert-file", str(certs.cert),
        "--key-file", str(certs.key), "--ca-file", str(certs.ca), "--pans", str(pans),
        "--journal", str(_journal(stack)), "--stop-timeout", "60",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise StackFailed(f"locust ended with {done.returncode}: {done.stderr[-2000:]}")
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def _journal(stack: DevStack) -> Path:
    return stack.folder / "journal.jsonl"


async def _epochs(stack: DevStack) -> dict[int, int]:
    """Return the epoch of every shard, once each is owned as planned.

    Raises:
        StackFailed: the nodes did not share them out in time.
    """
    config = etcd_config(stack)
    client, planned = EtcdClient(config), planned_owners(config.shards, NODES)
    try:
        until = time.monotonic() + _SETTLE_S
        while time.monotonic() < until:
            owners, _ = await all_owners(client, config)
            if {owner.shard: owner.node_id for owner in owners} == planned:
                return {owner.shard: owner.epoch for owner in owners}
            await asyncio.sleep(0.1)
    finally:
        await client.close()
    raise StackFailed("the nodes did not share the shards out")


async def _audit_when_drained(stack: DevStack) -> tuple[AuditResult, float]:
    """Return the audit once nothing is owed, and how long that took, in seconds; or as it is after long enough."""
    certs, began = stack.tool_certs, time.monotonic()
    tls = Tls(cert=certs.cert, key=certs.key, ca=certs.ca)
    while True:
        result = await audit_all(etcd_config(stack), stack.fleet_target, tls.channel)
        waited_s = round(time.monotonic() - began, 1)
        if not result.owed or waited_s > 120:
            return result, waited_s
        await asyncio.sleep(1.0)


async def _sold_and_stored(stack: DevStack) -> dict[str, int]:
    """Return how the journal agrees with the ledger.

    `cut_off` counts the sales that were begun and not ended: Locust may end a user that has just woken.
    """
    client = EtcdClient(etcd_config(stack))
    try:
        ledger: dict[str, str] = {
            stored.vend.sale.transaction_id: hashlib.sha256(stored.vend.utrn.encode()).hexdigest()
            async for stored in all_vends(client, etcd_config(stack))
        }
    finally:
        await client.close()
    planned: set[str] = set()
    failed: set[str] = set()
    answered: dict[str, set[str]] = {}
    for line in _journal(stack).read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["event"] == "planned":
            planned.add(entry["id"])
        elif entry["event"] == "failed":
            failed.add(entry["id"])
        elif entry["event"] == "ok":
            answered.setdefault(entry["id"], set()).add(entry["code"])
    return {
        "planned": len(planned),
        "answered": len(answered),
        "cut_off": len(planned - failed - answered.keys()),
        "several_codes": sum(len(codes) > 1 for codes in answered.values()),
        "not_in_ledger": sum(ledger.get(one) not in codes for one, codes in answered.items()),
    }


def _tell(figures: dict[str, float], problems: list[str], report: Path, *, as_json: bool) -> int:
    if as_json:
        print_json({**figures, "missed": problems})
    else:
        print_table("Load", ("figure", "value"), [(name, f"{value:g}") for name, value in figures.items()])
        console.print(f"Report with latency and throughput over time: {report}", highlight=False)
        for problem in problems[:50]:
            console.print(f"MISSED {problem}", style="red", markup=False, highlight=False)
        if not problems:
            console.print("Every objective of loadtest/slo.toml was met.", style="green")
    return 1 if problems else 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m app.workloads.locust_run")
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--seconds", type=int, default=0, help="how long; 0: as the shape says")
    parser.add_argument("--report", type=Path, default=None, help="where the HTML report goes")
    parser.add_argument("--keep", type=Path, default=None, help="where the logs go; nowhere if not said")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args()
    end_on_sigterm()
    report = arguments.report or _ROOT / "build" / f"load-{arguments.shape}.html"
    try:
        return load(arguments.shape, arguments.seconds, report.resolve(), arguments.keep, as_json=arguments.json)
    except StackFailed as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1


if __name__ == "__main__":
    sys.exit(main())
