"""What the documents of the market show: the integration guide's clients."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from app.devstack import DevStack
from app.stackfiles import PSP, SUPPLIERS
from tests.integration.test_market import _as, meters_of

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]
ROOT = Path(__file__).parents[2]
_, SOUTH = SUPPLIERS


def test_the_guides_python_client_sells(module_stack: DevStack) -> None:
    pan, _ = meters_of(module_stack, SOUTH)[7]
    command = [sys.executable, str(ROOT / "docs" / "integration" / "sell.py"), *_as(module_stack, PSP), pan, "700"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    sold = json.loads(done.stdout)
    assert (sold["eligible"], len(sold["code"])) == (True, 24)
    blocked = "9826000000000000009"
    done = subprocess.run([*command[:-2], blocked, "700"], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout)["because"] == [
        "pan is not registered; check the number with the consumer's supplier"
    ]


def test_the_guides_node_client_sells(module_stack: DevStack, tmp_path: Path) -> None:
    tools = Path(sys.executable).parent
    folder = tmp_path / "node"
    shutil.copytree(ROOT / "tests" / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    shutil.copy(ROOT / "docs" / "integration" / "sell.mjs", folder / "guide.mjs")
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    install = [str(tools / "npm"), "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    subprocess.run(install, cwd=folder, env=environment, check=True, capture_output=True)
    pan, _ = meters_of(module_stack, SOUTH)[8]
    certs = module_stack.certs(PSP)
    files = [str(certs.cert), str(certs.key), str(certs.ca)]
    command = [
        str(tools / "node"),
        "guide.mjs",
        module_stack.node_target("node-a"),
        *files,
        pan,
        "700",
        str(ROOT / "proto"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["code"]) == 24
