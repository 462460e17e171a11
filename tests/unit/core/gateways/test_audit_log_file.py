"""The audit log as it is written: what is noted is what is read, a full disk loses nothing, every life has an end."""

import asyncio
import errno
import json
import os
import stat
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from cluster.timekeeping.ledger_time import ClusterClock
from core.api.call_audit import instant_of
from core.domain.cluster_time import Received, TimeKeeper, TimeRule
from core.domain.effective_dated import ms_of
from core.domain.errors import LedgerUnavailable
from core.domain.meter import MeterId
from core.domain.record import Kind, Ref
from core.gateways import audit_log_file as writer
from core.gateways.audit_log_file import AuditLogFile
from core.gateways.audit_log_format import utrn_hash
from core.gateways.audit_log_reader import AuditLogReader
from core.ports.audit_anchors import Anchor, AnchorState
from tests.fakes.clock import HandClock
from tests.support.audit import AnchorsInMemory, audit_file, decision, ended
from tests.support.vends import vend


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[AuditLogFile]:
    made = AuditLogFile(tmp_path, "node-a", HandClock())
    yield made
    asyncio.run(made.end())


def test_every_decision_is_read_as_it_was_made_but_for_the_pan(audit: AuditLogFile, tmp_path: Path) -> None:
    for number in range(5):
        audit.note(decision(number))
        if number % 2:
            audit.flush()
    audit.flush()
    found = list(AuditLogReader(audit_file(tmp_path)))
    assert [one["ask"] for one in found] == [f"id-{number}" for number in range(5)]
    assert found[0]["identity"] == 'spiffe://a/"quoted"\\'
    assert found[0]["basis"] == [["pan", "..1234", 7], ["meter", "00db120000000001", 9]]
    assert b"9826000000000001234" not in audit_file(tmp_path).read_bytes()


def test_whatever_a_stranger_sends_a_line_is_one_line_of_json(audit: AuditLogFile, tmp_path: Path) -> None:
    # The last two: text from right to left, by which a terminal shows another line than there is; half a character.
    odd = 'Acme "X"\\/E470\n\x1b]0;t\x07\u2028{"block":0}\u202e\ud800'
    audit.note(
        decision(1)._replace(subject=odd, rule=odd, outcome=odd, caller=odd, read_set=((Ref(Kind.MODEL, odd), 3),))
    )
    audit.flush()
    (found,) = AuditLogReader(audit_file(tmp_path))
    assert {found[name] for name in ("subject", "rule", "outcome", "caller")} == {odd}
    assert found["basis"] == [["model", odd, 3]]
    kept = audit_file(tmp_path).read_bytes()
    assert b"\x1b" not in kept
    assert kept.isascii()


def test_a_card_or_a_code_sent_in_another_field_is_masked(audit: AuditLogFile, tmp_path: Path) -> None:
    card, code = "9826000000000001234", "58312001487301774421"
    audit.note(decision(1)._replace(subject=card, ask=f"x {code}", rule=card, identity=f"spiffe://utrn/psp/{card}"))
    audit.flush()
    kept = audit_file(tmp_path).read_text()
    assert card not in kept
    assert code not in kept
    (found,) = AuditLogReader(audit_file(tmp_path))
    assert (found["subject"], found["ask"], found["identity"]) == (
        "..1234",
        "x [20 digits]",
        "spiffe://utrn/psp/..1234",
    )


def test_a_sale_is_kept_with_a_hash_of_its_digits_that_the_file_alone_cannot_undo(
    audit: AuditLogFile, tmp_path: Path
) -> None:
    one = vend(5, MeterId("00db120000000001"))
    audit.note_sale(one, 17)
    audit.note_sale(one, 0)
    audit.flush()
    sold, unknown = AuditLogReader(audit_file(tmp_path))
    assert (sold["outcome"], sold["revision"], unknown["outcome"]) == ("sold", 17, "unknown")
    assert (sold["caller"], sold["ask"]) == (one.sale.participant_id, one.sale.transaction_id)
    assert (sold["pence"], sold["counter"], sold["subject"]) == (one.sale.amount, one.counter, one.meter_id)
    assert sold["utrn"] == utrn_hash(audit._key, one.utrn)
    assert utrn_hash(b"another key", one.utrn) != sold["utrn"]
    assert one.utrn not in audit_file(tmp_path).read_text()
    assert audit._key.hex() not in audit_file(tmp_path).read_text()


def test_a_file_is_for_its_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        audit = AuditLogFile(tmp_path / "new" / "trail", "node-a", HandClock())
        audit.note(decision(1))
        audit.flush()
    finally:
        os.umask(before)
    folder = tmp_path / "new" / "trail"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(audit_file(folder).stat().st_mode) == 0o600
    asyncio.run(audit.end())


