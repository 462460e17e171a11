"""A cluster whose certificates name no localhost, as deploy/config/prod.toml makes one: every command reaches it."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from app.devstack.files import OPERATOR, PSP, SUPPLIERS, StackPlan
from app.devstack.fleet import meter_by_pan
from app.devstack.stack import DevStack
from app.node.config import load_config
from core.gateways.system_clock import SystemClock
from tests.support.teller import invoke

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]
NAME = "nodes.internal"
NORTH, _ = SUPPLIERS


def _renamed(stack: DevStack, node: str) -> None:
    """Give a node a certificate of the same authority and key that names NAME alone."""
    config = load_config(stack.write_node_config(node), environ={})
    old = x509.load_pem_x509_certificate(config.api.cert.read_bytes())
    authority = next(
        key
        for file in (stack.folder / "pki").rglob("*.key")
        if isinstance(key := load_pem_private_key(file.read_bytes(), None), ec.EllipticCurvePrivateKey)
        and _signed(old, key)
    )
    now = SystemClock().now()
    new = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
    )
    for extension in old.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            uris = [one for one in extension.value if isinstance(one, x509.UniformResourceIdentifier)]
            value: x509.ExtensionType = x509.SubjectAlternativeName([*uris, x509.DNSName(NAME)])
        else:
            value = extension.value
        new = new.add_extension(value, critical=extension.critical)
    config.api.cert.write_bytes(new.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM))


def _signed(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bool:
    kind = certificate.signature_hash_algorithm
    assert kind is not None
    try:
        key.public_key().verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(kind))
    except Exception:  # noqa: BLE001  # whatever it is, it is not the one that signed
        return False
    return True


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevStack]:
    made = DevStack(tmp_path_factory.mktemp("stack"), StackPlan(meters=10, etcd_fsync=False))
    try:
        made.start_etcd()
        made.make_keys()
        made.start_sandbox()
        made.write_node_config("node-a")
        made.create_ledger("node-a")
        made.load_registry("node-a")
        _renamed(made, "node-a")
        made.start_node("node-a", wait=False)
        status = ["cluster", "status", *_options(made, OPERATOR), "--server-name", NAME, "--wait", "60"]
        until = SystemClock().monotonic() + 60
        while (ended := invoke(status))[0] != 0:
            assert SystemClock().monotonic() < until, ended
        yield made
    finally:
        made.stop_all()


def _options(stack: DevStack, who: str) -> list[str]:
    certs = stack.certs(who)
    files = ["--cert", str(certs.cert), "--key", str(certs.key), "--ca", str(certs.ca)]
    return ["--target", stack.node_target("node-a"), *files]


def test_a_command_that_does_not_know_the_name_says_which_option_does(stack: DevStack) -> None:
    code, _, errors = invoke(["participant", "list", *_options(stack, OPERATOR)])
    assert code == 1
    assert "UNAVAILABLE" in errors
    assert "--server-name" in errors
    # As it was before there was the option: the name of a developer's machine.
    assert invoke(["participant", "list", *_options(stack, OPERATOR), "--server-name", "localhost"])[0] == 1


def test_every_family_of_commands_reaches_it(stack: DevStack, tmp_path: Path) -> None:
    pan, meter = next(iter(meter_by_pan(stack.folder / "sandbox").items()))
    registry = str(stack.folder / "registry.jsonl")
    code, printed, errors = invoke(
        ["vend", "issue", "--deliver", pan, "5", *_options(stack, PSP), "--server-name", NAME, "--json"]
    )
    assert code == 0, errors
    sold = json.loads(printed)["transaction_id"]
    for who, command in (
        (PSP, ["vend", "issue", pan, "6"]),
        (PSP, ["vend", "show", sold]),
        (PSP, ["pan", "eligible", pan]),
        (OPERATOR, ["cluster", "time"]),
        (OPERATOR, ["participant", "suspend", PSP]),
        (OPERATOR, ["participant", "resume", PSP]),
        (OPERATOR, ["supplier", "show", NORTH]),
        (OPERATOR, ["meter", "show", meter]),
        (OPERATOR, ["pan", "list", "--meter", meter]),
        (OPERATOR, ["appoint", "list"]),
        (OPERATOR, ["meter", "sellers", "--meter", meter]),
        (OPERATOR, ["registry", "load", registry]),
        (NORTH, ["credit", "report"]),
        (NORTH, ["vend", "cases"]),
    ):
        code, _, errors = invoke([*command, *_options(stack, who), "--server-name", NAME])
        assert code == 0, (command, errors)


def test_the_profile_and_the_environment_reach_it(
    stack: DevStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certs = stack.certs(OPERATOR)
    (tmp_path / "utrn").mkdir()
    lines = {
        "target": f"127.0.0.1:1,{stack.node_target('node-a')}", "cert": certs.cert, "key": certs.key, "ca": certs.ca,
    }  # fmt: skip
    text = "\n".join(["[default]", *(f'{name} = "{value}"' for name, value in lines.items())])
    (tmp_path / "utrn" / "config.toml").write_text(text)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert invoke(["participant", "list"])[0] == 1
    monkeypatch.setenv("UTRN_SERVER_NAME", NAME)
    # The first of the two is not there: any one answers.
    assert invoke(["participant", "list"])[0] == 0
