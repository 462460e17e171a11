"""The world of a drill: three etcd, three nodes, head end and meters as processes; load, and a watch on the ledger."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from utrn.sandbox.v1 import sandbox_pb2 as pb
from utrn.sandbox.v1 import sandbox_pb2_grpc as rpc
from utrn.v1 import types_pb2
from utrn_client.channel import Tls, open_channel
from utrn_client.ids import MemorySaleBook, Sale, make_transaction_id
from utrn_client.till import Answer, NoAnswer, SaleRefused, Till

from app.config import load_config
from app.devstack import DevStack
from app.drills.checker import Credited
from app.drills.history import FENCED, IF_FIRST, Call, History
from app.fleet_file import pans_of
from app.stackfiles import PSP
from cluster.client import Compacted, EtcdClient
from cluster.config import EtcdConfig
from cluster.history import LedgerEvent, OwnerGone, OwnerSeen, VendKey, VendSeen, follow
from cluster.reader import all_owners, all_records
from core.domain.delivery import DeliveryState
from core.domain.vend import Operation, Vend
from sandbox.servers import Tls as SandboxTls

NODES = ("node-a", "node-b", "node-c")
_AGAIN_SHARE = 0.05
_OTHER_SHARE = 0.02
_GIVE_UP_S = 60.0
_SETTLE_S = 20.0
_LOOK_AGAIN_S = 0.1
_STILL_EXCUSES = timedelta(seconds=3)


class LedgerWatch:
    """Remembers every change of the ledger, and who owns what now."""

    def __init__(self, config: EtcdConfig) -> None:
        self._config = config
        self.events: list[LedgerEvent] = []
        self.owners: dict[int, tuple[str, int]] = {}
        self.owed = 0
        self.vends: dict[VendKey, Vend] = {}
        self.started = asyncio.Event()
        self.moved = asyncio.Event()

    async def run(self) -> None:
        """Follow for ever."""
        client = EtcdClient(self._config)
        try:
            async for changes in follow(client, self._config):
                self.started.set()
                now = time.monotonic()
                for event in changes:
                    self._take(LedgerEvent(event.revision, event.change, now))
                self.moved.set()
        except Compacted as error:
            raise RuntimeError("the ledger was compacted under the watch: the run cannot be checked") from error
        finally:
            await client.close()

    async def begin_settled(self, nodes: int) -> None:
        """Return when every shard has an owner and so many nodes own some; what is heard counts from then on.

        Raises:
            RuntimeError: they did not share them out in time.
        """
        await self.started.wait()
        client = EtcdClient(self._config)
        try:
            deadline = time.monotonic() + _SETTLE_S
            while time.monotonic() < deadline:
                # The watch hears only what happens from now on, so what is there already is read.
                owners, revision = await all_owners(client, self._config)
                if len(owners) == self._config.shards and len({one.node_id for one in owners}) == nodes:
                    self._begin(owners, await all_records(client, self._config), revision)
                    return
                await asyncio.sleep(_LOOK_AGAIN_S)
        finally:
            await client.close()
        raise RuntimeError("the nodes did not share the shards out")

    def _begin(self, owners: Sequence[OwnerSeen], records: Sequence[LedgerEvent], revision: int) -> None:
        later = [event for event in self.events if event.revision > revision]
        self.events, self.owners, self.owed, self.vends = [], {}, 0, {}
        now = time.monotonic()
        before = [one for one in records if one.revision <= revision]
        before += [LedgerEvent(owner.epoch, owner, now) for owner in owners]
        for event in (*sorted(before, key=lambda one: one.revision), *later):
            self._take(event)

    async def until(self, holds: Any, timeout_s: float) -> bool:
        """Return True as soon as `holds()` is true, False after `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not holds():
                    self.moved.clear()
                    await self.moved.wait()
                return True
        return bool(holds())

    def shards_of(self, node: str) -> set[int]:
        """Return the shards that a node owns now."""
        return {shard for shard, (owner, _) in self.owners.items() if owner == node}

    def busiest(self) -> str:
        """Return the node that owns the most shards."""
        return Counter(owner for owner, _ in self.owners.values()).most_common(1)[0][0]

    def _take(self, event: LedgerEvent) -> None:
        self.events.append(event)
        match event.change:
            case OwnerSeen(shard=shard, node_id=node, epoch=epoch):
                self.owners[shard] = (node, epoch)
            case OwnerGone(shard=shard):
                self.owners.pop(shard, None)
            case VendSeen(vend=vend, key=key):
                before = self.vends.get(key)
                self.owed += vend.delivery.owed - (before is not None and before.delivery.owed)
                self.vends[key] = vend
            case _:
                pass


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
                    meter_id=one.meter_id,
                    originator_id=one.originator_id,
                    counter=one.utrn_counter,
                    utrn=one.utrn,
                    pence=one.amount_pence,
                )
                async for one in stub.ListCredits(pb.ListCreditsRequest())
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


def etcd_config(stack: DevStack) -> EtcdConfig:
    """Return where the stack's etcd is."""
    return load_config(stack.node_config(stack.plan.nodes[0])).etcd


def applied_times(events: Sequence[LedgerEvent], shards: set[int], shard_of: Any) -> list[float]:
    """Return when deliveries of `shards` were heard to be closed as applied, in order."""
    return [
        event.heard_at
        for event in events
        if isinstance(event.change, VendSeen)
        and event.change.vend.delivery.state is DeliveryState.APPLIED
        and shard_of(event.change.vend.meter_id) in shards
    ]


def longest_gap_ms(times: Sequence[float], *, since: float, until: float) -> float:
    """Return the longest stretch without any of `times` between `since` and `until`, in milliseconds."""
    inside = [since, *(one for one in sorted(times) if since < one < until), until]
    return max((after - before) * 1000 for before, after in pairwise(inside))


def log_texts(folder: Path) -> list[str]:
    """Return what nodes wrote."""
    return [file.read_text(encoding="utf-8", errors="replace") for file in sorted((folder / "logs").glob("node-*.log"))]


def revoked_leases(logs: Iterable[str]) -> set[tuple[str, int]]:
    """Return the nodes whose lease a peer has revoked, and the leases, as the nodes' logs say."""
    lines = (json.loads(line) for text in logs for line in text.splitlines() if '"a peer\'s lease is revoked"' in line)
    return {(line["peer"], line["lease"]) for line in lines}


@dataclass(frozen=True, slots=True)
class LostLeases:
    """How many leases a node lost, and how many of them though it ran all the time."""

    all: int
    while_running: int


def lost_leases(log: str) -> LostLeases:
    """Return the leases that a node lost, by its own log. One that stood still just before lost it by right."""
    stood_still: list[datetime] = []
    lost: list[datetime] = []
    for line in log.splitlines():
        if '"this node stood still"' in line:
            stood_still.append(datetime.fromisoformat(json.loads(line)["timestamp"]))
        elif '"the lease is gone, and every shard with it"' in line:
            lost.append(datetime.fromisoformat(json.loads(line)["timestamp"]))
    false = [at for at in lost if not any(abs(at - still) < _STILL_EXCUSES for still in stood_still)]
    return LostLeases(len(lost), len(false))