def test_a_block_of_which_only_a_part_was_written_is_written_again_whole(
    audit: AuditLogFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit.note(decision(1))
    audit.flush()
    file: Any = audit._file

    class NearlyFull:
        """Takes ten bytes of a block."""

        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

        def write(self, block: bytes) -> int:
            return int(file.write(block[:10]))

    monkeypatch.setattr(audit, "_file", NearlyFull())
    audit.note(decision(2))
    audit.flush()
    seen = [audit.healthy]
    monkeypatch.setattr(audit, "_file", file)
    audit.flush()
    assert [*seen, audit.healthy] == [False, True]
    assert [one["ask"] for one in AuditLogReader(audit_file(tmp_path))] == ["id-1", "id-2"]


async def test_a_node_that_stops_while_a_block_is_written_writes_it_once_and_then_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing, go_on = threading.Event(), threading.Event()
    fsync, threads = os.fsync, set[str]()

    def slow(number: int) -> None:
        threads.add(threading.current_thread().name)
        writing.set()
        assert go_on.wait(10)
        fsync(number)

    monkeypatch.setattr(os, "fsync", slow)
    audit = AuditLogFile(tmp_path, "node-a", HandClock(), anchors := AnchorsInMemory())
    audit.note(decision(1))
    running = asyncio.get_running_loop().create_task(audit.run())
    await asyncio.to_thread(writing.wait, 10)
    # The disk answers a moment after the node has begun to stop.
    threading.Timer(0.1, go_on.set).start()
    await ended(running)
    audit.note(decision(2))
    reader = AuditLogReader(path := audit_file(tmp_path), anchors.kept[path.name])
    assert [one["ask"] for one in reader] == ["id-1"]
    assert (reader.verdict.state, audit.lost, len(threads)) == (AnchorState.FINISHED, 1, 1)


def test_a_full_disk_loses_nothing_and_is_told(audit: AuditLogFile, tmp_path: Path, monkeypatch: Any) -> None:
    audit.note(decision(0))
    audit.flush()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("core.gateways.audit_log_file.os.fsync", full)
    audit.note(decision(1))
    audit.flush()
    told = [audit.healthy]
    monkeypatch.undo()
    audit.note(decision(2))
    audit.flush()
    assert [*told, audit.healthy] == [False, True]
    assert [one["ask"] for one in AuditLogReader(audit_file(tmp_path))] == ["id-0", "id-1", "id-2"]


def test_seals_say_how_many_could_not_be_kept_and_the_hash_covers_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(writer, "_WAITING_MAX", 2)
    audit = AuditLogFile(tmp_path, "node-a", HandClock())
    for number in range(5):
        audit.note(decision(number))
    audit.flush()
    asyncio.run(audit.end())
    seal = json.loads(audit_file(tmp_path).read_bytes().splitlines()[-1])
    reader = AuditLogReader(audit_file(tmp_path))
    assert len(list(reader)) == 2
    assert (seal["lost"], audit.lost, reader.verdict.lost) == (3, 3, 3)


async def test_a_ledger_out_of_reach_does_not_delay_writing_and_is_anchored_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_EVERY_S", 0.001)
    monkeypatch.setattr(writer, "_ANCHOR_EVERY_S", 0.001)
    back, asked, anchored = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Away(AnchorsInMemory):
        """Does not answer until it is back, and refuses once."""

        async def put(self, file: str, anchor: Anchor) -> None:
            if not asked.is_set():
                asked.set()
                await back.wait()
                raise LedgerUnavailable("not now")
            await super().put(file, anchor)
            anchored.set()

    audit = AuditLogFile(tmp_path, "node-a", HandClock(), anchors := Away())
    running = asyncio.get_running_loop().create_task(audit.run())
    async with asyncio.timeout(10):
        await asked.wait()
        audit.note(decision(1))
        while b"id-1" not in audit_file(tmp_path).read_bytes():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        back.set()
        await anchored.wait()
    await ended(running)
    assert anchors.kept[audit_file(tmp_path).name].state is AnchorState.FINISHED


async def test_an_idle_node_seals_now_and_then_so_that_silence_is_told_from_a_cut(tmp_path: Path) -> None:
    clock = HandClock()
    audit = AuditLogFile(tmp_path, "node-a", clock)
    audit._write(beat=True)
    audit._write(beat=True)
    clock.advance(writer._IDLE_S)
    audit._write(beat=True)
    await audit.end()
    reader = AuditLogReader(audit_file(tmp_path))
    assert list(reader) == []
    assert (reader.verdict.last_block, reader.verdict.sealed_at) == (2, clock.now().isoformat())


async def test_a_life_whose_file_was_ended_by_the_next_one_is_told_and_anchors_nothing_more(tmp_path: Path) -> None:
    anchors = AnchorsInMemory()
    audit = AuditLogFile(tmp_path, "node-a", HandClock(), anchors)
    audit.note(decision(1))
    audit.flush()
    await audit._anchor(AnchorState.OPEN)
    (name,) = anchors.kept
    anchors.kept[name] = died = anchors.kept[name]._replace(state=AnchorState.DIED)
    audit.note(decision(2))
    audit.flush()
    await audit._anchor(AnchorState.OPEN)
    assert not audit.healthy
    await audit.end()
    assert anchors.kept == {name: died}


def test_a_call_noted_while_the_time_is_not_known_is_dated_by_the_wall_clock_and_says_so() -> None:
    steady = HandClock()
    keeper = TimeKeeper(TimeRule())
    clock = ClusterClock(keeper, steady)
    steady.wall_off = timedelta(hours=1)
    assert instant_of(clock) == (steady.wall(), "wall")
    keeper.receive(Received(ms_of(steady.now()), 7, steady.monotonic()), moved=True)
    assert instant_of(clock) == (steady.now(), "cluster")
