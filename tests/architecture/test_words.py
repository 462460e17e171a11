"""Names that were retired do not come back: docs/decisions/0039 has the table, GLOSSARY.md says what is used."""

import ast
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
    "option",
    "standing",
    "trail",
}
# Retired as an attribute, a field, or the name of an argument that is passed; as a plain name each has another meaning.
ATTRIBUTES = {"option", "standing", "trail"}
# Stored fields keep their names while a released version reads them: proto/released.binpb.
STORED = {"cluster/codec/participant.py": {"known_as", "standings", "option"}}
# The operators' setting, `[node] trail`, keeps its name.
SETTINGS = {"app/node/config.py": {"trail"}}
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


def _attributes(text: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Attribute(value=ast.Attribute(attr="node"), attr="trail"):
                pass
            case ast.Attribute(attr=name) | ast.AnnAssign(target=ast.Name(id=name)):
                yield node.lineno, name
            case ast.keyword(arg=str(name)):
                yield node.lineno, name


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
        if file.relative_to(ROOT).parts[0] == folder
        and (retired := _retired(_names(file.read_text()), ELSEWHERE | STORED.get(str(file.relative_to(ROOT)), set())))
    }
    assert found == {}


@pytest.mark.parametrize("folder", OURS)
def test_no_retired_name_is_an_attribute(folder: str) -> None:
    found = {}
    for file in CODE:
        path = str(file.relative_to(ROOT))
        if path.startswith(f"{folder}/"):
            kept = (RETIRED.keys() - ATTRIBUTES) | STORED.get(path, set()) | SETTINGS.get(path, set())
            if retired := _retired(_attributes(file.read_text()), kept):
                found[path] = retired
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


@pytest.mark.parametrize(
    "text", ["profile.option\n", "Profile(option=1)\n", "class A:\n    trail: int\n", "node.trail.healthy\n"]
)
def test_an_attribute_that_comes_back_is_found(text: str) -> None:
    assert len(_retired(_attributes(text), RETIRED.keys() - ATTRIBUTES)) == 1


def test_what_is_kept_is_still_there() -> None:
    for path, names in (STORED | SETTINGS).items():
        assert names <= {name for _, name in _attributes((ROOT / path).read_text())}
    assert not _retired(_attributes("config.node.trail\n"), RETIRED.keys() - ATTRIBUTES)


def test_no_name_is_retired_and_used() -> None:
    assert not RETIRED.keys() & set(RETIRED.values())
