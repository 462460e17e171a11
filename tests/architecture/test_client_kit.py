"""The client kit as its users get it: what it exports, and a wheel with the contract and nothing of the service."""

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What a seller may rely on. A name that is taken away, or renamed, breaks somebody's till: say so in CHANGELOG.md.
EXPORTS = {
    "amounts": {"SALE_PENCE_MAX", "BadAmount", "parse_pence", "parse_pounds", "pounds_text"},
    "appointing": {"BadEvidence", "sign_terms", "verify_terms"},
    "book": {"FileSaleBook", "MemorySaleBook", "Refusal", "Sale", "SaleBook"},
    "book_file": {"BookFile", "BookInUse", "BookNotWritten", "Damage"},
    "channel": {"Tls", "open_channel", "options", "reason_of", "retry_delay_s", "service_config", "target_of"},
    "ids": {"make_transaction_id"},
    "outcomes": {"OUTCOMES", "Outcome", "Says"},
    "till": {"Answer", "NoAnswer", "SaleRefused", "Till"},
    "verdict": {"Failure", "Verdict", "details_of", "failure_of", "judge_request", "judge_sale", "unpacked"},
}


def _public(file: Path) -> set[str]:
    """Return the names that a module defines and does not keep to itself."""
    found = set[str]()
    for node in ast.parse(file.read_text()).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
            case _:
                pass
    return {name for name in found if not name.startswith("_")}


def test_the_kit_exports_what_it_says_and_nothing_else() -> None:
    modules = [file for file in (ROOT / "client" / "utrn_client").glob("*.py") if file.name != "__init__.py"]
    assert {file.stem: _public(file) for file in modules} == EXPORTS


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kit's wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run([ROOT / "client" / "build.sh", folder], check=True, env=environment, timeout=300)
    (wheel,) = folder.glob("utrn_client-*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "unpacked")
    return folder / "unpacked"


def test_its_wheel_has_the_contract_its_types_and_nothing_of_the_service(unpacked: Path) -> None:
    names = {str(file.relative_to(unpacked)) for file in unpacked.rglob("*") if file.is_file()}
    assert {"utrn_client/py.typed", "utrn_client/service_config.json", "utrn/v1/types_pb2.pyi"} <= names
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"utrn_client", "utrn"}
    assert not [
        name for name in names if name.startswith("utrn/") and not name.startswith(("utrn/v1/", "utrn/__init__"))
    ]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_it_works_by_itself(unpacked: Path, tmp_path: Path) -> None:
    program = "\n".join(
        [
            *(f"import utrn_client.{module}" for module in EXPORTS),
            "import sys, utrn_client",
            f"assert utrn_client.__file__.startswith({str(unpacked)!r}), utrn_client.__file__",
            "ours = {'core', 'app', 'cluster', 'hsm', 'sandbox'} & set(sys.modules)",
            "assert not ours, ours",
        ]
    )
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=environment, timeout=120)
