"""The import contracts hold, and each catches what it is there to catch."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEEDS = [
    ("core/domain/money.py", "import core.issuing.issue", "imports point one way"),
    ("core/delivery/worker.py", "import cluster.ledger.vends", "imports point one way"),
    ("cluster/ledger/vends.py", "import hsm.signer", "imports point one way"),
    ("core/registry/meters.py", "import core.issuing.issue", "every module of core has a layer"),
    ("cluster/etcd/client.py", "import cluster.ledger.vends", "every module of cluster has a layer"),
    ("app/node/run.py", "import app.drills.run", "every module of app has a layer"),
    ("core/issuing/request_delivery.py", "import grpc", "the heart is pure"),
    ("hsm/worker.py", "import grpc", "HSM workers stay small"),
    ("core/gateways/head_end_client.py", "import pkcs11", "only hsm speaks PKCS#11"),
    ("core/api/top_up_messages.py", "import utrn.store.v1.records_pb2", "only cluster sees stored records"),
    ("core/gateways/head_end_client.py", "import etcdpb.rpc_pb2", "only cluster speaks to etcd"),
    ("sandbox/meter.py", "import core.domain.utrn", "the sandbox is a stranger: contracts only"),
    ("client/utrn_client/ids.py", "import hsm.signer", "the client kit is a stranger: the callers' contract only"),
    ("loadtest/slo.py", "import utrn_client.ids", "the load test is a stranger: the callers' contract only"),
    ("core/api/top_up_messages.py", "import hsm.signer", "the gRPC face reaches adapters only through ports"),
]


def _broken(folder: Path) -> set[str]:
    """Return the names of the contracts that do not hold in `folder`."""
    lint = Path(sys.executable).with_name("lint-imports")
    places = ":".join(str(folder / place) for place in (".", "proto/gen", "client"))
    done = subprocess.run(
        [str(lint), "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": places, "PATH": "/usr/bin:/bin", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Contracts:" in done.stdout, done.stdout + done.stderr
    return {line.removesuffix(" BROKEN") for line in done.stdout.splitlines() if line.endswith(" BROKEN")}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    for name in ("core", "hsm", "cluster", "app", "sandbox", "client", "loadtest", "proto"):
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
