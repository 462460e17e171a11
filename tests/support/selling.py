"""Sells to a stack, and waits for what it owes; what drills and integration tests share."""

import asyncio
import json
import random
from collections.abc import Sequence

from app.devstack.files import PSP
from app.devstack.stack import DevStack
from app.node.config import load_config
from app.verification.money import AuditResult, audit_all
from app.workloads.sale_driver import Journal, PlannedSale, Seller, Sold, Step, secure_channel
from core.domain.transaction_id import TransactionId, make_transaction_id
from core.gateways.system_clock import SystemClock
from sandbox.servers import Tls

_DRAIN_S = 60.0
_random = random.Random(3)


def pans(stack: DevStack) -> list[str]:
    """All PANs of the stack's meters."""
    lines = (stack.folder / "sandbox" / "meters.jsonl").read_text().splitlines()
    return [one["assign_pan"]["pan"] for one in map(json.loads, lines) if "assign_pan" in one]


def new_id(*, shift_s: float = 0.0) -> TransactionId:
    """A transaction id of now, or of another moment."""
    return make_transaction_id(int((SystemClock().now().timestamp() + shift_s) * 1000), _random.getrandbits(74))


def planned(pan: str, pence: int = 1000, step: Step = Step.ONE_STEP, asked_times: int = 1) -> PlannedSale:
    return PlannedSale(transaction_id=new_id(), pan=pan, amount_pence=pence, step=step, asked_times=asked_times)


async def sell_all(
    stack: DevStack, sales: Sequence[PlannedSale], nodes: Sequence[str] = ("node-a",), *, at_once: int = 4
) -> list[Sold]:
    """Sell everything with the contract's retry rule, a few at once; return what became of it, in no order."""
    certs, clock = stack.certs(PSP), SystemClock()
    targets = [stack.node_target(node) for node in nodes]
    waiting = list(reversed(sales))
    sold: list[Sold] = []
    async with secure_channel(targets, ca=certs.ca, cert=certs.cert, key=certs.key) as channel:
        seller = Seller(channel, Journal(None, clock), clock, give_up_after_s=40.0)

        async def till() -> None:
            while waiting:
                sold.append(await seller.sell(waiting.pop()))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(till())
    return sold


async def audit(stack: DevStack, node: str = "node-a") -> AuditResult:
    certs = stack.tool_certs
    tls = Tls(cert=certs.cert, key=certs.key, ca=certs.ca)
    return await audit_all(load_config(stack.node_config(node)).etcd, stack.fleet_target, tls.channel)


async def drained(stack: DevStack, node: str = "node-a") -> AuditResult:
    """Return the audit once nothing is owed any more; after a while, as it then is."""
    clock = SystemClock()
    until = clock.monotonic() + _DRAIN_S
    while True:
        result = await audit(stack, node)
        if not result.owed or clock.monotonic() > until:
            return result
        await asyncio.sleep(0.1)
