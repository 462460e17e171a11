"""What the drills' libfaketime fakes: a machine's wall clock, and none of those that cluster time is carried by."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app.devstack.files import StackPlan
from app.devstack.stack import DevStack
from core.gateways.system_clock import SystemClock

pytestmark = pytest.mark.real
CLOCK = SystemClock()
_ASK = """
import time
from core.gateways.system_clock import SystemClock
print(SystemClock().now().timestamp(), time.monotonic(), SystemClock().monotonic())
"""


@pytest.mark.parametrize("seconds", [0.0, 0.5, 3600.0, -172_800.0])
def test_only_the_wall_clock_is_faked(tmp_path: Path, seconds: float) -> None:
    stack = DevStack(tmp_path, StackPlan(fake_clocks=True))
    environment = {**os.environ, **stack._fake_clock("node-a")}
    stack.set_clock("node-a", seconds)
    before = CLOCK.now().timestamp(), time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
    said = subprocess.run([sys.executable, "-c", _ASK], env=environment, capture_output=True, text=True, check=True)
    after = CLOCK.now().timestamp(), time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)
    wall, *steady = map(float, said.stdout.split())
    assert before[0] + seconds - 0.01 <= wall <= after[0] + seconds + 0.01
    for earlier, told, later in zip(before[1:], steady, after[1:], strict=True):
        assert earlier <= told <= later
