"""A node that breaks a promise at every look-up: `python -m tests.support.broken_node --config ...`."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.node.assembly import build
from app.node.config import load_config
from app.node.logging import set_up_logs
from app.node.run import serve
from core.assembly.ports import Ports
from core.domain.invariant import check
from core.ports.ledger import Ledger


class BrokenLedger:
    """A Ledger that finds what cannot be."""

    def __init__(self, inner: Ledger) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def find(self, *_: object) -> None:
        check(False, "the ledger holds what this program wrote")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", type=Path, required=True)
    config = load_config(parser.parse_args().config)
    set_up_logs("INFO")

    def between(ports: Ports) -> Ports:
        return replace(ports, ledger=BrokenLedger(ports.ledger))

    raise SystemExit(serve(lambda: build(config, between=between)))


if __name__ == "__main__":
    main()
