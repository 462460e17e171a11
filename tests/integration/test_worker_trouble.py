"""A node that can start no HSM worker for a while goes on; one of which a part has ended ends, and its workers too."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from app.devstack.stack import DevStack
from tests.support.calls import caller, top_up
from tests.support.hsm_keys import children
from tests.support.patience import PATIENCE_S
from tests.support.selling import drained, new_id, pans, planned, sell_all
from tests.support.stack import MakeStack

pytestmark = [pytest.mark.real]

NODE = "node-a"


def _workers(stack: DevStack) -> list[int]:
    return [pid for pid in children(stack.pid(NODE)) if _is_worker(pid)]


def _is_worker(pid: int) -> bool:
    try:
        return b"hsm.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _log(stack: DevStack) -> str:
    return stack.log_file(NODE).read_text(errors="replace")


async def _until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not what():  # noqa: ASYNC110  # files and processes of others
            await asyncio.sleep(0.02)


@contextmanager
def _no_new_descriptor(pid: int) -> Iterator[None]:
    """What a process has open stays open; it opens nothing new."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        # It may have ended: that is what a test may want.
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def _fragile(kind: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "tests.support.fragile_node", kind)


async def test_no_descriptor_for_a_worker_costs_no_sale_and_the_worker_comes_back(make_stack: MakeStack) -> None:
    stack = make_stack(meters=4, etcd_fsync=False)
    stack.start_all()
    pan = pans(stack)[0]
    async with caller(stack) as stub:
        await stub.TopUp(top_up(transaction_id=new_id(), pan=pan))
        assert len(_workers(stack)) == 2
        with _no_new_descriptor(stack.pid(NODE)):
            os.kill(_workers(stack)[0], signal.SIGKILL)
            await _until(lambda: _log(stack).count("an HSM worker did not start") >= 3)
            for _ in range(10):
                await stub.TopUp(top_up(transaction_id=new_id(), pan=pan))
            assert stack.exit_code(NODE) is None
        await _until(lambda: len(_workers(stack)) == 2)
        await stub.TopUp(top_up(transaction_id=new_id(), pan=pan))
    assert "Too many open files" in _log(stack)
    result = await drained(stack)
    assert (result.vends, result.findings) == (12, [])


async def test_without_that_care_the_node_ends_and_nothing_of_it_is_left(make_stack: MakeStack) -> None:
    stack = make_stack(meters=4, etcd_fsync=False, node_command=_fragile("worker"))
    stack.start_all()
    workers = _workers(stack)
    with _no_new_descriptor(stack.pid(NODE)):
        os.kill(workers[0], signal.SIGKILL)
        assert await asyncio.to_thread(stack.wait_ended, NODE, 60) == 71
    assert not any(_is_worker(pid) for pid in workers)


@pytest.mark.parametrize(("kind", "code"), [("part", 71), ("hang", 1)])
async def test_a_part_that_ends_takes_the_node_with_it_though_another_hangs(
    make_stack: MakeStack, kind: str, code: int
) -> None:
    stack = make_stack(meters=4, etcd_fsync=False, node_command=_fragile(kind))
    stack.start_all()
    workers = _workers(stack)
    os.kill(stack.pid(NODE), signal.SIGUSR1)
    assert await asyncio.to_thread(stack.wait_ended, NODE, 60) == code
    await _until(lambda: not any(_is_worker(pid) for pid in workers))
    assert "a part of this node ends, as it was told" in _log(stack)
    stack.start_node(NODE, [sys.executable, "-m", "app", "serve"])
    (sold,) = await sell_all(stack, [planned(pans(stack)[0])])
    assert sold.utrn


async def test_without_a_bound_a_part_that_hangs_keeps_the_node_from_ending(make_stack: MakeStack) -> None:
    never = (sys.executable, "-c", _WITHOUT_A_BOUND, "hang")
    stack = make_stack(meters=4, etcd_fsync=False, node_command=never)
    stack.start_all()
    os.kill(stack.pid(NODE), signal.SIGUSR1)
    await _until(lambda: "as it was told" in _log(stack))
    with pytest.raises(subprocess.TimeoutExpired):
        await asyncio.to_thread(stack.wait_ended, NODE, 6)
    stack.kill(NODE, signal.SIGKILL)


_WITHOUT_A_BOUND = """
from app.node import run
from tests.support import fragile_node
run._must_end = lambda seconds: None
fragile_node.main()
"""


async def test_sales_go_on_while_one_worker_after_the_other_is_renewed(make_stack: MakeStack) -> None:
    stack = make_stack(meters=20, etcd_fsync=False)
    stack.start_all()
    stack.kill(NODE, signal.SIGTERM)
    config = stack.node_config(NODE)
    config.write_text(config.read_text().replace("[hsm]", "[hsm]\nrenew_after = 10"))
    stack.start_node(NODE)
    before, sold = set(_workers(stack)), 0
    async with caller(stack) as stub, asyncio.timeout(PATIENCE_S):
        while _log(stack).count("an HSM worker is renewed") < 4:
            # No sale is repeated here: one that fails fails the test.
            await stub.TopUp(top_up(transaction_id=new_id(), pan=pans(stack)[sold % 20]))
            sold += 1
    await _until(lambda: len(_workers(stack)) == 2)
    assert before != set(_workers(stack))
    result = await drained(stack)
    assert (result.vends, result.findings) == (sold, [])
