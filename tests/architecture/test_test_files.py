"""Test files have names of their own: pytest collects no second one of a name, and says so only where both are run."""

from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_no_two_test_files_have_the_same_name() -> None:
    named = Counter(path.name for path in TESTS.rglob("test_*.py"))
    assert [name for name, times in named.items() if times > 1] == []
