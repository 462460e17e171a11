"""The world of a drill: three etcd, three nodes, head end and meters as processes; load, and a watch on the ledger."""

import asyncio
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from utrn.sandbox.v1 import sandbox_pb2 as pb
from utrn.sandbox.v1 import sandbox_pb2_grpc as rpc
from utrn.v1 import types_pb2
from utrn_client.channel import Tls, open_channel
from utrn_client.ids import MemorySaleBook, Sale, make_transaction_id
from utrn_client.till import Answer, NoAnswer, SaleRefused, Till

from app.devstack.files import PSP
from app.devstack.fleet import pans_of
from app.devstack.stack import DevStack, etcd_config
from app.verification.call_log import FENCED, IF_FIRST, Call, History
from app.verification.checker import Credited
from app.verification.ledger_watch import LedgerWatch
from cluster.etcd.client import EtcdClient
from core.domain.vend import Operation
from sandbox.servers import Tls as SandboxTls

_AGAIN_SHARE = 0.05
_OTHER_SHARE = 0.02
_GIVE_UP_S = 60.0


@dataclass(slots=True)
class Load:
    """Steady sales at a rate, from many tills, some asking twice at once, some asking for another amount by mistake."""

    stack: DevStack
    history: History
    rate: float
    seed: int
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    failed: list[str] = field(default_factory=list)

    async def run(self) -> None:
        """Sell until told to stop; return when every sale has its answer."""
        certs = self.stack.certs(PSP)
        tls = Tls(cert=certs.cert, key=certs.key, ca=certs.ca)
        targets = [self.stack.node_target(node) for node in self.stack.plan.nodes]
        pans = pans_of(self.stack.folder / "sandbox")
        chance = random.Random(self.seed)  # noqa: S311  # play, not protection
        loop = asyncio.get_running_loop()
        async with (
            open_channel(targets, tls) as first,
            open_channel(targets, tls) as second,
            asyncio.TaskGroup() as tasks,
        ):
            number, started = 0, loop.time()
            while not self.stopping.is_set():
                sale = Sale(
                    transaction_id=make_transaction_id(),
                    pan=pans[number % len(pans)],
                    amount_pence=chance.randint(100, 5000),
                    channel=types_pb2.CHANNEL_APP,
                )
                other, again = chance.random() < _OTHER_SHARE, chance.random() < _AGAIN_SHARE
                asked = self._sell("till-1", first, sale, then_other=second if other else None, repeat=again)
                tasks.create_task(asked)
                if again:
                    tasks.create_task(self._sell("till-2", second, sale, repeat=True))
                number += 1
                await asyncio.sleep(max(0.0, started + number / self.rate - loop.time()))

    async def _sell(
        self, caller: str, channel: Any, sale: Sale, *, then_other: Any = None, repeat: bool = False
    ) -> None:
        """Sell; `repeat`: another till asks for the same at once, so neither attempt is the first for sure."""
        try:
            await self._ask(caller, channel, sale, repeat=repeat)
        except (SaleRefused, NoAnswer) as error:
            self.failed.append(str(error))
        else:
            if then_other is not None:
                await self._sell_other(then_other, sale)

    async def _sell_other(self, channel: Any, sale: Sale) -> None:
        """Ask for another amount under an id that is in use: never a second code."""
        other = Sale(
            transaction_id=sale.transaction_id,
            pan=sale.pan,
            amount_pence=sale.amount_pence + 1,
            channel=sale.channel,
        )
        with suppress(SaleRefused, NoAnswer):
            await self._ask("till-3", channel, other, repeat=True)

    async def _ask(self, caller: str, channel: Any, sale: Sale, *, repeat: bool) -> Answer:
        attempts, book = _Attempts(self.history, caller, sale, repeat=repeat), MemorySaleBook()
        if repeat:
            book.begin(sale)
        till = Till(channel, book, on_attempt=attempts.ended)
        try:
            answer = await till.ask(sale, give_up_after_s=_GIVE_UP_S)
        except SaleRefused as refused:
            attempts.refused(refused.reason)
            raise
        attempts.answered(answer)
        return answer


