"""`utrn cluster status` as a gate, on real processes: shut while anything is missing, which it names; then open."""

import asyncio
import signal
from collections.abc import Iterator

import pytest

from app.devstack.files import HEAD_END, NODES, OPERATOR, StackPlan
from app.devstack.stack import DevStack
from app.drills.faults import kill_workers, send_signal
from tests.integration.test_command_line import as_json, utrn
from tests.support.patience import PATIENCE_S

pytestmark = [pytest.mark.real]


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevStack]:
    """Three nodes with a token each, three etcd members; each test mends what it broke."""
    plan = StackPlan(etcd_members=3, nodes=NODES, etcd_fsync=False, meters=4, own_tokens=True)
    running = DevStack(tmp_path_factory.mktemp("gate"), plan)
    try:
        running.start_all()
        yield running
    finally:
        running.stop_all()


def status(stack: DevStack, *more: str, code: int | None) -> str:
    certs = stack.certs(OPERATOR)
    tls = ("--cert", str(certs.cert), "--key", str(certs.key), "--ca", str(certs.ca))
    return utrn("cluster", "status", "--target", stack.node_target("node-a"), *tls, *more, code=code)


async def shut(stack: DevStack, sentence: str, *, code: int = 3) -> str:
    """Return what the gate says once it says `sentence`, and ends with `code`."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            told = as_json(await asyncio.to_thread(status, stack, "--json", code=None))
            if any(one.startswith(sentence) for one in told["problems"]):
                assert told["exit_code"] == code
                return status(stack, code=code)
            await asyncio.sleep(0.1)


def opened(stack: DevStack) -> str:
    return status(stack, "--wait", "60", code=0)


def test_the_gate_is_open_and_what_it_says_is_plain_text(stack: DevStack) -> None:
    said = opened(stack)
    assert "All is well." in said
    assert said.isascii()
    assert "\x1b" not in said


async def test_a_node_that_is_stopped_shuts_the_gate_until_it_is_back(stack: DevStack) -> None:
    opened(stack)
    await asyncio.to_thread(stack.kill, "node-b", signal.SIGTERM)
    try:
        await shut(stack, "node-b is not there")
    finally:
        await asyncio.to_thread(stack.start_node, "node-b")
    opened(stack)


async def test_a_frozen_node_does_not_vanish(stack: DevStack) -> None:
    opened(stack)
    send_signal(stack.pid("node-c"), signal.SIGSTOP)
    try:
        await shut(stack, "node-c is not there")
    finally:
        send_signal(stack.pid("node-c"), signal.SIGCONT)
    opened(stack)


async def test_a_head_end_that_is_down_shuts_the_gate(stack: DevStack) -> None:
    opened(stack)
    stack.kill("head-end")
    try:
        # The nodes notice one after the other; the names stand in order, so node-a's stands first once it is there.
        assert "NOT REACHED by node-a" in await shut(stack, f"head end {HEAD_END} is not reached by node-a")
    finally:
        await asyncio.to_thread(stack.start_head_end)
    opened(stack)


async def test_a_node_without_its_hsm_says_so(stack: DevStack) -> None:
    opened(stack)
    tokens = stack.token_folder("node-b") / "tokens"
    tokens.rename(tokens.with_name("taken-away"))
    kill_workers(stack.pid("node-b"))
    try:
        assert "NOT SERVING: hsm" in await shut(stack, "node-b does not serve: hsm (docs/runbooks/hsm.md)")
    finally:
        tokens.with_name("taken-away").rename(tokens)
    opened(stack)


async def test_a_member_that_answers_without_a_leader_is_not_called_down(stack: DevStack) -> None:
    opened(stack)
    for index in (0, 1):
        stack.kill(f"etcd-{index}")
    host, ports = stack.host, stack.etcd_ports
    try:
        said = await shut(stack, f"etcd member {host}:{ports[2]} answers, and knows no leader", code=4)
        for index in (0, 1):
            assert f"etcd member {host}:{ports[index]} does not answer" in said
        assert "etcd takes nothing: 1 of 3 members answer, none of them leads" in said
        assert "All is well" not in said
    finally:
        for index in (0, 1):
            await asyncio.to_thread(stack.start_etcd_member, index, wait=False)
    opened(stack)
