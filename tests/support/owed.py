"""A node that owes one delivery and attempts it; its head end answers as it is told and keeps what it was sent."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import cast

from etcdpb import rpc_pb2 as pb

from cluster.config import EtcdConfig
from cluster.etcd import ops
from cluster.etcd.client import EtcdClient
from cluster.etcd.keys import Keys
from cluster.ledger.outbox import EtcdOutbox
from cluster.membership.placement import shard_of
from core.delivery.attempt import AttemptDelivery, AttemptEnd
from core.delivery.fresh_meters import FreshMeters
from core.delivery.guard import DeliveryGuard
from core.delivery.observations import Mailbox
from core.delivery.origins import Origins, Received
from core.delivery.recorder import Recorder
from core.domain.delivery import Delivery
from core.domain.errors import HeadEndStale
from core.domain.message_id import message_id, new_random_part
from core.domain.vend import Vend
from core.issuing.config import DeliveryConfig
from core.metrics import SetAside, StageTimes
from core.ports.head_end import AddCredit, Answer, Capabilities, GivenUp, HeadEndEvent, MessageState, Numbered
from core.ports.ledger import StoredVend
from core.ports.outbox import DeliveryChange, Outbox
from core.ports.ownership import Ownership
from tests.fakes.clock import HandClock
from tests.fakes.etcd import FakeEtcd
from tests.support.answers import memory
from tests.support.etcd import Store
from tests.support.market_node import GAINING_ID, OPERATOR, MarketNode, as_, open_market
from tests.support.origins import at_head_end, sent
from tests.support.patience import PATIENCE_S
from tests.support.vends import HEAD_END, PSP, PSP_ID, SUPPLIER_ID

CONFIG = EtcdConfig(endpoints=("fake:1",))


def deaf_recorder(outbox: Outbox, ownership: Ownership) -> Recorder:
    """A recorder that hears no head end."""
    return Recorder(
        outbox=outbox, ownership=ownership, head_ends={}, answers=memory(), clock=HandClock(),
        origins=at_head_end(),
    )  # fmt: skip


def id_of(vend: Vend) -> str:
    """Return the message id of a vend; one that nobody was sent, if it has none yet."""
    return vend.message_id or message_id(vend.originator_id, vend.meter_id, vend.counter, new_random_part())


@dataclass
class AskedHeadEnd:
    """Answers every question with `knows`, and keeps what it was sent."""

    knows: Answer | GivenUp | MessageState = MessageState.NOT_KNOWN
    can_be_asked: bool = True
    in_flight_max: int = 10
    available: bool = True
    sent: list[AddCredit] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    utc: Callable[[], datetime] | None = None

    async def capabilities(self) -> Capabilities:
        return Capabilities(
            name="asked", dedupes_by_message_id=True, status_by_message_id=self.can_be_asked, alerts_name_counter=True,
            in_flight_max=self.in_flight_max,
        )  # fmt: skip

    async def send(self, message: AddCredit) -> None:
        if self.utc is not None and self.utc() > message.not_after:
            raise HeadEndStale("too late by this head end's clock")
        self.sent.append(message)

    async def status(self, message_id: str) -> Answer | GivenUp | MessageState:
        self.asked.append(message_id)
        return self.knows

    async def events(self) -> AsyncIterator[HeadEndEvent]:
        for event in list[HeadEndEvent]():
            yield event

    async def said(self, after: int) -> AsyncIterator[Numbered]:
        for one in list[Numbered]():
            yield one


class WatchedMailbox(Mailbox):
    """A mailbox that says when an attempt waits for news."""

    waited_for = False

    async def get(self, timeout_s: float) -> Received | None:
        self.waited_for = timeout_s > 0 and not self
        try:
            return await super().get(timeout_s)
        finally:
            self.waited_for = False


class OwedDelivery:
    """A node that has sold one code to be delivered, owns its shard, and attempts to deliver it."""

    def __init__(self, config: DeliveryConfig | None = None) -> None:
        self.config = config or DeliveryConfig(answer_wait_ms=50)
        self.head_end, self.mailbox = AskedHeadEnd(), WatchedMailbox()
        self.set_aside = SetAside()
        self.ours = True
        self.utc_ahead = timedelta()
        self.in_flight = Counter[str]()
        self.node = MarketNode(Store(cast("EtcdClient", FakeEtcd()), CONFIG), HandClock())
        self.meters = FreshMeters(self.node.registry, self.node.records)
        self.outbox = EtcdOutbox(self.node.store.client, CONFIG, self.node.clock)

    @asynccontextmanager
    async def owed(self, *, attempts: int, following: bool = True) -> AsyncIterator[StoredVend]:
        """Sell the code, and lose sight of it so many times."""
        ((self.meter_id, pan),) = await open_market(self.node)
        async with self.node.running(following=following), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self.outbox.run())
            self.stored = (await self.node.sell(PSP, pan)).stored
            self.shard = shard_of(self.meter_id, CONFIG.shards)
            claim = pb.TxnRequest(success=[ops.put(Keys(CONFIG.prefix).shard(self.shard), b"node-a")])
            self.epoch = (await self.node.store.client.txn(claim)).header.revision
            for _ in range(attempts):
                await self._write(sent(self.stored.vend.delivery, self.epoch, self.node.clock.now()))
                await self._write(self.stored.vend.delivery.mark_outcome_unknown(self.epoch))
            self.node.clock.advance(60)
            yield self.stored
            running.cancel()

    async def change_of_supplier(self) -> None:
        """Have the meter change hands at another node, and wait until this one knows."""
        other = MarketNode(self.node.store, self.node.clock)
        done = await other.meters.change_supplier(as_(OPERATOR), self.meter_id, SUPPLIER_ID, GAINING_ID, None)
        await self.node.seen(self.meter_id, done.revision)

    async def attempt(self) -> tuple[AttemptEnd | None, Delivery]:
        """Return how an attempt ended, and the delivery as the ledger has it."""
        lapse = DeliveryGuard(registry=self.meters)
        attempt = AttemptDelivery(
            outbox=self.outbox, head_ends={HEAD_END: self.head_end}, clock=self.node.clock, times=StageTimes(),
            random=random.Random(1), config=self.config, lapsed=lapse, reached_by=lapse.reached_by,
            origins=Origins.by(self.meters, self.set_aside), utc_ahead=lambda: self.utc_ahead,
            in_flight=self.in_flight,
        )  # fmt: skip
        end = await attempt(
            self.stored, shard=self.shard, epoch=self.epoch, ours=lambda: self.ours, mailbox=self.mailbox
        )
        return end, (await self.read()).vend.delivery

    async def listening(self) -> None:
        """Return when the attempt waits for news."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.mailbox.waited_for:  # noqa: ASYNC110
                await asyncio.sleep(0)

    async def read(self) -> StoredVend:
        """Return the vend as the ledger has it."""
        found = await self.node.ledger.find(PSP_ID, self.stored.vend.sale.transaction_id)
        assert isinstance(found, StoredVend)
        return found

    async def _write(self, delivery: Delivery) -> None:
        change = DeliveryChange(shard=self.shard, epoch=self.epoch, stored=self.stored, delivery=delivery)
        (written,) = await self.outbox.write([change])
        assert isinstance(written, StoredVend)
        self.stored = written
