"""A node's log: every line is JSON, whoever in the process, or in one of its own, has written it."""

import asyncio
import json
import os
import subprocess
import sys

import pytest

from app.devstack.stack import DevStack
from core.net.address import parse_address
from tests.support.patience import PATIENCE_S

pytestmark = [pytest.mark.real]
_PROGRAM = """
import os, subprocess, sys
from app.node.logging import all_of_it_json
print("before", file=sys.stderr)
with all_of_it_json("INFO"):
    os.write(2, b"a library\\n" + b"x" * 9000 + b"\\n" + bytes([255, 10]))
    subprocess.run(["sh", "-c", "echo a worker >&2"], check=True)
    print("python itself", file=sys.stderr)
print("after", file=sys.stderr)
"""


def test_what_is_written_past_the_log_is_an_event_and_nothing_is_lost() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", _PROGRAM], capture_output=True, check=True)
    first, *lines, last = done.stderr.decode().splitlines()
    assert (first, last) == ("before", "after")
    told = [json.loads(line)["line"] for line in lines]
    assert {"a library", "a worker", "python itself", "\\xff"} <= set(told)
    assert sum(len(one) for one in told if set(one) == {"x"}) == 9000


async def test_a_handshake_that_fails_leaves_lines_of_json(module_stack: DevStack) -> None:
    """The core of gRPC writes of it by itself."""
    at = parse_address(module_stack.node_target("node-a"))
    _, writer = await asyncio.open_connection(at.host, at.port)
    writer.write(os.urandom(2000))
    writer.close()
    log = module_stack.log_file("node-a")
    async with asyncio.timeout(PATIENCE_S):
        while "written past the log" not in log.read_text():  # noqa: ASYNC110  # another process writes it
            await asyncio.sleep(0.05)
    *whole, _ = log.read_text().split("\n")
    assert all(isinstance(json.loads(line), dict) for line in whole)
