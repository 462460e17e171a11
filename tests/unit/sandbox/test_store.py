"""The sandbox's store holds meters' keys: nobody but its owner reads it, whatever the process's umask lets through."""

import os
from pathlib import Path

from sandbox.store import Store


def test_every_file_of_the_store_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = Store(tmp_path / "state.db", "CREATE TABLE IF NOT EXISTS one (value TEXT)")
        store.write_now([("INSERT INTO one VALUES (?)", ("kept",))])
        files = list(tmp_path.iterdir())
        assert len(files) > 1, "its log lies beside it"
        assert all(file.stat().st_mode & 0o077 == 0 for file in files)
        assert store.read("SELECT value FROM one") == [("kept",)]
        store.close()
    finally:
        os.umask(before)
