"""A node that dies at a chosen step of a vend, once: `python -m tests.support.crashing_node STEP MARKER ... serve`.

STEP is one of `STEPS`; MARKER a file that says that it has died before. `--without COMPARE` takes a compare of
cluster/etcd/preconditions.py away, `--without self_fence` what has an owner stop by itself once its lease is in doubt.
Only the composition is touched: the service itself has no code for this.
"""

import argparse
import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.node.assembly import build
from app.node.config import load_config
from app.node.logging import set_up_logs
from app.node.run import serve
from cluster.etcd import preconditions
from cluster.etcd.client import EtcdClient
from cluster.membership.lease import Lease
from core.assembly.ports import Ports
from core.delivery.worker import DeliveryWorker
from core.ports.head_end import AddCredit, Answer, HeadEnd, HeadEndEvent
from core.ports.ledger import CommitOutcome, Entry, Ledger

STEPS = ("signed", "txn-sent", "committed", "head-end-took", "meter-applied")
_SELF_FENCE = "self_fence"
# Vends that pass before the one that dies, so that it dies among others.
_PASS = 3


class Death:
    """Kills this process at its step, after a few vends, once."""

    def __init__(self, step: str, marker: Path) -> None:
        self.step = step
        self._marker = marker
        self._left = _PASS

    def reached(self, step: str) -> None:
        if step != self.step or self._marker.exists():
            return
        self._left -= 1
        if self._left < 0:
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class DyingLedger:
    """A Ledger between whose steps the process may die."""

    def __init__(self, inner: Ledger, death: Death) -> None:
        self._inner = inner
        self._death = death

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def commit(self, entries: Sequence[Entry]) -> Sequence[CommitOutcome]:
        self._death.reached("signed")
        outcomes = await self._inner.commit(entries)
        self._death.reached("committed")
        return outcomes


class DyingHeadEnd:
    """A HeadEnd after whose answers the process may die."""

    def __init__(self, inner: HeadEnd, death: Death) -> None:
        self._inner = inner
        self._death = death

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def available(self) -> bool:
        return self._inner.available

    async def send(self, message: AddCredit) -> None:
        await self._inner.send(message)
        self._death.reached("head-end-took")

    async def events(self) -> AsyncIterator[HeadEndEvent]:
        async for event in self._inner.events():
            if isinstance(event, Answer):
                self._death.reached("meter-applied")
            yield event


def _die_after_sending(death: Death) -> None:
    original = EtcdClient.txn

    async def txn(self: EtcdClient, request: Any) -> Any:
        sending = asyncio.get_running_loop().create_task(original(self, request))
        if len(request.success) and request.success[0].HasField("request_txn"):
            # Long enough for the request to be on its way; whether etcd has carried it out, nobody here will know.
            await asyncio.sleep(0.001)
            death.reached("txn-sent")
        return await sending

    EtcdClient.txn = txn  # type: ignore[method-assign]


def _go_on_when_deposed() -> None:
    """Have an owner neither doubt its lease by its own clock nor break off work when it has lost a shard."""
    Lease.good = property(lambda self: self.lease_id != 0)  # type: ignore[assignment]
    DeliveryWorker._stop = lambda self, key: None  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=("none", *STEPS))
    parser.add_argument("marker", type=Path)
    parser.add_argument(
        "--without",
        choices=("vend_absent", "counter_unmoved", "code_absent", "epoch_current", _SELF_FENCE),
        action="append",
        default=[],
    )
    parser.add_argument("--config", type=Path, required=True)
    arguments = parser.parse_args()
    for without in arguments.without:
        if without == _SELF_FENCE:
            _go_on_when_deposed()
        else:
            setattr(preconditions, without, lambda *_: [])
    death = Death(arguments.step, arguments.marker)
    _die_after_sending(death)

    def between(ports: Ports) -> Ports:
        return replace(
            ports,
            ledger=DyingLedger(ports.ledger, death),
            head_ends={name: DyingHeadEnd(one, death) for name, one in ports.head_ends.items()},
        )

    config = load_config(arguments.config)
    set_up_logs("INFO")
    raise SystemExit(serve(lambda: build(config, between=between)))


if __name__ == "__main__":
    main()
