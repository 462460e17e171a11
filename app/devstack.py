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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from app.clock import SystemClock
from app.namespaces import Namespaces
from app.pki import CertPaths, DevCa, participant_uri
from hsm.config import HsmConfig, find_softhsm
from hsm.provision import KeyEntry

START_WAIT_S = 30.0
_POLL_S = 0.05
_STOP_WAIT_S = 15.0
HEAD_END = "sandbox"
SUPPLIERS = {"supplier-north": "90b3d51f30010001", "supplier-south": "90b3d51f30010002"}
PSP = "psp-corner"
OPERATOR = "operator-ops"
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
        etcd: Lines of the node's [etcd] section.
        etcd_fsync: False only where no durability is at stake and speed is.
        etcd_members: 1 or 3.
        nodes: Names of the nodes that `start_all` starts.
        own_tokens: Each node has a token of its own with the same keys, so that one node can lose its HSM.
        namespaces: Each node in a network namespace of its own; needs root.
        fake_clocks: Each node's wall clock can be set.
        node_command: What to run for a node instead of `utrn serve`; the configuration's option is appended.
    """

    meters: int = 200
    seed: int = 1
    knobs: tuple[str, ...] = ()
    max_balance_pence: int = 10_000_000
    delivery: tuple[str, ...] = ()
    flow: tuple[str, ...] = ()
    etcd: tuple[str, ...] = ()
    etcd_fsync: bool = True
    etcd_members: int = 1
    nodes: tuple[str, ...] = ("node-a",)
    own_tokens: bool = False
    namespaces: bool = False
    fake_clocks: bool = False
    node_command: tuple[str, ...] = ()


class DevStack:
    """One stack in one folder."""

    def __init__(self, folder: Path, plan: StackPlan) -> None:
        self.folder = folder
        self.plan = plan
        self.fleet_port, self.head_end_port, *ports = _lasting_ports(folder, 2 + 2 * plan.etcd_members)
        self.etcd_ports, self.etcd_peer_ports = ports[: plan.etcd_members], ports[plan.etcd_members :]
        self.net = Namespaces(plan.nodes) if plan.namespaces else None
        self.host = self.net.host if self.net else "127.0.0.1"
        self.node_ports: dict[str, int] = {}
        self.metrics_ports: dict[str, int] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ca = DevCa.load_or_create(folder / "pki", now=SystemClock().now())

    # What others need to reach its parts.

    @property
    def fleet_target(self) -> str:
        """host:port of the fleet."""
        return f"{self.host}:{self.fleet_port}"

    @property
    def head_end_target(self) -> str:
        """host:port of the head end."""
        return f"{self.host}:{self.head_end_port}"

    def node_target(self, node: str) -> str:
        """host:port of a node."""
        host = self.net.address(node) if self.net else "127.0.0.1"
        return f"{host}:{self.node_ports[node]}"

    def listen_host(self, node: str) -> str:
        """Address on which a node listens."""
        return self.node_target(node).rpartition(":")[0]

    def metrics_url(self, node: str) -> str:
        """Address of a node's Prometheus page."""
        return f"http://{self.node_target(node).rpartition(':')[0]}:{self.metrics_ports[node]}/metrics"

    @property
    def etcd_names(self) -> list[str]:
        """Names of the etcd processes."""
        return [f"etcd-{index}" for index in range(self.plan.etcd_members)]

    @property
    def etcd_targets(self) -> list[str]:
        """host:port of every etcd member."""
        return [f"{self.host}:{port}" for port in self.etcd_ports]

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
        tls = self._ca.issue("etcd", server=True)
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
        ]  # fmt: skip
        if not self.plan.etcd_fsync:
            arguments.append("--unsafe-no-fsync")
        self._start(f"etcd-{index}", arguments)
        if wait:
            self._wait_listening(f"etcd-{index}", self.etcd_ports[index])

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

    def token_folder(self, node: str) -> Path:
        """Folder with the token that a node uses; a copy of its own if the plan says so."""
        if not self.plan.own_tokens:
            return self.folder / "hsm"
        folder = self.folder / f"hsm-{node}"
        if not folder.exists():
            shutil.copytree(self.folder / "hsm", folder)
            conf = folder / "softhsm2.conf"
            conf.write_text(conf.read_text().replace(str(self.folder / "hsm" / "tokens"), str(folder / "tokens")))
        return folder

    def make_other_keys(self, folder: Path) -> None:
        """Make a token in `folder`, from which the old one was taken, with new keys under the same ids."""
        (folder / "tokens").mkdir(mode=0o700)
        self._run([sys.executable, "-m", "app.devkeys", str(folder), *SUPPLIERS.values()])

    def set_clock(self, node: str, seconds: int) -> None:
        """Set the clock of a node so many seconds ahead, or back; it follows within a second."""
        self._clock_file(node).write_text(f"{seconds:+d}\n")

    def hsm_config(self, node: str) -> HsmConfig:
        """Configuration of a node's token."""
        folder = self.token_folder(node)
        return HsmConfig(
            module=find_softhsm(),
            token_label="utrn",  # noqa: S106  # a label
            pin_file=folder / "pin",
            softhsm_conf=folder / "softhsm2.conf",
        )

    def make_server_certificate(self, name: str) -> CertPaths:
        """Make the certificate of a server of that name."""
        return self._ca.issue(name, server=True)

    def start_sandbox(self) -> None:
        """Make the fleet if there is none, and start fleet and head end."""
        self.make_fleet()
        self.start_fleet()
        self.start_head_end()

    def make_fleet(self) -> None:
        """Make meters and PANs; leave what is there."""
        folder = self.folder / "sandbox"
        if not (folder / "fleet.sqlite").exists():
            keys = self.make_keys()
            suppliers = [f"--supplier={name}:{SUPPLIERS[name]}:{keys[name].public_point}" for name in SUPPLIERS]
            self._run(
                [*_utrn(), "sandbox", "make-fleet", "--dir", str(folder), *suppliers, f"--meters={self.plan.meters}",
                 f"--seed={self.plan.seed}", f"--max-balance={self.plan.max_balance_pence}", f"--head-end={HEAD_END}"]
            )  # fmt: skip

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
            self.node_ports[node], self.metrics_ports[node] = free_ports(2)
        tls = self._ca.issue(node, uri=f"spiffe://utrn/node/{node}", server=True)
        hsm = self.hsm_config(node)
        host = self.listen_host(node)
        endpoints = ", ".join(f'"{target}"' for target in self.etcd_targets)
        path = self.node_config(node)
        path.write_text(
            "\n".join(
                [
                    "[node]", f'node_id = "{node}"', f'zone = "{node}"',
                    f'metrics = "{host}:{self.metrics_ports[node]}"',
                    f'advertise = "{self.node_target(node)}"',
                    "[api]", f'listen = "{host}:{self.node_ports[node]}"', *_tls_lines(tls, ca="client_ca"),
                    "[hsm]", f'module = "{hsm.module}"', f'token_label = "{hsm.token_label}"',
                    f'pin_file = "{hsm.pin_file}"', f'softhsm_conf = "{hsm.softhsm_conf}"',
                    "[etcd]", f"endpoints = [{endpoints}]", *_tls_lines(tls), *self.plan.etcd,
                    "[peers]", *_tls_lines(tls),
                    "[flow]", *self.plan.flow,
                    "[delivery]", *self.plan.delivery,
                    "[[head_ends]]", f'name = "{HEAD_END}"', f'target = "{self.head_end_target}"',
                    'server_name = "localhost"', *_tls_lines(tls),
                    "",
                ]
            ),
            encoding="utf-8",
        )  # fmt: skip
        return path

    def load_registry(self, node: str) -> None:
        """Load participants, meters and PANs."""
        file = self.write_registry()
        self._run([*_utrn(), "registry", "load", str(file), "--config", str(self.node_config(node)), "--json"])

    def write_registry(self) -> Path:
        """Write participants, meters and PANs as a registry file."""
        keys = self.make_keys()
        lines: list[dict[str, object]] = [
            _line(PSP, "psp", "Corner Shop Payments"),
            _line(OUTSIDER, "psp", "Elsewhere Ltd"),
            _line(OPERATOR, "operator", "The operator"),
        ]
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
        return file

    def start_node(self, node: str, command: Sequence[str] | None = None, *, wait: bool = True) -> None:
        """Start a node.

        Args:
            node: Its name.
            command: What to run instead of `utrn serve`; drills use it. The configuration's options are appended.
            wait: Until it says that it can serve.
        """
        inside = self.net.inside(node) if self.net else []
        program = command or self.plan.node_command or [*_utrn(), "serve"]
        arguments = [*inside, *program, "--config", str(self.node_config(node))]
        self._start(node, arguments, environment=self._fake_clock(node) if self.plan.fake_clocks else {})
        if wait:
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
        log = self.log_file(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._processes[name] = subprocess.Popen(
                list(arguments),
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={**_environment(), **environment},
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
                    socket.create_connection((self.host, port), timeout=1.0) as plain,
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


def _lasting_ports(folder: Path, count: int) -> list[int]:
    """Return the ports this folder's stack had before, or new ones: etcd members remember where the others are."""
    file = folder / "ports.json"
    if file.exists():
        ports: list[int] = json.loads(file.read_text())
        if len(ports) == count:
            return ports
    folder.mkdir(parents=True, exist_ok=True)
    ports = free_ports(count)
    file.write_text(json.dumps(ports))
    return ports


def _utrn() -> list[str]:
    return [sys.executable, "-m", "app"]


def _tls_options(tls: CertPaths) -> list[str]:
    return ["--cert", str(tls.cert), "--key", str(tls.key), "--ca", str(tls.ca)]


def _tls_lines(tls: CertPaths, *, ca: str = "ca") -> list[str]:
    return [f'cert = "{tls.cert}"', f'key = "{tls.key}"', f'{ca} = "{tls.ca}"']


def _line(participant_id: str, role: str, name: str) -> dict[str, object]:
    identities = [participant_uri(participant_id)]
    return {
        "type": "participant", "participant_id": participant_id, "role": role, "name": name, "identities": identities,
    }  # fmt: skip


def _environment() -> dict[str, str]:
    """Return the environment without UTRN_*: a shell's settings must not reach a stack that has its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("UTRN_")}
