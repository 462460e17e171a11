r"""Certificates of callers, nodes and signers: whom one names, whether its authority vouches for it, from when to when.

Everything is read from the certificate itself, by a parser that gives a name whole. A library that hands names on as C
strings cuts them at a NUL, and so takes "operator\0.x" for the operator.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from core.domain.errors import CertificateRefused
from core.domain.participant import is_spiffe_id

_RSA_BITS_MIN = 2048
_EC_BITS_MIN = 256
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_INTERMEDIATES_MAX = 8
# A caller's clock may be ahead of cluster time when its certificate is made; an end is an end.
_EARLY: Final = timedelta(seconds=60)
_URI = re.compile(r"[!-~]{1,2048}", re.ASCII)
_BEGIN, _END = b"-----BEGIN ", b"-----END "
# What `cryptography` raises on bytes that are no certificate, or one whose parts cannot be read.
UNREADABLE: Final = (
    ValueError,
    TypeError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    UnsupportedAlgorithm,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerCertificate:
    """A certificate that an authority vouches for.

    Attributes:
        identity: Its SPIFFE ID, the one URI of that scheme among its subject alternative names.
        fingerprint: SHA-256 of the certificate, 64 lower-case hex digits.
        issued_at: Its own not-before.
        starts: The latest not-before in its chain, the authority's included.
        ends: The earliest not-after in its chain.
    """

    identity: str
    fingerprint: str
    issued_at: datetime
    starts: datetime
    ends: datetime

    def check_time(self, now: datetime) -> None:
        """Return if it is valid at `now`; raise CertificateRefused if it is not, or not yet."""
        if now > self.ends:
            raise refused("it has expired", expired_at=self.ends.isoformat())
        if now < self.starts - _EARLY:
            raise refused("it is not valid yet", valid_from=self.starts.isoformat())


class Authority:
    """The roots that vouch for one kind of certificate, and what they have revoked."""

    def __init__(self, roots: Sequence[x509.Certificate], crls: Sequence[x509.CertificateRevocationList] = ()) -> None:
        """Take the roots, one or more, and the revocation lists of them and of their intermediates."""
        self.roots = tuple(roots)
        self.crls = tuple(crls)
        self._store = verification.Store(list(self.roots))
        self._signed: dict[tuple[int, bytes], bool] = {}

    @classmethod
    def of(cls, roots: bytes, crls: bytes = b"") -> "Authority":
        """Return the authority of certificates and revocation lists in PEM; raise ValueError if they are none."""
        return cls(read_certificates(roots), read_crls(crls))

    def vouch(
        self, certificate: x509.Certificate, intermediates: Sequence[x509.Certificate], now: datetime
    ) -> PeerCertificate:
        """Return what a certificate says, which is one of this authority and for a client's use.

        Whether it is valid now is asked of what is returned, each time anew.

        Args:
            certificate: Whose it is.
            intermediates: What its holder sent with it, in any order, not believed.
            now: Between the authority's own not-before and not-after.

        Raises:
            CertificateRefused: says what does not hold.
        """
        _check_strength(certificate)
        _check_use(certificate)
        identity = identity_of(certificate)
        chain = self._chain(certificate, intermediates, now)
        self._check_revoked(chain)
        return PeerCertificate(
            identity=identity,
            fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
            issued_at=certificate.not_valid_before_utc,
            starts=max(certificate.not_valid_before_utc for certificate in chain),
            ends=min(certificate.not_valid_after_utc for certificate in chain),
        )

    def _chain(
        self, certificate: x509.Certificate, intermediates: Sequence[x509.Certificate], now: datetime
    ) -> Sequence[x509.Certificate]:
        """Return the certificate, what issued it, and so on to a root."""
        if len(intermediates) > _INTERMEDIATES_MAX:
            raise refused(f"more than {_INTERMEDIATES_MAX} intermediates came with it")
        # One that has expired is told so, and not that nobody vouches for it.
        at = min(max(now, certificate.not_valid_before_utc), certificate.not_valid_after_utc)
        verifier = (
            verification.PolicyBuilder()
            .store(self._store)
            .time(at)
            .extension_policies(ca_policy=_CA_POLICY, ee_policy=_LEAF_POLICY)
            .build_client_verifier()
        )
        try:
            return verifier.verify(certificate, list(intermediates)).chain
        except (verification.VerificationError, *UNREADABLE) as error:
            raise refused("no authority of this service vouches for it, by any chain of valid certificates") from error

    def _check_revoked(self, chain: Sequence[x509.Certificate]) -> None:
        for certificate, issuer in pairwise(chain):
            for number, crl in enumerate(self.crls):
                if (
                    crl.issuer == certificate.issuer
                    and crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None
                    and self._is_signed(number, crl, issuer)
                ):
                    raise refused("it is revoked: its authority's revocation list has it")

    def _is_signed(self, number: int, crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
        """Return whether a list is really its issuer's; looked at once, since a list may have megabytes."""
        key = (number, issuer.fingerprint(hashes.SHA256()))
        if key not in self._signed:
            public = issuer.public_key()
            signer = isinstance(public, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)
            self._signed[key] = signer and crl.is_signature_valid(public)  # type: ignore[arg-type]  # narrowed above
        return self._signed[key]


