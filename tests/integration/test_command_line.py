"""Every command that the documents show, run as it is shown."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.devstack.files import PSP
from app.devstack.stack import DevStack
from tests.support.selling import pans
from tests.support.teller import meant

pytestmark = [pytest.mark.real]
ROOT = Path(__file__).parents[2]


def utrn(*arguments: str, cwd: Path = ROOT, code: int | None = 0) -> str:
    """Run the command and return what it printed; fail if it ends otherwise than with `code` (None: any)."""
    done = subprocess.run(
        [sys.executable, "-m", "app", *meant(arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert code is None or done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def as_json(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads([line for line in text.splitlines() if line.startswith("{")][-1])
    return found


def _options(stack: DevStack, who: str = PSP) -> list[str]:
    certs = stack.certs(who)
    return ["--cert", str(certs.cert), "--key", str(certs.key), "--ca", str(certs.ca)]


def _tools(stack: DevStack) -> list[str]:
    certs = stack.tool_certs
    return ["--cert", str(certs.cert), "--key", str(certs.key), "--ca", str(certs.ca)]


def test_a_top_up_by_hand_and_its_story(module_stack: DevStack) -> None:
    target, pan = ["--target", module_stack.node_target("node-a")], pans(module_stack)[3]
    first = as_json(utrn("vend", "issue", "--deliver", pan, "12.34", *target, *_options(module_stack), "--json"))
    assert (first["amount_pence"], first["replayed"]) == (1234, False)
    same = ["--transaction-id", first["transaction_id"]]
    again = as_json(utrn("vend", "issue", "--deliver", pan, "12.34", *target, *_options(module_stack), *same, "--json"))
    assert (again["utrn"], again["replayed"]) == (first["utrn"], True)
    story = as_json(utrn("vend", "show", first["transaction_id"], *target, *_options(module_stack), "--json"))
    assert story["code"]["utrn"] == first["utrn"]
    assert first["utrn"][:4] in utrn(
        "vend", "issue", "--deliver", pan, "12.34", *target, *_options(module_stack), *same
    )
    code = as_json(utrn("vend", "issue", pan, "5", *target, *_options(module_stack), "--json"))
    fleet = ["--target", module_stack.fleet_target, *_tools(module_stack)]
    assert "ACCEPTED 5.00" in utrn("sandbox", "keypad", story["meter_id"], code["utrn"], *fleet)
    assert "DUPLICATE" in utrn("sandbox", "keypad", story["meter_id"], code["utrn"], *fleet, code=1)
    assert as_json(utrn("sandbox", "meter", story["meter_id"], *fleet, "--json"))["balance_pence"] >= 500


@pytest.mark.parametrize(
    ("amount", "says"), [("12.345", "whole number of pence"), ("ten", "no amount"), ("nan", "pence")]
)
def test_what_is_no_amount_is_said_so(module_stack: DevStack, amount: str, says: str) -> None:
    target = ["--target", module_stack.node_target("node-a")]
    assert says in utrn(
        "vend", "issue", "--deliver", pans(module_stack)[0], amount, *target, *_options(module_stack), code=2
    )


def test_a_refused_top_up_says_why(module_stack: DevStack) -> None:
    target = ["--target", module_stack.node_target("node-a")]
    said = utrn("vend", "issue", "--deliver", pans(module_stack)[0], "100.50", *target, *_options(module_stack), code=1)
    assert "AMOUNT_NOT_ENCODABLE" in said
    assert "100.00" in said


def test_the_audit_and_the_knobs(module_stack: DevStack) -> None:
    config = ["--config", str(module_stack.node_config("node-a"))]
    fleet = ["--target", module_stack.fleet_target, *_tools(module_stack)]
    assert as_json(utrn("sandbox", "audit", *config, *fleet, "--json"))["findings"] == 0
    head_end = ["--target", module_stack.head_end_target, *_tools(module_stack)]
    knobs = as_json(utrn("sandbox", "knobs", *head_end, "--set", "latency_median_ms=7", "--json"))
    assert knobs["knobs"]["latency_median_ms"] == 7
    assert "is needed" in utrn("sandbox", "knobs", *head_end, "--set", "weather=bad", code=1)


def test_the_registry_is_checked_and_loaded(module_stack: DevStack, tmp_path: Path) -> None:
    config = ["--config", str(module_stack.node_config("node-a"))]
    good = str(module_stack.folder / "registry.jsonl")
    lines = len(Path(good).read_text().splitlines())
    assert as_json(utrn("registry", "check", good, *config, "--json"))["loaded"] == lines
    assert as_json(utrn("registry", "load", good, *config, "--json"))["unchanged"] == lines
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"assign_pan": {"pan": "1", "meter_id": "00db120000000001"}}\n')
    assert "line 1: BAD_FIELD: pan: 19 decimal digits" in utrn("registry", "load", str(bad), *config, code=1)


def test_the_key_ceremony_as_the_document_shows_it(tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(
        f"directories.tokendir = {tmp_path / 'tokens'}\nobjectstore.backend = file\n"
    )
    shown = re.findall(r"^\.venv/bin/utrn (hsm .*)$", (ROOT / "hsm" / "README.md").read_text(), re.MULTILINE)
    assert len(shown) == 3
    for command in shown:
        utrn(*command.split(), cwd=tmp_path)
    keys = as_json(utrn(*shown[-1].split(), "--json", cwd=tmp_path))["keys"]
    assert [(key["key_id"], key["extractable"], key["never_left"]) for key in keys] == [
        ("90b3d51f30010001", False, True)
    ]
    assert "taken" in utrn(*shown[1].split(), cwd=tmp_path, code=1)
    assert "exists already" in utrn(*shown[0].split(), cwd=tmp_path, code=1)
    assert (tmp_path / "pin").stat().st_mode & 0o077 == 0


def test_certificates_for_development(tmp_path: Path) -> None:
    made = as_json(utrn("pki", "dev", "--dir", str(tmp_path), "--participant", "psp-x", "--node", "node-x", "--json"))
    assert [one["name"] for one in made["certificates"]] == ["psp-x", "node-x", "node-x-etcd", "node-x-head-end"]
    assert all(Path(one["key"]).stat().st_mode & 0o077 == 0 for one in made["certificates"])


def test_configurations_are_checked(module_stack: DevStack, tmp_path: Path) -> None:
    utrn("check-config", "--no-files", str(ROOT / "deploy" / "config" / "dev.toml"))
    utrn("check-config", str(module_stack.node_config("node-a")))
    bad = tmp_path / "bad.toml"
    bad.write_text("[node]\nnode_id = 'a'\ncolour = 'red'\n")
    said = utrn("check-config", str(bad), "--json", code=1)
    assert any("node.colour" in problem for problem in as_json(said)["problems"])


def test_conformance_counts_every_vector(tmp_path: Path) -> None:
    vectors = ROOT / "tests" / "vectors" / "gbcs.json"
    assert utrn("conformance", str(vectors)).splitlines()[-1] == "64 passed, 0 failed"
    content = json.loads(vectors.read_text())
    first = content["vectors"][0]
    content["vectors"] = [
        first,
        {**first, "utrn": first["utrn"][:-1] + "0"},
        {**first, "value": 8192},
        {**first, "unit": "shillings"},
        {**first, "originator_counter": (first["utrn_counter"] << 32) + 1},
        {**first, "device_id": "nobody"},
    ]
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(content))
    assert utrn("conformance", str(wrong), code=1).splitlines()[-1] == "1 passed, 5 failed"
    wrong.write_text(json.dumps({**content, "format": "other/9"}))
    assert "utrn-conformance/1" in utrn("conformance", str(wrong), code=2)


def test_a_small_demo_keeps_every_promise() -> None:
    figures = as_json(utrn("demo", "--vends", "240", "--meters", "24", "--json"))
    for key in (
        "requests",
        "distinct_vends",
        "applied",
        "credited_pence",
        "expected_pence",
        "issue_p50_ms",
        "issue_p99_ms",
    ):
        assert key in figures
    assert (figures["credited_twice"], figures["lost"], figures["broken"]) == (0, 0, [])
    assert figures["credited_pence"] == figures["expected_pence"] > 0
    assert figures["distinct_vends"] == 240


def test_a_stack_that_stays_says_how_to_top_up_and_ends_when_told(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    up = [sys.executable, "-m", "app.devstack.up", folder]
    with subprocess.Popen(up, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        said = [running.stdout.readline()]
        while said[-1] and "ends it" not in said[-1]:
            said.append(running.stdout.readline())
        shown = [line for line in said if line.startswith(".venv/bin/utrn vend issue --deliver")]
        assert len(shown) == 1, said
        assert re.search(r"\d{4} \d{4} \d{4} \d{4} \d{4}", utrn(*shown[0].split()[1:]))
        subprocess.run([*up[:3], "--stop", folder], cwd=ROOT, check=True, capture_output=True)
        assert running.wait(60) == 0


def test_every_target_of_the_documents_is_in_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`?make ([a-z-]+)`?", (ROOT / "README.md").read_text()))
    assert {"demo", "test", "setup", "up", "down", "bench"} <= targets
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
