"""A till in a process of its own that sells at a steady pace, so that an attack beside it cannot slow its clock.

The process: `python -m tests.support.honest_till OPTIONS`; one JSON line for each sale on its standard output.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc
from utrn.v1 import types_pb2

from app.devstack.files import PSP
from app.devstack.stack import DevStack
from app.workloads.sale_driver import secure_channel
from core.domain.transaction_id import make_transaction_id
from core.gateways.system_clock import SystemClock
from tests.support.selling import pans

# What `make attack` sets: figures in milliseconds are promises there, and only printed elsewhere.
WHOLE_ATTACK = "UTRN_WHOLE_ATTACK"
_MOVES_MOST = 1.2
# A share of a figure below this says nothing.
_NOISE_MS = 5.0
_DEADLINE_S = 30.0
_POLL_S = 0.05
_END_S = 10.0


@dataclass(frozen=True)
class Figures:
    """What a till saw between two moments.

    Attributes:
        outcomes: How many sales ended how: "OK", or the name of a gRPC status.
        p50_ms: Half of the sales took at most so many milliseconds.
        p99_ms: 99 of 100 did.
        most_ms: All of them did.
    """

    outcomes: Counter[str]
    p50_ms: float
    p99_ms: float
    most_ms: float

    @property
    def sold(self) -> int:
        """Sales that were answered with a code."""
        return self.outcomes["OK"]

    @property
    def failed(self) -> int:
        """Sales that were not."""
        return self.outcomes.total() - self.sold


@dataclass(frozen=True)
class _Sale:
    at: float
    ms: float
    outcome: str


class HonestTill:
    """What the process has written so far. Instants are of this machine's monotonic clock, in seconds."""

    def __init__(self, file: Path, process: "subprocess.Popen[bytes]") -> None:
        self._file = file
        self._process = process

    def between(self, start: float, end: float | None = None) -> Figures:
        """Return what it saw from `start` to `end`, by when each sale ended; `end` None is now."""
        until = time.monotonic() if end is None else end
        seen = [sale for sale in self._sales() if start <= sale.at <= until]
        outcomes, took = Counter(one.outcome for one in seen), sorted(one.ms for one in seen)
        if len(took) < 2:
            return Figures(outcomes, *(took or [0.0]) * 3)
        cuts = statistics.quantiles(took, n=100, method="inclusive")
        return Figures(outcomes, cuts[49], cuts[98], took[-1])

    async def sells(self, count: int, *, within_s: float = 60.0) -> Figures:
        """Return what it sees from now on until it has ended `count` more sales.

        Raises:
            TimeoutError: it did not in `within_s` seconds.
        """
        start = time.monotonic()
        async with asyncio.timeout(within_s):
            while self.between(start).outcomes.total() < count:
                assert self._process.poll() is None, "the till ended"
                await asyncio.sleep(_POLL_S)
        return self.between(start)

    def _sales(self) -> list[_Sale]:
        text = self._file.read_text()
        return [_Sale(**json.loads(line)) for line in text[: text.rfind("\n") + 1].splitlines()]


@contextmanager
def honest_till(
    stack: DevStack, *, node: str = "node-a", who: str = PSP, every_s: float = 0.02
) -> Iterator[HonestTill]:
    """Run a till beside whatever the test does: one sale every `every_s` seconds, each answered before the next."""
    file = stack.folder / f"honest-till-{time.monotonic_ns()}.jsonl"
    certs = stack.certs(who)
    command = [
        sys.executable, "-m", "tests.support.honest_till", "--target", stack.node_target(node), "--every", str(every_s),
        "--cert", str(certs.cert), "--key", str(certs.key), "--ca", str(certs.ca), "--pans", ",".join(pans(stack)),
    ]  # fmt: skip
    with file.open("wb") as out, subprocess.Popen(command, stdout=out, stdin=subprocess.DEVNULL) as process:
        try:
            yield HonestTill(file, process)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(_END_S)


async def beside(stack: DevStack, what: str, attack: Awaitable[object], *, sales: int = 100) -> Figures:
    """Return what a till saw during an attack, a sale that was under way at its end included; see `held`.

    Args:
        stack: Whom the till sells at, at its first node.
        what: Name of the attack, for the figures.
        attack: The attack, which has an end.
        sales: How many sales before it are the measure.
    """
    with honest_till(stack, node=stack.plan.nodes[0]) as till:
        before = await till.sells(sales)
        began = time.monotonic()
        await attack
        await till.sells(1)
        during = till.between(began)
    held(before, during, what)
    return during


def held(before: Figures, during: Figures, what: str) -> None:
    """Print how an attack moved a till, and, in `make attack`, refuse a p99 that it moved by a fifth or more."""
    told = (
        f"{what}: p50 {before.p50_ms:.1f} to {during.p50_ms:.1f} ms, p99 {before.p99_ms:.1f} to {during.p99_ms:.1f} ms,"
        f" most {before.most_ms:.1f} to {during.most_ms:.1f} ms, {dict(during.outcomes)}"
    )
    print(told)  # noqa: T201  # the figure is what this is for
    if os.environ.get(WHOLE_ATTACK):
        assert during.p99_ms < max(before.p99_ms * _MOVES_MOST, before.p99_ms + _NOISE_MS), told


async def _sell(arguments: argparse.Namespace) -> None:
    channel = secure_channel([arguments.target], ca=arguments.ca, cert=arguments.cert, key=arguments.key)
    async with channel:
        stub, chance = rpc.TopUpServiceStub(channel), random.Random(os.getpid())
        for pan in itertools.cycle(arguments.pans.split(",")):
            began = time.monotonic()
            outcome = "OK"
            try:
                await stub.TopUp(_sale_of(pan, chance), timeout=_DEADLINE_S)
            except grpc.aio.AioRpcError as error:
                outcome = error.code().name
            now = time.monotonic()
            line = {"at": now, "ms": (now - began) * 1000, "outcome": outcome}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()
            await asyncio.sleep(max(0.0, began + arguments.every - now))


def _sale_of(pan: str, chance: random.Random) -> pb.TopUpRequest:
    transaction_id = make_transaction_id(int(SystemClock().now().timestamp() * 1000), chance.getrandbits(74))
    return pb.TopUpRequest(
        transaction_id=transaction_id, pan=pan, amount_pence=100, channel=types_pb2.CHANNEL_COUNTER_CASH
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", required=True)
    parser.add_argument("--every", type=float, required=True)
    parser.add_argument("--pans", required=True)
    for name in ("--cert", "--key", "--ca"):
        parser.add_argument(name, type=Path, required=True)
    asyncio.run(_sell(parser.parse_args()))


if __name__ == "__main__":
    main()
