"""The .proto files load where callers load them, and the generated code is theirs."""

import filecmp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto"
PUBLIC = sorted(
    str(file.relative_to(PROTO)) for folder in ("utrn/v1", "headend/v1") for file in (PROTO / folder).glob("*.proto")
)


def test_plain_protoc_loads_them_with_googles_well_known_types_only(tmp_path: Path) -> None:
    public = tmp_path / "public"
    for name in PUBLIC:
        (public / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROTO / name, public / name)
    well_known = Path(protoc.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{public}", f"-I{well_known}", f"--descriptor_set_out={tmp_path / 'all.pb'}", *PUBLIC]
    assert protoc.main(arguments) == 0


GENERATED_TABLES = ("client/utrn_client/outcomes.py", "proto/outcomes.json", "docs/errors.md", "docs/reference/api.md")


def test_generated_code_is_up_to_date(tmp_path: Path) -> None:
    shutil.copytree(PROTO, tmp_path / "proto", ignore=shutil.ignore_patterns("gen", "__pycache__"))
    for name in GENERATED_TABLES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "proto" / "outcomes.json").unlink()
    shutil.copy(ROOT / "docs" / "errors.md", tmp_path / "docs" / "errors.md")
    subprocess.run(
        ["sh", "generate.sh"], cwd=tmp_path / "proto", check=True, env={**os.environ, "PYTHON": sys.executable}
    )
    fresh = sorted(one.relative_to(tmp_path / "proto" / "gen") for one in (tmp_path / "proto" / "gen").rglob("*.py*"))
    committed = sorted(
        one.relative_to(PROTO / "gen") for one in (PROTO / "gen").rglob("*.py*") if "__pycache__" not in one.parts
    )
    assert [one for one in fresh if "__pycache__" not in one.parts] == committed
    _, differ, failed = filecmp.cmpfiles(tmp_path / "proto" / "gen", PROTO / "gen", map(str, committed), shallow=False)
    assert (differ, failed) == ([], [])
    assert filecmp.cmpfiles(tmp_path, ROOT, GENERATED_TABLES, shallow=False)[1:] == ([], [])


def test_grpc_js_loads_them_and_speaks_them(tmp_path: Path) -> None:
    node = Path(sys.executable).parent
    shutil.copytree(ROOT / "tests" / "node", tmp_path / "node", ignore=shutil.ignore_patterns("node_modules"))
    environment = {**os.environ, "PATH": f"{node}:{os.environ['PATH']}"}
    folder = tmp_path / "node"
    subprocess.run(
        [str(node / "npm"), "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=folder,
        env=environment,
        check=True,
    )
    done = subprocess.run(
        [str(node / "node"), "load.mjs", str(PROTO), *PUBLIC],
        cwd=folder, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    loaded = json.loads(done.stdout)
    assert loaded["methods"] == [
        "CheckEligibility", "DeliverVend", "GetVend", "IssueUtrn", "ListOpenCases", "SettleDelivery", "TopUp",
    ]  # fmt: skip
    assert loaded["headEnd"] == ["GetCapabilities", "GetMessageStatus", "SendAddCredit", "StreamEvents"]
    assert loaded["amount"] == "819100"
