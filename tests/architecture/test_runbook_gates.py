"""Runbooks that take one step after another pass a gate in between; its exit codes are those of the program."""

import re
from pathlib import Path

import pytest

from app.cli.cluster_problems import EXIT_MISSING, EXIT_NO_SERVICE
from app.terminal.output import EXIT_FAILED, EXIT_USAGE

RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks"
GATE = ".venv/bin/utrn cluster status --wait 60 $OPERATOR"
# In these an operator touches one part after another: each must be whole before the next.
GATED = ("rolling-restart", "node-lost", "node-frozen", "etcd-member", "etcd-quorum", "hsm", "partition")


@pytest.mark.parametrize("page", GATED)
def test_the_next_step_waits_for_the_gate(page: str) -> None:
    text = (RUNBOOKS / f"{page}.md").read_text()
    act = text[text.index("## Act") : text.index("## Undo")]
    # As a command: the commands of the runbooks are run by tests/integration/test_cluster.py, and must end with 0.
    assert f"```sh\n{GATE}\n```" in act


def test_the_exit_codes_of_the_gate_are_told() -> None:
    text = (RUNBOOKS / "README.md").read_text().replace("\n", " ")
    told = [int(code) for code in re.findall(r"[ ;] ?(\d): ", text[text.index("**The gate**") :])]
    assert told == [0, EXIT_FAILED, EXIT_USAGE, EXIT_MISSING, EXIT_NO_SERVICE]
