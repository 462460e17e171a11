"""A connection whose packets vanish without a reset, of every kind: whoever is cut off works again within a bound.

The kernel drops the packets of that one connection, in a network namespace of its own; a new one would work at once.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A node's reader of a head end or a peer, its client of etcd, a till; and a node whose caller is gone.
KINDS = ("head-end", "peer", "etcd", "kit")
PLACES = ("proto/gen", "client", ".")
# Of the slowest, the server: 10 s until it pings, 5 s until that counts as lost. The rest is for a busy machine.
WITHIN_S = 40.0
# TCP by itself would take a quarter of an hour.
WITHOUT_S = 10.0
IN_A_NAMESPACE = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]


def _start(kind: str, *arguments: str) -> subprocess.Popen[str]:
    command = [*IN_A_NAMESPACE, sys.executable, "-m", "tests.support.dead_connections", kind, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / place) for place in PLACES)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def _recovered(process: subprocess.Popen[str]) -> float | None:
    """Return after how many seconds the end that was cut off worked again; None if it did not."""
    out, errors = process.communicate(timeout=110)
    assert process.returncode == 0, errors
    seconds: float | None = json.loads(out)["recovered_s"]
    return seconds


@pytest.fixture(scope="module")
def runs() -> Iterator[dict[tuple[str, bool], subprocess.Popen[str]]]:
    """Every kind, with and without what ends a dead connection, all at once: they mostly wait."""
    started = {(kind, True): _start(kind, "--limit", str(WITHIN_S)) for kind in (*KINDS, "caller")}
    started |= {(kind, False): _start(kind, "--without", "--limit", str(WITHOUT_S)) for kind in KINDS}
    yield started
    for process in started.values():
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.mark.parametrize("kind", [*KINDS, "caller"])
def test_whoever_is_behind_a_dead_connection_works_again(
    runs: dict[tuple[str, bool], subprocess.Popen[str]], kind: str
) -> None:
    assert _recovered(runs[(kind, True)]) is not None


@pytest.mark.parametrize("kind", KINDS)
def test_without_what_ends_a_dead_connection_it_is_called_on_for_ever(
    runs: dict[tuple[str, bool], subprocess.Popen[str]], kind: str
) -> None:
    assert _recovered(runs[(kind, False)]) is None


@pytest.mark.attack_long
def test_without_pings_a_server_holds_a_dead_caller_for_ever() -> None:
    assert _recovered(_start("caller", "--without", "--limit", "30")) is None
