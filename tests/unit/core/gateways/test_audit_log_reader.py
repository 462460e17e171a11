"""The audit log as it is read: whoever changes it, cuts it, or goes on writing it is found out."""

import asyncio
import json
from pathlib import Path

import pytest

from core.gateways.audit_log_ends import end_earlier
from core.gateways.audit_log_file import AuditLogFile
from core.gateways.audit_log_format import sealed
from core.gateways.audit_log_reader import AuditLogReader, BadAuditLog
from core.ports.audit_anchors import Anchor, AnchorState
from tests.fakes.clock import HandClock
from tests.support.audit import AnchorsInMemory, audit_file, dead, decision, first_format, forged, told


def _written(folder: Path, *, blocks: int = 3, anchored: int = 3, end: bool = True) -> tuple[Path, Anchor]:
    """Write a file of one decision a block, of which so many are anchored; return it and its anchor."""
    anchors = AnchorsInMemory()

    async def write() -> None:
        audit = AuditLogFile(folder, "node-a", HandClock(), anchors)
        for number in range(blocks):
            audit.note(decision(number))
            await asyncio.to_thread(audit.flush)
            if number < anchored:
                await audit._anchor(AnchorState.OPEN)
        if end:
            await audit.end()
        else:
            dead(audit)

    asyncio.run(write())
    path = audit_file(folder)
    return path, anchors.kept[path.name]


def _appended(path: Path) -> None:
    """Append a block that is chained as it should be."""
    last = json.loads(path.read_bytes().splitlines()[-1])
    body = b'{"at":"x","caller":"c","act":"TOP_UP","ask":"forged","subject":"s","pence":1,"outcome":"allowed"}\n'
    seal, _ = sealed(
        body, block=last["block"] + 1, prev=last["sha256"], lines=1, lost=0, at=HandClock().now(), end=False
    )
    path.write_bytes(path.read_bytes() + body + seal)


def _without_end(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[-1])["end"]
    path.write_bytes(b"".join(lines[:-1]))


def test_a_finished_file_is_whole_and_says_that_nothing_is_missing(tmp_path: Path) -> None:
    path, anchor = _written(tmp_path)
    said = told(path, anchor).verdict
    assert (said.lines, said.unanchored, said.torn, said.state) == (3, 0, 0, AnchorState.FINISHED)
    assert said.complete_until == said.sealed_at


@pytest.mark.parametrize("first_cut_its_end", [False, True])
def test_a_block_appended_to_a_finished_file_is_found(tmp_path: Path, *, first_cut_its_end: bool) -> None:
    path, anchor = _written(tmp_path)
    if first_cut_its_end:
        _without_end(path)
    _appended(path)
    with pytest.raises(BadAuditLog):
        told(path, anchor)
    # By itself the file shows it only where its end is still there; with the end cut off too, the anchor does.
    if first_cut_its_end:
        assert told(path).verdict.lines == 4


def test_without_the_seal_of_the_end_an_appended_block_passes_as_part_of_the_file(tmp_path: Path) -> None:
    path, anchor = _written(tmp_path, end=False)
    _appended(path)
    said = told(path, anchor).verdict
    assert (said.state, said.lines, said.unanchored) == (AnchorState.OPEN, 4, 1), (
        "and is told as what nobody vouches for"
    )


def test_the_last_lines_of_a_finished_file_cannot_be_cut_off(tmp_path: Path) -> None:
    path, anchor = _written(tmp_path, anchored=1)
    lines = path.read_bytes().splitlines(keepends=True)
    for keep in range(1, len(lines)):
        path.write_bytes(b"".join(lines[:keep]))
        with pytest.raises(BadAuditLog):
            told(path, anchor)


def test_of_a_file_that_goes_on_it_is_told_up_to_when_nothing_is_missing(tmp_path: Path) -> None:
    path, anchor = _written(tmp_path, anchored=2, end=False)
    lines = path.read_bytes().splitlines(keepends=True)
    whole = told(path, anchor).verdict
    assert (whole.state, whole.unanchored, whole.lines) == (AnchorState.OPEN, 1, 3)
    path.write_bytes(b"".join(lines[:-2]))
    cut = told(path, anchor).verdict
    assert (cut.unanchored, cut.complete_until) == (0, whole.complete_until)
    path.write_bytes(b"".join(lines[:-4]))
    with pytest.raises(BadAuditLog, match="cut off"):
        told(path, anchor)


