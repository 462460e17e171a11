"""CallAudit: the lines of the audit log about calls that do not write their own."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from google.protobuf.message import Message

from core.api.audit_subjects import subject_of
from core.api.authenticate import CertificateOf, name_of
from core.api.status import Context
from core.domain.errors import NotReady
from core.domain.participant import Participant
from core.ports.audit_context import Notes
from core.ports.audit_log import AuditLog, AuditRecord
from core.ports.clock import Clock


@dataclass(frozen=True, kw_only=True)
class CallAudit:
    """Notes who asked for what, and what was decided.

    Attributes:
        audit_log: Where the lines go.
        clock: Cluster time; while that is not known, the wall clock's.
        caller: Returns the participant that uses a SAN URI; raises NotReady while the registry is read.
        certificate_of: Knows a caller by its certificate.
    """

    audit_log: AuditLog
    clock: Clock
    caller: Callable[[str], Participant | None]
    certificate_of: CertificateOf

    def note(self, context: Context, method: str, request: Message, outcome: str, notes: Notes) -> None:
        """Note a call: by which certificate, about what, decided by which role and records."""
        identity = name_of(self.certificate_of, context)
        caller = self._caller(identity)
        rule = "" if caller is None else caller.role.name.lower()
        at, clock = instant_of(self.clock)
        self.audit_log.note(
            AuditRecord(
                at=at,
                caller="" if caller is None else caller.participant_id,
                identity=identity,
                act=method,
                ask="",
                subject=subject_of(request),
                amount=0,
                outcome=outcome,
                rule=f"{rule}, written at {notes.written_at}" if notes.written_at else rule,
                read_set=notes.read_set,
                clock=clock,
            )
        )

    def _caller(self, uri: str) -> Participant | None:
        """Return who uses a certificate; None also if that cannot be said now: the audit log names the URI."""
        try:
            return self.caller(uri)
        except NotReady:
            return None


def instant_of(clock: Clock) -> tuple[datetime, str]:
    """Return when something was asked, and by which clock: a call that is refused for want of the time is noted too."""
    try:
        return clock.now(), "cluster"
    except NotReady:
        return clock.wall(), "wall"
