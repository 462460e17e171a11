"""`make up` and `make down`: a stack that stays, for trying things out by hand."""

import os
import signal
import sys
from pathlib import Path

from app.cli.output import console
from app.devstack import DevStack
from app.drills.world import NODES
from app.fleet_file import pans_of
from app.stackfiles import OPERATOR, PSP, StackFailed, StackPlan


def up(folder: Path) -> int:
    """Run a stack in `folder` until SIGTERM or Ctrl-C; return the exit code."""
    pid_file = folder / "pid"
    if _alive(pid_file):
        console.print(f"A stack runs in {folder} already; end it with `make down`.")
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    stack = DevStack(folder.resolve(), StackPlan(meters=50, etcd_members=3, nodes=NODES))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    pid_file.write_text(str(os.getpid()))
    try:
        stack.start_all(say=lambda part: console.print(f"starting {part}", highlight=False))
        _explain(stack)
        signal.pause()
    except StackFailed as error:
        console.print(str(error), style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        pass
    finally:
        stack.stop_all()
        pid_file.unlink(missing_ok=True)
    return 0


def down(folder: Path) -> int:
    """End the stack in `folder`; return the exit code."""
    pid_file = folder / "pid"
    if not _alive(pid_file):
        console.print(f"No stack runs in {folder}.")
        return 0
    os.kill(int(pid_file.read_text()), signal.SIGTERM)
    console.print("ending it")
    return 0


def _explain(stack: DevStack) -> None:
    pan = pans_of(stack.folder / "sandbox")[0]
    nodes = ",".join(stack.node_target(node) for node in NODES)
    console.print("Running: three etcd, three nodes, the sandbox. A top-up, from another terminal:")
    _show(f".venv/bin/utrn topup {pan} 10 --target {nodes} {_options(stack, PSP)}")
    console.print("What the cluster is doing, and a node out of service and back:")
    operator = f"--target {nodes} {_options(stack, OPERATOR)}"
    _show(f".venv/bin/utrn cluster status {operator}")
    _show(f".venv/bin/utrn cluster drain {NODES[0]} {operator}")
    _show(f".venv/bin/utrn cluster drain {NODES[0]} --undo {operator}")
    console.print(f"Metrics: {' '.join(stack.metrics_url(node) for node in NODES)}", highlight=False, soft_wrap=True)
    console.print("Ctrl-C or `make down` ends it.")


def _options(stack: DevStack, who: str) -> str:
    certs = stack.certs(who)
    return f"--cert {certs.cert} --key {certs.key} --ca {certs.ca}"


def _show(command: str) -> None:
    console.print(command, highlight=False, soft_wrap=True)


def _alive(pid_file: Path) -> bool:
    try:
        os.kill(int(pid_file.read_text()), 0)
    except (OSError, ValueError):
        return False
    return True


if __name__ == "__main__":
    stop = "--stop" in sys.argv
    where = Path(next(argument for argument in sys.argv[1:] if argument != "--stop"))
    sys.exit(down(where) if stop else up(where))
