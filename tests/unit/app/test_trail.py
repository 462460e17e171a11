"""The trail of decisions: what was written is what is read, and whoever changes it is found out."""

import asyncio
import errno
import json
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app import trail as trail_module
from app.market import _instant
from app.trail import BadTrail, FileTrail, verified
from cluster.anchors import Anchor
from cluster.time import ClusterClock
from core.domain.cluster_time import Received, TimeKeeper, TimeRule
from core.domain.errors import LedgerUnavailable
from core.domain.registry import Kind, Ref
from core.domain.timeline import ms_of
from core.ports.trail import Decision
from tests.fakes.clock import HandClock
from tests.support.patience import PATIENCE_S


def decision(number: int) -> Decision:
    return Decision(
        at=datetime(2026, 11, 24, 12, 0, 0, 1000 * number, tzinfo=UTC), caller="psp-corner",
        identity='spiffe://a/"quoted"\\', act="TOP_UP", ask=f"id-{number}", subject="00db120000000001", amount=1000,
        outcome="allowed", rule="appointment corner",
        basis=((Ref(Kind.PAN, "9826000000000001234"), 7), (Ref(Kind.METER, "00db120000000001"), 9)),
    )  # fmt: skip


@pytest.fixture
def trail(tmp_path: Path) -> Iterator[FileTrail]:
    made = FileTrail(tmp_path, "node-a", HandClock())
    yield made
    made.close()


def _file(folder: Path) -> Path:
    (file,) = folder.glob("*.trail")
    return file


def test_every_decision_is_read_as_it_was_made_but_for_the_pan(trail: FileTrail, tmp_path: Path) -> None:
    for number in range(5):
        trail.note(decision(number))
        if number % 2:
            trail.flush()
    trail.flush()
    found = list(verified(_file(tmp_path)))
    assert [one["ask"] for one in found] == [f"id-{number}" for number in range(5)]
    assert found[0]["identity"] == 'spiffe://a/"quoted"\\'
    assert found[0]["basis"] == [["pan", "..1234", 7], ["meter", "00db120000000001", 9]]
    assert b"9826000000000001234" not in _file(tmp_path).read_bytes()


def test_whatever_an_id_holds_a_line_is_one_line_of_json(trail: FileTrail, tmp_path: Path) -> None:
    odd = 'Acme "X"\\/E470\n'
    trail.note(decision(1)._replace(subject=odd, rule=odd, basis=((Ref(Kind.MODEL, odd), 3),)))
    trail.flush()
    (found,) = verified(_file(tmp_path))
    assert (found["subject"], found["rule"], found["basis"]) == (odd, odd, [["model", odd, 3]])


