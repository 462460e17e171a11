"""Step 1: the peer's TLS certificate -> a Principal."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from core.access.certificates import PeerCertificate, refused
from core.api.status import Context
from core.domain.errors import CallerSuspended, CertificateRefused, NotReady, Refused, UnknownCaller
from core.domain.participant import NODE_URI, Participant, ParticipantStatus, Principal
from core.ports.registry import Registry

CertificateOf = Callable[[Context], PeerCertificate]
_LONGEST_SHOWN: Final = 120


@dataclass(frozen=True, slots=True)
class Authenticate:
    """Knows callers by the certificate that TLS was given; nothing in a request can name a caller."""

    registry: Registry
    certificate_of: CertificateOf

    def __call__(self, context: Context) -> Principal:
        """Return who is calling.

        Raises:
            CertificateRefused, UnknownCaller, CallerSuspended: this proves nothing about earlier sales.
            NotReady: repeat at another node.
        """
        principal, refusal = self.even_barred(context)
        if refusal is not None:
            raise refusal
        return principal

    def even_barred(self, context: Context) -> tuple[Principal, Refused | None]:
        """Return who is calling, and why the caller may do nothing new: it is suspended, or has left; None if it may.

        Whoever sold may always learn what became of its sales.

        Raises:
            CertificateRefused: as it says; of a participant's certificate that is revoked too.
            UnknownCaller: no participant uses or used this certificate.
            NotReady: repeat at another node.
        """
        certificate = self.certificate_of(context)
        if not self.registry.ready:
            raise NotReady("this node is still reading the registry; ask another")
        identity = certificate.identity
        participant = self.registry.caller(identity)
        if participant is not None and participant.status is not ParticipantStatus.LEFT:
            _check_revoked(participant, certificate)
            suspended = participant.status is ParticipantStatus.SUSPENDED
            return Principal(participant, identity), _suspended() if suspended else None
        departed = self.registry.departed(identity)
        if departed is not None:
            _check_revoked(departed, certificate)
            return Principal(departed, identity), _unknown()
        raise _unknown()

    def is_node(self, context: Context) -> bool:
        """Return whether a node calls; raise CertificateRefused if its certificate says nothing."""
        return self.certificate_of(context).identity.startswith(NODE_URI)


def name_of(certificate_of: CertificateOf, context: Context) -> str:
    """Return whom a call's certificate names, for the record of a refusal; "" if it is none that may be believed."""
    try:
        return certificate_of(context).identity[:_LONGEST_SHOWN]
    except CertificateRefused:
        return ""


def _check_revoked(participant: Participant, certificate: PeerCertificate) -> None:
    if participant.revoked.covers(certificate.fingerprint, certificate.issued_at):
        raise refused("it is revoked by an operator")


def _suspended() -> Refused:
    return CallerSuspended("this participant is suspended")


def _unknown() -> Refused:
    return UnknownCaller("the client certificate's SAN URI names no participant")
