"""What TLS of a node will use: read from its files, parsed as TLS will, checked to fit, and told apart by purpose.

gRPC takes what it is given without a word: an authority in DER is no authority, a key that is not the certificate's is
a port that cannot be opened. So every file is read here first, and what is wrong is said of the key that names it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID

from app.node.config import Config
from core.access.certificates import UNREADABLE, Authority, may_sign, pem_of, read_certificates, read_crls
from core.api.config import ApiConfig
from core.api.peer_certificates import Trust
from core.domain.errors import CertificateRefused
from core.domain.participant import NODE_URI

ENDS_SOON: Final = timedelta(days=14)
_DER: Final = Encoding.DER
_T = TypeVar("_T")
_SERVER, _CLIENT = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


class BadTls(Exception):
    """A node's certificates, keys or authorities cannot be used; every line names a key, a file, and what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One certificate as people are shown it.

    Attributes:
        key: The configuration's key that names its file.
        use: "server", "client" or "authority".
        subject: Its subject, as RFC 4514 writes it.
        starts: Its not-before.
        ends: Its not-after.
    """

    key: str
    use: str
    subject: str
    starts: datetime
    ends: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsMaterial:
    """Everything of one node, read at one time.

    Attributes:
        pair: This node's private key and certificate chain, as PEM, as its port shows it.
        trust: Who vouches for whom at its port.
        shown: Every certificate of every file, in the order of the configuration.
    """

    pair: tuple[bytes, bytes]
    trust: Trust
    shown: tuple[Shown, ...]

    @property
    def roots(self) -> bytes:
        """Every authority that the port accepts, as PEM."""
        trust = self.trust
        return pem_of((*trust.callers.roots, *(() if trust.nodes is None else trust.nodes.roots)))


def read_tls(config: Config) -> TlsMaterial:
    """Return what a node's TLS will use.

    Raises:
        BadTls: names everything that is wrong.
    """
    reader = _Reader()
    api, peers = config.api, config.peers
    pair = reader.pair("api", api.cert, api.key, "server", _SERVER)
    callers = reader.authority("api.client_ca", api.client_ca, "api.client_crl", api.client_crl)
    reader.pair("etcd", config.etcd.cert, config.etcd.key, "client", _CLIENT)
    reader.certificates("etcd.ca", config.etcd.ca, "authority")
    reader.pair("peers", peers.cert, peers.key, "client", _CLIENT)
    nodes = reader.authority("peers.ca", peers.ca, "peers.crl", peers.crl)
    for head_end in config.head_ends:
        reader.pair(f"head_ends.{head_end.name}", head_end.cert, head_end.key, "client", _CLIENT)
        reader.certificates(f"head_ends.{head_end.name}.ca", head_end.ca, "authority")
    if callers is not None and nodes is not None:
        reader.check_apart(callers, nodes)
        reader.check_node(config, nodes)
    if reader.problems or pair is None or callers is None:
        raise BadTls("\n".join(reader.problems))
    return TlsMaterial(pair=pair, trust=Trust(callers=callers, nodes=nodes), shown=tuple(reader.shown))


def callers_of(config: ApiConfig) -> Authority:
    """Return who vouches for callers.

    Raises:
        BadTls: a file cannot be read, or is not what it should be.
    """
    reader = _Reader()
    found = reader.authority("api.client_ca", config.client_ca, "api.client_crl", config.client_crl)
    if found is None or reader.problems:
        raise BadTls("\n".join(reader.problems))
    return found


def ends_of(shown: Sequence[Shown], now: datetime) -> list[str]:
    """Return what must be renewed: certificates that have expired, and those that end within two weeks."""
    said = []
    for one in shown:
        if one.ends <= now:
            said.append(f"{one.key}: {one.use} certificate {one.subject} expired on {one.ends:%Y-%m-%d %H:%M} UTC")
        elif one.ends <= now + ENDS_SOON:
            said.append(f"{one.key}: {one.use} certificate {one.subject} ends on {one.ends:%Y-%m-%d %H:%M} UTC")
    return said


class _Reader:
    """Reads files, and gathers what is wrong with them."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.shown: list[Shown] = []

    def authority(self, key: str, path: Path | None, crl_key: str, crl: Path | None) -> Authority | None:
        roots = self.certificates(key, path, "authority")
        crls = None if crl is None else self._read(crl_key, crl, read_crls)
        return Authority(roots, crls or ()) if roots else None

    def certificates(self, key: str, path: Path | None, use: str) -> list[x509.Certificate]:
        """Return the certificates of a file; none if it is not configured, or cannot be used."""
        found = None if path is None else self._read(key, path, read_certificates)
        for one in found or ():
            self.shown.append(
                Shown(
                    key=key,
                    use=use,
                    subject=one.subject.rfc4514_string(),
                    starts=one.not_valid_before_utc,
                    ends=one.not_valid_after_utc,
                )
            )
            if use == "authority" and not may_sign(one):
                self.problems.append(
                    f"{key}: {path}: {one.subject.rfc4514_string()} is no authority (CA:TRUE is missing)"
                )
        return found or []

    def pair(
        self, section: str, cert: Path | None, key: Path | None, use: str, usage: x509.ObjectIdentifier
    ) -> tuple[bytes, bytes] | None:
        """Return a private key and its certificate chain as PEM; None if they are not configured, or cannot be used."""
        if cert is None or key is None:
            return None
        chain = self.certificates(f"{section}.cert", cert, use)
        secret = self._read(f"{section}.key", key, lambda text: (text, load_pem_private_key(text, None).public_key()))
        if not chain or secret is None:
            return None
        text, public = secret
        if public != chain[0].public_key():
            self.problems.append(f"{section}.key: {key} is not the key of the first certificate in {cert}")
            return None
        if not _is_for(chain[0], usage):
            need = "serverAuth" if use == "server" else "clientAuth"
            self.problems.append(f"{section}.cert: {cert} is not for a {use}: extended key usage {need} is missing")
        return text, pem_of(chain)

    def check_apart(self, callers: Authority, nodes: Authority) -> None:
        """Note if one authority vouches for both kinds: whoever it names as a caller could be named as a node."""
        if {root.public_bytes(_DER) for root in callers.roots} & {root.public_bytes(_DER) for root in nodes.roots}:
            self.problems.append("peers.ca: has an authority in common with api.client_ca; nodes need one of their own")

    def check_node(self, config: Config, nodes: Authority) -> None:
        """Note if peers will not take this node's certificate for this node's."""
        path = config.peers.cert
        chain = None if path is None else self._quietly(path)
        if not chain:
            return
        try:
            vouched = nodes.vouch(chain[0], chain[1:], chain[0].not_valid_before_utc)
        except CertificateRefused as refusal:
            self.problems.append(f"peers.cert: {path}: other nodes will refuse it: {refusal.facts['because']}")
            return
        wanted = f"{NODE_URI}{config.node.node_id}"
        if vouched.identity != wanted:
            self.problems.append(f"peers.cert: {path} is {vouched.identity}'s; the SAN URI {wanted} is needed")

    @staticmethod
    def _quietly(path: Path) -> list[x509.Certificate]:
        try:
            return read_certificates(path.read_bytes())
        except (OSError, ValueError):
            return []

    def _read(self, key: str, path: Path, parse: Callable[[bytes], _T]) -> _T | None:
        try:
            return parse(path.read_bytes())
        except OSError as error:
            self.problems.append(f"{key}: {path} cannot be read: {error.strerror}")
        except UNREADABLE as error:
            what = "holds no private key in PEM without a password" if key.endswith(".key") else str(error)
            self.problems.append(f"{key}: {path} {what}")
        return None


def _is_for(certificate: x509.Certificate, usage: x509.ObjectIdentifier) -> bool:
    """Return whether a certificate may be used so; one that does not say is for everything."""
    try:
        return usage in certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return True
    except UNREADABLE:
        return False
