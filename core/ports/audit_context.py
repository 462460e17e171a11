"""Notes: what a request was decided by, gathered while it is carried out; the audit log gets it at the end."""

from contextvars import ContextVar
from dataclasses import dataclass, field

from core.domain.record import ReadSet, Ref

# A bulk load looks at thousands; its lines are told of by their numbers.
_LOOKED_AT_MAX = 20


@dataclass(slots=True)
class Notes:
    """Records that one request has read and written. `decided`: the audit log has its line already."""

    looked_at: dict[Ref, int] = field(default_factory=dict)
    written_at: int = 0
    decided: bool = False

    @property
    def read_set(self) -> ReadSet:
        """Every record it was based on, and its revision; 0 for one that was not there."""
        return tuple(self.looked_at.items())

    def look(self, ref: Ref, revision: int) -> None:
        """Note a record that was read."""
        if len(self.looked_at) < _LOOKED_AT_MAX or ref in self.looked_at:
            self.looked_at[ref] = revision


# Of the request that is being carried out; None outside of one.
NOTES: ContextVar[Notes | None] = ContextVar("notes", default=None)
