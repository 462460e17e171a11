"""What the pages say is there, is there: commands and their options, alerts, figures, and the statuses of reasons."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from utrn_client.outcomes import OUTCOMES

from app.__main__ import app

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for page in ROOT.rglob("*.md")
    if page.name != "CHANGELOG.md" and not {"node_modules", ".venv", "build", "run"} & set(page.relative_to(ROOT).parts)
)
ALERTS = yaml.safe_load((ROOT / "deploy" / "observe" / "alerts.yaml").read_text())["groups"][0]["rules"]
# A command as it is typed: in backquotes, or a line of its own; it goes on in the next line after a backslash.
TYPED = re.compile(r"(?:`|^)(?:\.venv/bin/)?utrn ((?:[^`\n\\]|\\\n)+)", re.MULTILINE)


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _wrong(typed: str) -> str:
    """Return what of a command as it is typed does not exist; empty for nothing."""
    words = typed.split(" #")[0].replace("\\\n", " ").split()
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        if not re.fullmatch(r"[a-z][a-z-]+", words[0]):
            # An option of the group, or `utrn supplier|participant ...`.
            return ""
        if words[0] not in command.commands:
            return words[0]
        command = command.commands[words.pop(0)]
    known = {name for one in getattr(command, "params", ()) for name in (*one.opts, *one.secondary_opts)} | {"--help"}
    asked = [word.split("=")[0].rstrip(".,;:)") for word in words if word.startswith("--")]
    return " ".join(word for word in asked if word not in known)


def _typed() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for match in TYPED.finditer(page.read_text()):
            yield _name(page), match[1]


def test_every_command_of_the_pages_exists_with_its_options() -> None:
    found = list(_typed())
    assert len(found) > 150, "otherwise this looked at nothing"
    assert [(page, typed, wrong) for page, typed in found if (wrong := _wrong(typed))] == []


@pytest.mark.parametrize(
    ("typed", "wrong"),
    [("cluster heal node-a", "heal"), ("cluster status --loud --json", "--loud"), ("meter set X --mode credit", "")],
)
def test_a_command_that_is_not_there_is_found(typed: str, wrong: str) -> None:
    assert _wrong(typed) == wrong


@pytest.mark.parametrize("rule", ALERTS, ids=[rule["alert"] for rule in ALERTS])
def test_the_page_of_an_alert_names_it(rule: dict[str, Any]) -> None:
    page = ROOT / "docs" / "runbooks" / rule["annotations"]["runbook"]
    assert re.search(rf"\b{rule['alert']}\b", page.read_text()), page.name


def test_every_figure_of_the_runbooks_is_told_by_nodes() -> None:
    figures = (ROOT / "app" / "node" / "metrics.py").read_text()
    for page in sorted((ROOT / "docs" / "runbooks").glob("*.md")):
        for name in set(re.findall(r"\butrn_[a-z_]+", page.read_text())):
            assert f'"{re.sub("_(total|bucket)$", "", name)}"' in figures, f"{page.name}: {name}"


def test_a_calls_list_of_errors_has_the_status_of_each_reason() -> None:
    statuses = {outcome.status for outcome in OUTCOMES.values()}
    listed = 0
    for file in sorted((ROOT / "proto" / "utrn").rglob("*.proto")):
        text = re.sub(r"\n\s*//", "", file.read_text())
        for status, inside in re.findall(r"\b([A-Z]+(?:_[A-Z]+)*) \(([^()]*)\)", text):
            if status not in statuses:
                continue
            for reason in re.findall(r"\b(?:[A-Z]+(?:_[A-Z]+)+|OVERLOADED)\b", inside):
                listed += 1
                assert OUTCOMES[reason].status == status, f"{file.name}: {status} ({reason})"
    assert listed > 40, "otherwise this looked at nothing"


NAMED = re.compile(r"(?<![\w./-])utrn ([a-z][a-z|-]*)(?: ([a-z][a-z-]*))?")
PACKAGES = ("app", "core", "cluster", "hsm", "client", "sandbox")


def _named() -> Iterator[tuple[str, str, str]]:
    """Yield every command that a text of the program or of the contract names, and where: help, advice, messages."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    for match in NAMED.finditer(node.value):
                        yield _name(file), match[1], match[2] or ""
    for file in sorted((ROOT / "proto" / "utrn").rglob("*.proto")):
        for match in NAMED.finditer(file.read_text()):
            yield _name(file), match[1], match[2] or ""


def test_every_command_that_a_message_or_a_help_text_names_exists() -> None:
    top: Any = typer.main.get_command(app)
    found = list(_named())
    assert len(found) > 60, "otherwise this looked at nothing"
    wrong = []
    for where, groups, word in found:
        for group in groups.split("|"):
            inner = getattr(top.commands.get(group), "commands", None)
            if group not in top.commands or (word and inner is not None and word not in inner):
                wrong.append((where, group, word))
    assert wrong == []
