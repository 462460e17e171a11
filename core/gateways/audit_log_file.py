"""AuditLogFile: writes decisions and sales to a file that is only ever appended to, in blocks chained by hashes.

A file begins anew with each life of the node, and has an end when the node ends in good order. How far it goes is
anchored in the ledger every second, and at its end; a file that has none is ended by the node's next life. So whoever
cuts a file off, chains it anew or goes on writing it is found out (core/gateways/audit_log_reader.py).
"""

import asyncio
import errno
import hashlib
import logging
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

from core.domain.errors import LedgerUnavailable, NotReady
from core.domain.vend import Vend
from core.gateways.audit_log_ends import end_earlier
from core.gateways.audit_log_format import decision_line, header_line, sale_line, sealed
from core.ports.audit_anchors import Anchor, AnchorEnded, AnchorState, AuditAnchors
from core.ports.audit_log import AuditLog, AuditRecord
from core.ports.clock import Clock

log = logging.getLogger(__name__)

SUFFIX = ".trail"
_WAITING_MAX = 100_000
_EVERY_S = 0.2
_ANCHOR_EVERY_S = 1.0
# A block without lines says that nothing was noted until then.
_IDLE_S = 5.0
_END_WITHIN_S = 2.0
_KEY_BYTES = 32
_FOLDER_MODE, _FILE_MODE = 0o700, 0o600


class AuditLogFile:
    """Takes lines into memory, writes them a moment later in a thread of its own; `lost` counts those it could not."""

    def __init__(self, folder: Path, node_id: str, clock: Clock, anchors: AuditAnchors | None = None) -> None:
        self._folder = folder
        self._node_id = node_id
        self._clock = clock
        self._anchors = anchors
        self._began = clock.wall()
        self._path = folder / f"{node_id}-{self._began:%Y%m%dT%H%M%S%f}{SUFFIX}"
        self._key = secrets.token_bytes(_KEY_BYTES)
        # As text: a hundred thousand lines that wait are nothing for the garbage collector to look through.
        self._waiting: list[str] = []
        # All that touches the file is done there, one after the other.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="audit-log")
        self._file: IO[bytes] | None = None
        self._size = 0
        # The last block and its hash, in one: the writer's thread sets it, and the loop's reads it.
        self._last = (-1, "")
        self._sealed_at = clock.monotonic()
        self._anchored = Anchor(-1, "")
        self._ended = False
        self._written = True
        self._disowned = False
        self.lost = 0

    @property
    def healthy(self) -> bool:
        """False while lines cannot be written, or once another life of this node has ended the file."""
        return self._written and not self._disowned

    def note(self, decision: AuditRecord) -> None:
        """Queue the record of one decision for the file."""
        self._take(lambda: decision_line(decision))

    def note_sale(self, vend: Vend, revision: int) -> None:
        """Queue the record of one sale for the file."""
        self._take(lambda: sale_line(vend, revision, self._key))

    def _take(self, line: Callable[[], str]) -> None:
        if self._ended or len(self._waiting) >= _WAITING_MAX:
            self.lost += 1
            return
        self._waiting.append(line())

    async def run(self) -> NoReturn:
        """Write and anchor, for ever; when cancelled, write the rest and the file's end."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._anchor_on())
                while True:
                    await asyncio.wrap_future(self._writer.submit(self._write, beat=True))
                    await asyncio.sleep(_EVERY_S)
        finally:
            await self.end()

    async def end(self) -> None:
        """Write what waits, and the end of the file; anchor it. A line noted later is lost. Never raises."""
        if self._ended:
            return
        self._ended = True
        await asyncio.wrap_future(self._writer.submit(self._write, end=True))
        self._writer.shutdown(wait=False)
        # If the end could not be written, the file is as that of a node that died; its next life ends it.
        if self._file is not None and self._written:
            try:
                async with asyncio.timeout(_END_WITHIN_S):
                    await self._anchor(AnchorState.FINISHED)
            except TimeoutError:
                log.warning("the end of the audit file is not anchored in time; the node's next start does it")
        if self._file is not None:
            self._file.close()

    def flush(self) -> None:
        """Write what waits and make it durable, and wait for that. What cannot be written stays, and is tried again."""
        self._writer.submit(self._write).result()

    async def _anchor_on(self) -> NoReturn:
        earlier_ended = self._anchors is None
        while True:
            await asyncio.sleep(_ANCHOR_EVERY_S)
            await self._anchor(AnchorState.OPEN)
            if not earlier_ended and self._anchors is not None:
                earlier_ended = await end_earlier(self._folder, self._node_id, self._path.name, self._anchors)

    async def _anchor(self, state: AnchorState) -> None:
        """Anchor the last block, if it is not."""
        wanted = Anchor(*self._last, state, self._key)
        if self._anchors is None or wanted.block < 0 or wanted == self._anchored or self._disowned:
            return
        try:
            await self._anchors.put(self._path.name, wanted)
        except LedgerUnavailable as error:
            log.warning("the audit file is not anchored", extra={"error": error.message})
        except AnchorEnded as error:
            # Two processes under one name, or one that was stopped so long that the next was started.
            self._disowned = True
            log.critical("the audit file was ended by another life of this node", extra={"error": str(error)})
        else:
            self._anchored = wanted

    def _write(self, *, end: bool = False, beat: bool = False) -> None:
        """Write a block of what waits; on a `beat` one without lines too, to begin the file and when nothing came."""
        # Before what waits is looked at: nothing that was noted up to then is left for a later block.
        at, waiting = self._now(), self._waiting[:]
        due = self._file is None or self._clock.monotonic() - self._sealed_at >= _IDLE_S
        if not (waiting or end or (beat and due)):
            return
        try:
            self._append("".join(waiting).encode(), len(waiting), at, end=end)
        except OSError as error:
            if self._written:
                log.exception("the audit file cannot be written", extra={"error": str(error)})
            self._written = False
            return
        del self._waiting[: len(waiting)]
        self._written = True

    def _append(self, body: bytes, lines: int, at: datetime, *, end: bool) -> None:
        """Append a block, whole or not at all; raise OSError if it is not."""
        if self._file is None:
            self._file = _create(self._path)
        block, prev = self._last[0] + 1, self._last[1]
        header = b"" if block else header_line(self._path.name, self._node_id, self._began)
        seal, digest = sealed(
            body,
            block=block,
            prev=prev if block else hashlib.sha256(header).hexdigest(),
            lines=lines,
            lost=self.lost,
            at=at,
            end=end,
        )
        try:
            _write_whole(self._file, header + body + seal)
            os.fsync(self._file.fileno())
        except OSError:
            # A full disk may have taken a part.
            self._file.truncate(self._size)
            raise
        self._size += len(header) + len(body) + len(seal)
        self._last, self._sealed_at = (block, digest), self._clock.monotonic()

    def _now(self) -> datetime:
        try:
            return self._clock.now()
        except NotReady:
            return self._clock.wall()


def _create(path: Path) -> IO[bytes]:
    """Return a new file, which only this account may read: whom it tells of is nobody else's business."""
    path.parent.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    return open(number, "ab", buffering=0)


def _write_whole(file: IO[bytes], block: bytes) -> None:
    """Write all of a block; raise OSError if only a part went out, as on a disk that is nearly full."""
    if file.write(block) != len(block):
        raise OSError(errno.ENOSPC, "only a part of a block was written")


if TYPE_CHECKING:
    _: type[AuditLog] = AuditLogFile
