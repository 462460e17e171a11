"""A whole service on one machine as real processes: etcd, SoftHSM, sandbox, nodes.

The demo, the drills, the benchmark and `make up` all stand on this; everything it starts ends with it.
"""

import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from app.devstack.ca import CertPaths
from app.devstack.files import PSP, StackFailed, StackFiles, StackPlan, own_environment, run_tool, utrn_command
from app.devstack.keeper import keep
from app.node.config import load_config
from cluster.config import EtcdConfig

START_WAIT_S = 30.0
_POLL_S = 0.05
_STOP_WAIT_S = 15.0


class DevStack(StackFiles):
    """One stack, running."""

    def __init__(self, folder: Path, plan: StackPlan) -> None:
        super().__init__(folder, plan)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def log_file(self, name: str) -> Path:
        """Log of a process."""
        return self.folder / "logs" / f"{name}.log"

    def start_all(self, *, say: Callable[[str], None] = lambda _: None) -> None:
        """Start everything.

        Raises:
            StackFailed: a part did not start.
        """
        if self.net:
            self.net.create()
        say(f"{self.plan.etcd_members} etcd, with TLS")
        self.start_etcd()
        say("SoftHSM and the suppliers' keys")
        self.make_keys()
        say(f"{self.plan.meters} meters and their head end")
        self.start_sandbox()
        for node in self.plan.nodes:
            self.write_node_config(node)
        self.create_ledger(self.plan.nodes[0])
        self.load_registry(self.plan.nodes[0])
        say(", ".join(self.plan.nodes))
        for node in self.plan.nodes:
            self.start_node(node, wait=False)
        for node in self.plan.nodes:
            self.wait_serving(node)

    def start_etcd(self) -> None:
        """Start every member of etcd; they take only clients with a certificate."""
        for index in range(self.plan.etcd_members):
            self.start_etcd_member(index, wait=False)
        for name, port in zip(self.etcd_names, self.etcd_ports, strict=True):
            self._wait_listening(name, port)

    def start_etcd_member(self, index: int, *, wait: bool = True) -> None:
        """Start one member."""
        tls = self.pki.etcd_member("etcd")
        binary = shutil.which("etcd")
        if binary is None:
            raise StackFailed("etcd is not installed; run `make setup`")
        name, client = f"m{index}", f"https://{self.host}:{self.etcd_ports[index]}"
        peers = [f"https://127.0.0.1:{port}" for port in self.etcd_peer_ports]
        arguments = [
            binary, "--name", name, "--data-dir", str(self.folder / f"etcd-{index}"),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peers[index], "--initial-advertise-peer-urls", peers[index],
            "--initial-cluster", ",".join(f"m{at}={peer}" for at, peer in enumerate(peers)),
            # An election well within a caller's patience; members on one machine see each other at once.
            "--heartbeat-interval", "50", "--election-timeout", "500",
            "--cert-file", str(tls.cert), "--key-file", str(tls.key), "--trusted-ca-file", str(tls.ca),
            "--client-cert-auth",
            "--peer-cert-file", str(tls.cert), "--peer-key-file", str(tls.key), "--peer-trusted-ca-file", str(tls.ca),
            "--peer-client-cert-auth", "--log-level", "error",
            "--quota-backend-bytes", str(self.plan.etcd_quota_bytes),
        ]  # fmt: skip
        if not self.plan.etcd_fsync:
            arguments.append("--unsafe-no-fsync")
        self._start(f"etcd-{index}", arguments)
        if wait:
            self._wait_listening(f"etcd-{index}", self.etcd_ports[index])

    def set_clock(self, node: str, seconds: float) -> None:
        """Set the clock of a node's machine so many seconds ahead, or back; a running node follows within a second."""
        self._clock_file(node).write_text(f"{seconds:+.3f}\n")

    def start_sandbox(self) -> None:
        """Make the fleet if there is none, and start fleet and head end."""
        self.make_fleet()
        self.start_fleet()
        self.start_head_end()

    def start_fleet(self) -> None:
        """Start the fleet."""
        folder, tls = self.folder / "sandbox", self.pki.head_end("fleet")
        self._start(
            "fleet",
            [
                *utrn_command(),
                "sandbox",
                "fleet",
                "--dir",
                str(folder),
                "--listen",
                self.fleet_target,
                *_tls_options(tls),
            ],
        )
        self._wait_listening("fleet", self.fleet_port)

    def start_head_end(self) -> None:
        """Start the head end."""
        folder, tls = self.folder / "sandbox", self.pki.head_end("head-end")
        knobs = [f"--knob={knob}" for knob in self.plan.knobs]
        self._start(
            "head-end",
            [*utrn_command(), "sandbox", "head-end", "--dir", str(folder), "--listen", self.head_end_target,
             "--fleet", self.fleet_target, *_tls_options(tls), *knobs, f"--seed={self.plan.seed}"],
        )  # fmt: skip
        self._wait_listening("head-end", self.head_end_port)

    def create_ledger(self, node: str) -> None:
        """Make the ledger, if it is not there."""
        run_tool([*utrn_command(), "ledger", "create", "--config", str(self.node_config(node)), "--json"])

    def load_registry(self, node: str) -> None:
        """Load participants, meters and PANs."""
        file = self.write_registry()
        run_tool([*utrn_command(), "registry", "load", str(file), "--config", str(self.node_config(node)), "--json"])

    def start_node(self, node: str, command: Sequence[str] | None = None, *, wait: bool = True) -> None:
        """Start a node.

        Args:
            node: Its name.
            command: What to run instead of `utrn serve`; drills use it. The configuration's options are appended.
            wait: Until it says that it can serve.
        """
        inside = self.net.inside(node) if self.net else []
        program = command or self.plan.node_command or [*utrn_command(), "serve"]
        arguments = [*inside, *program, "--config", str(self.node_config(node))]
        self._start(node, arguments, environment=self._fake_clock(node) if self.plan.fake_clocks else {})
        if wait:
            self.wait_serving(node)

    def wait_serving(self, node: str, wait_s: float = START_WAIT_S) -> None:
        """Return when the node answers SERVING; a large registry takes longer to read."""
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc
        from utrn_client.channel import options

        certs = self.certs(PSP)
        credentials = grpc.ssl_channel_credentials(
            certs.ca.read_bytes(), certs.key.read_bytes(), certs.cert.read_bytes()
        )
        chosen = {**dict(options("localhost", by_health=False)), "grpc.max_reconnect_backoff_ms": 100}
        until = time.monotonic() + wait_s
        with grpc.secure_channel(self.node_target(node), credentials, options=tuple(chosen.items())) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while time.monotonic() < until:
                self._check_alive(node)
                try:
                    reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=1.0)  # type: ignore[attr-defined]  # stub gap
                except grpc.RpcError:
                    time.sleep(_POLL_S)
                    continue
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    return
                time.sleep(_POLL_S)
        raise StackFailed(f"{node} does not serve after {wait_s:.0f} s; see {self.log_file(node)}")

    def pid(self, name: str) -> int:
        """Process id of a part."""
        return self._processes[name].pid

    def exit_code(self, name: str) -> int | None:
        """Exit code of a part; None while it runs."""
        return self._processes[name].poll()

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a part; after SIGKILL and SIGTERM, wait for its end."""
        process = self._processes[name]
        process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            process.wait(_STOP_WAIT_S)

    def wait_ended(self, name: str, timeout_s: float) -> int:
        """Return the exit code of a part once it has ended."""
        return self._processes[name].wait(timeout_s)

    def stop_all(self) -> None:
        """End everything: nodes first, together, and then what they stand on."""
        running = [name for name, process in self._processes.items() if process.poll() is None]
        nodes = [name for name in running if name in self.node_ports]
        self._end(nodes)
        self._end([name for name in running if name not in self.node_ports])
        if self.net:
            self.net.remove()

    def _end(self, names: Sequence[str]) -> None:
        for name in names:
            self._processes[name].send_signal(signal.SIGCONT)
            self._processes[name].terminate()
        for name in names:
            try:
                self._processes[name].wait(_STOP_WAIT_S)
            except subprocess.TimeoutExpired:
                self._processes[name].kill()
                self._processes[name].wait()

    def _clock_file(self, node: str) -> Path:
        return self.folder / f"{node}.clock"

    def _fake_clock(self, node: str) -> dict[str, str]:
        """Return the environment in which a node's wall clock, and only that, is the one of `set_clock`."""
        libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        if not libraries:
            raise StackFailed("libfaketime is not installed; run `make setup`")
        if not self._clock_file(node).exists():
            self.set_clock(node, 0)
        return {
            "LD_PRELOAD": str(libraries[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock_file(node)),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def _start(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        keep()
        log = self.log_file(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._processes[name] = subprocess.Popen(
                list(arguments),
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**own_environment(), **environment},
            )

    def _check_alive(self, name: str) -> None:
        if self._processes[name].poll() is not None:
            tail = self.log_file(name).read_text(errors="replace")[-2000:]
            raise StackFailed(f"{name} ended with {self._processes[name].returncode}; its log ends: {tail}")

    def _wait_listening(self, name: str, port: int) -> None:
        certs = self.etcd_certs if name in self.etcd_names else self.tool_certs
        context = ssl.create_default_context(cafile=str(certs.ca))
        context.load_cert_chain(certs.cert, certs.key)
        until = time.monotonic() + START_WAIT_S
        while time.monotonic() < until:
            self._check_alive(name)
            try:
                with (
                    socket.create_connection((self.host, port), timeout=1.0) as plain,
                    context.wrap_socket(plain, server_hostname="localhost"),
                ):
                    return
            except OSError:
                time.sleep(_POLL_S)
        raise StackFailed(f"{name} does not listen after {START_WAIT_S:.0f} s; see {self.log_file(name)}")


def _tls_options(tls: CertPaths) -> list[str]:
    return ["--cert", str(tls.cert), "--key", str(tls.key), "--ca", str(tls.ca)]


def etcd_config(stack: DevStack) -> EtcdConfig:
    """Return where the stack's etcd is."""
    return load_config(stack.node_config(stack.plan.nodes[0])).etcd
