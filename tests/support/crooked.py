"""Certificates as nobody should issue them: under an authority's own key, wrong in one way each."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from app.devstack.ca import CertPaths, DevCa
from core.gateways.system_clock import SystemClock

CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
SERVER = (ExtendedKeyUsageOID.SERVER_AUTH,)
_HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Issuer:
    """What signs: an authority, or one under it. `path` is what a holder sends beside its own certificate."""

    key: Any
    certificate: x509.Certificate
    path: tuple[x509.Certificate, ...] = ()

    @classmethod
    def of(cls, ca: DevCa) -> "Issuer":
        """Return a development authority's own key and certificate."""
        key = load_pem_private_key(ca.ca_file.with_suffix(".key").read_bytes(), None)
        return cls(key, x509.load_pem_x509_certificate(ca.ca_file.read_bytes()))


@dataclass(frozen=True)
class Made:
    """A private key, its certificate, and the certificates between it and a root."""

    key: Any
    certificate: x509.Certificate
    path: tuple[x509.Certificate, ...] = ()

    def write(self, folder: Path, name: str, ca: Path) -> CertPaths:
        """Write it as PEM files."""
        paths = CertPaths(cert=folder / f"{name}.pem", key=folder / f"{name}.key", ca=ca)
        chain = (self.certificate, *self.path)
        paths.cert.write_bytes(b"".join(one.public_bytes(Encoding.PEM) for one in chain))
        secret = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        paths.key.touch(0o600)
        paths.key.write_bytes(secret)
        return paths


def made(
    issuer: Issuer,
    *uris: str,
    usages: Sequence[x509.ObjectIdentifier] = CLIENT,
    key: Any = None,
    algorithm: hashes.SHA256 | hashes.SHA384 | None = None,
    starts: datetime | None = None,
    ends: datetime | None = None,
    authority: bool = False,
) -> Made:
    """Return a certificate with these SAN URIs; well made but for what is said otherwise."""
    now = SystemClock().now()
    key = ec.generate_private_key(ec.SECP256R1()) if key is None else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "crooked")]))
        .issuer_name(issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _HOUR if starts is None else starts)
        .not_valid_after(now + _HOUR if ends is None else ends)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(names, critical=False)
    certificate = builder.sign(issuer.key, algorithm or hashes.SHA256())
    return Made(key, certificate, issuer.path)


def intermediate(issuer: Issuer, *, ends: datetime | None = None) -> Issuer:
    """Return an authority under an authority."""
    one = made(issuer, usages=(), authority=True, ends=ends)
    return Issuer(one.key, one.certificate, (one.certificate, *issuer.path))


def crl_of(issuer: Issuer, *serials: int) -> bytes:
    """Return a revocation list, as PEM."""
    now = SystemClock().now()
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(now - _HOUR)
        .next_update(now + _HOUR)
    )
    for serial in serials:
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now - _HOUR).build()
        builder = builder.add_revoked_certificate(revoked)
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.PEM)
