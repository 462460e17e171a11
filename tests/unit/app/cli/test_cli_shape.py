"""What every command has: its line in the list, a question before what cannot be undone, JSON when it is refused."""

import inspect
import io
import json
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from typer.testing import CliRunner

from app.__main__ import _PLACES, app
from app.cli import command, requests
from app.cli.rpc import refusal_json
from tests.support.teller import COMMAND, invoke

NODES = ["--target", "127.0.0.1:1", "--cert", "none", "--key", "none", "--ca", "none"]
KEYS = {
    "reason", "status", "message", "final", "retry_ms", "facts", "field_violations", "advice", "text", "exit_code",
}  # fmt: skip
# What each does for good, as it is typed; one that is missing here asks nothing.
FOR_GOOD = {
    "appoint end": ["north", "corner", "one"],
    "cluster accept-time": ["--seconds", "3"],
    "cluster forget": ["node-c"],
    "cluster forget-head-end": ["dcc"],
    "credit decide": ["an-id", "--approve"],
    "meter change-supplier": ["m", "--losing", "a", "--gaining", "b"],
    "meter change-tenant": ["m", "--tenancy", "1"],
    "meter end": ["m"],
    "meter exchange": ["m", "--new", "n", "--supplier", "s", "--head-end", "h", "--point", "04"],
    "meter transfer-counters": ["m", "--from", "smso", "--to", "central", "--last-issued", "0"],
    "pan replace": ["lost", "new"],
    "participant certificates": ["corner", "--name", "C", "--identity", "spiffe://one"],
    "participant offboard": ["corner"],
    "participant revoke": ["corner", "--fingerprint", "0" * 64],
    "supplier add": ["n", "--name", "N", "--identity", "i", "--originator", "o", "--key-id", "k", "--point", "04"],
    "supplier certificates": ["n", "--name", "N", "--identity", "spiffe://one"],
    "supplier offboard": ["north"],
    "supplier key": ["north", "--originator", "90b3d51f30010001", "--key-id", "01", "--point", "04" + "00" * 64],
    "supplier revoke": ["north", "--issued-before", "2026-01-01T00:00:00Z"],
    "vend settle": ["an-id", "--credited"],
}


