"""Network namespaces on one machine: each node behind a cable of its own, which a drill can cut in any way.

Needs root. Everything made here has this process's number in its name and is removed by `remove`.
"""

import os
import subprocess
from collections.abc import Sequence

_FIRST_HOST = 10


class Namespaces:
    """One bridge, and one namespace per node. The stack's other parts listen on the bridge's address."""

    def __init__(self, nodes: Sequence[str]) -> None:
        number = os.getpid() % 64_000
        self._nodes = list(nodes)
        self._bridge = f"utrn{number}"
        self._net = f"10.{200 + number // 256 % 50}.{number % 256}"
        self._made = False

    @property
    def host(self) -> str:
        """Address of the machine itself, as the nodes see it."""
        return f"{self._net}.1"

    def address(self, node: str) -> str:
        """Address of a node."""
        return f"{self._net}.{_FIRST_HOST + self._nodes.index(node)}"

    def inside(self, node: str) -> list[str]:
        """Return what to put before a command so that it runs in a node's namespace."""
        return ["ip", "netns", "exec", self._name(node)]

    def create(self) -> None:
        """Make bridge, namespaces and cables.

        Raises:
            PermissionError: this needs root.
        """
        if os.geteuid() != 0:
            raise PermissionError("network namespaces need root: run this drill as root")
        self._made = True
        _run("ip", "link", "add", self._bridge, "type", "bridge")
        _run("ip", "addr", "add", f"{self.host}/24", "dev", self._bridge)
        _run("ip", "link", "set", self._bridge, "up")
        for index, node in enumerate(self._nodes):
            name, ours, theirs = self._name(node), f"{self._bridge}h{index}", f"{self._bridge}n{index}"
            _run("ip", "netns", "add", name)
            _run("ip", "link", "add", ours, "type", "veth", "peer", "name", theirs)
            _run("ip", "link", "set", ours, "master", self._bridge, "up")
            _run("ip", "link", "set", theirs, "netns", name)
            self._in(node, "ip", "addr", "add", f"{self.address(node)}/24", "dev", theirs)
            self._in(node, "ip", "link", "set", theirs, "up")
            self._in(node, "ip", "link", "set", "lo", "up")

    def remove(self) -> None:
        """Remove all of it."""
        if not self._made:
            return
        for index, node in enumerate(self._nodes):
            # The kernel removes what is in a namespace some time later: the next run would find the cable still there.
            subprocess.run(["ip", "link", "del", f"{self._bridge}h{index}"], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "del", self._name(node)], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", self._bridge], check=False, capture_output=True)
        self._made = False

    def drop(self, node: str, *, to: Sequence[str] = (), ports: Sequence[int] = (), both: bool = True) -> None:
        """Let packets of a node vanish without a word: no reset, no refusal.

        Args:
            node: Whose packets.
            to: Only those to (and from) these addresses; empty for all.
            ports: Only those to (and from) these ports of the other side; empty for all.
            both: False lets what comes in pass: a one-way cut.
        """
        for address in to or ("0.0.0.0/0",):
            for port in ports or (0,):
                out = ["-d", address, "-p", "tcp", *(["--dport", str(port)] if port else [])]
                back = ["-s", address, "-p", "tcp", *(["--sport", str(port)] if port else [])]
                self._in(node, "iptables", "-A", "OUTPUT", *out, "-j", "DROP")
                if both:
                    self._in(node, "iptables", "-A", "INPUT", *back, "-j", "DROP")

    def drop_callers(self, node: str, port: int, *, but: Sequence[str]) -> None:
        """Drop packets to a node's own port, except those of the addresses in `but`."""
        for address in but:
            self._in(node, "iptables", "-A", "INPUT", "-s", address, "-p", "tcp", "--dport", str(port), "-j", "ACCEPT")
        self._in(node, "iptables", "-A", "INPUT", "-p", "tcp", "--dport", str(port), "-j", "DROP")

    def heal(self, node: str) -> None:
        """End every cut of a node."""
        self._in(node, "iptables", "-F")

    def _name(self, node: str) -> str:
        return f"{self._bridge}-{node}"

    def _in(self, node: str, *command: str) -> None:
        _run(*self.inside(node), *command)


def _run(*command: str) -> None:
    done = subprocess.run(list(command), check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