_ANY = verification.Criticality.AGNOSTIC
_CA_POLICY = verification.ExtensionPolicy.permit_all().require_present(x509.BasicConstraints, _ANY, None)
_LEAF_POLICY = (
    verification.ExtensionPolicy.permit_all()
    .require_present(x509.ExtendedKeyUsage, _ANY, None)
    .require_present(x509.SubjectAlternativeName, _ANY, None)
)


def refused(because: str, **facts: str) -> CertificateRefused:
    """Return the refusal of a certificate: what is wrong with it, in a sentence that holds no word of the caller's."""
    return CertificateRefused(f"this certificate is not accepted: {because}", because=because, **facts)


def identity_of(certificate: x509.Certificate) -> str:
    """Return the SPIFFE ID of a certificate.

    Source: the X.509-SVID specification, section 2: exactly one; URIs of other schemes are no business of ours.

    Raises:
        CertificateRefused: it has none, two, or one that is odd.
    """
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    except UNREADABLE as error:
        raise refused("its alternative names cannot be read") from error
    if not all(_URI.fullmatch(uri) for uri in uris):
        raise refused("a URI in it has characters that a URI has not")
    ours = [uri for uri in uris if uri.lower().startswith("spiffe:")]
    if len(ours) != 1:
        raise refused(f"exactly one SAN URI that begins with spiffe:// is needed, and it has {len(ours)}")
    if not is_spiffe_id(ours[0]):
        raise refused("its SAN URI is no SPIFFE ID: spiffe://name/path of a-z, A-Z, 0-9, dot, hyphen and underscore")
    return ours[0]


def _check_strength(certificate: x509.Certificate) -> None:
    try:
        key, algorithm = certificate.public_key(), certificate.signature_hash_algorithm
    except UNREADABLE as error:
        raise refused("its key or its signature is of a kind that is not known here") from error
    if isinstance(key, rsa.RSAPublicKey):
        strong = key.key_size >= _RSA_BITS_MIN
    else:
        strong = isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size >= _EC_BITS_MIN
    if not strong:
        raise refused("its key is too weak: RSA of 2048 bits or P-256 at least is needed")
    if not isinstance(algorithm, _HASHES):
        raise refused("its signature's hash is too weak: SHA-256 at least is needed")


def _check_use(certificate: x509.Certificate) -> None:
    try:
        usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        usage = x509.ExtendedKeyUsage([])
    except UNREADABLE as error:
        raise refused("its extensions cannot be read") from error
    if may_sign(certificate):
        raise refused("it is an authority's own, and authorities do not call")
    if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
        raise refused("it is not for clients: extended key usage clientAuth is needed")


def may_sign(certificate: x509.Certificate) -> bool:
    """Return whether a certificate says that it is an authority's."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, *UNREADABLE):
        return False


def read_certificates(pem: bytes) -> list[x509.Certificate]:
    """Return every certificate of a PEM text, one or more, in order; raise ValueError that says what is wrong."""
    _check_pem(pem, "CERTIFICATE")
    try:
        return x509.load_pem_x509_certificates(pem)
    except UNREADABLE as error:
        raise ValueError("a certificate in it is damaged") from error


def read_crls(pem: bytes) -> list[x509.CertificateRevocationList]:
    """Return every revocation list of a PEM text, none if it is empty; raise ValueError that says what is wrong."""
    if not pem:
        return []
    _check_pem(pem, "X509 CRL")
    try:
        return [x509.load_pem_x509_crl(_BEGIN + part) for part in pem.split(_BEGIN)[1:]]
    except UNREADABLE as error:
        raise ValueError("a revocation list in it is damaged") from error


def _check_pem(text: bytes, kind: str) -> None:
    """Return if a text is PEM with parts of that kind; raise ValueError that says what it is instead."""
    if not text.strip():
        raise ValueError(f"is empty: it must hold at least one {kind}")
    if text[:1] == b"\x30":
        raise ValueError(
            f"is DER: PEM is needed (openssl {'crl' if 'CRL' in kind else 'x509'} -inform DER -outform PEM)"
        )
    if re.search(rb"-----END [A-Z0-9 ]+-----(?=\S)", text):
        raise ValueError("has no line break after an -----END line: put one between its parts")
    if _BEGIN + kind.encode() + b"-----" not in text:
        raise ValueError(f"holds no {kind} in PEM")
    if text.count(_BEGIN) != text.count(_END):
        raise ValueError("is cut off: a part has no -----END line")


def pem_of(certificates: Sequence[x509.Certificate]) -> bytes:
    """Return certificates as one PEM text, each on lines of its own."""
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
