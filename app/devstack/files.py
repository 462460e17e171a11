"""What a stack on one machine is made of: ports, certificates, tokens, fleet, registry, settings. Starts nothing."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from google.protobuf import timestamp_pb2
from google.protobuf.json_format import MessageToJson
from utrn.v1 import appointment_service_pb2 as appointment_pb
from utrn.v1 import participant_service_pb2 as participant_pb
from utrn.v1 import registry_service_pb2 as registry_pb
from utrn_client.appointing import sign_terms

from app.devstack.ca import CertPaths, DevPki, participant_uri
from app.devstack.keeper import keep
from app.devstack.netns import Namespaces
from app.devstack.ports import free_ports
from core.gateways.system_clock import SystemClock
from core.net.address import parse_address
from hsm.ceremony import KeyEntry
from hsm.config import HsmConfig, find_softhsm

HEAD_END = "sandbox"
SUPPLIERS = {"supplier-north": "90b3d51f30010001", "supplier-south": "90b3d51f30010002"}
PSP = "psp-corner"
# What every stack of ours calls its nodes.
NODES = ("node-a", "node-b", "node-c")
OPERATOR = "operator-ops"
SECOND_OPERATOR = "operator-second"
OUTSIDER = "psp-elsewhere"
HELPDESK = "helpdesk-first"
AUDITOR = "auditor-first"


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
        api: Lines of the node's [api] section.
        flow: Lines of the node's [flow] section.
        etcd: Lines of the node's [etcd] section.
        etcd_quota_bytes: Of each member. A country's registry is larger than etcd's default of 2 GB; 8 GB is the most
            that etcd recommends.
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
    api: tuple[str, ...] = ()
    flow: tuple[str, ...] = ()
    # Elections take half a second here (start_etcd_member): a call that waits longer waits for a leader that is gone.
    etcd: tuple[str, ...] = ("call_timeout_ms = 600",)
    etcd_quota_bytes: int = 8 * 1024**3
    etcd_fsync: bool = True
    etcd_members: int = 1
    nodes: tuple[str, ...] = ("node-a",)
    own_tokens: bool = False
    namespaces: bool = False
    fake_clocks: bool = False
    node_command: tuple[str, ...] = ()


class StackFiles:
    """The files of one stack, in one folder, and where its parts are to be found."""

    def __init__(self, folder: Path, plan: StackPlan) -> None:
        self.folder = folder
        self.plan = plan
        self.fleet_port, self.head_end_port, *ports = _lasting_ports(folder, 2 + 2 * plan.etcd_members)
        self.etcd_ports, self.etcd_peer_ports = ports[: plan.etcd_members], ports[plan.etcd_members :]
        self.net = Namespaces(plan.nodes) if plan.namespaces else None
        self.host = self.net.host if self.net else "127.0.0.1"
        self.node_ports: dict[str, int] = {}
        self.metrics_ports: dict[str, int] = {}
        self.pki = DevPki.load_or_create(folder / "pki", now=SystemClock().now())

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
        return parse_address(self.node_target(node)).host

    def metrics_url(self, node: str) -> str:
        """Address of a node's Prometheus page."""
        return f"http://{self.listen_host(node)}:{self.metrics_ports[node]}/metrics"

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
        return self.pki.participant(participant_id)

    @property
    def tool_certs(self) -> CertPaths:
        """Certificate by which tools reach the sandbox: the fleet and its head end."""
        return self.pki.head_end_client("tools")

    @property
    def etcd_certs(self) -> CertPaths:
        """Certificate by which tools reach etcd."""
        return self.pki.etcd_client("tools")

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
            run_tool([*module_command("app.devstack.hsm_token"), str(folder), *SUPPLIERS.values()])
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
        run_tool([*module_command("app.devstack.hsm_token"), str(folder), *SUPPLIERS.values()])

    def hsm_config(self, node: str) -> HsmConfig:
        """Configuration of a node's token."""
        folder = self.token_folder(node)
        return HsmConfig(
            module=find_softhsm(),
            token_label="utrn",  # noqa: S106  # a label
            pin_file=folder / "pin",
            softhsm_conf=folder / "softhsm2.conf",
        )

    def make_fleet(self) -> None:
        """Make meters and PANs; leave what is there."""
        folder = self.folder / "sandbox"
        if not (folder / "fleet.sqlite").exists():
            keys = self.make_keys()
            suppliers = [f"--supplier={name}:{SUPPLIERS[name]}:{keys[name].public_point}" for name in SUPPLIERS]
            run_tool(
                [
                    *utrn_command(),
                    *("sandbox", "make-fleet", "--dir", str(folder), *suppliers),
                    *(f"--meters={self.plan.meters}", f"--seed={self.plan.seed}"),
                    *(f"--max-balance={self.plan.max_balance_pence}", f"--head-end={HEAD_END}"),
                ]
            )

    def write_node_config(self, node: str) -> Path:
        """Write a node's configuration and return its file."""
        if node not in self.node_ports:
            self.node_ports[node], self.metrics_ports[node] = free_ports(2)
        tls = self.pki.node(node)
        hsm = self.hsm_config(node)
        host = self.listen_host(node)
        endpoints = ", ".join(f'"{target}"' for target in self.etcd_targets)
        path = self.node_config(node)
        path.write_text(
            "\n".join(
                [
                    "[node]", f'node_id = "{node}"', f'zone = "{node}"', f'trail = "{self.folder / "trail"}"',
                    f'metrics = "{host}:{self.metrics_ports[node]}"',
                    f'advertise = "{self.node_target(node)}"',
                    "[api]", f'listen = "{host}:{self.node_ports[node]}"', *_tls_lines(tls, ca=""),
                    f'client_ca = "{self.pki.callers.ca_file}"', *self.plan.api,
                    "[hsm]", f'module = "{hsm.module}"', f'token_label = "{hsm.token_label}"',
                    f'pin_file = "{hsm.pin_file}"', f'softhsm_conf = "{hsm.softhsm_conf}"',
                    "[etcd]", f"endpoints = [{endpoints}]", *_tls_lines(self.pki.etcd_client(node)),
                    f"quota_bytes = {self.plan.etcd_quota_bytes}", *self.plan.etcd,
                    "[peers]", *_tls_lines(tls),
                    "[flow]", *_flow_lines(self.plan.flow),
                    "[delivery]", *self.plan.delivery,
                    "[[head_ends]]", f'name = "{HEAD_END}"', f'target = "{self.head_end_target}"',
                    'server_name = "localhost"', *_tls_lines(self.pki.head_end_client(node)),
                    "",
                ]
            ),
            encoding="utf-8",
        )  # fmt: skip
        return path

    def write_registry(self) -> Path:
        """Write participants, meters and PANs as a registry file."""
        keys = self.make_keys()
        lines = [
            # Load tests sell in minutes what a shop sells in years.
            _line(PSP, participant_pb.ROLE_PSP, "Corner Shop Payments", ceiling_pence=10**13),
            _line(OUTSIDER, participant_pb.ROLE_PSP, "Elsewhere Ltd"),
            _line(OPERATOR, participant_pb.ROLE_OPERATOR, "The operator"),
            _line(SECOND_OPERATOR, participant_pb.ROLE_OPERATOR, "The second operator"),
            _line(HELPDESK, participant_pb.ROLE_HELPDESK, "The helpdesk"),
            _line(AUDITOR, participant_pb.ROLE_AUDITOR, "The auditor"),
        ]
        profile = participant_pb.Profile(
            selling_model=participant_pb.SELLING_MODEL_PSP_ISSUES_AND_DELIVERS,
            credit_each_max_pence=5_000,
            credit_day_max_pence=100_000,
        )
        for supplier, originator in SUPPLIERS.items():
            key = participant_pb.SupplierKey(
                originator_id=originator,
                key_id=keys[supplier].key_id,
                public_point=bytes.fromhex(keys[supplier].public_point),
            )
            lines.append(_line(supplier, participant_pb.ROLE_SUPPLIER, supplier, profile=profile, supplier_key=key))
            lines.append(self._appointment(supplier))
        meters = (self.folder / "sandbox" / "meters.jsonl").read_text(encoding="utf-8")
        file = self.folder / "registry.jsonl"
        file.write_text("".join(line + "\n" for line in lines) + meters, encoding="utf-8")
        return file

    def _appointment(self, supplier: str) -> str:
        """Return the line of the PSP's appointment, signed with the supplier's certificate; always the same one."""
        file = self.folder / "pki" / f"appointment-{supplier}.json"
        if file.exists():
            return file.read_text(encoding="utf-8")
        since = timestamp_pb2.Timestamp()
        since.FromDatetime(SystemClock().now() - timedelta(minutes=1))
        terms = appointment_pb.AppointmentTerms(
            appointment_id="corner", supplier_id=supplier, psp_id=PSP,
            level=appointment_pb.LEVEL_ISSUE_AND_DELIVER, min_pence=1, max_pence=819_100, since=since,
        )  # fmt: skip
        certs = self.certs(supplier)
        signed = sign_terms(terms, cert=certs.cert, key=certs.key)
        line = _json(registry_pb.RegistryRecord(appoint=appointment_pb.AppointRequest(signed_terms=signed)))
        file.write_text(line, encoding="utf-8")
        return line


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


