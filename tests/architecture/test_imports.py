"""The import contracts hold, and each catches what it is there to catch."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEEDS = [
    ("core/domain/money.py", "import core.flows.issue", "imports point one way"),
    ("core/flows/deliver.py", "import cluster.ledger", "imports point one way"),
    ("cluster/ledger.py", "import hsm.signer", "imports point one way"),
    ("core/flows/send.py", "import grpc", "the heart is pure"),
    ("hsm/worker.py", "import grpc", "HSM workers stay small"),
    ("core/gateways/headend_grpc.py", "import pkcs11", "only hsm speaks PKCS#11"),
    ("core/api/convert.py", "import utrn.store.v1.records_pb2", "only cluster sees stored records"),
    ("core/gateways/headend_grpc.py", "import etcdpb.rpc_pb2", "only cluster speaks to etcd"),
    ("sandbox/meter.py", "import core.domain.token", "the sandbox is a stranger: contracts only"),
    ("core/api/convert.py", "import hsm.signer", "the gRPC face reaches adapters only through ports"),
]


def _broken(folder: Path) -> set[str]:
    """Return the names of the contracts that do not hold in `folder`."""
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [str(lint), "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": f"{folder}:{folder / 'proto' / 'gen'}", "PATH": "/usr/bin:/bin", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Contracts:" in done.stdout, done.stdout + done.stderr
    return {line.removesuffix(" BROKEN") for line in done.stdout.splitlines() if line.endswith(" BROKEN")}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    for name in ("core", "hsm", "cluster", "app", "sandbox", "proto"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_every_contract_holds(copy: Path) -> None:
    assert _broken(copy) == set()


def test_each_contract_catches_its_seed(copy: Path) -> None:
    originals = {name: (copy / name).read_text() for name, _, _ in SEEDS}
    for name, line, _ in SEEDS:
        file = copy / name
        file.write_text(file.read_text() + f"\n{line}\n")
    (copy / "core" / "newroom.py").write_text('"""A room without a layer."""\n')
    try:
        assert {contract for _, _, contract in SEEDS} | {"every module of core has a layer"} <= _broken(copy)
    finally:
        (copy / "core" / "newroom.py").unlink()
        for name, text in originals.items():
            (copy / name).write_text(text)
