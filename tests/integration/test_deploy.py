"""What deploy/ says fits what `app.devstack.compose_files` writes, what nodes measure, and what runbooks are called."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509

from app.devstack.files import NODES
from app.node.config import load_config, problems_of

pytestmark = [pytest.mark.real]
ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the compose file's `prepare` leaves it."""
    folder = tmp_path_factory.mktemp("state")
    subprocess.run([sys.executable, "-m", "app.devstack.compose_files", str(folder)], cwd=ROOT, check=True)
    return folder


def _services() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    return services


def test_every_file_that_a_container_is_told_of_is_prepared(prepared: Path) -> None:
    told = set()
    for service in _services().values():
        for argument in service.get("command", ()):
            told |= set(re.findall(r"/state/[\w./-]+\.(?:pem|key|toml|jsonl)", argument))
    assert len(told) > 10
    assert [name for name in sorted(told) if not (prepared / name.removeprefix("/state/")).exists()] == []


def test_prepared_nodes_have_configurations_that_pass_and_names_that_fit(prepared: Path) -> None:
    services = _services()
    assert set(NODES) <= services.keys()
    tokens = set()
    for node in NODES:
        config = load_config(prepared / f"{node}.toml")
        assert problems_of(config) == []
        hosts = {target.partition(":")[0] for target in (*config.etcd.endpoints, config.head_ends[0].target)}
        assert hosts <= services.keys()
        assert config.node.advertise == f"{node}:7443"
        tokens.add(config.hsm.softhsm_conf)
    assert len(tokens) == 3, "each node has a token of its own"
    for name in ("etcd-0", "etcd-1", "etcd-2", "fleet", "head-end"):
        certificate = x509.load_pem_x509_certificate((prepared / "pki" / f"{name}.pem").read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert name in names.get_values_for_type(x509.DNSName)


def test_preparing_again_changes_nothing(prepared: Path) -> None:
    before = {file: file.read_bytes() for file in prepared.rglob("*") if file.is_file() and "tokens" not in file.parts}
    subprocess.run([sys.executable, "-m", "app.devstack.compose_files", str(prepared)], cwd=ROOT, check=True)
    assert {file: file.read_bytes() for file in before} == before


def test_every_alert_has_its_page_and_asks_for_figures_that_nodes_have() -> None:
    rules = yaml.safe_load((DEPLOY / "observe" / "alerts.yaml").read_text())["groups"][0]["rules"]
    figures = (ROOT / "app" / "node" / "metrics.py").read_text()
    for rule in rules:
        assert (ROOT / "docs" / "runbooks" / rule["annotations"]["runbook"]).exists(), rule["alert"]
        for name in set(re.findall(r"\butrn_[a-z_]+", rule["expr"])):
            assert f'"{re.sub("_(total|bucket)$", "", name)}"' in figures, f"{rule['alert']}: {name}"
    named = set(re.findall(r"`(Utrn\w+)`", "".join(page.read_text() for page in (ROOT / "docs/runbooks").glob("*.md"))))
    assert named <= {rule["alert"] for rule in rules}
