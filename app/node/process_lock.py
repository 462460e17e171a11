"""ProcessLock: one process at a time works in a folder; the kernel knows which, and gives the lock up when it ends.

A record lock, which belongs to the process alone: no child inherits it, and no file that is left behind means anything.
"""

import fcntl
import os
import struct
from pathlib import Path
from typing import Self

# struct flock of 64-bit Linux: type, whence, start, length, process.
_FLOCK = "hhqqi4x"


class FolderInUse(Exception):
    """Another process works here; the message says which, and what to do."""


class ProcessLock:
    """The lock of one file, which is made if it is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def take(self) -> bool:
        """Return whether this process has the lock now; it keeps it until `close`, or its own end."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def holder(self) -> int:
        """Return the process that has the lock; 0 for none, or for one in another container."""
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, process = struct.unpack(_FLOCK, fcntl.fcntl(self._file, fcntl.F_GETLK, asked))
        return 0 if kind == fcntl.F_UNLCK else int(process)

    def close(self) -> None:
        """Give the lock up."""
        os.close(self._file)

    def __enter__(self) -> Self:
        """Acquire the lock.

        Raises:
            FolderInUse: another process has it.
        """
        if not self.take():
            who = self.holder()
            self.close()
            what = f"process {who}" if who else "a process of another container"
            raise FolderInUse(f"{self.path.parent} is in use by {what}, which runs as {self.path.stem}: end it first")
        return self

    def __exit__(self, *_: object) -> None:
        """Give it up."""
        self.close()
