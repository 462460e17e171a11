"""Whom a certificate names, and who may vouch for it."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

import core.api.peer_certificates
from app.devstack.ca import DevPki, node_uri, participant_uri
from core.access.certificates import Authority, read_certificates, read_crls
from core.api.peer_certificates import PeerCertificates, Trust
from core.api.status import Context
from core.domain.errors import CertificateRefused
from core.gateways.system_clock import SystemClock
from tests.fakes.clock import HandClock
from tests.support.crooked import SERVER, Issuer, Made, crl_of, intermediate, made

PSP_URI, OPERATOR_URI, NODE = participant_uri("psp-corner"), participant_uri("operator-ops"), node_uri("node-a")
NOW = SystemClock().now()


@dataclass
class Door:
    """Authorities, and what knows callers by them."""

    pki: DevPki
    clock: HandClock
    certificates: PeerCertificates

    @property
    def callers(self) -> Issuer:
        return Issuer.of(self.pki.callers)

    @property
    def nodes(self) -> Issuer:
        return Issuer.of(self.pki.nodes)

    def trust(self, *, crls: bytes = b"") -> None:
        """Go by the authorities, and by these revocation lists of callers."""
        callers, nodes = (one.ca_file.read_bytes() for one in (self.pki.callers, self.pki.nodes))
        self.certificates.trust(Trust(callers=Authority.of(callers, crls), nodes=Authority.of(nodes)))

    def because(self, one: Made) -> str:
        """Return why a certificate is refused; "" if it is not."""
        try:
            self.certificates(calling_with(one))
        except CertificateRefused as refusal:
            return refusal.facts["because"]
        return ""


@dataclass(frozen=True)
class _Call:
    properties: dict[str, list[bytes]]

    def auth_context(self) -> dict[str, list[bytes]]:
        return self.properties

    def peer(self) -> str:
        return "ipv4:127.0.0.1:50000"


def calling_with(one: Made) -> Context:
    """Return the context of a call, as gRPC gives it: the certificate, and in one text what was sent with it."""
    properties = {"x509_pem_cert": [one.certificate.public_bytes(Encoding.PEM)]}
    if one.path:
        properties["x509_pem_cert_chain"] = [b"".join(each.public_bytes(Encoding.PEM) for each in one.path)]
    return cast("Context", _Call(properties))


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> DevPki:
    return DevPki.load_or_create(tmp_path_factory.mktemp("pki"), now=NOW)


@pytest.fixture
def door(pki: DevPki) -> Door:
    clock = HandClock(NOW)
    door = Door(pki, clock, PeerCertificates(clock))
    door.trust()
    return door


def test_a_good_certificate_says_whom_it_names_and_until_when(door: Door) -> None:
    found = door.certificates(calling_with(made(door.callers, PSP_URI, "https://somebody.example/page")))
    assert found.identity == PSP_URI
    assert found.starts <= NOW <= found.ends
    assert door.certificates(calling_with(made(door.nodes, NODE))).identity == NODE


@pytest.mark.parametrize(
    ("uris", "because"),
    [
        ((f"{OPERATOR_URI}\0.x",), "characters"),
        ((f"{OPERATOR_URI}\n",), "characters"),
        ((f"{OPERATOR_URI} ",), "characters"),
        ((f"{OPERATOR_URI}%00",), "no SPIFFE ID"),
        ((f"{OPERATOR_URI}/../psp-corner",), "no SPIFFE ID"),
        ((f"{OPERATOR_URI}/",), "no SPIFFE ID"),
        ((f"{OPERATOR_URI}?x=1",), "no SPIFFE ID"),
        ((OPERATOR_URI.replace("spiffe", "SPIFFE"),), "no SPIFFE ID"),
        ((OPERATOR_URI.replace("utrn", "user@utrn"),), "no SPIFFE ID"),
        ((OPERATOR_URI.replace("utrn", "utrn:443"),), "no SPIFFE ID"),
        ((PSP_URI, OPERATOR_URI), "it has 2"),
        ((PSP_URI, NODE), "it has 2"),
        ((PSP_URI, f"{OPERATOR_URI}\0.x"), "characters"),
        (("https://somebody.example",), "it has 0"),
        ((), "it has 0"),
    ],
)
def test_a_name_that_is_odd_or_not_one_names_nobody(door: Door, uris: tuple[str, ...], because: str) -> None:
    assert because in door.because(made(door.callers, *uris))


@pytest.mark.parametrize(
    ("how", "because"),
    [
        ({"usages": ()}, "clientAuth"),
        ({"usages": SERVER}, "clientAuth"),
        ({"key": rsa.generate_private_key(65537, 1024)}, "too weak"),  # noqa: S505  # that is the point
        ({"key": ec.generate_private_key(ec.SECP192R1())}, "too weak"),
        ({"key": rsa.generate_private_key(65537, 2048)}, ""),
        ({"key": ec.generate_private_key(ec.SECP384R1())}, ""),
        ({"algorithm": hashes.SHA384()}, ""),
        ({"authority": True}, "an authority's own"),
        ({"starts": NOW + timedelta(hours=1), "ends": NOW + timedelta(hours=2)}, "not valid yet"),
        ({"starts": NOW - timedelta(hours=2), "ends": NOW - timedelta(hours=1)}, "expired"),
    ],
)
def test_what_is_weak_or_for_another_use_is_refused(door: Door, how: dict[str, Any], because: str) -> None:
    said = door.because(made(door.callers, PSP_URI, **how))
    assert because in said
    assert bool(because) is bool(said)


def test_each_authority_names_its_own_kind_and_no_other(door: Door, tmp_path: Path) -> None:
    foreign = Issuer.of(DevPki.load_or_create(tmp_path, now=NOW).callers)
    assert door.because(made(door.callers, PSP_URI)) == door.because(made(door.nodes, NODE)) == ""
    for issuer, uri in ((door.nodes, PSP_URI), (door.callers, NODE), (foreign, PSP_URI), (foreign, NODE)):
        assert "no authority" in door.because(made(issuer, uri))


def test_intermediates_count_if_they_are_sent_and_lead_to_the_right_authority(door: Door) -> None:
    under = intermediate(door.callers)
    one = made(under, PSP_URI)
    assert door.because(one) == ""
    assert "no authority" in door.because(Made(one.key, one.certificate))
    assert "no authority" in door.because(made(intermediate(door.nodes), PSP_URI))
    # A caller's own certificate is no authority, whatever it signs.
    holder = made(door.callers, PSP_URI)
    forged = made(Issuer(holder.key, holder.certificate, (holder.certificate,)), OPERATOR_URI)
    assert "no authority" in door.because(forged)
    assert "more than 8" in door.because(Made(one.key, one.certificate, one.path * 9))


def test_a_certificate_ends_while_its_connection_lives(door: Door) -> None:
    one, under = made(door.callers, PSP_URI), intermediate(door.callers, ends=NOW + timedelta(minutes=10))
    below = made(under, PSP_URI)
    assert door.because(one) == door.because(below) == ""
    door.clock.advance(601)
    assert (door.because(one), "expired" in door.because(below)) == ("", True)
    door.clock.advance(3600)
    assert "expired" in door.because(one)


def test_what_its_authority_revokes_is_refused_at_once_and_a_forged_list_revokes_nothing(door: Door) -> None:
    under = intermediate(door.callers)
    one, below = made(door.callers, PSP_URI), made(under, PSP_URI)
    serials = one.certificate.serial_number, below.certificate.serial_number
    assert door.because(one) == door.because(below) == ""
    forger = Issuer(made(door.nodes).key, door.callers.certificate)
    door.trust(crls=crl_of(forger, *serials))
    assert door.because(one) == door.because(below) == ""
    door.trust(crls=crl_of(door.callers, serials[0]) + crl_of(under, serials[1]))
    assert "revoked" in door.because(one)
    assert "revoked" in door.because(below)
    door.trust(crls=crl_of(door.callers, under.certificate.serial_number))
    assert (door.because(one), "revoked" in door.because(below)) == ("", True)


def test_without_authorities_nobody_is_known() -> None:
    nobody = PeerCertificates(HandClock(NOW))
    with pytest.raises(CertificateRefused):
        nobody(cast("Context", _Call({})))


def test_bytes_that_are_no_certificate_are_refused_and_break_nothing(door: Door) -> None:
    for pem in (b"", b"x", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(CertificateRefused):
            door.certificates(cast("Context", _Call({"x509_pem_cert": [pem]})))


def test_files_that_are_none_are_told_by_what_they_are(door: Door) -> None:
    pem = door.pki.callers.ca_file.read_bytes()
    assert len(read_certificates(pem + door.pki.nodes.ca_file.read_bytes())) == 2
    for text, what in (
        (b"", "empty"),
        (b" \n", "empty"),
        (door.callers.certificate.public_bytes(Encoding.DER), "DER"),
        (pem.rstrip() + pem, "line break"),
        (pem[:200], "cut off"),
        (pem.replace(b"MI", b"AA", 1), "damaged"),
        (crl_of(door.callers), "no CERTIFICATE"),
    ):
        with pytest.raises(ValueError, match=what):
            read_certificates(text)
    assert read_crls(b"") == []
    with pytest.raises(ValueError, match="no X509 CRL"):
        read_crls(pem)


def _with_more(door: Door, more: bytes) -> Context:
    good = made(door.callers, PSP_URI).certificate.public_bytes(Encoding.PEM)
    return cast("Context", _Call({"x509_pem_cert": [good], "x509_pem_cert_chain": [more]}))


def test_what_a_stranger_adds_to_a_good_certificate_is_bounded_before_it_is_read_or_kept(door: Door) -> None:
    with pytest.raises(CertificateRefused, match="bytes of certificates"):
        door.certificates(_with_more(door, b"-----BEGIN CERTIFICATE-----\n" + b"A" * 40_000))
    assert len(door.certificates._kept) == 0
    for number in range(50):
        with pytest.raises(CertificateRefused):
            door.certificates(_with_more(door, b"-----BEGIN CERTIFICATE-----\n" + b"%d" % number * 10_000))
    assert {len(key) for key in door.certificates._kept} == {32}, "a digest of it, whatever was sent"


def test_who_goes_on_calling_is_not_verified_anew_for_a_flood_of_others(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core.api.peer_certificates, "_KEPT_MAX", 4)
    honest = calling_with(made(door.callers, PSP_URI))
    first = door.certificates(honest)
    for number in range(20):
        with pytest.raises(CertificateRefused):
            door.certificates(_with_more(door, b"-----BEGIN CERTIFICATE-----\n%d" % number))
        assert door.certificates(honest) is first
