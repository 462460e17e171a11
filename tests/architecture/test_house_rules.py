"""The house rules that a reader relies on, as failing tests."""

import ast
import re
import subprocess
from pathlib import Path

import grpc
import pytest
from utrn.v1 import errors_pb2, types_pb2
from utrn_client.outcomes import OUTCOMES, Says

from app.cli.remedies import ADVICE
from core.api.status import DOMAIN, STATUS, status_of
from core.domain import errors
from core.domain.delivery import DeliveryReason, DeliveryState
from core.domain.vend import Channel

ROOT = Path(__file__).parents[2]
OURS = ("core", "hsm", "cluster", "app", "sandbox")
FILES = sorted(file for package in OURS for file in (ROOT / package).rglob("*.py"))
FUNCTION_LINES_MAX = 70
BANNED_NAMES = re.compile(r"^(utils?|common|helpers?|manager|base|misc)$")


def _tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def _leaves(kind: type[errors.UtrnError]) -> set[type[errors.UtrnError]]:
    children = kind.__subclasses__()
    own = {kind} if kind.reason else set()
    return own.union(*(_leaves(child) for child in children)) if children else {kind}


REASONS = sorted(_leaves(errors.UtrnError), key=lambda one: one.__name__)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_functions_fit_a_screen_and_what_is_public_is_explained(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree), "a module says in its first line what it is for"
    if file.name == "__init__.py":
        assert len(tree.body) == 1, "__init__.py holds a sentence, no code"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{node.name} has {length} lines"
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_no_module_is_named_for_nothing() -> None:
    assert [str(file) for file in FILES if BANNED_NAMES.match(file.stem)] == []


def test_nothing_is_left_open() -> None:
    # Built from parts, so that this file does not find itself.
    marks = ("NotImplemented" + "Error", "TO" + "DO", "FIX" + "ME", "pytest." + "skip", "pytest." + "xfail")
    found = [
        f"{name}: {mark}"
        for name in _tracked()
        if name.endswith(".py") and not name.startswith("proto/gen")
        for mark in marks
        if mark in (ROOT / name).read_text()
    ]
    assert found == []


def test_nothing_committed_names_a_machine_or_a_registry_host() -> None:
    places = re.compile(
        "/wo" + "rk/|/tmp/bash" + r"_jobs|files\.pyth" + r"onhosted|pypi\.o" + r"rg/simple|registry\.npm" + "js"
    )
    found = []
    for name in _tracked():
        try:
            text = (ROOT / name).read_text()
        except UnicodeDecodeError:
            continue
        if places.search(text):
            found.append(name)
    assert found == []


@pytest.mark.parametrize("kind", REASONS, ids=lambda kind: kind.__name__)
def test_every_reason_has_a_status_a_number_and_a_row(kind: type[errors.UtrnError]) -> None:
    assert kind in STATUS
    assert f"ERROR_REASON_{kind.reason}" in dict(errors_pb2.ErrorReason.items())
    rows = (ROOT / "docs" / "errors.md").read_text()
    assert re.search(rf"^\| `{kind.reason}` \| {STATUS[kind].name} \|", rows, re.MULTILINE)


def test_every_number_has_a_reason() -> None:
    numbers = {name.removeprefix("ERROR_REASON_") for name, _ in errors_pb2.ErrorReason.items()} - {"UNSPECIFIED"}
    assert numbers == {kind.reason for kind in REASONS}


@pytest.mark.parametrize("kind", REASONS, ids=lambda kind: kind.__name__)
def test_every_class_is_what_the_contract_says_of_its_reason(kind: type[errors.UtrnError]) -> None:
    """A class to be repeated has a reason to ask again, and the other way round."""
    again = OUTCOMES[kind.reason].says is Says.ASK_AGAIN
    assert again is issubclass(kind, errors.Retryable | errors.Unknown)
    assert issubclass(kind, errors.Refused) is not again


def test_every_reason_comes_with_what_to_do() -> None:
    reasons = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118
    assert reasons <= set(ADVICE)
    assert set(ADVICE) - reasons == {"UNAVAILABLE", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL"}


def test_the_closed_list_of_final_refusals() -> None:
    """Money is given back on these alone. Whoever adds one says why nothing can overtake it."""
    assert {reason for reason, outcome in OUTCOMES.items() if outcome.says is Says.NOT_SOLD} == {
        "BAD_FIELD", "AMOUNT_NOT_ENCODABLE", "NOT_APPOINTED", "PAN_UNKNOWN", "PAN_BLOCKED", "METER_UNKNOWN",
        "TRANSACTION_ID_FROM_FUTURE", "TOO_MANY_UNAPPLIED", "NOT_SUPPORTED_BY_METER", "SUPPLIER_INACTIVE",
        "METER_IN_CREDIT_MODE", "METER_NOT_ENROLLED", "AMOUNT_OUT_OF_LIMITS", "CHANNEL_NOT_ALLOWED", "ABOVE_MAX_CREDIT",
        "ABOVE_MAX_BALANCE", "PAN_NOT_CURRENT", "CENTRAL_ISSUE_OFF", "COUNTER_ELSEWHERE",
        # As METER_NOT_ENROLLED: what the meter's record says, held against names that only an operator takes away.
        "HEAD_END_UNKNOWN",
        # Decided before anything of the sale is written; a repeat is fenced like every other refusal.
        "CEILING_REACHED",
    }  # fmt: skip


def test_what_may_be_repeated_says_when() -> None:
    for kind in REASONS:
        error = kind("text", field="x") if issubclass(kind, errors.BadField) else kind("text")
        status = status_of(error)
        retry = any(detail.type_url.endswith("RetryInfo") for detail in status.details)
        assert retry is issubclass(kind, errors.Retryable | errors.Unknown), kind
        assert status.details[0].type_url.endswith("ErrorInfo")
    assert DOMAIN == "utrn.v1"
    assert grpc.StatusCode.INTERNAL not in STATUS.values()


def test_numbers_are_the_same_in_the_domain_and_in_the_contract() -> None:
    for ours, theirs, prefix in (
        (DeliveryState, types_pb2.DeliveryState, "DELIVERY_STATE_"),
        (DeliveryReason, types_pb2.DeliveryReason, "DELIVERY_REASON_"),
        (Channel, types_pb2.Channel, "CHANNEL_"),
    ):
        known = {name.removeprefix(prefix): number for name, number in theirs.items()}
        known.pop("UNSPECIFIED")
        assert {one.name: one.value for one in ours if one.name != "NONE"} == known
