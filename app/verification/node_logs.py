"""What the logs of nodes say of leases: which were lost, and which of them by a peer's hand."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

# A node that stood still so shortly before it lost its lease lost it by right.
_STILL_EXCUSES = timedelta(seconds=3)


def log_texts(folder: Path) -> list[str]:
    """Return what nodes wrote."""
    return [file.read_text(encoding="utf-8", errors="replace") for file in sorted((folder / "logs").glob("node-*.log"))]


def revoked_leases(logs: Iterable[str]) -> set[tuple[str, int]]:
    """Return the nodes whose lease a peer has revoked, and the leases, as the nodes' logs say."""
    lines = (json.loads(line) for text in logs for line in text.splitlines() if '"a peer\'s lease is revoked"' in line)
    return {(line["peer"], line["lease"]) for line in lines}


@dataclass(frozen=True, slots=True)
class LostLeases:
    """How many leases a node lost, and how many of them though it ran all the time."""

    all: int
    while_running: int


def lost_leases(log: str) -> LostLeases:
    """Return the leases that a node lost, by its own log. One that stood still just before lost it by right."""
    stood_still: list[datetime] = []
    lost: list[datetime] = []
    for line in log.splitlines():
        if '"this node stood still"' in line:
            stood_still.append(datetime.fromisoformat(json.loads(line)["timestamp"]))
        elif '"the lease is gone, and every shard with it"' in line:
            lost.append(datetime.fromisoformat(json.loads(line)["timestamp"]))
    false = [at for at in lost if not any(abs(at - still) < _STILL_EXCUSES for still in stood_still)]
    return LostLeases(len(lost), len(false))
