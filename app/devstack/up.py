"""`make up` and `make down`: a stack that stays, for trying things out by hand."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from app.devstack.files import NODES, OPERATOR, PSP, StackFailed, StackPlan
from app.devstack.fleet import pans_of
from app.devstack.stack import DevStack
from app.node.process_lock import ProcessLock
from app.terminal.output import console

# Held for as long as the stack runs; the file of a stack that has ended means nothing.
_LOCK: Final = "stack.lock"


def up(folder: Path) -> int:
    """Run a stack in `folder` until SIGTERM or Ctrl-C; return the exit code."""
    lock = ProcessLock(folder / _LOCK)
    if not lock.take():
        console.print(f"A stack runs in {folder} already; end it with `make down`.")
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    stack = DevStack(folder.resolve(), StackPlan(meters=50, etcd_members=3, nodes=NODES))
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
        lock.close()
    return 0


def down(folder: Path) -> int:
    """End the stack in `folder`; return the exit code."""
    if not (folder / _LOCK).exists():
        console.print(f"No stack runs in {folder}.")
        return 0
    lock = ProcessLock(folder / _LOCK)
    while (process := lock.holder()) != 0:
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(process)
            # While the handle is open the process keeps its number, so the signal reaches the holder of the lock.
            if lock.holder() == process:
                signal.pidfd_send_signal(handle, signal.SIGTERM)
                console.print("ending it")
                return 0
            os.close(handle)
    console.print(f"No stack runs in {folder}.")
    return 0


def _explain(stack: DevStack) -> None:
    pan = pans_of(stack.folder / "sandbox")[0]
    nodes = ",".join(stack.node_target(node) for node in NODES)
    console.print("Running: three etcd, three nodes, the sandbox. A top-up, from another terminal:")
    _show(f".venv/bin/utrn vend issue --deliver {pan} 10 --target {nodes} {_options(stack, PSP)}")
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


if __name__ == "__main__":
    stop = "--stop" in sys.argv
    where = Path(next(argument for argument in sys.argv[1:] if argument != "--stop"))
    sys.exit(down(where) if stop else up(where))
