"""docs/MAP.md names every folder of code, with what the folder says of itself, and pages name files that are there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAP = (ROOT / "docs" / "MAP.md").read_text()
ROW = re.compile(r"^\| \[([\w/]+)\]\(\.\./\1\) \| (.*) \|$", re.MULTILINE)
NAMED = re.compile(r"(?<![\w*{}./-])((?:[\w.-]+/)*[\w-]+\.(?:py|mjs|sh|proto))(?![\w*])")
# Files, and the folders by which a later bare name is meant.
MENTIONED = re.compile(rf"{NAMED.pattern}|(?<![\w*{{}}./-])((?:[\w-]+/)+)(?![\w*])")
# Of another project, or of every package.
ELSEWHERE = {"buf/validate/validate.proto", "__init__.py"}


# What a checkout has beside what is in it by right.
MADE = {".git", ".venv", "node_modules", "build", "run", "__pycache__", "gen"}


def _files() -> list[str]:
    names = (file.relative_to(ROOT) for file in ROOT.rglob("*") if file.is_file())
    return sorted(str(name) for name in names if not MADE & set(name.parts))


FILES = _files()
PAGES = [name for name in FILES if name.endswith(".md") and name != "CHANGELOG.md"]


def test_every_folder_of_code_has_its_line_and_says_the_same_of_itself() -> None:
    packages = [Path(name) for name in FILES if name.endswith("/__init__.py")]
    assert len(packages) > 30, "otherwise this looked at nothing"
    said = {str(file.parent): ast.get_docstring(ast.parse((ROOT / file).read_text())) for file in packages}
    assert dict(ROW.findall(MAP.split("## The other folders")[0])) == said


def _missing(text: str, folder: Path) -> Iterator[str]:
    """Yield the files that a page names and that are not there: from the root, from the page, or by their end.

    A name without a folder is that of one file only, or of a file in a folder that the page has named before.
    """
    folders: set[str] = set()
    for name in (match[1] or match[2] for match in MENTIONED.finditer(text)):
        path = ROOT / name if (ROOT / name).exists() else folder / name
        if path.exists() or name in ELSEWHERE:
            folders.add(str((path if path.is_dir() else path.parent).resolve()))
            continue
        if not NAMED.fullmatch(name):
            continue
        ends = [ROOT / file for file in FILES if file.endswith(f"/{name}")]
        if len(ends) == 1:
            folders.add(str(ends[0].parent))
        elif not folders & {str(end.parent) for end in ends}:
            yield name


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    assert list(_missing((ROOT / page).read_text(), (ROOT / page).parent)) == []


def test_a_file_that_is_not_there_is_found() -> None:
    assert list(_missing("see `core/flows/turn.py` and `issue.py`", ROOT)) == ["core/flows/turn.py"]


def test_a_bare_name_of_several_files_is_found_unless_its_folder_was_named() -> None:
    assert list(_missing("`config.py`, `core/api/access.py`, `config.py`", ROOT)) == ["config.py"]
    assert list(_missing("`hsm/`: `config.py`", ROOT)) == []


LINK = re.compile(r"\]\(([^)\s]+)\)")


def _slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


def _broken(text: str, page: Path) -> Iterator[str]:
    """Yield the links of a page that lead to no file, or to no heading of one."""
    for target in LINK.findall(text):
        if target.startswith("http"):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (
            heading and heading not in {_slug(one) for one in re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)}
        ):
            yield target


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    assert list(_broken((ROOT / page).read_text(), ROOT / page)) == []


def test_a_link_to_nowhere_is_found() -> None:
    text = "[a](MAP.md#no-such-heading) [b](nowhere.md) [c](MAP.md#folders-of-code)"
    assert list(_broken(text, ROOT / "docs" / "concepts.md")) == ["MAP.md#no-such-heading", "nowhere.md"]
