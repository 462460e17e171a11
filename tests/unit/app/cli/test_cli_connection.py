"""Whom a command asks, as whom, and by which name: the command line, then the environment, then the profile."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from app.__main__ import app
from app.cli import requests, rpc
from app.terminal.invocation import invocation
from tests.support.teller import COMMAND

SAID = ("target", "cert", "key", "ca", "server_name")
TYPED = {"target": "t:1", "cert": "c", "key": "k", "ca": "a", "server_name": "n"}


def _commands(here: Any, name: str = "utrn") -> Iterator[tuple[str, Any]]:
    inner = getattr(here, "commands", None)
    if inner is None:
        yield name, here
        return
    for word in inner:
        yield from _commands(inner[word], f"{name} {word}")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    """Whom a command would have asked."""
    found: dict[str, str] = {}

    def ask(_call: object, target: str, tls: tuple[Path, Path, Path]) -> None:
        values = (target, *map(str, tls), invocation().server_name)
        found.update(zip(SAID, values, strict=True))
        raise SystemExit(0)

    monkeypatch.setattr(requests, "ask_nodes", ask)
    for name in SAID:
        monkeypatch.delenv(f"UTRN_{name.upper()}", raising=False)
    monkeypatch.delenv("UTRN_PROFILE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return found


def _options(values: dict[str, str]) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", value)]


def _profile(folder: Path, **tables: dict[str, str]) -> None:
    (folder / "utrn").mkdir()
    lines = [
        line
        for table, values in tables.items()
        for line in (f"[{table}]", *(f'{name} = "{value}"' for name, value in values.items()))
    ]
    (folder / "utrn" / "config.toml").write_text("\n".join(lines))


def test_every_command_that_asks_nodes_takes_a_server_name_and_the_profile() -> None:
    found = {name for name, one in _commands(COMMAND) if {"target", "ca"} <= {param.name for param in one.params}}
    asks = {name for name in found if not name.startswith("utrn sandbox")}
    assert len(asks) > 50, "otherwise this looked at nothing"
    for name, one in _commands(COMMAND):
        if name in asks:
            names = {param.name: param.envvar for param in one.params}
            assert {said: names.get(said) for said in SAID} == {said: f"UTRN_{said.upper()}" for said in SAID}, name
            assert one.context_settings["default_map"] is not None, name


def test_what_is_typed_goes_before_the_environment_and_that_before_the_profile(
    asked: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _profile(tmp_path, default={name: f"profile-{name}" for name in SAID})
    run = CliRunner().invoke
    assert run(app, ["participant", "list"]).exit_code == 0
    folder = tmp_path / "utrn"
    # Files are looked for beside the profile.
    kept = {name: f"profile-{name}" for name in SAID}
    assert asked == kept | {name: str(folder / f"profile-{name}") for name in ("cert", "key", "ca")}
    for name in SAID:
        monkeypatch.setenv(f"UTRN_{name.upper()}", f"env-{name}")
    assert run(app, ["participant", "list"]).exit_code == 0
    assert asked == {name: f"env-{name}" for name in SAID}
    assert run(app, ["participant", "list", *_options(TYPED)]).exit_code == 0
    assert asked == TYPED


def test_a_profile_is_chosen_by_name(asked: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dict.fromkeys(SAID, "one")
    _profile(tmp_path, default=whole, psp={**whole, "target": "other"})
    run = CliRunner().invoke
    assert run(app, ["--profile", "psp", "participant", "list"]).exit_code == 0
    assert asked["target"] == "other"
    monkeypatch.setenv("UTRN_PROFILE", "psp")
    asked.clear()
    assert run(app, ["participant", "list"]).exit_code == 0
    assert asked["target"] == "other"
    monkeypatch.setenv("UTRN_PROFILE", "none")
    told = run(app, ["participant", "list"])
    assert told.exit_code == 2
    assert "no table [none]; there are: default, psp" in told.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("text", "says"),
    [("[default]\ntarget = 1\n", "texts are needed"), ("[default]\ncolour = 'red'\n", "colour"), ("[", "mend it")],
)
def test_a_profile_that_cannot_be_used_says_why(asked: dict[str, str], tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "utrn").mkdir()
    (tmp_path / "utrn" / "config.toml").write_text(text)
    told = CliRunner().invoke(app, ["participant", "list"])
    assert (told.exit_code, asked) == (2, {})
    assert says in told.stderr.replace("\n", " ")


def test_a_profile_is_no_reason_to_refuse_a_configuration(asked: dict[str, str], tmp_path: Path) -> None:
    """`registry load --config` writes straight into etcd; only a target that was typed contradicts it."""
    _profile(tmp_path, default=dict.fromkeys(SAID, "one"))
    file = tmp_path / "registry.jsonl"
    file.write_text("")
    told = CliRunner().invoke(app, ["registry", "load", str(file), "--config", str(tmp_path / "none.toml")])
    assert "none.toml: cannot be read" in told.stderr.replace("\n", "")
    told = CliRunner().invoke(app, ["registry", "load", str(file), "--config", "x", "--target", "h:1"])
    assert "one of the two is needed" in told.stderr.replace("\n", " ")


def test_a_node_is_known_by_its_host_unless_a_name_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names: list[str] = []

    def opened(_nodes: list[str], tls: Any, *, by_health: bool) -> None:
        del by_health
        names.append(tls.server_name)
        raise SystemExit(0)

    monkeypatch.setattr("utrn_client.channel.open_channel", opened)
    monkeypatch.setattr(rpc, "check_certificates", lambda *_: None)
    nodes = ["participant", "list", *_options({**TYPED, "target": "node-a.internal:7443"})]
    for more, name in (
        (["--server-name", ""], "node-a.internal"),
        (["--server-name", "nodes.internal"], "nodes.internal"),
    ):
        CliRunner().invoke(app, [*nodes, *more])
        assert names.pop() == name
