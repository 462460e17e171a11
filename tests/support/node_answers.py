"""Asks the guide's modules for Node what this program is asked: one process for many questions."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NODE = Path(sys.executable).parent / "node"


def node_answers(questions: Sequence[dict[str, Any]]) -> list[Any]:
    """Return Node's answer to each question; see tests/node/vectors.mjs."""
    asked = "".join(json.dumps(question) + "\n" for question in questions)
    done = subprocess.run(
        [NODE, ROOT / "tests" / "node" / "vectors.mjs"], input=asked, capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]
