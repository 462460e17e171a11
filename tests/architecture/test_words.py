"""Names that were retired do not come back: docs/decisions/0039 has the table, GLOSSARY.md says what is used."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs" / "decisions" / "0039-the-fields-words.md").read_text()
RETIRED = dict(re.findall(r"^\| `(\w+)`[^|]* \| `(\w+)`", TABLE, re.MULTILINE))
# Other things rightly have these names: calls of the contract, a type of its messages, an option of a command.
ELSEWHERE = {
    "Act",
    "every",
    "judge",
    "resolved",
    "Option",
    "Level",
    "heard_at",
    "own",
}
OURS = ("app", "core", "cluster", "hsm", "tests")
CODE = sorted(file for folder in OURS for file in (ROOT / folder).rglob("*.py"))
PAGES = sorted(
    page
    for page in [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*/README.md")]
    if "decisions" not in page.parts and "node_modules" not in page.parts
)


def _names(text: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], token.string


def _retired(names: Iterator[tuple[int, str]], but: set[str] = ELSEWHERE) -> list[str]:
    return [f"line {line}: {name} is now {RETIRED[name]}" for line, name in names if name in RETIRED.keys() - but]


def test_the_table_was_read() -> None:
    assert len(RETIRED) > 50
    assert len(CODE) > 300


@pytest.mark.parametrize("folder", OURS)
def test_no_retired_name_is_an_identifier(folder: str) -> None:
    found = {
        str(file.relative_to(ROOT)): retired
        for file in CODE
        if file.relative_to(ROOT).parts[0] == folder and (retired := _retired(_names(file.read_text())))
    }
    assert found == {}


def test_no_page_names_a_retired_name() -> None:
    found = [
        f"{page.relative_to(ROOT)}: {name} is now {RETIRED[name]}"
        for page in PAGES
        for name in re.findall(r"`(\w+)[`.(]", page.read_text())
        if name in RETIRED.keys() - ELSEWHERE
    ]
    assert found == []


def test_one_that_comes_back_is_found() -> None:
    assert _retired(_names("class KeepMeters: ...\n")) == ["line 1: KeepMeters is now MeterAdmin"]


def test_no_name_is_retired_and_used() -> None:
    assert not RETIRED.keys() & set(RETIRED.values())
