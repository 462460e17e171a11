"""ConnectionCaps: how many connections one address, and one certificate, may hold at this node's port.

gRPC caps none of them, so the kernel's table is looked at every second, and what is too much is shut down: first
connections that have shown no certificate in a call, the oldest of them first, since an honest caller calls at once;
then the newest of those that have. Callers are told as by any lost connection: gRPC opens another and repeats what is
safe to repeat.
"""

import asyncio
import ipaddress
import logging
import os
import socket
import stat
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, MutableMapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 1.0
_ESTABLISHED: Final = "01"
_TABLES: Final = ("/proc/self/net/tcp", "/proc/self/net/tcp6")
_WORD: Final = 8


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection as the kernel knows it.

    Attributes:
        inode: Of its socket.
        host: The caller's address.
        peer: The caller's address and port, as gRPC names it.
    """

    inode: int
    host: str
    peer: str


class ConnectionCaps:
    """Ends what is beyond the caps of a node.

    `ended`: connections shut down so far, by "address" and "certificate". `held`: those there were at the last look.
    """

    def __init__(self, certificates: MutableMapping[str, str], *, per_address: int, per_certificate: int) -> None:
        """Set the certificate that each connection has called with, and the caps.

        Args:
            certificates: The fingerprint of the certificate by peer; connections that are gone are taken out.
            per_address: Connections that one address may hold; 0 for any number.
            per_certificate: Connections that may have called with one certificate; 0 for any number.
        """
        self._certificates = certificates
        self._per_address = per_address
        self._per_certificate = per_certificate
        self.ended: Counter[str] = Counter({"address": 0, "certificate": 0})
        self.held = 0
        # The look at which each connection was first there. (The kernel numbers sockets by processor, not by age.)
        self._since: dict[Connection, int] = {}
        self._looks = 0

    async def run(self, port: int) -> NoReturn:
        """Look every second at what is connected to `port`; return never."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                await self._look_once(port)
            except (OSError, RuntimeError) as error:
                # No descriptor or thread is left, which is when strangers hold most: the next look may have one.
                log.warning("connections could not be counted", extra={"error": str(error)})

    async def _look_once(self, port: int) -> None:
        called = frozenset(self._certificates)
        # The table of a large machine takes a while: off the loop.
        there = await asyncio.to_thread(established, port)
        for why, victims in self.look(there, called).items():
            many = await asyncio.to_thread(shut_down, victims)
            self.ended[why] += many
            if many:
                log.warning("connections beyond a cap are ended", extra={"cap": why, "ended": many})

    def look(self, there: Sequence[Connection], called: Set[str]) -> dict[str, list[Connection]]:
        """Return what is too much of these connections, by the cap that it is beyond.

        Args:
            there: The connections there are.
            called: Peers that had called before `there` was read; those of them that are not there are forgotten.
        """
        self.held, self._looks = len(there), self._looks + 1
        self._since = {connection: self._since.get(connection, self._looks) for connection in there}
        for gone in called - {connection.peer for connection in there}:
            self._certificates.pop(gone, None)
        called_with = self._certificates
        calling = [connection for connection in there if connection.peer in called_with]
        beyond = self._beyond(calling, lambda one: called_with[one.peer], self._per_certificate)
        ended = set(beyond)
        rest = [connection for connection in there if connection not in ended]
        return {"certificate": beyond, "address": self._beyond(rest, lambda one: one.host, self._per_address)}

    def _beyond(self, there: Iterable[Connection], key: Callable[[Connection], str], cap: int) -> list[Connection]:
        """Return the connections of each key that are beyond the cap, in the order in which they are given up."""
        grouped = defaultdict[str, list[Connection]](list)
        for connection in there:
            grouped[key(connection)].append(connection)
        return [
            one
            for group in grouped.values()
            if 0 < cap < len(group)
            for one in sorted(group, key=self._worth)[: len(group) - cap]
        ]

    def _worth(self, connection: Connection) -> tuple[bool, int]:
        """Order connections: first silent ones, the oldest first; then those that have called, the newest first."""
        calls, since = connection.peer in self._certificates, self._since[connection]
        return calls, -since if calls else since


def established(port: int, tables: Sequence[str] = _TABLES) -> list[Connection]:
    """Return the connections to a local port, by the kernel's tables; none where there are no such tables.

    Raises:
        OSError: a table is there and cannot be read now.
    """
    found = list[Connection]()
    for table in tables:
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:
            continue
        for line in lines:
            cells = line.split()
            if cells[3] == _ESTABLISHED and int(cells[1].rpartition(":")[2], 16) == port:
                host, _, at = cells[2].rpartition(":")
                found.append(_connection(int(cells[9]), _address(host), int(at, 16)))
    return found


def _connection(inode: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> Connection:
    plain = getattr(address, "ipv4_mapped", None) or address
    # gRPC escapes the brackets of an IPv6 address.
    peer = f"ipv6:%5B{plain}%5D:{port}" if isinstance(plain, ipaddress.IPv6Address) else f"ipv4:{plain}:{port}"
    return Connection(inode, str(plain), peer)


def _address(hexadecimal: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return an address as the kernel writes it: words of four bytes, each in the machine's own order."""
    words = [int(hexadecimal[at : at + _WORD], 16) for at in range(0, len(hexadecimal), _WORD)]
    return ipaddress.ip_address(b"".join(word.to_bytes(4, sys.byteorder) for word in words))


def shut_down(victims: Sequence[Connection]) -> int:
    """Shut down those of this process's sockets that carry these connections; return how many there were.

    Raises:
        OSError: this process's descriptors cannot be listed now.
    """
    inodes, many = {victim.inode for victim in victims}, 0
    if not inodes:
        return 0
    for name in os.listdir("/proc/self/fd"):
        try:
            many += _shut_down_if(int(name), inodes)
        except OSError:
            continue  # it is gone, or its caller is
    return many


def _shut_down_if(descriptor: int, inodes: Set[int]) -> bool:
    """Shut down the socket behind a descriptor if it is one of these; return whether it was."""
    if not _is_one_of(descriptor, inodes):
        return False
    # gRPC may close the descriptor meanwhile and another take its number: a copy stays what it is.
    copy = os.dup(descriptor)
    try:
        if not _is_one_of(copy, inodes):
            return False
        with socket.socket(fileno=copy) as carried:
            copy = -1
            carried.shutdown(socket.SHUT_RDWR)
        return True
    finally:
        if copy >= 0:
            os.close(copy)


def _is_one_of(descriptor: int, inodes: Set[int]) -> bool:
    behind = os.fstat(descriptor)
    return stat.S_ISSOCK(behind.st_mode) and behind.st_ino in inodes
