"""A node without one of the cares for its own parts: `python -m tests.support.fragile_node KIND --config ...`.

Kinds: `worker`, a worker that cannot be started ends the keeping of all; `part`, a part ends at SIGUSR1; `hang`, so it
does, and another part does not let itself be cancelled.
"""

import argparse
import asyncio
import signal
from pathlib import Path
from typing import Any, NoReturn

from app.node import run
from app.node.assembly import Node, build
from app.node.config import load_config
from app.node.logging import set_up_logs
from hsm.pool import WorkerPool
from hsm.worker_process import WorkerProcess


async def _start_or_raise(self: WorkerPool, process: WorkerProcess) -> bool:
    del self
    process._spawn()
    return True


async def _ends_when_told() -> NoReturn:
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, told.set)
    await told.wait()
    raise OSError("a part of this node ends, as it was told")


async def _never_ends() -> NoReturn:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["worker", "part", "hang"])
    parser.add_argument("--config", type=Path, required=True)
    arguments = parser.parse_args()
    config = load_config(arguments.config)
    set_up_logs("INFO")
    parts_of = run._parts
    more: list[Any] = {"worker": [], "part": [_ends_when_told], "hang": [_ends_when_told, _never_ends]}[arguments.kind]

    def parts(node: Node, port: int) -> list[Any]:
        return [*parts_of(node, port), *(make() for make in more)]

    run._parts = parts
    run._END_S = 3.0
    if arguments.kind == "worker":
        WorkerPool._start = _start_or_raise  # type: ignore[method-assign]  # what this program is for
    raise SystemExit(run.serve(lambda: build(config)))


if __name__ == "__main__":
    main()
