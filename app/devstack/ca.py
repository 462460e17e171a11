"""Development certificate authorities. For demos, tests and a first try; production brings its own certificates.

Four of them, as in production: whoever is issued a caller's certificate can be no node with it, and reaches neither
etcd nor a head end.
"""

import ipaddress
import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from core.domain.participant import NODE_URI

_CA_DAYS = 365
_LEAF_DAYS = 30
# A clock that lags must not find a new certificate invalid; drills set clocks an hour back.
_LEEWAY = timedelta(hours=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertPaths:
    """PEM files of one identity and of the authority that vouches for it."""

    cert: Path
    key: Path
    ca: Path


def participant_uri(participant_id: str) -> str:
    """Return the SAN URI of a participant's certificate."""
    return f"spiffe://utrn/participant/{participant_id}"


def node_uri(node_id: str) -> str:
    """Return the SAN URI of a node's certificate."""
    return f"{NODE_URI}{node_id}"


class DevCa:
    """Issues certificates into one folder."""

    def __init__(
        self, folder: Path, of: str, key: ec.EllipticCurvePrivateKey, cert: x509.Certificate, now: datetime
    ) -> None:
        self._folder = folder
        self._of = of
        self._key = key
        self._cert = cert
        self._now = now

    @property
    def ca_file(self) -> Path:
        """PEM file of the authority's own certificate."""
        return self._folder / _ca_name(self._of, "pem")

    @classmethod
    def load_or_create(cls, folder: Path, *, now: datetime, of: str = "") -> "DevCa":
        """Return the authority `of` whom is named in `folder`, made if there is none yet."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key_file, cert_file = folder / _ca_name(of, "key"), folder / _ca_name(of, "pem")
        if key_file.exists() and cert_file.exists():
            key = load_pem_private_key(key_file.read_bytes(), password=None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise ValueError(f"{key_file}: not a key of this tool")
            return cls(folder, of, key, x509.load_pem_x509_certificate(cert_file.read_bytes()), now)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name(
            [x509.NameAttribute(NameOID.COMMON_NAME, f"UTRN development CA{of and ' of '}{of}: not for production")]
        )
        cert = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _LEEWAY)
            .not_valid_after(now + timedelta(days=_CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .add_extension(_usage(sign_certs=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        _write_key(key_file, key)
        cert_file.write_bytes(cert.public_bytes(Encoding.PEM))
        return cls(folder, of, key, cert, now)

    def issue(
        self,
        name: str,
        *,
        uri: str | None = None,
        server: bool = False,
        days: int = _LEAF_DAYS,
        renew: bool = False,
        other_side: Path | None = None,
    ) -> CertPaths:
        """Return the certificate called `name`, made if it is not there or if `renew`.

        Args:
            name: Of the files, and the common name.
            uri: SAN URI, the identity of a caller or a node.
            server: May be a server under its name or on this machine (SAN localhost, 127.0.0.1) besides being a client.
            days: Validity; negative makes one that has expired, for tests.
            renew: Make it anew.
            other_side: PEM file of the authority of whom it is used with; absent: this one.
        """
        paths = CertPaths(
            cert=self._folder / f"{name}.pem", key=self._folder / f"{name}.key", ca=other_side or self.ca_file
        )
        if paths.cert.exists() and paths.key.exists() and not renew:
            return paths
        key = ec.generate_private_key(ec.SECP256R1())
        starts = self._now - _LEEWAY if days > 0 else self._now + timedelta(days=days - 1)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if server else [])
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._cert.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(starts)
            .not_valid_after(self._now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        )
        names = _alternative_names(name, uri, server)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        cert = builder.sign(self._key, hashes.SHA256())
        _write_key(paths.key, key)
        paths.cert.write_bytes(cert.public_bytes(Encoding.PEM))
        return paths


@dataclass(frozen=True, slots=True)
class DevPki:
    """The four authorities of one folder, and what each kind of part gets from them."""

    callers: DevCa
    nodes: DevCa
    head_ends: DevCa
    etcd: DevCa

    @classmethod
    def load_or_create(cls, folder: Path, *, now: datetime) -> "DevPki":
        """Return the authorities of `folder`, made if there are none yet."""
        made = (DevCa.load_or_create(folder, now=now, of=of) for of in ("callers", "nodes", "head-ends", "etcd"))
        return cls(*made)

    def participant(
        self, name: str, *, uri: str | None = None, days: int = _LEAF_DAYS, renew: bool = False
    ) -> CertPaths:
        """Return a participant's certificate, under its own URI or another, beside the nodes' authority."""
        uri = participant_uri(name) if uri is None else uri
        return self.callers.issue(name, uri=uri, days=days, renew=renew, other_side=self.nodes.ca_file)

    def node(self, name: str, *, renew: bool = False) -> CertPaths:
        """Return the certificate by which a node serves its callers, and calls its peers."""
        return self.nodes.issue(name, uri=node_uri(name), server=True, renew=renew)

    def etcd_client(self, name: str, *, renew: bool = False) -> CertPaths:
        """Return the certificate by which a node, or a tool, reaches etcd."""
        return self.etcd.issue(f"{name}-etcd", renew=renew)

    def head_end_client(self, name: str, *, renew: bool = False) -> CertPaths:
        """Return the certificate by which a node, or a tool, reaches a head end."""
        return self.head_ends.issue(f"{name}-head-end", renew=renew)

    def etcd_member(self, name: str, *, renew: bool = False) -> CertPaths:
        """Return the certificate of a member of etcd."""
        return self.etcd.issue(name, server=True, renew=renew)

    def head_end(self, name: str, *, renew: bool = False) -> CertPaths:
        """Return the certificate of a head end, or of the fleet behind it."""
        return self.head_ends.issue(name, server=True, renew=renew)


def _ca_name(of: str, ending: str) -> str:
    return f"{of}-ca.{ending}" if of else f"ca.{ending}"


def _alternative_names(name: str, uri: str | None, server: bool) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [] if uri is None else [x509.UniformResourceIdentifier(uri)]
    if server:
        names += [x509.DNSName("localhost"), x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    return names


def _usage(*, sign_certs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certs,
        crl_sign=sign_certs,
        encipher_only=False,
        decipher_only=False,
    )


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """Write a private key that only its owner can read, never for a moment anybody else."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
