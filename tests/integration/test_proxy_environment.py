"""`https_proxy` in the environment: no channel of ours goes that way, whatever the remote, loopback or not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.devstack.ports import free_ports

pytestmark = pytest.mark.timeout(110)

ROOT = Path(__file__).parents[2]
PLACES = ("proto/gen", "client", ".")
PROXIES = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "grpc_proxy", "all_proxy")


def _works(kind: str, *arguments: str) -> bool:
    """Return whether a kind of remote is reached while every proxy variable names a port where nobody listens."""
    dead = f"http://127.0.0.1:{free_ports(1)[0]}"
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    environment |= dict.fromkeys(PROXIES, dead)
    environment["PYTHONPATH"] = os.pathsep.join(str(ROOT / place) for place in PLACES)
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.dead_connections", kind, "--only-reach", *arguments],
        cwd=ROOT, env=environment, text=True, capture_output=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    assert done.returncode == 0 or "it did not work before it was cut" in done.stderr, done.stderr
    return done.returncode == 0


@pytest.mark.parametrize("kind", ["head-end", "peer", "etcd", "kit"])
def test_a_proxy_that_the_environment_names_carries_nothing(kind: str) -> None:
    assert _works(kind, "--starts", "60")


def test_without_the_option_the_proxy_catches_a_channel_on_loopback() -> None:
    assert not _works("kit", "--through-proxy", "--starts", "5")
