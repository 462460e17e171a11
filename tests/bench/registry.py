"""`make million`: a million meters and PANs loaded through a node: how long, how large, how fast a node starts.

Usage: python -m tests.bench.registry [METERS]
"""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from app.cli.registry_files import Total, load_remote, read_lines
from app.devstack.files import HEAD_END, OPERATOR, SUPPLIERS, StackPlan
from app.devstack.stack import DevStack
from app.node.config import load_config
from app.workloads.sale_driver import secure_channel
from cluster.etcd.client import EtcdClient
from core.domain.meter import luhn_digit
from tests.support.lines import meter_line, pan_line


def write_file(path: Path, meters: int) -> None:
    """Write a registry file of so many meters, each with a PAN."""
    suppliers = list(SUPPLIERS)
    with path.open("w") as file:
        for number in range(meters):
            meter_id, body = f"00db13{number:010x}", f"98261{number:013d}"
            meter = meter_line(number, meter_id=meter_id, supplier_id=suppliers[number % 2], head_end=HEAD_END)
            pan = pan_line(number, pan=body + luhn_digit(body), meter_id=meter_id)
            file.write(json.dumps(meter) + "\n" + json.dumps(pan) + "\n")


async def load(stack: DevStack, file: Path, lines: int, console: Console) -> Total:
    """Load a file through the node, as its operator."""
    certs = stack.certs(OPERATOR)
    target = [stack.node_target("node-a")]
    async with secure_channel(target, ca=certs.ca, cert=certs.cert, key=certs.key) as channel:
        with Progress(console=console) as progress:
            task = progress.add_task("loading", total=lines)
            return await load_remote(
                channel, read_lines(file), lambda total: progress.update(task, completed=total.last_line)
            )


async def database_bytes(stack: DevStack) -> int:
    """Return the size of etcd's database."""
    client = EtcdClient(load_config(stack.node_config("node-a")).etcd)
    sizes = [status.dbSize for status in (await client.members()).values() if status is not None]
    await client.close()
    return max(sizes)


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> None:
    """Load, look, start anew, look again."""
    console = Console(stderr=True)
    meters = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory(prefix="utrn-million-") as folder:
        stack = DevStack(Path(folder), StackPlan(meters=4, etcd_fsync=True))
        file = Path(folder) / "million.jsonl"
        write_file(file, meters)
        try:
            stack.start_all()
            before_mb = memory_mb(stack.pid("node-a"))
            started = time.monotonic()
            total = asyncio.run(load(stack, file, 2 * meters, console))
            load_s = time.monotonic() - started
            loaded_mb = memory_mb(stack.pid("node-a"))
            size = asyncio.run(database_bytes(stack))
            stack.kill("node-a")
            stack.wait_ended("node-a", 10)
            started = time.monotonic()
            stack.start_node("node-a", wait=False)
            stack.wait_serving("node-a", 300.0)
            start_s = time.monotonic() - started
            started_mb = memory_mb(stack.pid("node-a"))
        finally:
            stack.stop_all()
    figures = {
        "meters": meters, "lines_loaded": total.loaded, "lines_wrong": total.problem_count,
        "load_s": round(load_s, 1), "lines_per_s": round(2 * meters / load_s), "etcd_mb": round(size / 1e6),
        "node_mb_before": round(before_mb), "node_mb_after_load": round(loaded_mb),
        "node_mb_after_start": round(started_mb), "node_start_s": round(start_s, 1),
    }  # fmt: skip
    table = Table("figure", "value", title="A registry of many meters")
    for name, value in figures.items():
        table.add_row(name, f"{value:,}")
    console.print(table)
    print(json.dumps({"figure": "registry", **figures}))  # noqa: T201  # the line is the result


if __name__ == "__main__":
    main()
