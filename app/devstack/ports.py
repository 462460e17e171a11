"""free_ports: ports for what a stack on one machine starts, given to nobody else while this process lives.

They lie below the kernel's ephemeral range: a port from within it may become the source of somebody's connection
between the moment it is found free and the moment it is listened on. Processes side by side (test workers, a demo
beside a load test) take theirs from different blocks; a block is held by a socket bound to its first port.
"""

import random
import socket
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

_LOWEST = 10_000
_BLOCK = 50
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_EPHEMERAL_DEFAULT = 32_768


class NoFreePorts(Exception):
    """Every block is held by another process; end stacks that are not needed any more."""


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now, and that no other call here is given.

    Raises:
        NoFreePorts: there are none.
    """
    ports = list(islice(_PORTS, count))
    if len(ports) < count:
        raise NoFreePorts(f"no free ports from {_LOWEST} to {_highest()}; end stacks that are not needed any more")
    return ports


def _ports() -> Iterator[int]:
    """Yield free ports, block by block, each once."""
    held: list[socket.socket] = []
    blocks = list(range(_LOWEST, _highest() - _BLOCK, _BLOCK))
    random.Random().shuffle(blocks)  # noqa: S311  # spreads processes; guards nothing
    for block in blocks:
        guard = _bound(block)
        if guard is None:
            continue
        held.append(guard)
        for port in range(block + 1, block + _BLOCK):
            found = _bound(port)
            if found is not None:
                found.close()
                yield port


def _highest() -> int:
    try:
        return int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError):
        return _EPHEMERAL_DEFAULT


def _bound(port: int) -> socket.socket | None:
    one = socket.socket()
    try:
        one.bind(("127.0.0.1", port))
    except OSError:
        one.close()
        return None
    return one


_PORTS = _ports()
