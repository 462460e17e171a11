"""The audit file of key ceremonies: its owner's alone, and no link is followed."""

import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from hsm.ceremony import CeremonyRefused, _audit

NOW = datetime(2026, 11, 27, tzinfo=UTC)


def test_only_its_owner_writes_it_and_lines_are_appended(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    for act in ("init", "import"):
        _audit(file, NOW, act)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(file.read_text().splitlines()) == 2


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    theirs, file = tmp_path / "theirs", tmp_path / "audit.jsonl"
    theirs.write_text("")
    file.symlink_to(theirs)
    with pytest.raises(CeremonyRefused, match="by hand"):
        _audit(file, NOW, "init")
    assert theirs.read_text() == ""
