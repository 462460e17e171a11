"""What happens to HSM workers: the machine has no room for one, one has signed long enough, their node is killed."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.domain.errors import HsmUnavailable
from hsm import pool, worker, worker_process
from hsm.errors import HsmRefused
from hsm.signer import HsmSigner
from tests.support.hsm_keys import CONTENT, REQUESTS, children, make_token, running
from tests.support.patience import PATIENCE_S

pytestmark = [pytest.mark.real]

RIGHT = [vector["utrn"] for vector in CONTENT["vectors"]]
LACKS = [OSError(errno.EMFILE, "no file"), BlockingIOError(errno.EAGAIN, "no process"), OSError(errno.ENOMEM, "none")]


async def _until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not what():  # noqa: ASYNC110  # a port without an event for this
            await asyncio.sleep(0.01)


def _all_ready(signer: HsmSigner) -> bool:
    return all(figure.ready for figure in signer.figures())


@contextmanager
def _no_worker_starts(why: Exception) -> Iterator[None]:
    def refuse(*_: object, **__: object) -> None:
        raise why

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_process.subprocess, "Popen", refuse)  # type: ignore[attr-defined]  # its own import
        yield


@pytest.mark.parametrize("lack", LACKS, ids=lambda lack: errno.errorcode[lack.errno])
async def test_a_worker_that_cannot_be_started_now_is_tried_again_and_the_other_one_signs(
    tmp_path: Path, lack: OSError
) -> None:
    async with running(make_token(tmp_path / "token", workers=2)) as signer:
        with _no_worker_starts(lack):
            os.kill(children()[-1], signal.SIGKILL)
            await _until(lambda: signer.failed_starts >= 3)
            assert [figure.ready for figure in signer.figures()].count(True) == 1
            assert await signer.sign(REQUESTS) == RIGHT
        await _until(lambda: _all_ready(signer))
        assert await signer.sign(REQUESTS) == RIGHT


async def test_without_that_care_a_worker_that_cannot_be_started_ends_the_keeping_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(self: pool.WorkerPool, process: worker_process.WorkerProcess) -> bool:
        process._spawn()
        return True

    monkeypatch.setattr(pool.WorkerPool, "_start", start)
    signer = HsmSigner(make_token(tmp_path / "token", workers=2))
    await signer.start()
    try:
        os.kill(children()[-1], signal.SIGKILL)
        with _no_worker_starts(LACKS[0]), pytest.raises(ExceptionGroup) as ended:
            await asyncio.wait_for(signer.run(), 30)
        assert ended.value.subgroup(OSError) is not None
    finally:
        await signer.close()
    assert [pid for pid in children() if _is_worker(pid)] == []


async def test_a_file_that_is_away_refuses_the_start_and_is_waited_for_by_a_node_that_runs(tmp_path: Path) -> None:
    config = make_token(tmp_path / "token", workers=1)
    away = config.pin_file.with_name("away")
    async with running(config) as signer:
        config.pin_file.rename(away)
        os.kill(children()[-1], signal.SIGKILL)
        await _until(lambda: signer.failed_starts >= 2)
        another = HsmSigner(config)
        with pytest.raises(HsmRefused, match="pin"):
            await another.start()
        await another.close()
        away.rename(config.pin_file)
        await _until(lambda: _all_ready(signer))
        assert await signer.sign(REQUESTS) == RIGHT


async def _sell_across(signer: HsmSigner, renewals: int) -> list[object]:
    """Sign one after the other, as one line does, until so many workers were renewed; return what failed."""
    failed: list[object] = []
    async with asyncio.timeout(PATIENCE_S):
        while signer.renewals < renewals:
            signed = await signer.sign(REQUESTS)
            failed += [one for one, right in zip(signed, RIGHT, strict=True) if one != right]
            # A line has other things to do between two batches, and so the pool is not always busy.
            await asyncio.sleep(0)
    return failed


@pytest.mark.parametrize("workers", [1, 2])
async def test_workers_are_renewed_after_so_many_signatures_and_no_sale_fails(tmp_path: Path, workers: int) -> None:
    async with running(make_token(tmp_path / "token", workers=workers, renew_after=10)) as signer:
        before = {pid for pid in children() if _is_worker(pid)}
        assert await _sell_across(signer, 3 * workers) == []
        figures = signer.figures()
        after = {pid for pid in children() if _is_worker(pid)}
    assert not before & after
    assert all(figure.resident_bytes > 1 << 20 and figure.age_s < 60 for figure in figures)


async def test_a_worker_that_has_grown_is_renewed_and_not_again_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_RENEW_GROWN_EVERY_S", 0.5)
    grown = 65 << 20
    monkeypatch.setattr(worker_process.WorkerProcess, "resident_bytes", lambda _: grown)
    async with running(make_token(tmp_path / "token", workers=1, renew_above_mib=64)) as signer:
        first = time.monotonic()
        assert await _sell_across(signer, 2) == []
        assert time.monotonic() - first > 0.5


async def test_ended_before_its_successor_is_there_a_worker_costs_sales(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def renew(self: pool.WorkerPool, place: int) -> bool:
        self.renewals += 1
        return await self._restart(self._workers[place])

    monkeypatch.setattr(pool.WorkerPool, "_renew", renew)
    async with running(make_token(tmp_path / "token", workers=1, renew_after=10)) as signer:
        assert any(isinstance(one, HsmUnavailable) for one in await _sell_across(signer, 3))


async def test_a_worker_that_cannot_be_renewed_goes_on(tmp_path: Path) -> None:
    async with running(make_token(tmp_path / "token", workers=1, renew_after=10)) as signer:
        with _no_worker_starts(LACKS[0]):
            for _ in range(5):
                assert await signer.sign(REQUESTS) == RIGHT
            await _until(lambda: signer.failed_starts >= 2)
            assert await signer.sign(REQUESTS) == RIGHT
        assert await _sell_across(signer, 1) == []


async def test_closing_ends_within_its_bound_though_a_worker_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signer = HsmSigner(make_token(tmp_path / "token", workers=2))
    await signer.start()
    workers = [pid for pid in children() if _is_worker(pid)]
    with monkeypatch.context() as patch:
        # As a process in an uninterruptible call of a driver looks from here.
        patch.setattr(worker_process, "_END_WAIT_S", 0.2)
        patch.setattr(subprocess.Popen, "poll", lambda _: None)
        async with asyncio.timeout(PATIENCE_S):
            await signer.close()
    await _until(lambda: not any(_is_worker(pid) for pid in workers))
    for one in signer._pool._workers:
        await one.stop()


_NODE = """
import asyncio, pickle, sys
from hsm.signer import HsmSigner

