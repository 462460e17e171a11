"""What a node keeps of its ledger on its own disk."""

from pathlib import Path

import pytest

from cluster.ledger.state_file import LedgerState, StateFile, UnreadableState

STATE = LedgerState(incarnation="abc", sequence=2, cluster_id=7, revision=900)


def test_what_was_kept_is_read(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "not-there-yet", "node-a")
    assert file.read() is None
    file.write(STATE)
    assert file.read() == STATE
    assert [one.name for one in file.path.parent.iterdir()] == ["ledger-node-a.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"incarnation": "abc"}',
        "\0\0\0",
        "null",
        "7",
        "[" * 100_000,
        '{"incarnation": null, "sequence": 2, "cluster_id": 7, "revision": 900}',
        '{"incarnation": "", "sequence": 2, "cluster_id": 7, "revision": 900}',
        '{"incarnation": "abc", "sequence": 2, "cluster_id": 7, "revision": "900"}',
        '{"incarnation": "abc", "sequence": 2, "cluster_id": 7, "revision": -1}',
        '{"incarnation": "abc", "sequence": 2, "cluster_id": 7.5, "revision": true}',
    ],
)
def test_a_torn_file_is_said_and_not_taken_for_none(tmp_path: Path, text: str) -> None:
    file = StateFile(tmp_path, "node-a")
    file.path.write_text(text)
    with pytest.raises(UnreadableState, match="ledger-node-a"):
        file.read()
