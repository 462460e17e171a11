"""HeadEndNames: which head ends there are, by the names that meters have of them."""

from typing import Protocol


class HeadEndNames(Protocol):
    """The names on which all nodes agree: every head end that a node of this ledger has ever been configured with."""

    def __call__(self) -> frozenset[str] | None:
        """Return the names; None while they are not known yet."""
        ...
