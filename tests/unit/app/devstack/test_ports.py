"""Ports of stacks on one machine: nobody else is given them, and the kernel does not use them for connections."""

import subprocess
import sys

from app.devstack.ports import free_ports

_LOWEST_EPHEMERAL = 32_768


def test_no_port_is_given_twice_and_none_is_the_kernels_to_give() -> None:
    ports = free_ports(5) + free_ports(70)
    assert len(set(ports)) == 75
    assert max(ports) < _LOWEST_EPHEMERAL


def test_processes_side_by_side_are_given_different_ports() -> None:
    mine = set(free_ports(10))
    code = "from app.devstack.ports import free_ports; print(*free_ports(200))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not mine & {int(one) for one in done.stdout.split()}