def _commands(here: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    for word in getattr(here, "commands", ()):
        yield from _commands(here.commands[word], f"{name} {word}".strip())
    if not hasattr(here, "commands"):
        yield name, here


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The nodes that were asked; nobody answers."""
    found: list[str] = []

    def ask(_call: object, target: str, _tls: object) -> None:
        found.append(target)
        raise SystemExit(9)

    for module in ("requests", "cluster", "cluster_time"):
        monkeypatch.setattr(f"app.cli.{module}.ask_nodes", ask)
    return found


def test_the_list_of_all_says_of_each_what_it_says_itself() -> None:
    made: Any = COMMAND
    for name, place in _PLACES.items():
        assert " ".join(inspect.cleandoc(made.commands[name].help).split("\n\n")[0].split()) == place.help, name


def test_the_version_is_the_packages() -> None:
    told = CliRunner().invoke(app, ["--version"])
    assert (told.exit_code, told.output.strip()) == (0, f"utrn {metadata.version('utrn')}")


def test_every_command_that_asks_first_is_tried_here() -> None:
    asks = {name for name, one in _commands(COMMAND) if any("--yes" in param.opts for param in one.params)}
    assert asks - {"ledger agree", "sales close"} == set(FOR_GOOD)


@pytest.mark.parametrize("typed", FOR_GOOD)
def test_what_cannot_be_undone_is_not_done_in_a_script_without_yes(asked: list[str], typed: str) -> None:
    whole = [*typed.split(), *FOR_GOOD[typed], *NODES]
    told = CliRunner().invoke(app, [*whole, "--json"])
    assert (told.exit_code, asked) == (2, [])
    assert "repeat with --yes" in json.loads(told.stdout)["error"]["text"]
    dry = CliRunner().invoke(app, [*whole, "--dry-run", "--json"])
    assert (dry.exit_code, asked) == (0, [])
    assert json.loads(dry.stdout)["dry_run"] is True


@pytest.mark.parametrize("typed", ["participant offboard", "meter end", "cluster forget"])
@pytest.mark.parametrize(("answer", "done"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_a_person_is_asked_and_no_is_the_default(
    asked: list[str], monkeypatch: pytest.MonkeyPatch, typed: str, answer: str, done: bool
) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    class Sys:
        stdin, stderr = Screen(answer), Screen()

    monkeypatch.setattr(command, "sys", Sys)
    told = CliRunner().invoke(app, [*typed.split(), *FOR_GOOD[typed], *NODES], input=answer)
    assert "cannot be undone. Go on?" in told.stderr
    assert (told.exit_code, bool(asked)) == ((9, True) if done else (2, False))


def test_yes_and_what_does_nothing_ask_nobody(asked: list[str]) -> None:
    assert CliRunner().invoke(app, ["participant", "offboard", "corner", *NODES, "--yes"]).exit_code == 9
    assert CliRunner().invoke(app, ["cluster", "accept-time", *NODES]).exit_code == 9
    assert len(asked) == 2


def test_a_decision_is_never_the_default(asked: list[str]) -> None:
    for typed in (["credit", "decide", "an-id"], ["vend", "settle", "an-id"]):
        assert CliRunner().invoke(app, [*typed, *NODES, "--yes"]).exit_code == 2
    assert asked == []


class _Refusal(grpc.aio.AioRpcError):
    """What a node refuses with."""


def _refused(*details: Any) -> grpc.aio.AioRpcError:
    status = status_pb2.Status(code=3, message="a sentence")
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    trailing = tuple(rpc_status.to_status(status).trailing_metadata)
    return _Refusal(
        grpc.StatusCode.INVALID_ARGUMENT, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details="a sentence"
    )


def test_a_refusal_has_json_with_keys_that_are_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    info = error_details_pb2.ErrorInfo(reason="BAD_FIELD", domain="utrn.v1", metadata={"final": "fenced"})
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    bad = error_details_pb2.BadRequest(
        field_violations=[error_details_pb2.BadRequest.FieldViolation(field="pan", description="pan: 19 digits")]
    )

    def refuse(*_: object) -> None:
        raise _refused(info, retry, bad)

    monkeypatch.setattr("app.cli.rpc.answer_of", refuse)
    monkeypatch.setattr(requests, "stub_of", lambda *_: None)
    code, printed, errors = invoke(["participant", "list", *NODES, "--json"])
    found = json.loads(printed.splitlines()[-1])["error"]
    assert (code, set(found)) == (1, KEYS)
    assert (found["reason"], found["status"], found["final"], found["retry_ms"], found["exit_code"]) == (
        "BAD_FIELD", "INVALID_ARGUMENT", True, 1500, 1,
    )  # fmt: skip
    assert found["field_violations"] == [{"field": "pan", "description": "pan: 19 digits"}]
    assert " ".join(errors.split()) == found["text"]


@pytest.mark.parametrize(
    "typed", [["participant", "list"], ["participant", "offboard"], ["vend", "settle", "x", *NODES]]
)
def test_a_wrong_use_has_json_of_the_same_shape(typed: list[str]) -> None:
    code, printed, _ = invoke([*typed, "--json"])
    found = json.loads(printed)["error"]
    assert (code, found["exit_code"], found["reason"], set(found)) == (2, 2, "USAGE", KEYS)


def test_a_refusal_that_says_little_has_the_same_keys() -> None:
    found = refusal_json(_refused())
    assert set(found) == KEYS - {"text", "exit_code"}
    assert (found["reason"], found["final"], found["retry_ms"]) == ("INVALID_ARGUMENT", False, None)


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("utrn me", {"meter", "meter-model"}),
        ("utrn meter se", {"set", "sellers"}),
        ("utrn meter show --ta", {"--target"}),
    ],
)
def test_the_shell_completes_what_is_typed(typed: str, completed: set[str]) -> None:
    words = typed.split()
    environment = {"_UTRN_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    told = CliRunner().invoke(app, [], prog_name="utrn", env=environment)
    assert set(told.output.split()) == completed
