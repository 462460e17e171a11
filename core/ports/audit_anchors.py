"""AuditAnchors: how far each audit file goes, and its hash, kept where whoever edits a file cannot reach."""

from enum import IntEnum
from typing import NamedTuple, Protocol


class AnchorState(IntEnum):
    """Whether the node that wrote the file still runs, and how its run ended. Stored by number."""

    # By a program that did not say.
    UNKNOWN = 0
    OPEN = 1
    # The node wrote the file's end, and the anchor is of its last block.
    FINISHED = 2
    # The node died. Its next life has ended the file, by the last whole block that it found.
    DIED = 3


class Anchor(NamedTuple):
    """The last block of an audit file that was anchored, counted from 0, and its hash.

    `key` is what the digits of codes are hashed with in this file: whoever has the file alone could try every code.
    `own_block`: of a node that died, the last block that it had anchored itself.
    """

    block: int
    sha256: str
    state: AnchorState = AnchorState.UNKNOWN
    key: bytes = b""
    own_block: int = 0

    @property
    def ended(self) -> bool:
        """True if nothing may follow the anchored block."""
        return self.state in (AnchorState.FINISHED, AnchorState.DIED)


class AnchorEnded(Exception):
    """Somebody else has ended this file: a later life of this node believes that this one is dead."""


class AuditAnchors(Protocol):
    """Where anchors are kept. Each file has one writer, and a later anchor takes the place of an earlier one."""

    async def put(self, file: str, anchor: Anchor, /) -> None:
        """Keep how far a file goes.

        Raises:
            LedgerUnavailable: repeat with the newest.
            AnchorEnded: the file has an end, and this is not it.
        """
        ...

    async def all_of(self, node_id: str, /) -> dict[str, Anchor | None]:
        """Return the anchors of every file that a node has written, by the file's name.

        None for one that this program cannot understand.

        Raises:
            LedgerUnavailable: repeat.
        """
        ...
