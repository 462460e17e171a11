"""What TLS will use is read before a node starts: what gRPC would take without a word is told by key and file."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from app.devstack.ca import participant_uri
from app.devstack.files import StackPlan
from app.devstack.stack import DevStack
from app.node.config import load_config, problems_of
from app.node.tls import BadTls, ends_of, read_tls
from core.gateways.system_clock import SystemClock
from tests.support.crooked import SERVER, Issuer, made

Files = DevStack


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A node's configuration and certificates; nothing is started."""
    stack = DevStack(tmp_path, StackPlan(nodes=("node-a",), meters=1))
    stack.write_node_config("node-a")
    return stack


def wrong(files: Files) -> str:
    try:
        read_tls(load_config(files.node_config("node-a"), {}))
    except BadTls as bad:
        return str(bad)
    return ""


def der(files: Files) -> None:
    one = x509.load_pem_x509_certificate(files.pki.callers.ca_file.read_bytes())
    files.pki.callers.ca_file.write_bytes(one.public_bytes(Encoding.DER))


def empty(files: Files) -> None:
    files.pki.callers.ca_file.write_bytes(b"")


def two_without_a_line_break(files: Files) -> None:
    path = files.pki.nodes.ca_file
    path.write_bytes(path.read_bytes().rstrip() + path.read_bytes())


def no_authority(files: Files) -> None:
    files.pki.head_ends.ca_file.write_bytes(files.pki.node("node-a").cert.read_bytes())


def anothers_key(files: Files) -> None:
    files.pki.node("node-a").key.write_bytes(files.pki.node("node-b").key.read_bytes())


def gone(files: Files) -> None:
    files.pki.etcd_client("node-a").cert.unlink()


def no_key(files: Files) -> None:
    files.pki.etcd_client("node-a").key.write_bytes(b"no key")


def not_for_a_server(files: Files) -> None:
    one = made(Issuer.of(files.pki.nodes), "spiffe://utrn/node/node-a")
    one.write(files.folder / "pki", "node-a", files.pki.nodes.ca_file)


def another_nodes_name(files: Files) -> None:
    one = made(Issuer.of(files.pki.nodes), "spiffe://utrn/node/node-b", usages=(*SERVER, *_CLIENT))
    one.write(files.folder / "pki", "node-a", files.pki.nodes.ca_file)


def one_authority_for_all(files: Files) -> None:
    files.pki.callers.ca_file.write_bytes(files.pki.nodes.ca_file.read_bytes())


_CLIENT = (x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH,)


@pytest.mark.parametrize(
    ("break_it", "key", "because"),
    [
        (der, "api.client_ca", "DER"),
        (empty, "api.client_ca", "empty"),
        (two_without_a_line_break, "peers.ca", "line break"),
        (no_authority, "head_ends.sandbox.ca", "no authority"),
        (anothers_key, "api.key", "is not the key of the first certificate"),
        (gone, "etcd.cert", "cannot be read"),
        (no_key, "etcd.key", "no private key"),
        (not_for_a_server, "api.cert", "serverAuth"),
        (another_nodes_name, "peers.cert", "spiffe://utrn/node/node-a is needed"),
        (one_authority_for_all, "peers.ca", "an authority in common"),
    ],
)
def test_what_tls_cannot_use_is_told_by_its_key_and_file(
    files: Files, break_it: Callable[[Files], None], key: str, because: str
) -> None:
    assert wrong(files) == ""
    break_it(files)
    lines = [line for line in wrong(files).splitlines() if line.startswith(f"{key}: ")]
    assert any(because in line for line in lines), wrong(files)


def test_every_certificate_is_shown_with_its_end_and_what_ends_soon_is_told(files: Files) -> None:
    config, now = load_config(files.node_config("node-a"), {}), SystemClock().now()
    shown = read_tls(config).shown
    assert {one.key for one in shown} >= {"api.cert", "api.client_ca", "etcd.cert", "etcd.ca", "peers.cert", "peers.ca"}
    assert ends_of(shown, now) == []
    soon = ends_of(shown, now + timedelta(days=20))
    assert any(line.startswith("api.cert: server certificate CN=node-a ends on") for line in soon)
    assert any("expired on" in line for line in ends_of(shown, now + timedelta(days=40)))


def test_secrets_that_others_can_read_keep_a_node_from_starting(files: Files) -> None:
    files.make_keys()
    config = load_config(files.node_config("node-a"), {})
    assert problems_of(config) == []
    for path in (config.hsm.pin_file, config.api.key):
        path.chmod(0o644)
        problems = problems_of(config)
        assert problems
        assert all(f"{path} can be read by others; chmod 600 it" in problem for problem in problems)
        path.chmod(0o600)


def test_a_participants_certificate_is_no_nodes(files: Files) -> None:
    one = made(Issuer.of(files.pki.callers), participant_uri("psp-corner"), usages=(*SERVER, *_CLIENT))
    one.write(files.folder / "pki", "node-a", files.pki.nodes.ca_file)
    assert "other nodes will refuse it" in wrong(files)
