"""The node is killed at every step of a vend; the caller repeats its id; each meter is credited once."""

import asyncio
import sys
from pathlib import Path

import pytest

from app.devstack.stack import DevStack
from app.workloads.sale_driver import Step
from tests.support.crashing_node import STEPS
from tests.support.selling import drained, pans, planned, sell_all
from tests.support.stack import MakeStack

_DELIVERY = ("answer_wait_ms = 1000", "back_off_first_ms = 100", "back_off_most_ms = 500")
pytestmark = [pytest.mark.real]


def _node(step: str, folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "tests.support.crashing_node", step, str(folder / "died"), *options]


async def _restart_when_dead(stack: DevStack, node: str, command: list[str]) -> None:
    code = await asyncio.to_thread(stack.wait_ended, node, 60.0)
    assert code == -9, "the node dies by its own SIGKILL"
    await asyncio.to_thread(stack.start_node, node, command)


async def _sell_through_a_crash(stack: DevStack, command: list[str], step: Step = Step.ONE_STEP) -> list[str]:
    """Sell while the node dies and comes back; return what does not hold afterwards."""
    stack.start_all()
    stack.kill("node-a")
    stack.start_node("node-a", command)
    # Four sales a meter, every other one asked for twice.
    sales = [planned(pan, 500 + 10 * n, step, asked_times=1 + n % 2) for n in range(4) for pan in pans(stack)]
    async with asyncio.TaskGroup() as tasks:
        selling = tasks.create_task(sell_all(stack, sales))
        tasks.create_task(_restart_when_dead(stack, "node-a", command))
    result = await drained(stack)
    broken = list(result.findings)
    sold = selling.result()
    broken += [f"{one.plan.transaction_id}: {one.refused}" for one in sold if one.refused]
    broken += [f"{one.plan.transaction_id}: two answers" for one in sold if not one.consistent]
    if (result.vends, result.issued_pence) != (len(sales), sum(sale.amount_pence for sale in sales)):
        broken.append(f"{len(sales)} sales, {result.vends} vends of {result.issued_pence} pence")
    if step is Step.ONE_STEP and (result.credited, result.credited_pence) != (result.vends, result.issued_pence):
        broken.append(f"{result.vends} vends, {result.credited} credits of {result.credited_pence} pence")
    return broken


@pytest.mark.parametrize("step", STEPS)
async def test_a_node_killed_at_this_step_loses_and_doubles_nothing(
    step: str, make_stack: MakeStack, tmp_path: Path
) -> None:
    stack = make_stack(meters=8, delivery=_DELIVERY, etcd_fsync=False)
    assert await _sell_through_a_crash(stack, _node(step, tmp_path)) == []


# Codes only: a delivery would bring the vend into the restarted node's memory, which then answers before the ledger.


async def test_a_code_committed_and_not_answered_is_answered_after_the_crash(
    make_stack: MakeStack, tmp_path: Path
) -> None:
    stack = make_stack(meters=8, etcd_fsync=False)
    assert await _sell_through_a_crash(stack, _node("committed", tmp_path), Step.CODE_ONLY) == []


async def test_without_the_vend_absent_compare_the_crash_shows(make_stack: MakeStack, tmp_path: Path) -> None:
    stack = make_stack(meters=8, etcd_fsync=False)
    node = _node("committed", tmp_path, "--without", "vend_absent")
    broken = await _sell_through_a_crash(stack, node, Step.CODE_ONLY)
    assert any("INV-2" in sentence for sentence in broken), broken


async def _sell_at_two_nodes(stack: DevStack, tmp_path: Path, *options: str) -> list[str]:
    """Sell on few meters at two nodes by turns; return what does not hold afterwards."""
    stack.start_all()
    stack.write_node_config("node-b")
    stack.kill("node-a")
    for node in ("node-a", "node-b"):
        stack.start_node(node, _node("none", tmp_path, *options))
    sales = [planned(pan, 300 + n) for n in range(20) for pan in pans(stack)]
    await sell_all(stack, sales, ("node-a", "node-b"), at_once=8)
    return (await drained(stack)).findings


async def test_two_nodes_on_the_same_meters_spend_every_counter_once(make_stack: MakeStack, tmp_path: Path) -> None:
    stack = make_stack(meters=3, delivery=_DELIVERY, etcd_fsync=False)
    assert await _sell_at_two_nodes(stack, tmp_path) == []


async def test_without_the_counter_and_code_compares_two_nodes_show(make_stack: MakeStack, tmp_path: Path) -> None:
    stack = make_stack(meters=3, delivery=(*_DELIVERY, "attempts_max = 3"), etcd_fsync=False)
    broken = await _sell_at_two_nodes(stack, tmp_path, "--without", "counter_unmoved", "--without", "code_absent")
    assert any("INV-2" in sentence for sentence in broken)
