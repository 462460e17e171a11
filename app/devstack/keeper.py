"""keeper: what a process starts ends with that process, however it ends: kill -9 too.

`keep` marks the environment of this process, and so of all that it starts from then on and all that they start, and
starts a keeper outside of every session: a small process that waits for this one's end and then ends whatever carries
the mark. No list of process ids is kept, so none can be stale and none can be missed between a fork and a note.
"""

import os
import secrets
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

_MARKS = "STACK_KEEPERS"
_PASS_S = 0.05
_SWEEP_S = 30.0
_kept_by: list[int] = []


def keep() -> None:
    """Have all that this process starts from now on end with it; once is enough."""
    if os.getpid() in _kept_by:
        return
    mark, before = secrets.token_hex(16), dict(os.environ)
    os.environ[_MARKS] = ":".join([*filter(None, before.get(_MARKS, "").split(":")), mark])
    nothing = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in range(3)]
    # Not marked itself, and in a session of its own: neither Ctrl-C nor its own work ends it.
    command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), mark]
    os.posix_spawn(sys.executable, command, before, file_actions=nothing, setsid=True)
    _kept_by.append(os.getpid())


def _wait_for_end(process: int) -> None:
    """Return when a process, which is this one's parent, is no more."""
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        return
    waits = select.poll()
    waits.register(handle, select.POLLIN)
    # Another process may have its number by now; then it is not our parent.
    if os.getppid() == process:
        waits.poll()
    os.close(handle)


def _end_marked(mark: str) -> None:
    """End every process that carries a mark, and those that they were just starting."""
    until, quiet = time.monotonic() + _SWEEP_S, 0
    # A process between fork and exec shows its mark a moment later: two passes that find none are the end.
    while quiet < 2 and time.monotonic() < until:
        ended = [_end(int(folder.name), mark) for folder in Path("/proc").iterdir() if folder.name.isdecimal()]
        quiet = 0 if any(ended) else quiet + 1
        time.sleep(_PASS_S)


def _end(process: int, mark: str) -> bool:
    """End a process if it carries the mark; return whether it did."""
    with suppress(OSError):
        handle = os.pidfd_open(process)
        try:
            # Looked at while it is held: its number cannot have gone to another in between.
            if mark.encode() in Path(f"/proc/{process}/environ").read_bytes():
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                return True
        finally:
            os.close(handle)
    return False


if __name__ == "__main__":
    _wait_for_end(int(sys.argv[1]))
    _end_marked(sys.argv[2])
