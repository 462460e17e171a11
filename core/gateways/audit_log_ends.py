"""end_earlier: ends the files of this node's earlier lives, those that died without writing an end."""

import asyncio
import logging
from pathlib import Path

from core.domain.errors import LedgerUnavailable
from core.gateways.audit_log_reader import AuditLogReader, BadAuditLog
from core.ports.audit_anchors import Anchor, AnchorEnded, AnchorState, AuditAnchors

log = logging.getLogger(__name__)


async def end_earlier(folder: Path, node_id: str, own: str, anchors: AuditAnchors) -> bool:
    """Anchor the last whole block of every file that has no end, but `own`; return False if it must be tried again.

    From then on nothing can be written behind it or cut off it. A file that is not what was anchored is left as it is:
    `utrn audit verify` says why.
    """
    try:
        known = await anchors.all_of(node_id)
        for file, anchor in known.items():
            if file != own and anchor is not None and anchor.state is AnchorState.OPEN:
                await _end(folder / file, anchor, anchors)
    except LedgerUnavailable as error:
        log.warning("the audit files of earlier lives have no end yet", extra={"error": error.message})
        return False
    return True


async def _end(path: Path, anchor: Anchor, anchors: AuditAnchors) -> None:
    try:
        last, digest = await asyncio.to_thread(_last_block, path, anchor)
    except (OSError, BadAuditLog) as error:
        log.error("an audit file of an earlier life is not what was anchored", extra={"error": str(error)})  # noqa: TRY400
        return
    try:
        await anchors.put(path.name, Anchor(last, digest, AnchorState.DIED, anchor.key, own_block=anchor.block))
    except AnchorEnded:
        return
    log.info("the audit file of an earlier life is ended", extra={"file": path.name, "block": last})


def _last_block(path: Path, anchor: Anchor) -> tuple[int, str]:
    reader = AuditLogReader(path, anchor)
    for _ in reader:
        pass
    return reader.verdict.last_block, reader.verdict.sha256