@pytest.mark.parametrize("tail", [b"", b'{"at":"half a li', b'{"at":"x"}\n{"at":'])
def test_the_next_life_ends_the_file_of_one_that_died(tmp_path: Path, tail: bytes) -> None:
    path, anchor = _written(tmp_path, anchored=2, end=False)
    path.write_bytes(path.read_bytes() + tail)
    anchors = AnchorsInMemory()
    anchors.kept[path.name] = anchor
    assert asyncio.run(end_earlier(tmp_path, "node-a", "node-a-new.trail", anchors))
    died = anchors.kept[path.name]
    assert (died.block, died.state, died.own_block, died.key) == (2, AnchorState.DIED, 1, anchor.key)
    said = told(path, died).verdict
    assert (said.lines, said.unanchored, said.torn) == (3, 1, len(tail.splitlines()))
    path.write_bytes(path.read_bytes()[: -len(tail) or None])
    _appended(path)
    with pytest.raises(BadAuditLog, match="the file ends"):
        told(path, died)


def test_a_file_that_was_changed_before_the_next_life_is_not_ended_by_it(tmp_path: Path) -> None:
    path, anchor = _written(tmp_path, end=False)
    forged(path, tmp_path, range(3, 9), end=False)
    anchors = AnchorsInMemory()
    anchors.kept[path.name] = anchor
    assert asyncio.run(end_earlier(tmp_path, "node-a", "node-a-new.trail", anchors))
    assert anchors.kept[path.name] == anchor


@pytest.mark.parametrize(("numbers", "says"), [(range(1), "cut off"), (range(3, 9), "written anew")])
def test_a_file_written_anew_does_not_fit_its_anchor(tmp_path: Path, numbers: range, says: str) -> None:
    path, anchor = _written(tmp_path)
    forged(path, tmp_path, numbers)
    assert told(path).verdict.lines, "by itself the file looks right"
    with pytest.raises(BadAuditLog, match=says):
        told(path, anchor)


@pytest.mark.parametrize("tamper", ["change", "take out", "put in", "cut off", "swap", "lost", "at", "header"])
def test_whatever_is_changed_taken_out_or_put_in_is_found(tmp_path: Path, tamper: str) -> None:
    path, _ = _written(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    match tamper:
        case "change":
            lines[1] = lines[1].replace(b"1000", b"9000")
        case "take out":
            del lines[1]
        case "put in":
            lines.insert(2, lines[1])
        case "cut off":
            lines.pop(2)
        case "swap":
            lines[1:3], lines[3:5] = lines[3:5], lines[1:3]
        case "lost":
            lines[2] = lines[2].replace(b'"lost":0', b'"lost":9')
        case "at":
            lines[2] = lines[2].replace(b'"at":"2026', b'"at":"2025')
        case _:
            lines[0] = lines[0].replace(b"node-a", b"node-b")
    assert b"".join(lines) != path.read_bytes()
    path.write_bytes(b"".join(lines))
    with pytest.raises(BadAuditLog):
        told(path)


def test_a_line_that_is_none_of_ours_is_a_sentence(tmp_path: Path) -> None:
    path, _ = _written(tmp_path)
    whole = path.read_bytes()
    aliens = [b"hello\n", b"[1]\n", b"\xff\xfe\n", b'{"sha256":1}\n', b'{"block":3}\n']
    for alien in (*aliens, b"[" * 50_000 + b"\n", b"1" * 9_000 + b"\n", b"a" * (1 << 21)):
        path.write_bytes(whole[: whole.rindex(b'{"block"')] + alien)
        with pytest.raises(BadAuditLog):
            told(path)
    for strange in ({"format": 3}, {"format": "2"}, {"format": None}):
        path.write_bytes(json.dumps(strange).encode() + b"\n")
        with pytest.raises(BadAuditLog, match="format"):
            told(path)


@pytest.mark.parametrize(
    "strange", [{"at": 1}, {"pence": "1"}, {"subject": None}, {"channel": "x"}, {"act": "SOLD", "counter": []}]
)
def test_a_block_that_holds_something_else_than_decisions_is_no_audit_log(tmp_path: Path, strange: object) -> None:
    line = {"at": "x", "caller": "c", "act": "a", "ask": "", "subject": "s", "pence": 1, "outcome": "allowed"}
    path = tmp_path / "node-a.trail"
    path.write_bytes(first_format([line]))
    assert len(list(AuditLogReader(path))) == 1
    assert isinstance(strange, dict)
    path.write_bytes(first_format([line | strange]))
    with pytest.raises(BadAuditLog, match="no decision"):
        told(path)


def test_a_file_of_the_first_format_is_read_and_verified(tmp_path: Path) -> None:
    line = {"at": "x", "caller": "c", "act": "TOP_UP", "ask": "i", "subject": "s", "pence": 1, "outcome": "allowed"}
    path = tmp_path / "node-a-20261124T120000000000.trail"
    path.write_bytes(first_format([line, line]))
    seal = json.loads(path.read_bytes().splitlines()[-1])
    said = told(path, Anchor(0, seal["sha256"])).verdict
    assert (said.lines, said.state, said.unanchored, said.sealed_at) == (2, AnchorState.UNKNOWN, 0, "")
    path.write_bytes(path.read_bytes().replace(b'"pence": 1', b'"pence": 2', 1))
    with pytest.raises(BadAuditLog):
        told(path)