def _flow_lines(flow: Sequence[str]) -> list[str]:
    """Return the lines of [flow]; without a waiting time, for nobody waits on one machine, unless they say so."""
    said = {line.split("=")[0].strip() for line in flow}
    ours = {"approval_wait_s": "0", "suppliers_register": '["meters", "pans"]'}
    return [*(f"{name} = {value}" for name, value in ours.items() if name not in said), *flow]


def _tls_lines(tls: CertPaths, *, ca: str = "ca") -> list[str]:
    lines = [f'cert = "{tls.cert}"', f'key = "{tls.key}"']
    return [*lines, f'{ca} = "{tls.ca}"'] if ca else lines


def _line(
    participant_id: str, role: participant_pb.Role.ValueType, name: str, *, ceiling_pence: int = 0,
    supplier_key: participant_pb.SupplierKey | None = None, profile: participant_pb.Profile | None = None,
) -> str:  # fmt: skip
    """Return the line of a participant with one certificate."""
    participant = participant_pb.Participant(
        participant_id=participant_id, role=role, name=name, identities=[participant_uri(participant_id)],
        supplier_key=supplier_key, ceiling_pence=ceiling_pence,
    )  # fmt: skip
    request = participant_pb.AddParticipantRequest(participant=participant, profile=profile)
    return _json(registry_pb.RegistryRecord(add_participant=request))


def _json(record: registry_pb.RegistryRecord) -> str:
    return MessageToJson(record, preserving_proto_field_name=True, indent=None)


def utrn_command() -> list[str]:
    """Return what to put before the arguments of `utrn`."""
    return module_command("app")


def module_command(name: str) -> list[str]:
    """Return what runs an installed module: never a file of that name in whatever folder this was started from."""
    return [sys.executable, "-P", "-m", name]


def run_tool(arguments: Sequence[str]) -> None:
    """Run a command to its end.

    Raises:
        StackFailed: it failed; the message has what it said.
    """
    keep()
    done = subprocess.run(
        list(arguments), capture_output=True, text=True, timeout=600, check=False, env=own_environment()
    )
    if done.returncode != 0:
        raise StackFailed(f"{' '.join(arguments[:6])} ...: {done.stderr or done.stdout}")


def own_environment() -> dict[str, str]:
    """Return the environment without UTRN_*: a shell's settings must not reach a stack that has its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("UTRN_")}
