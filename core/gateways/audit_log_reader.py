"""AuditLogReader: reads an audit file, checks every block before it yields its lines, and says what may be missing.

It trusts nothing in the file: whoever could write to the disk may have written it.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from core.gateways.audit_log_format import FORMAT, HASH_AT, SOLD, hash_of
from core.ports.audit_anchors import Anchor, AnchorState

# A line of ours is below a thousand bytes.
_LINE_MAX = 1 << 20
_FIRST_FORMAT = 1
# What lines of ours have, and of what kind it is: every line, and those of sales besides.
_EVERY = {"at": str, "caller": str, "act": str, "ask": str, "subject": str, "pence": int, "outcome": str}
_SALE = {"channel": int, "supplier": str, "originator": str, "counter": int, "utrn": str, "revision": int}


class BadAuditLog(Exception):
    """The file is not what was written; the message names the block."""


@dataclass(slots=True)
class Verdict:
    """The result of reading an audit file to its end.

    Attributes:
        lines: How many lines its blocks hold.
        lost: How many could not be kept, by the last seal.
        last_block: The last whole block, -1 for none.
        sha256: Its hash.
        sealed_at: When it was sealed, as it says; "" in a file of format 1.
        state: What the ledger says of the life that wrote it; None if nobody asked, or it has no anchor.
        complete_until: Nothing that was noted up to this instant is missing; "" if nobody can say.
        unanchored: How many lines come after what the node itself had anchored: the file alone vouches for them.
        torn: How many lines at the end have no seal: being written, or left by a node that died.
    """

    lines: int = 0
    lost: int = 0
    last_block: int = -1
    sha256: str = ""
    sealed_at: str = ""
    state: AnchorState | None = None
    complete_until: str = ""
    unanchored: int = 0
    torn: int = 0


@dataclass(slots=True)
class _Open:
    """Where reading is: which block comes next, the hash before it, and its lines so far."""

    form: int = _FIRST_FORMAT
    block: int = 0
    before: str = field(default_factory=lambda: hashlib.sha256(b"").hexdigest())
    body: list[tuple[bytes, dict[str, Any]]] = field(default_factory=list)
    ended: bool = False


class AuditLogReader:
    """Yields the lines of a file; `verdict` is whole when all have been yielded."""

    def __init__(self, path: Path, anchor: Anchor | None = None) -> None:
        self._path = path
        self._anchor = anchor
        self.verdict = Verdict(state=None if anchor is None else anchor.state)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield the lines, block by block, each block checked before, also against the anchor.

        Raises:
            BadAuditLog: the chain is broken, something was cut off or added, or a line is none of ours.
            OSError: the file cannot be read.
        """
        at = _Open()
        with self._path.open("rb") as file:
            for number, line in enumerate(_lines(file, self._path)):
                if at.ended:
                    raise self._bad(at.block, "comes after the end of the file: somebody went on writing it")
                # A line without its end is the last one, and a part of a block that was never whole.
                record = self._parsed(line, at.block) if line.endswith(b"\n") else {}
                if number == 0 and "format" in record:
                    self._begin(at, line, record)
                elif "block" not in record:
                    at.body.append((line, record))
                else:
                    self._close(at, line, record)
                    yield from self._checked(at)
        self._finish(at)

    def _begin(self, at: _Open, line: bytes, header: dict[str, Any]) -> None:
        if header["format"] != FORMAT:
            raise BadAuditLog(f"{self._path}: format {header['format']!r} is not known; use the program that wrote it")
        at.form, at.before = FORMAT, hashlib.sha256(line).hexdigest()

    def _close(self, at: _Open, line: bytes, seal: dict[str, Any]) -> None:
        """Check the seal of a block, and the block against the anchor."""
        covered = b"" if at.form == _FIRST_FORMAT else line[:HASH_AT]
        digest = hash_of(at.before, b"".join(one for one, _ in at.body), covered)
        if (seal.get("block"), seal.get("prev"), seal.get("sha256")) != (at.block, at.before, digest):
            raise self._bad(at.block, "is not what was written")
        anchor = self._anchor
        if anchor is not None and anchor.block == at.block and anchor.sha256 != digest:
            raise self._bad(at.block, "is not the one that was anchored: the file was written anew")
        if anchor is not None and anchor.ended and at.block > anchor.block:
            raise self._bad(at.block, f"comes after block {anchor.block}, where the ledger says that the file ends")
        at.ended = seal.get("end") is True
        said = self.verdict
        said.lost = seal["lost"] if isinstance(seal.get("lost"), int) else 0
        said.last_block, said.sha256, said.sealed_at = at.block, digest, str(seal.get("at", ""))
        if anchor is not None and at.block <= anchor.block:
            said.complete_until = said.sealed_at
        at.before = digest

    def _checked(self, at: _Open) -> Iterator[dict[str, Any]]:
        """Yield the lines of the block that was closed last, and begin the next."""
        said, anchor = self.verdict, self._anchor
        if anchor is not None and at.block > (anchor.own_block if anchor.state is AnchorState.DIED else anchor.block):
            said.unanchored += len(at.body)
        for _, record in at.body:
            if not _ours(record):
                raise self._bad(at.block, "has a line that is no decision and no sale")
            said.lines += 1
            yield record
        at.block, at.body = at.block + 1, []

    def _finish(self, at: _Open) -> None:
        """Look at how the file ends."""
        anchor, self.verdict.torn = self._anchor, len(at.body)
        if at.body and (anchor is None or anchor.state not in (AnchorState.OPEN, AnchorState.DIED)):
            raise self._bad(at.block, "has no seal: the node died while writing it, or it was cut off")
        if anchor is not None and at.block <= anchor.block:
            raise BadAuditLog(
                f"{self._path}: ends before block {anchor.block}, which was anchored: the file was cut off, or copied "
                "before the ledger was asked; if its node runs, copy it again and repeat"
            )
        if anchor is not None and anchor.state is AnchorState.FINISHED and not at.ended:
            raise BadAuditLog(f"{self._path}: the ledger says that it was finished, and it has no end")

    def _parsed(self, line: bytes, block: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._bad(block, "has a line that is no JSON") from error
        if not isinstance(record, dict):
            raise self._bad(block, "has a line that is no object")
        return record

    def _bad(self, block: int, what: str) -> BadAuditLog:
        return BadAuditLog(f"{self._path}: block {block} {what}")


def _ours(record: dict[str, Any]) -> bool:
    kinds = _EVERY | _SALE if record.get("act") == SOLD else _EVERY
    if type(record.get("channel", 0)) is not int:
        return False
    return all(type(record.get(name)) is kind for name, kind in kinds.items())


def _lines(file: IO[bytes], path: Path) -> Iterator[bytes]:
    while line := file.readline(_LINE_MAX):
        if len(line) == _LINE_MAX:
            raise BadAuditLog(f"{path}: a line is longer than any of ours")
        yield line
