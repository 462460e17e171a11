"""The journal: every sale, every attempt and every answer as JSON lines; what the audit holds against the ledger."""

import json
import time
from pathlib import Path


class Journal:
    """One file. A line is out of the process before the call it announces begins."""

    def __init__(self, path: Path) -> None:
        """Open the file anew."""
        self._file = path.open("w", encoding="utf-8")

    def write(self, event: str, **facts: object) -> None:
        """Add one line."""
        self._file.write(json.dumps({"at": round(time.monotonic(), 6), "event": event, **facts}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