def test_a_block_of_which_only_a_part_was_written_is_written_again_whole(
    trail: FileTrail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trail.note(decision(1))
    trail.flush()
    file: Any = trail._file

    class NearlyFull:
        """Takes ten bytes of a block."""

        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

        def write(self, block: bytes) -> int:
            return int(file.write(block[:10]))

    monkeypatch.setattr(trail, "_file", NearlyFull())
    trail.note(decision(2))
    trail.flush()
    seen = [trail.healthy]
    monkeypatch.setattr(trail, "_file", file)
    trail.flush()
    assert [*seen, trail.healthy] == [False, True]
    assert [one["ask"] for one in verified(_file(tmp_path))] == ["id-1", "id-2"]


async def test_a_node_that_stops_while_a_block_is_written_writes_it_once(
    trail: FileTrail, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on = threading.Event(), threading.Event()
    fsync = os.fsync

    def slow(number: int) -> None:
        writing.set()
        assert go_on.wait(10)
        fsync(number)

    monkeypatch.setattr(os, "fsync", slow)
    trail.note(decision(1))
    running = asyncio.get_running_loop().create_task(trail.run())
    await asyncio.to_thread(writing.wait, 10)
    # The disk answers a moment after the node has begun to stop.
    threading.Timer(0.1, go_on.set).start()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert [one["ask"] for one in verified(_file(tmp_path))] == ["id-1"]


def _written_anew(file: Path, folder: Path, numbers: range) -> None:
    """Write other decisions into a file, chained as they should be: what somebody with the file could do."""
    forged = FileTrail(folder, "forged", HandClock())
    for number in numbers:
        forged.note(decision(number))
        forged.flush()
    forged.close()
    (made,) = folder.glob("forged-*.trail")
    made.replace(file)


@pytest.mark.parametrize(("numbers", "says"), [(range(1), "cut off"), (range(3, 9), "written anew")])
async def test_a_file_cut_off_or_chained_anew_does_not_fit_its_anchor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: range, says: str
) -> None:
    monkeypatch.setattr(trail_module, "_EVERY_S", 0.001)
    kept: dict[str, Anchor] = {}
    anchored = asyncio.Event()

    class Kept:
        """Keeps anchors in memory; the first time it cannot be reached."""

        failed = False

        async def put(self, file: str, anchor: Anchor) -> None:
            if not self.failed:
                self.failed = True
                raise LedgerUnavailable("not now")
            kept[file] = anchor
            anchored.set()

    trail = FileTrail(tmp_path, "node-a", HandClock(), Kept())
    running = asyncio.get_running_loop().create_task(trail.run())
    for number in range(3):
        trail.note(decision(number))
        trail.flush()
    async with asyncio.timeout(PATIENCE_S):
        await anchored.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    (file,) = tmp_path.glob("node-a-*.trail")
    assert kept[file.name].block == 2
    assert len(list(verified(file, kept[file.name]))) == 3
    _written_anew(file, tmp_path, numbers)
    assert list(verified(file)), "by itself the file looks right"
    with pytest.raises(BadTrail, match=says):
        list(verified(file, kept[file.name]))


@pytest.mark.parametrize("tamper", ["change", "take out", "put in", "cut off", "swap"])
def test_a_line_changed_taken_out_or_put_in_is_found(trail: FileTrail, tmp_path: Path, tamper: str) -> None:
    for number in range(6):
        trail.note(decision(number))
        if number == 2:
            trail.flush()
    trail.flush()
    file = _file(tmp_path)
    lines = file.read_bytes().splitlines(keepends=True)
    match tamper:
        case "change":
            lines[1] = lines[1].replace(b"1000", b"9000")
        case "take out":
            del lines[0]
        case "put in":
            lines.insert(2, lines[0])
        case "cut off":
            lines.pop()
        case _:
            lines[:4], lines[4:] = lines[4:], lines[:4]
    file.write_bytes(b"".join(lines))
    with pytest.raises(BadTrail):
        list(verified(file))


def test_a_full_disk_loses_nothing_and_is_told(trail: FileTrail, tmp_path: Path, monkeypatch: Any) -> None:
    trail.note(decision(0))
    trail.flush()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("app.trail.os.fsync", full)
    trail.note(decision(1))
    trail.flush()
    told = [trail.healthy]
    monkeypatch.undo()
    trail.note(decision(2))
    trail.flush()
    assert [*told, trail.healthy] == [False, True]
    assert [one["ask"] for one in verified(_file(tmp_path))] == ["id-0", "id-1", "id-2"]


def test_seals_say_how_many_could_not_be_kept(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("app.trail._WAITING_MAX", 2)
    trail = FileTrail(tmp_path, "node-a", HandClock())
    for number in range(5):
        trail.note(decision(number))
    trail.flush()
    trail.close()
    seal = json.loads(_file(tmp_path).read_bytes().splitlines()[-1])
    assert (seal["lost"], trail.lost) == (3, 3)


def test_a_call_noted_while_the_time_is_not_known_is_dated_by_the_wall_clock_and_says_so() -> None:
    steady = HandClock()
    keeper = TimeKeeper(TimeRule())
    clock = ClusterClock(keeper, steady)
    steady.wall_off = timedelta(hours=1)
    assert _instant(clock) == (steady.wall(), "wall")
    keeper.receive(Received(ms_of(steady.now()), 7, steady.monotonic()), moved=True)
    assert _instant(clock) == (steady.now(), "cluster")
