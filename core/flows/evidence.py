"""Evidence of an appointment: the supplier's ECDSA signature over the terms, and the certificate it was made with."""

from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from core.domain.appointment import Evidence
from core.domain.errors import SignatureWrong


def verify(evidence: Evidence, identities: tuple[str, ...], roots: bytes, now: datetime) -> None:
    """Return if the evidence holds: ECDSA with SHA-256 (DER) over the terms' bytes, by a certificate of the supplier.

    Args:
        evidence: Terms, signature and certificate (DER).
        identities: The supplier's SAN URIs; the certificate must name one of them.
        roots: Certificates (PEM) one of which must have issued it.
        now: The certificate must be valid then.

    Raises:
        SignatureWrong: says what does not hold.
    """
    try:
        certificate = x509.load_der_x509_certificate(evidence.certificate)
        issuers = x509.load_pem_x509_certificates(roots)
    except (ValueError, x509.InvalidVersion) as error:
        raise _wrong("the certificate is no X.509 certificate in DER") from error
    if not any(_issued(certificate, issuer) for issuer in issuers):
        raise _wrong("the certificate is not issued under this service's roots")
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise _wrong("the certificate is not valid now")
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    if not set(uris) & set(identities):
        raise _wrong("the certificate is not one of the supplier's")
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise _wrong("the certificate's key is no elliptic-curve key")
    try:
        key.verify(evidence.signature, evidence.terms, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise _wrong("the signature is not over these terms, or not by this certificate") from error


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _wrong(because: str) -> SignatureWrong:
    return SignatureWrong(f"the appointment's evidence does not hold: {because}", because=because)
