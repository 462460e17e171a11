"""Processes of a stack: ended with what started them, one for each node, and never somebody else's."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.devstack.files import module_command, run_tool, utrn_command
from app.devstack.stack import DevStack
from app.devstack.up import down
from app.node.process_lock import FolderInUse, ProcessLock
from tests.support.patience import PATIENCE_S

pytestmark = [pytest.mark.real]
_SLEEPS = (sys.executable, "-c", "import time; time.sleep(600)")
# What starts processes of its own, one of them in a session of its own, and is then killed.
_STARTER = """
import subprocess, sys, time
from app.devstack.keeper import keep
keep()
child = [sys.executable, "-c", "import time; time.sleep(600)"]
print(subprocess.Popen(child).pid, subprocess.Popen(child, start_new_session=True).pid, flush=True)
time.sleep(600)
"""
_WITHOUT = _STARTER.replace("keep()\n", "", 1)
_HOLDER = """
import sys, time
from pathlib import Path
from app.node.process_lock import ProcessLock
with ProcessLock(Path(sys.argv[1])):
    print("has it", flush=True)
    time.sleep(600)
"""


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def started_and_killed(program: str) -> list[int]:
    """Start processes by one that is then killed with -9; return theirs."""
    starter = subprocess.Popen([sys.executable, "-P", "-c", program], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    children = [int(one) for one in starter.stdout.readline().split()]
    assert all(map(alive, children))
    starter.kill()
    starter.wait(PATIENCE_S)
    starter.stdout.close()
    return children


def test_what_was_started_ends_with_what_started_it_though_it_is_killed_and_without_the_keeper_it_stays() -> None:
    without = started_and_killed(_WITHOUT)
    try:
        children = started_and_killed(_STARTER)
        until(lambda: not any(map(alive, children)))
        assert all(map(alive, without)), "nobody's but its own"
    finally:
        for one in without:
            os.kill(one, signal.SIGKILL)


def test_no_process_is_ended_for_a_file_that_was_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another process may have the number by now that a stack had which is gone."""
    innocent = subprocess.Popen(_SLEEPS)
    try:
        for name in ("pid", "stack.lock"):
            (tmp_path / name).write_text(str(innocent.pid))
        assert down(tmp_path) == 0
        assert "No stack runs in" in capsys.readouterr().out
        assert innocent.poll() is None
        # The control: whoever has the lock is ended.
        holder = _holding(tmp_path / "stack.lock")
        assert down(tmp_path) == 0
        assert holder.wait(PATIENCE_S) == -signal.SIGTERM
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_a_lock_ends_with_its_process_and_names_it_until_then(tmp_path: Path) -> None:
    path = tmp_path / "node-a.lock"
    holder = _holding(path)
    with pytest.raises(FolderInUse, match=f"process {holder.pid}"), ProcessLock(path):
        pass
    holder.kill()
    holder.wait()
    with ProcessLock(path):
        assert path.exists()


def test_a_second_process_of_a_node_does_not_start(module_stack: DevStack) -> None:
    command = [*utrn_command(), "serve", "--config", str(module_stack.node_config("node-a"))]
    second = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert second.returncode == 78
    assert f"is in use by process {module_stack.pid('node-a')}" in second.stderr
    module_stack.wait_serving("node-a")


def test_a_file_of_the_folder_where_it_was_typed_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app.py").write_text("raise SystemExit('this is not the program')")
    monkeypatch.chdir(tmp_path)
    run_tool([*utrn_command(), "--version"])
    # The control.
    unsafe = [one for one in module_command("app") if one != "-P"]
    found = subprocess.run([*unsafe, "--version"], capture_output=True, text=True, check=False)
    assert "this is not the program" in found.stderr


def _holding(path: Path) -> "subprocess.Popen[str]":
    holder = subprocess.Popen(
        [sys.executable, "-P", "-c", _HOLDER, str(path)], stdout=subprocess.PIPE, text=True, cwd=path.parent
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "has it\n"
    holder.stdout.close()
    return holder
