"""What is new stands in changes/, a file each, and the next version's section can be made of them."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FRAGMENTS = [file for file in (ROOT / "changes").iterdir() if file.name != "README.md"]


def test_every_fragment_is_in_the_section_of_the_next_version() -> None:
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "next"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for file in FRAGMENTS:
        assert file.name.startswith("+"), f"{file.name}: named for what it is, not for a number"
        assert " ".join(file.read_text().split()) in " ".join(made.split()), file.name
