"""AuditLog: every decision and every sale, written down where nothing is ever changed."""

from datetime import datetime
from typing import NamedTuple, Protocol

from core.domain.record import ReadSet
from core.domain.vend import Vend


class AuditRecord(NamedTuple):
    """One decision: caller, request, outcome, rule, and the records with their revisions.

    `identity` is the SAN URI of the certificate; `ask` the transaction id or the name of the request; `subject` what it
    was about: a meter, a participant, the last four digits of an unknown PAN. `amount` is pence. `outcome` is
    "allowed", or the reason of the refusal. Never a UTRN, a whole PAN, or a secret. `at` is cluster time, or the node's
    wall clock while it does not know that; `clock` says which: "cluster" or "wall".

    Of a reading, `rows` is how many records the answer held, `digits` how many of them showed the digits of a UTRN.
    `peer` is the caller's network address, of what was refused.
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
    read_set: ReadSet
    clock: str = "cluster"
    channel: int = 0
    rows: int = 0
    digits: int = 0
    peer: str = ""


class AuditLog(Protocol):
    """Takes decisions at once and keeps them for good a little later."""

    def note(self, decision: AuditRecord) -> None:
        """Queue one decision for the log. Never raises, and never waits."""
        ...

    def note_sale(self, vend: Vend, revision: int) -> None:
        """Queue one sale, committed at `revision`; 0 if its outcome is unknown. Never raises, and never waits."""
        ...
