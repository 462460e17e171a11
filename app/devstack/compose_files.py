"""Writes all that a stack of containers needs into one folder: certificates, tokens, fleet, registry, configurations.

`python -m app.devstack.compose_files FOLDER`, then `deploy/compose.yaml`. For trying out: keys and PINs are made here,
in the open.
"""

import sys
from pathlib import Path

from app.devstack.files import NODES, StackFiles, StackPlan

_NODE_PORT, _METRICS_PORT, _ETCD_PORT, _FLEET_PORT, _HEAD_END_PORT = 7443, 9464, 2379, 7600, 7500


class ContainerStack(StackFiles):
    """The same stack with the names and ports of the compose file; it writes files and starts nothing."""

    def __init__(self, folder: Path, plan: StackPlan) -> None:
        super().__init__(folder, plan)
        self.node_ports = dict.fromkeys(plan.nodes, _NODE_PORT)
        self.metrics_ports = dict.fromkeys(plan.nodes, _METRICS_PORT)

    @property
    def fleet_target(self) -> str:
        """host:port of the fleet."""
        return f"fleet:{_FLEET_PORT}"

    @property
    def head_end_target(self) -> str:
        """host:port of the head end."""
        return f"head-end:{_HEAD_END_PORT}"

    @property
    def etcd_targets(self) -> list[str]:
        """host:port of every etcd member."""
        return [f"{name}:{_ETCD_PORT}" for name in self.etcd_names]

    def node_target(self, node: str) -> str:
        """host:port of a node."""
        return f"{node}:{_NODE_PORT}"

    def listen_host(self, node: str) -> str:
        """Every address of the node's own container."""
        del node
        return "0.0.0.0"  # noqa: S104  # inside its container; the compose file says who gets in

    def prepare(self) -> None:
        """Write everything; what is there already stays."""
        self.make_keys()
        self.make_fleet()
        for name in self.etcd_names:
            self.pki.etcd_member(name)
        for name in ("fleet", "head-end"):
            self.pki.head_end(name)
        for node in self.plan.nodes:
            self.write_node_config(node)
        self.write_registry()


def main(folder: Path) -> int:
    """Prepare `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = StackPlan(meters=50, etcd_members=3, nodes=NODES, own_tokens=True)
    ContainerStack(folder.resolve(), plan).prepare()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
