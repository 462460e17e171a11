"""The page of all commands is what they say of themselves; the page of the contract is in test_contract_files."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_of_all_commands_is_up_to_date(tmp_path: Path) -> None:
    page = tmp_path / "commands.md"
    command = [sys.executable, "-m", "typer", "app.__main__", "utils", "docs", "--name", "utrn", "--output", str(page)]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("UTRN_")}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=plain)
    assert page.read_text() == (ROOT / "docs" / "reference" / "commands.md").read_text(), "make reference"
