"""A whole service on one machine: etcd, SoftHSM, certificates, registry, sandbox and nodes, as real processes.

The demo, the drills, the benchmark and `make up` all stand on this; everything it starts ends with it.
"""

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.clock import SystemClock
from app.pki import CertPaths, DevCa, participant_uri
from hsm.config import HsmConfig, find_softhsm
from hsm.provision import KeyEntry

START_WAIT_S = 30.0
_POLL_S = 0.05
_STOP_WAIT_S = 15.0
HEAD_END = "sandbox"
SUPPLIERS = {"supplier-north": "90b3d51f30010001", "supplier-south": "90b3d51f30010002"}
PSP = "psp-corner"
OUTSIDER = "psp-elsewhere"


class StackFailed(Exception):
    """A part did not start; the message names it and where its log is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPlan:
    """What to start.

    Attributes:
        meters: How many meters the fleet has.
        seed: Of ids, PANs and misbehaviour.
        knobs: Of the head end, as NAME=VALUE.
        max_balance_pence: Of every meter.
        delivery: Lines of the node's [delivery] section.
        flow: Lines of the node's [flow] section.
        etcd_fsync: False only where no durability is at stake and speed is.
    """

    meters: int = 200
    seed: int = 1
    knobs: tuple[str, ...] = ()
    max_balance_pence: int = 10_000_000
    delivery: tuple[str, ...] = ()
    flow: tuple[str, ...] = ()
    etcd_fsync: bool = True


class DevStack:
    """One stack in one folder."""

    def __init__(self, folder: Path, plan: StackPlan) -> None:
        self.folder = folder
        self.plan = plan
        self.etcd_port, self.etcd_peer_port, self.fleet_port, self.head_end_port = free_ports(4)
        self.node_ports: dict[str, int] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ca = DevCa.load_or_create(folder / "pki", now=SystemClock().now())

    # What others need to reach its parts.

    @property
    def fleet_target(self) -> str:
        """host:port of the fleet."""
        return f"127.0.0.1:{self.fleet_port}"

    @property
    def head_end_target(self) -> str:
        """host:port of the head end."""
        return f"127.0.0.1:{self.head_end_port}"

    def node_target(self, node: str) -> str:
        """host:port of a node."""
        return f"127.0.0.1:{self.node_ports[node]}"

    def node_config(self, node: str) -> Path:
        """Configuration file of a node."""
        return self.folder / f"{node}.toml"

    def certs(self, participant_id: str) -> CertPaths:
        """Certificate of a participant."""
        return self._ca.issue(participant_id, uri=participant_uri(participant_id))

    @property
    def tool_certs(self) -> CertPaths:
        """Certificate by which tools reach the sandbox and etcd."""
        return self._ca.issue("tools", server=True)

    def log_file(self, name: str) -> Path:
        """Log of a process."""
        return self.folder / "logs" / f"{name}.log"

    # Starting and stopping.

    def start_all(self, *, node: str = "node-a", say: Callable[[str], None] = lambda _: None) -> None:
        """Start everything with one node.

        Raises:
            StackFailed: a part did not start.
        """
        say("etcd, with TLS")
        self.start_etcd()
        say("SoftHSM token and the suppliers' keys")
        self.make_keys()
        say(f"{self.plan.meters} meters and their head end")
        self.start_sandbox()
        say(f"{node}")
        self.write_node_config(node)
        self.load_registry(node)
        self.start_node(node)

    def start_etcd(self) -> None:
        """Start a one-member etcd that takes only clients with a certificate."""
        tls = self._ca.issue("etcd", server=True)
        binary = shutil.which("etcd")
        if binary is None:
            raise StackFailed("etcd is not installed; run `make setup`")
        client, peer = f"https://127.0.0.1:{self.etcd_port}", f"https://127.0.0.1:{self.etcd_peer_port}"
        arguments = [
            binary, "--name", "m0", "--data-dir", str(self.folder / "etcd"),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"m0={peer}",
            "--cert-file", str(tls.cert), "--key-file", str(tls.key), "--trusted-ca-file", str(tls.ca),
            "--client-cert-auth",
            "--peer-cert-file", str(tls.cert), "--peer-key-file", str(tls.key), "--peer-trusted-ca-file", str(tls.ca),
            "--peer-client-cert-auth", "--log-level", "error",
        ]  # fmt: skip
        if not self.plan.etcd_fsync:
            arguments.append("--unsafe-no-fsync")
        self._start("etcd", arguments)
        self._wait_listening("etcd", self.etcd_port)

    def make_keys(self) -> dict[str, KeyEntry]:
        """Make the token and one key per supplier; leave what is there."""
        folder = self.folder / "hsm"
        if not (folder / "keys.json").exists():
            (folder / "tokens").mkdir(parents=True, mode=0o700)
            conf = folder / "softhsm2.conf"
            conf.write_text(
                f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
            )
            # In a process of its own: PKCS#11 is never used beside anything else.
            self._run([sys.executable, "-m", "app.devkeys", str(folder), *SUPPLIERS.values()])
        entries = json.loads((folder / "keys.json").read_text(encoding="utf-8"))
        return {supplier: KeyEntry(**entries[originator]) for supplier, originator in SUPPLIERS.items()}

    def hsm_config(self) -> HsmConfig:
        """Configuration of the token."""
        folder = self.folder / "hsm"
        return HsmConfig(
            module=find_softhsm(),
            token_label="utrn",  # noqa: S106  # a label
            pin_file=folder / "pin",
            softhsm_conf=folder / "softhsm2.conf",
        )

    def start_sandbox(self) -> None:
        """Make the fleet if there is none, and start fleet and head end."""
        folder = self.folder / "sandbox"
        if not (folder / "fleet.sqlite").exists():
            keys = self.make_keys()
            suppliers = [f"--supplier={name}:{SUPPLIERS[name]}:{keys[name].public_point}" for name in SUPPLIERS]
            self._run(
                [*_utrn(), "sandbox", "make-fleet", "--dir", str(folder), *suppliers, f"--meters={self.plan.meters}",
                 f"--seed={self.plan.seed}", f"--max-balance={self.plan.max_balance_pence}", f"--head-end={HEAD_END}"]
            )  # fmt: skip
        self.start_fleet()
        self.start_head_end()

    def start_fleet(self) -> None:
        """Start the fleet."""
        folder, tls = self.folder / "sandbox", self._ca.issue("fleet", server=True)
        self._start(
            "fleet",
            [*_utrn(), "sandbox", "fleet", "--dir", str(folder), "--listen", self.fleet_target, *_tls_options(tls)],
        )
        self._wait_listening("fleet", self.fleet_port)

    def start_head_end(self) -> None:
        """Start the head end."""
        folder, tls = self.folder / "sandbox", self._ca.issue("head-end", server=True)
        knobs = [f"--knob={knob}" for knob in self.plan.knobs]
        self._start(
            "head-end",
            [*_utrn(), "sandbox", "head-end", "--dir", str(folder), "--listen", self.head_end_target,
             "--fleet", self.fleet_target, *_tls_options(tls), *knobs, f"--seed={self.plan.seed}"],
        )  # fmt: skip
        self._wait_listening("head-end", self.head_end_port)

    def write_node_config(self, node: str) -> Path:
        """Write a node's configuration and return its file."""
        if node not in self.node_ports:
            self.node_ports[node] = free_ports(1)[0]
        tls, hsm = self._ca.issue(node, uri=f"spiffe://utrn/node/{node}", server=True), self.hsm_config()
        path = self.node_config(node)
        path.write_text(
            "\n".join(
                [
                    "[node]", f'node_id = "{node}"',
                    "[api]", f'listen = "127.0.0.1:{self.node_ports[node]}"', *_tls_lines(tls, ca="client_ca"),
                    "[hsm]", f'module = "{hsm.module}"', f'token_label = "{hsm.token_label}"',
                    f'pin_file = "{hsm.pin_file}"', f'softhsm_conf = "{hsm.softhsm_conf}"',
                    "[etcd]", f'endpoints = ["127.0.0.1:{self.etcd_port}"]', *_tls_lines(tls),
                    "[flow]", *self.plan.flow,
                    "[delivery]", *self.plan.delivery,
                    "[[head_ends]]", f'name = "{HEAD_END}"', f'target = "{self.head_end_target}"', *_tls_lines(tls),
                    "",
                ]
            ),
            encoding="utf-8",
        )  # fmt: skip
        return path

    def load_registry(self, node: str) -> None:
        """Load participants, meters and PANs."""
        keys = self.make_keys()
        lines: list[dict[str, object]] = [_psp_line(PSP, "Corner Shop Payments"), _psp_line(OUTSIDER, "Elsewhere Ltd")]
        for supplier, originator in SUPPLIERS.items():
            lines.append(
                {
                    "type": "participant",
                    "participant_id": supplier,
                    "role": "supplier",
                    "name": supplier,
                    "identities": [participant_uri(supplier)],
                    "originator_id": originator,
                    "key_id": keys[supplier].key_id,
                    "prepayment_public_point": keys[supplier].public_point,
                    "appointed_psps": [PSP],
                }
            )
        meters = (self.folder / "sandbox" / "meters.jsonl").read_text(encoding="utf-8")
        file = self.folder / "registry.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines) + meters, encoding="utf-8")
        self._run([*_utrn(), "registry", "load", str(file), "--config", str(self.node_config(node)), "--json"])

    def start_node(self, node: str, command: Sequence[str] | None = None) -> None:
        """Start a node and wait until it says that it can serve.

        Args:
            node: Its name.
            command: What to run instead of `utrn serve`; drills use it. The configuration's options are appended.
        """
        self._start(node, [*(command or [*_utrn(), "serve"]), "--config", str(self.node_config(node))])
        self.wait_serving(node)

    def wait_serving(self, node: str) -> None:
        """Return when the node answers SERVING."""
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        certs = self.certs(PSP)
        credentials = grpc.ssl_channel_credentials(
            certs.ca.read_bytes(), certs.key.read_bytes(), certs.cert.read_bytes()
        )
        options = (("grpc.ssl_target_name_override", "localhost"), ("grpc.max_reconnect_backoff_ms", 100))
        until = time.monotonic() + START_WAIT_S
        with grpc.secure_channel(self.node_target(node), credentials, options=options) as channel:
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
        raise StackFailed(f"{node} does not serve after {START_WAIT_S:.0f} s; see {self.log_file(node)}")

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
        """End everything, callers first."""
        for name in reversed(list(self._processes)):
            process = self._processes[name]
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
                try:
                    process.wait(_STOP_WAIT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _start(self, name: str, arguments: Sequence[str]) -> None:
        log = self.log_file(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._processes[name] = subprocess.Popen(
                list(arguments),
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env=_environment(),
            )

    def _run(self, arguments: Sequence[str]) -> None:
        done = subprocess.run(
            list(arguments), capture_output=True, text=True, timeout=600, check=False, env=_environment()
        )
        if done.returncode != 0:
            raise StackFailed(f"{' '.join(arguments[:6])} ...: {done.stderr or done.stdout}")

    def _check_alive(self, name: str) -> None:
        if self._processes[name].poll() is not None:
            tail = self.log_file(name).read_text(errors="replace")[-2000:]
            raise StackFailed(f"{name} ended with {self._processes[name].returncode}; its log ends: {tail}")

    def _wait_listening(self, name: str, port: int) -> None:
        certs = self.tool_certs
        context = ssl.create_default_context(cafile=str(certs.ca))
        context.load_cert_chain(certs.cert, certs.key)
        until = time.monotonic() + START_WAIT_S
        while time.monotonic() < until:
            self._check_alive(name)
            try:
                with (
                    socket.create_connection(("127.0.0.1", port), timeout=1.0) as plain,
                    context.wrap_socket(plain, server_hostname="localhost"),
                ):
                    return
            except OSError:
                time.sleep(_POLL_S)
        raise StackFailed(f"{name} does not listen after {START_WAIT_S:.0f} s; see {self.log_file(name)}")


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports: list[int] = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _utrn() -> list[str]:
    return [sys.executable, "-m", "app"]


def _tls_options(tls: CertPaths) -> list[str]:
    return ["--cert", str(tls.cert), "--key", str(tls.key), "--ca", str(tls.ca)]


def _tls_lines(tls: CertPaths, *, ca: str = "ca") -> list[str]:
    return [f'cert = "{tls.cert}"', f'key = "{tls.key}"', f'{ca} = "{tls.ca}"']


def _psp_line(participant_id: str, name: str) -> dict[str, object]:
    identities = [participant_uri(participant_id)]
    return {
        "type": "participant", "participant_id": participant_id, "role": "psp", "name": name, "identities": identities,
    }  # fmt: skip


def _environment() -> dict[str, str]:
    """Return the environment without UTRN_*: a shell's settings must not reach a stack that has its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("UTRN_")}
