"""FileTrail: decisions in a file that is only ever appended to, in blocks chained by their hashes.

Each block is some lines of decisions and one line `{"block": n, "prev": ..., "sha256": ...}` whose hash covers the
hash before it and the block's bytes. Taking a line out, changing one or putting one in breaks the chain from there on.
A file begins anew with each life of the node; `utrn audit verify` checks a file. The hash of the last block is anchored
in etcd every few seconds, so that a file that was cut off, replaced, or chained anew is found out too.
"""

import asyncio
import errno
import hashlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _quoted
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn, Protocol

from cluster.anchors import Anchor
from core.domain.errors import LedgerUnavailable
from core.domain.registry import Kind, Ref
from core.ports.clock import Clock
from core.ports.trail import Decision, Trail

log = logging.getLogger(__name__)

_WAITING_MAX = 100_000
_EVERY_S = 0.2
# In times of the above.
_ANCHOR_EVERY = 10


class BadTrail(Exception):
    """The file is not what was written; the message names the block."""


class Anchors(Protocol):
    """Where anchors are kept."""

    async def put(self, file: str, anchor: Anchor, /) -> None:
        """Keep how far a file goes; raise LedgerUnavailable if that could not be done."""
        ...


class FileTrail:
    """Takes decisions into memory, writes them a moment later in another thread; `lost` counts those it could not."""

    def __init__(self, folder: Path, node_id: str, clock: Clock, anchors: Anchors | None = None) -> None:
        self._anchors = anchors
        self._path = folder / f"{node_id}-{clock.now():%Y%m%dT%H%M%S%f}.trail"
        # As text: a hundred thousand decisions that wait are nothing for the garbage collector to look through.
        self._waiting: list[str] = []
        self._file: IO[bytes] | None = None
        # One at a time: the last one of a node that stops waits for the one under way.
        self._flushing = threading.Lock()
        self._block = 0
        self._hash = hashlib.sha256(b"").hexdigest()
        self.lost = 0
        self.healthy = True

    def note(self, decision: Decision) -> None:
        """Take one decision."""
        if len(self._waiting) >= _WAITING_MAX:
            self.lost += 1
            return
        self._waiting.append(_line(decision))

    async def run(self) -> NoReturn:
        """Write what waits, for ever; write the rest when cancelled."""
        anchored, beats = 0, 0
        try:
            while True:
                await asyncio.sleep(_EVERY_S)
                await asyncio.to_thread(self.flush)
                beats += 1
                if beats % _ANCHOR_EVERY == 0 and self._block != anchored:
                    anchored = await self._anchor(anchored)
        finally:
            self.flush()
            self.close()

    async def _anchor(self, anchored: int) -> int:
        """Anchor the last block; return how many blocks are anchored."""
        if self._anchors is None:
            return self._block
        block, digest = self._block, self._hash
        try:
            await self._anchors.put(self._path.name, Anchor(block - 1, digest))
        except LedgerUnavailable as error:
            log.warning("the trail is not anchored", extra={"error": error.message})
            return anchored
        return block

    def close(self) -> None:
        """Close the file; a decision noted later is lost."""
        if self._file is not None:
            self._file.close()

    def flush(self) -> None:
        """Write what waits and make it durable. What cannot be written stays, and is tried again."""
        with self._flushing:
            self._flush()

    def _flush(self) -> None:
        block = self._waiting[:]
        if not block:
            return
        body = "".join(block).encode()
        digest = hashlib.sha256(self._hash.encode() + body).hexdigest()
        seal = json.dumps({"block": self._block, "prev": self._hash, "sha256": digest, "lost": self.lost}).encode()
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115  # open as long as the node lives
            start = self._file.tell()
            try:
                _write_whole(self._file, body + seal + b"\n")
                os.fsync(self._file.fileno())
            except OSError:
                # A full disk may have taken a part: a block is there whole, or not at all.
                self._file.truncate(start)
                raise
        except OSError as error:
            if self.healthy:
                log.exception("the trail of decisions cannot be written", extra={"error": str(error)})
            self.healthy = False
            return
        del self._waiting[: len(block)]
        self._block, self._hash, self.healthy = self._block + 1, digest, True


def _write_whole(file: IO[bytes], block: bytes) -> None:
    """Write all of a block; raise OSError if only a part went out, as on a disk that is nearly full."""
    if file.write(block) != len(block):
        raise OSError(errno.ENOSPC, "only a part of a block was written")


def _line(one: Decision) -> str:
    # By hand, for speed; whatever may hold anything is quoted. A PAN is the consumer's: its last four digits tell it
    # apart from the meter's others.
    basis = ", ".join([_entry(entry) for entry in one.basis])
    return (
        f'{{"at": "{one.at.isoformat()}", "clock": "{one.clock}", "caller": "{one.caller}", '
        f'"identity": {_quoted(one.identity)}, "act": "{one.act}", "ask": {_quoted(one.ask)}, '
        f'"subject": {_quoted(one.subject)}, "pence": {one.amount}, "outcome": "{one.outcome}", '
        f'"rule": {_quoted(one.rule)}, "basis": [{basis}]}}\n'
    )


def _entry(entry: tuple[Ref, int]) -> str:
    """Return one record of a basis."""
    (kind, record_id), revision = entry
    if kind is Kind.METER:
        return f'["meter", "{record_id}", {revision}]'
    if kind is Kind.PAN:
        return f'["pan", "..{record_id[-4:]}", {revision}]'
    return _shared_entry(entry)


@lru_cache(maxsize=10_000)
def _shared_entry(entry: tuple[Ref, int]) -> str:
    """Return a record that is the same in line after line: the supplier's, the appointment's, the model's."""
    (kind, record_id), revision = entry
    return f'["{kind}", {_quoted(record_id)}, {revision}]'


def verified(path: Path, anchor: Anchor | None = None) -> Iterator[dict[str, object]]:
    """Yield the decisions of a file, block by block, each checked before it is yielded; also against its anchor.

    Raises:
        BadTrail: the chain is broken, a block was cut off, or the file is not the one that was anchored.
    """
    before, body, block = hashlib.sha256(b"").hexdigest(), b"", 0
    with path.open("rb") as file:
        for line in file:
            record = _parsed(line, block)
            if "sha256" not in record:
                body += line
                continue
            digest = hashlib.sha256(before.encode() + body).hexdigest()
            if record["prev"] != before or record["sha256"] != digest or record["block"] != block:
                raise BadTrail(f"{path}: block {block} is not what was written")
            if anchor is not None and anchor.block == block and anchor.sha256 != digest:
                raise BadTrail(f"{path}: block {block} is not the one that was anchored: the file was written anew")
            yield from (_parsed(one, block) for one in body.splitlines())
            before, body, block = digest, b"", block + 1
    if body:
        raise BadTrail(f"{path}: block {block} has no seal: the node died while writing it, or it was cut off")
    if anchor is not None and block <= anchor.block:
        raise BadTrail(f"{path}: ends before block {anchor.block}, which was anchored: the file was cut off")


def _parsed(line: bytes, block: int) -> dict[str, object]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise BadTrail(f"block {block}: a line is no JSON") from error
    if not isinstance(record, dict):
        raise BadTrail(f"block {block}: a line is no object")
    return record


if TYPE_CHECKING:
    _: type[Trail] = FileTrail
