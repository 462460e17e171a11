"""A file of codes is its owner's alone, whatever stood under its name."""

import os
import stat
from pathlib import Path

import pytest

from app.terminal.secret_file import write_secret


@pytest.mark.parametrize("before", [None, 0o644, 0o666])
def test_nobody_else_reads_it_whatever_mode_the_file_before_had(tmp_path: Path, before: int | None) -> None:
    file = tmp_path / "codes.jsonl"
    if before is not None:
        file.write_text("old")
        file.chmod(before)
    write_secret(file, "new")
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("new", 0o600)
    assert os.listdir(tmp_path) == ["codes.jsonl"]


def test_neither_a_link_nor_a_device_is_written_through(tmp_path: Path) -> None:
    theirs, file, pipe = tmp_path / "theirs", tmp_path / "codes.jsonl", tmp_path / "pipe"
    theirs.write_text("theirs")
    file.symlink_to(theirs)
    os.mkfifo(pipe)
    for name in (file, pipe):
        with pytest.raises(OSError, match="give the name of a file"):
            write_secret(name, "secret")
    assert theirs.read_text() == "theirs"
