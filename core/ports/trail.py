"""Trail: every decision, written down where nothing is ever changed."""

from datetime import datetime
from typing import NamedTuple, Protocol

from core.domain.registry import Basis


class Decision(NamedTuple):
    """Who asked for what, and what was decided, by which rule and which records at which revision.

    `identity` is the SAN URI of the certificate; `ask` the transaction id or the name of the request; `subject` what it
    was about: a meter, a participant, the last four digits of an unknown PAN. `outcome` is "allowed", or the reason of
    the refusal. Never a UTRN, a whole PAN, or a secret. `at` is cluster time, or the node's wall clock while it does
    not know that; `clock` says which: "cluster" or "wall".
    """

    at: datetime
    caller: str
    identity: str
    act: str
    ask: str
    subject: str
    amount: int
    outcome: str
    rule: str
    basis: Basis
    clock: str = "cluster"


class Trail(Protocol):
    """Takes decisions at once and keeps them for good a little later."""

    def note(self, decision: Decision) -> None:
        """Take one decision. Never raises, and never waits."""
        ...