class _Attempts:
    """The attempts of one sale, as its till makes them, each written down when it has ended."""

    def __init__(self, history: History, caller: str, sale: Sale, *, repeat: bool) -> None:
        self._history = history
        self._repeat = repeat
        self._caller = caller
        self._sale = sale
        self._began = time.monotonic()
        self._last: Call | None = None

    def ended(self, _id: str, outcome: str) -> None:
        """Note an attempt that brought no code; the next one begins now."""
        if outcome not in ("issued", "replayed"):
            self._last = self._attempt()
            self._history.unknown(self._last, outcome)
            self._began = time.monotonic()

    def refused(self, reason: str) -> None:
        """Note that the last attempt's answer was final: of a repeat, the kit takes no refusal but a fenced one."""
        if self._last is not None:
            self._history.refused(self._last, reason, final=FENCED if self._last.repeat else IF_FIRST)

    def answered(self, answer: Answer) -> None:
        """Note the code."""
        content = answer.code.SerializeToString(deterministic=True)
        self._history.answered(self._attempt(), utrn=answer.code.utrn, content=content, replayed=answer.replayed)

    def _attempt(self) -> Call:
        return self._history.begin(
            self._caller,
            (PSP, self._sale.transaction_id),
            f"{self._sale.pan}/{Operation.TOP_UP.name}",
            self._sale.amount_pence,
            repeat=self._repeat or self._last is not None,
            at=self._began,
        )


@dataclass(slots=True, kw_only=True)
class World:
    """What a drill's fault can reach."""

    stack: DevStack
    watch: LedgerWatch
    load: Load
    seed: int

    def tls(self) -> SandboxTls:
        """Certificates for the sandbox."""
        certs = self.stack.tool_certs
        return SandboxTls(cert=certs.cert, key=certs.key, ca=certs.ca)

    async def knobs(self, **settings: Any) -> None:
        """Turn the head end's knobs."""
        async with self.tls().channel(self.stack.head_end_target) as channel:
            request = pb.SetKnobsRequest(knobs=pb.Knobs(**settings))
            await rpc.HeadEndControlServiceStub(channel).SetKnobs(request, timeout=5.0)

    async def head_end_counts(self) -> dict[str, int]:
        """Return what the head end has done, and how often."""
        async with self.tls().channel(self.stack.head_end_target) as channel:
            stub: rpc.HeadEndControlServiceAsyncStub = rpc.HeadEndControlServiceStub(channel)
            return dict((await stub.GetKnobs(pb.GetKnobsRequest(), timeout=5.0)).counts)

    async def credits(self) -> tuple[list[Credited], dict[str, int]]:
        """Return every credit, and how often meters came to each result."""
        async with self.tls().channel(self.stack.fleet_target) as channel:
            stub: rpc.FleetServiceAsyncStub = rpc.FleetServiceStub(channel)
            found = [
                Credited(
                    meter_id=ListCredit.meter_id,
                    originator_id=ListCredit.originator_id,
                    counter=ListCredit.utrn_counter,
                    utrn=ListCredit.utrn,
                    pence=ListCredit.amount_pence,
                )
                async for ListCredit in stub.ListCredits(pb.ListCreditsRequest())
            ]
            counts = await stub.CountResults(pb.CountResultsRequest(), timeout=5.0)
        return found, dict(counts.counts)

    async def etcd_leader(self) -> int:
        """Return which etcd member leads."""
        client = EtcdClient(etcd_config(self.stack))
        try:
            for index, status in enumerate((await client.members()).values()):
                if status is not None and status.leader == status.header.member_id:
                    return index
        finally:
            await client.close()
        raise RuntimeError("no etcd member leads")
