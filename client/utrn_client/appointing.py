"""Signs the terms of an appointment with a supplier's certificate, and verifies what was signed."""

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from utrn.v1 import appointment_service_pb2 as pb

_ANY = verification.Criticality.AGNOSTIC
_CA_POLICY = verification.ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, _ANY, None)
_LEAF_POLICY = verification.ExtensionPolicy.permit_all().require_present(x509.SubjectAlternativeName, _ANY, None)


class BadEvidence(Exception):
    """The signature does not hold; the message says why."""


def sign_terms(terms: pb.AppointmentTerms, *, cert: Path, key: Path) -> pb.SignedTerms:
    """Return `terms` signed: ECDSA with SHA-256 over their bytes.

    Args:
        terms: What is agreed.
        cert: PEM file of the supplier's certificate, and of those between it and a root.
        key: PEM file of its private key, on an elliptic curve.

    Raises:
        OSError, ValueError: a file cannot be read, or is not what it should be.
    """
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ValueError("an elliptic-curve key is needed")  # noqa: TRY004  # what was read is wrong, not what was passed
    certificate, *intermediates = x509.load_pem_x509_certificates(cert.read_bytes())
    body = terms.SerializeToString(deterministic=True)
    return pb.SignedTerms(
        terms=body,
        signature=private.sign(body, ec.ECDSA(hashes.SHA256())),
        certificate=certificate.public_bytes(serialization.Encoding.DER),
        intermediates=[intermediate.public_bytes(serialization.Encoding.DER) for intermediate in intermediates],
    )


def verify_terms(signed: pb.SignedTerms, *, roots: bytes) -> str:
    """Return the SAN URI of who signed.

    Args:
        signed: Terms, signature and certificate.
        roots: Certificates (PEM) one of which must have issued the signer's.

    Raises:
        BadEvidence: the signature does not hold.
    """
    try:
        certificate = x509.load_der_x509_certificate(signed.certificate)
        intermediates = [x509.load_der_x509_certificate(intermediate) for intermediate in signed.intermediates]
        issuers = x509.load_pem_x509_certificates(roots)
        key = certificate.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise BadEvidence("the certificate's key is no elliptic-curve key")
        key.verify(signed.signature, signed.terms, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise BadEvidence("the signature is not over these terms") from error
    except ValueError as error:
        raise BadEvidence("the certificate cannot be read") from error
    # Whether it holds today is not asked: it was made when the appointment was.
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store(issuers))
        .time(certificate.not_valid_before_utc)
        .extension_policies(ca_policy=_CA_POLICY, ee_policy=_LEAF_POLICY)
        .build_client_verifier()
    )
    try:
        verifier.verify(certificate, intermediates)
    except verification.VerificationError as error:
        raise BadEvidence("the certificate is not issued under these roots") from error
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return ", ".join(names.get_values_for_type(x509.UniformResourceIdentifier))
