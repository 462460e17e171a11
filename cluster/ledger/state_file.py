"""StateFile: what this node last knew of its ledger, on its own disk, where no restore of the ledger reaches it."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerState:
    """The incarnation, the etcd cluster, and the highest revision heard of."""

    incarnation: str
    sequence: int
    cluster_id: int
    revision: int


class UnreadableState(Exception):
    """The file is there, and is not what this program writes; the message names it."""


class StateFile:
    """One file, replaced as a whole."""

    def __init__(self, folder: Path, node_id: str) -> None:
        self.path = folder / f"ledger-{node_id}.json"

    def read(self) -> LedgerState | None:
        """Return what was kept; None if this node has never kept anything.

        Raises:
            UnreadableState: people must look.
        """
        try:
            return _state(json.loads(self.path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UnreadableState(f"{self.path}: {error}") from error

    def write(self, state: LedgerState) -> None:
        """Keep `state`; it is on the disk when this returns.

        Raises:
            OSError: it is not.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(asdict(state), file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _state(kept: object) -> LedgerState:
    """Return what was kept; raise TypeError or ValueError if that is none: nothing is compared with what is no number.

    A negative revision would let a ledger that has gone back pass.
    """
    fields: dict[str, Any] = kept if isinstance(kept, dict) else {}
    state = LedgerState(**fields)
    numbers = (state.sequence, state.cluster_id, state.revision)
    if not (isinstance(state.incarnation, str) and state.incarnation):
        raise ValueError("no incarnation")
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError("what should be a number is none")
    return state