async def main():
    signer = HsmSigner(pickle.loads(bytes.fromhex(sys.argv[1])))
    await signer.start()
    print("ready", flush=True)
    await signer.run()

asyncio.run(main())
"""


def _is_worker(pid: int) -> bool:
    """Return whether a process is an HSM worker that runs, or stands still; one that has ended is none."""
    try:
        return b"hsm.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_a_worker_ends_with_its_node_though_it_stands_in_a_call(tmp_path: Path) -> None:
    import pickle

    config = replace(make_token(tmp_path / "token"), workers=2)
    command = [sys.executable, "-c", _NODE, pickle.dumps(config).hex()]
    node = subprocess.Popen(command, stdout=subprocess.PIPE)  # noqa: ASYNC220  # a moment
    workers: list[int] = []
    try:
        assert node.stdout is not None
        assert await asyncio.to_thread(node.stdout.readline) == b"ready\n"
        workers = [pid for pid in children(node.pid) if _is_worker(pid)]
        assert len(workers) == 2
        # One that is stopped reads no pipe and takes no signal but one.
        os.kill(workers[0], signal.SIGSTOP)
        node.kill()
        node.wait()
        await _until(lambda: not any(_is_worker(pid) for pid in workers))
    finally:
        node.kill()
        node.communicate()
        for pid in filter(_is_worker, workers):
            os.kill(pid, signal.SIGKILL)


def test_a_worker_whose_node_has_gone_before_it_began_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(worker.ctypes, "CDLL", lambda _: type("C", (), {"prctl": lambda *them: asked.append(them)}))  # type: ignore[attr-defined]  # its own import
    assert worker._dies_with(os.getppid())
    assert not worker._dies_with(1 << 22)
    assert asked == [(1, signal.SIGKILL, 0, 0, 0)] * 2


async def test_a_pin_on_a_descriptor_opens_the_token_for_every_worker_of_the_node(tmp_path: Path) -> None:
    """Read once from a pipe, which then is empty; workers that are started anew still log in."""
    config = make_token(tmp_path / "token", workers=2, renew_after=10)
    readable, writable = os.pipe()
    os.write(writable, config.pin_file.read_bytes())
    os.close(writable)
    config.pin_file.unlink()
    try:
        async with running(replace(config, pin_file=Path(f"/dev/fd/{readable}"))) as signer:
            assert await _sell_across(signer, 2 * 2) == []
    finally:
        os.close(readable)
