"""A file of JSON lines that a program's money depends on: one process at a time, each line on disk before it counts.

A line that cannot be read costs that line only. Linux and other POSIX systems.
"""

import codecs
import errno
import fcntl
import json
import math
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_MODE: Final = 0o600
_LOCK_PAUSE_S: Final = 0.05
_DIGITS_MAX: Final = 300


class BookInUse(Exception):
    """Another process has the book. The message names the file and says what to do."""


class BookNotWritten(Exception):
    """A line could not be brought to disk. The message says which file, why, and what that means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A line that was set aside: its number, from 1, and why. What it held is not known here; the file still has it."""

    line: int
    why: str


class BookFile:
    """An append-only file, locked while it is open (flock); its lines are read once, when it is opened."""

    def __init__(self, path: Path, *, wait_s: float = 1.0) -> None:
        """Open the file, made if it is not there, and read its lines.

        Args:
            path: The file. Only its owner may read it: it has the numbers of consumers' cards.
            wait_s: Seconds to wait for another process to be done with it.

        Raises:
            BookInUse: another process has it.
            OSError: it cannot be used.
        """
        self.path = path
        self.damaged: list[Damage] = []
        self.lines: list[tuple[int, dict[str, Any]]] = []
        self._torn = False
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, _MODE)
        try:
            _lock(self._file, path, wait_s)
            _close_to_others(self._file)
            # The name of a new file is part of its folder, and must survive as the lines do.
            _sync_folder(path.absolute().parent)
            self._read()
        except BaseException:
            self.close()
            raise

    def append(self, entry: dict[str, object], *, meaning: str) -> None:
        """Add a line; return when it would survive a crash.

        Args:
            entry: What the line holds.
            meaning: What it means if it cannot be written, for people.

        Raises:
            BookNotWritten: it is not in the file, and will not be.
        """
        line = json.dumps(entry, allow_nan=False).encode() + b"\n"
        before = os.fstat(self._file).st_size
        try:
            _write(self._file, b"\n" + line if self._torn else line)
            os.fsync(self._file)
        except OSError as error:
            self._take_back(before)
            why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
            raise BookNotWritten(f"the book {self.path} cannot be written: {why}; {meaning}") from error
        self._torn = False

    def set_aside(self, line: int, why: str) -> None:
        """Note that a line means nothing to its reader."""
        self.damaged.append(Damage(line=line, why=why))

    def close(self) -> None:
        """Close the file and let other processes have it; twice is once."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        """Release the lock of a book that was not closed, so that other processes can open the book."""
        if getattr(self, "_file", -1) >= 0:
            self.close()

    def _read(self) -> None:
        data = _read_all(self._file)
        # What a program that died left behind must not swallow the next line.
        self._torn = bool(data) and not data.endswith(b"\n")
        for number, raw in enumerate(data.split(b"\n"), 1):
            # A file system may leave NULs where it had no time to write what was never said to be on disk.
            bare = raw.strip(b"\0 \t\r")
            if bare:
                self._parse(number, bare)
            elif b"\0" in raw:
                self.set_aside(number, "nothing but NUL bytes")

    def _parse(self, number: int, bare: bytes) -> None:
        # An editor puts a byte-order mark before what it saves; two such files that were joined have one in the middle.
        bare = bare.removeprefix(codecs.BOM_UTF8)
        if not bare:
            return
        try:
            entry = json.loads(bare.decode("utf-8"), parse_int=_whole, parse_float=_finite, parse_constant=_no_number)
        except UnicodeDecodeError:
            self.set_aside(number, "no text in UTF-8")
        except (ValueError, RecursionError):
            self.set_aside(number, "no JSON: torn, or written by something else")
        else:
            if isinstance(entry, dict):
                self.lines.append((number, entry))
            else:
                self.set_aside(number, "no JSON object")

    def _take_back(self, size: int) -> None:
        """Leave nothing of a line that did not get to disk whole: it might be taken up as if it had."""
        try:
            os.ftruncate(self._file, size)
        except OSError:
            self._torn = True


def _whole(text: str) -> int | float:
    return int(text) if len(text) <= _DIGITS_MAX else _finite(text)


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError("a number that no other language can hold")
    return number


def _no_number(text: str) -> float:
    """Refuse NaN and Infinity, which are no JSON, though Python writes them."""
    raise ValueError(text)


def _lock(file: int, path: Path, wait_s: float) -> None:
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= until:
                raise BookInUse(
                    f"the book {path} is in use by another process: wait until it ends, or give each its own book"
                ) from error
            time.sleep(_LOCK_PAUSE_S)
        else:
            return


def _close_to_others(file: int) -> None:
    """Restrict an existing file, made by an older version or by hand, so that only its owner can read it."""
    now = os.fstat(file)
    if stat.S_ISREG(now.st_mode) and now.st_uid == os.geteuid() and now.st_mode & 0o077:
        os.fchmod(file, _MODE)


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _read_all(file: int) -> bytes:
    parts, at = [], 0
    while part := os.pread(file, 1 << 20, at):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
