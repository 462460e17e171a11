"""A node whose watches lose events without a word while a file stands beside its configuration: for one drill.

`python -m app.drills.deaf_node --config FILE`, deaf while the file is there. It is a program of its own, so that
nothing in the node itself can be switched to lose anything.
"""

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from app.node.assembly import Node, build
from app.node.config import load_config
from app.node.logging import set_up_logs
from app.node.run import serve
from cluster.etcd.client import EtcdClient


def deaf_file(config: Path) -> Path:
    """Return the file that makes a node deaf."""
    return config.with_suffix(".deaf")


class DeafClient(EtcdClient):
    """An EtcdClient whose watches leave out what comes while a file is there."""

    flag: Path

    async def watch(self, prefix: bytes, after_revision: int) -> AsyncIterator[Any]:
        """Return every change, but those that come while the file is there."""
        async for reply in super().watch(prefix, after_revision):
            if not self.flag.exists():
                yield reply


def _deaf(node: Node, flag: Path) -> Node:
    # One instance only: the class that every node uses stays as it is.
    node.client.__class__ = DeafClient
    node.client.flag = flag  # type: ignore[attr-defined]
    return node


def main(arguments: list[str]) -> int:
    """Run the node."""
    file = Path(arguments[arguments.index("--config") + 1])
    config = load_config(file)
    set_up_logs(config.node.log_level)
    return serve(lambda: _deaf(build(config), deaf_file(file)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
