"""Audit files to test with: a decision, anchors in memory, and a file made by somebody else."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from core.domain.record import Kind, Ref
from core.gateways.audit_log_file import SUFFIX, AuditLogFile
from core.gateways.audit_log_reader import AuditLogReader
from core.ports.audit_anchors import Anchor, AnchorEnded
from core.ports.audit_log import AuditRecord
from tests.fakes.clock import HandClock


def decision(number: int) -> AuditRecord:
    return AuditRecord(
        at=datetime(2026, 11, 24, 12, 0, 0, 1000 * number, tzinfo=UTC), caller="psp-corner",
        identity='spiffe://a/"quoted"\\', act="TOP_UP", ask=f"id-{number}", subject="00db120000000001", amount=1000,
        outcome="allowed", rule="appointment corner",
        read_set=((Ref(Kind.PAN, "9826000000000001234"), 7), (Ref(Kind.METER, "00db120000000001"), 9)),
    )  # fmt: skip


class AnchorsInMemory:
    """Anchors as the ledger keeps them: an end stays."""

    def __init__(self) -> None:
        self.kept: dict[str, Anchor] = {}

    async def put(self, file: str, anchor: Anchor) -> None:
        before = self.kept.get(file)
        if before is not None and before.ended and before != anchor:
            raise AnchorEnded(file)
        self.kept[file] = anchor

    async def all_of(self, node_id: str) -> dict[str, Anchor | None]:
        return {file: one for file, one in self.kept.items() if file.startswith(f"{node_id}-")}


def audit_file(folder: Path) -> Path:
    (file,) = folder.glob(f"*{SUFFIX}")
    return file


async def ended(running: "asyncio.Task[Any]") -> None:
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


def dead(audit: AuditLogFile) -> None:
    """Let go of a file without an end, as a node does that is killed."""
    audit._writer.shutdown()
    if audit._file is not None:
        audit._file.close()


def forged(file: Path, folder: Path, numbers: Sequence[int], *, end: bool = True) -> None:
    """Write other decisions into `file`, chained as they should be: what somebody with the disk could do."""
    audit = AuditLogFile(folder, "forged", HandClock())
    for number in numbers:
        audit.note(decision(number))
        audit.flush()
    (made,) = folder.glob(f"forged-*{SUFFIX}")
    if end:
        asyncio.run(audit.end())
    else:
        dead(audit)
    made.replace(file)


def told(path: Path, anchor: Anchor | None = None) -> AuditLogReader:
    """Return a reader that has read all of a file."""
    reader = AuditLogReader(path, anchor)
    for _ in reader:
        pass
    return reader


def first_format(lines: Sequence[dict[str, Any]]) -> bytes:
    """Return a file of one block, as programs wrote it before there was a header."""
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    before = hashlib.sha256(b"").hexdigest()
    digest = hashlib.sha256(before.encode() + body).hexdigest()
    return body + json.dumps({"block": 0, "prev": before, "sha256": digest, "lost": 0}).encode() + b"\n"
