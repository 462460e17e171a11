"""Who is at the other end of a connection, by the certificate that TLS was given; each is verified once, and kept.

One port serves callers and nodes, so TLS accepts both authorities; which of them may name whom is decided here. What is
kept is forgotten when authorities or revocation lists are read anew. Whether a certificate is valid *now* is asked at
every call: a connection may outlive it.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509

from core.access.certificates import UNREADABLE, Authority, PeerCertificate, identity_of, refused
from core.api.status import Context
from core.domain.errors import CertificateRefused, NotReady
from core.domain.participant import NODE_URI
from core.ports.clock import Clock

_CERTIFICATE = "x509_pem_cert"
_CHAIN = "x509_pem_cert_chain"
_KEPT_MAX: Final = 4096
# Of a certificate and what was sent with it: TLS lets through ten times as much, and whoever has any certificate may
# add to it what it likes.
_SENT_BYTES_MAX: Final = 32_768
# How long a refusal is kept: of an intermediate that is not valid yet it would not be true for ever.
_REFUSED_FOR_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Who vouches for whom at this node's port. `nodes` None: no peers are configured, and no node may call."""

    callers: Authority
    nodes: Authority | None


class PeerCertificates:
    """Returns the certificate of a call's peer.

    `callers`: the fingerprint of each connection that has called, by gRPC's name of its peer; whoever looks at the
    connections takes out those that are gone.
    """

    def __init__(self, clock: Clock, trust: Trust | None = None) -> None:
        """Set the clock whose `now` is cluster time, and the authorities; without authorities every call is refused."""
        self._clock = clock
        self._trust = trust
        self.callers: dict[str, str] = {}
        # By the digest of what was sent: what is kept must not grow with what a stranger sends.
        self._kept: OrderedDict[bytes, tuple[PeerCertificate | CertificateRefused, float]] = OrderedDict()

    def trust(self, trust: Trust) -> None:
        """Go by these authorities and revocation lists from now on, for the connections that stand too."""
        self._trust = trust
        self._kept.clear()

    def __call__(self, context: Context) -> PeerCertificate:
        """Return the certificate of whoever calls, valid now.

        Raises:
            CertificateRefused: says what is wrong with it.
        """
        properties: Mapping[str, Iterable[bytes]] = context.auth_context()
        pems = (*properties.get(_CERTIFICATE, ()), *properties.get(_CHAIN, ()))
        now = self._now()
        found = self._find(pems, now)
        found.check_time(now)
        self.callers[context.peer()] = found.fingerprint
        return found

    def _now(self) -> datetime:
        """Return cluster time; the wall clock's while it is not known, since nodes call each other before that."""
        try:
            return self._clock.now()
        except NotReady:
            return self._clock.wall()

    def _find(self, pems: tuple[bytes, ...], now: datetime) -> PeerCertificate:
        if sum(map(len, pems)) > _SENT_BYTES_MAX:
            raise refused(f"it came with more than {_SENT_BYTES_MAX} bytes of certificates")
        at, key = self._clock.monotonic(), _digest(pems)
        known = self._kept.get(key)
        if known is None or (isinstance(known[0], CertificateRefused) and at > known[1] + _REFUSED_FOR_S):
            known = (self._verified(pems, now), at)
            self._kept[key] = known
            if len(self._kept) > _KEPT_MAX:
                self._kept.popitem(last=False)
        # The one that called last is forgotten last: new ones push out new ones.
        self._kept.move_to_end(key)
        found, _ = known
        if isinstance(found, CertificateRefused):
            raise found.with_traceback(None)
        return found

    def _verified(self, pems: tuple[bytes, ...], now: datetime) -> PeerCertificate | CertificateRefused:
        """Return what a certificate and the intermediates sent with it prove, or why they prove nothing."""
        try:
            if not pems or self._trust is None:
                raise refused("none was presented")
            certificate, *intermediates = (x509.load_pem_x509_certificate(pem) for pem in _split(pems))
            is_node = identity_of(certificate).startswith(NODE_URI)
            authority = self._trust.nodes if is_node else self._trust.callers
            if authority is None:
                raise refused("this node has no peers")
            return authority.vouch(certificate, intermediates, now)
        except UNREADABLE:
            return refused("it cannot be read")
        except CertificateRefused as refusal:
            return refusal


def _digest(pems: Sequence[bytes]) -> bytes:
    found = hashlib.sha256()
    for pem in pems:
        found.update(len(pem).to_bytes(8, "big"))
        found.update(pem)
    return found.digest()


def _split(pems: Sequence[bytes]) -> list[bytes]:
    """Return each certificate as a PEM text of its own: a chain comes in one, or in several."""
    begin = b"-----BEGIN "
    return [begin + part for pem in pems for part in pem.split(begin)[1:]]
