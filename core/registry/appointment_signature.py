"""Evidence of an appointment: the supplier's ECDSA signature over the terms, and the certificate it was made with."""

from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from core.access.certificates import UNREADABLE, Authority
from core.domain.appointment import Evidence
from core.domain.errors import CertificateRefused, SignatureWrong
from core.domain.participant import Participant


def verify(evidence: Evidence, supplier: Participant, authority: Authority, now: datetime) -> None:
    """Return if the evidence holds: ECDSA with SHA-256 (DER) over the terms' bytes, by a certificate of the supplier.

    Args:
        evidence: Terms, signature, and the certificate with its intermediates (DER).
        supplier: The certificate must name it, and be none that it has had revoked.
        authority: Must vouch for the certificate: that of callers' certificates.
        now: The certificate must be valid then.

    Raises:
        SignatureWrong: says what does not hold.
    """
    try:
        certificate, *intermediates = map(
            x509.load_der_x509_certificate, (evidence.certificate, *evidence.intermediates)
        )
    except UNREADABLE as error:
        raise _wrong("the certificate, or one sent with it, is no X.509 certificate in DER") from error
    try:
        vouched = authority.vouch(certificate, intermediates, now)
        vouched.check_time(now)
    except CertificateRefused as refusal:
        raise _wrong(f"the certificate is not accepted: {refusal.facts['because']}") from refusal
    if vouched.identity not in supplier.identities:
        raise _wrong("the certificate is not one of the supplier's")
    if supplier.revoked.covers(vouched.fingerprint, vouched.issued_at):
        raise _wrong("the certificate is revoked by an operator")
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _wrong("the certificate's key is no elliptic-curve key")
    try:
        key.verify(evidence.signature, evidence.terms, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise _wrong("the signature is not over these terms, or not by this certificate") from error


def _wrong(because: str) -> SignatureWrong:
    return SignatureWrong(f"the appointment's evidence does not hold: {because}", because=because)
