"""A final refusal is final at every node: nothing that was under way when it was given is sold afterwards."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import cast

import pytest

from cluster.audit.change_feed import RefusalSeen, event_of
from cluster.audit.ledger_scan import all_vends
from cluster.config import EtcdConfig
from cluster.etcd import preconditions
from cluster.etcd.client import EtcdClient, EtcdUnknown, EtcdUnreachable
from cluster.etcd.keys import Keys
from core.domain.effective_dated import ms_of
from core.domain.errors import (
    FENCED,
    IF_FIRST,
    LedgerUnavailable,
    NotReady,
    OutcomeUnknown,
    Overloaded,
    PanBlocked,
    PanNotFound,
    Refused,
    TransactionIdReused,
    TransactionIdTooOld,
    UtrnError,
    VendNotFound,
)
from core.domain.meter import MeterId, Pan, PanForm, PanRecord
from core.domain.money import Pence
from core.domain.participant import Principal
from core.domain.record import Kind, Ref
from core.domain.refusal import ClosedRefusal, closed
from core.domain.transaction_id import TransactionId
from core.domain.vend import Channel, Operation, Sale
from core.issuing.recent_vends import Issued
from core.issuing.refuse_sale import closing_quota
from core.ports.ledger import Closed, CounterState, Entry, StoredVend
from core.ports.registry import RegistryWrite
from tests.fakes.clock import HandClock
from tests.fakes.etcd import FakeEtcd
from tests.support.etcd import Store
from tests.support.held import HeldClient
from tests.support.market_node import MarketNode, as_, open_market
from tests.support.patience import PATIENCE_S
from tests.support.vends import PSP, PSP_ID, SUPPLIER, card, new_id, new_meter_id, vend

FAKE_CONFIG = EtcdConfig(endpoints=("fake:1",))


@dataclass
class Two:
    """Two nodes over one ledger. What node `a` writes can be held on its way."""

    a: MarketNode
    b: MarketNode
    way: HeldClient
    meter_id: MeterId
    pan: Pan

    def sale(self, transaction_id: TransactionId | None = None, *, pan: Pan | None = None, pence: int = 1000) -> Sale:
        return Sale(
            participant_id=PSP_ID, transaction_id=transaction_id or new_id(), operation=Operation.TOP_UP,
            pan=pan or self.pan, amount=Pence(pence), channel=Channel.APP,
        )  # fmt: skip

    async def block(self) -> None:
        """Block the card, and return when both nodes know."""
        known = await self.b.records.read(PanRecord, self.pan)
        assert known is not None
        blocked = card(self.pan, self.meter_id, blocked=True)
        write = RegistryWrite(expect=[(Ref(Kind.PAN, self.pan), known.revision)], put=[blocked])
        assert await self.b.records.write(write) is not None
        async with asyncio.timeout(PATIENCE_S):
            for node in (self.a, self.b):
                while (held := node.registry.card(self.pan)) is None or held.record != blocked:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)

    async def outcome(self, node: MarketNode, sale: Sale, *, repeat: bool) -> Issued | UtrnError:
        try:
            return await node.issue(Principal(PSP), sale, time_left_s=None, repeat=repeat)
        except UtrnError as error:
            return error


@asynccontextmanager
async def two_nodes(store: Store) -> AsyncIterator[Two]:
    way = HeldClient(store.client)
    a, b = MarketNode(Store(way.as_client, store.config), HandClock()), MarketNode(store, HandClock())
    ((meter_id, pan),) = await open_market(b)
    async with AsyncExitStack() as stack:
        for node in (a, b):
            await stack.enter_async_context(node.running())
        yield Two(a, b, way, meter_id, pan)


async def _refused_while_a_commit_is_under_way(two: Two, *, repeat: bool) -> tuple[Sale, Refused, Issued | UtrnError]:
    """Node a's commit is on its way when node b refuses; return the refusal, and what then came of the commit."""
    sale = two.sale()
    two.way.hold()
    asking = asyncio.ensure_future(two.outcome(two.a, sale, repeat=False))  # noqa: TID251  # awaited below
    await two.way.waiting.wait()
    await two.block()
    refused = await two.outcome(two.b, sale, repeat=repeat)
    assert isinstance(refused, Refused)
    two.way.release()
    return sale, refused, await asking


@pytest.fixture
def free_of_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that was authorized by other records than the refusal: of those it compares, none has moved."""
    monkeypatch.setattr(preconditions, "authorizing_record_unmoved", lambda key, revision: [])


@pytest.mark.usefixtures("free_of_the_card")
async def test_a_refused_repeat_is_not_overtaken_by_a_commit_under_way(store: Store) -> None:
    async with two_nodes(store) as two:
        sale, refused, came = await _refused_while_a_commit_is_under_way(two, repeat=True)
        assert (type(refused), refused.final) == (PanBlocked, FENCED)
        assert isinstance(came, PanBlocked)
        assert came.final == FENCED
        assert (came.message, dict(came.facts)) == (refused.message, dict(refused.facts))
        assert isinstance(await two.b.ledger.find(PSP_ID, sale.transaction_id), ClosedRefusal)


@pytest.mark.usefixtures("free_of_the_card")
async def test_without_the_fence_what_was_refused_is_sold(store: Store) -> None:
    async with two_nodes(store) as two:
        _, refused, came = await _refused_while_a_commit_is_under_way(two, repeat=False)
        assert (type(refused), refused.final) == (PanBlocked, IF_FIRST)
        assert isinstance(came, Issued), "the control: only what is said of a first attempt keeps this from mattering"


@pytest.mark.usefixtures("free_of_the_card")
async def test_without_the_vend_absent_compare_the_fence_holds_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preconditions, "vend_absent", lambda key: [])
    async with two_nodes(store) as two:
        _, refused, came = await _refused_while_a_commit_is_under_way(two, repeat=True)
        assert refused.final == FENCED
        assert isinstance(came, Issued)


async def test_what_is_closed_is_refused_for_ever_at_every_node(store: Store) -> None:
    async with two_nodes(store) as two:
        sale = replace(two.sale(), pan=Pan("9826999999999999998"))
        first = await two.outcome(two.a, sale, repeat=True)
        assert isinstance(first, PanNotFound)
        # The reason is gone: the very same request would be allowed now, and is not.
        now_right = replace(sale, pan=two.pan)
        other = MarketNode(store, HandClock())
        async with other.running():
            for node in (two.a, two.b, other):
                for repeat in (False, True):
                    again = await two.outcome(node, now_right, repeat=repeat)
                    assert isinstance(again, PanNotFound)
                    assert (again.final, again.message) == (FENCED, first.message)
        assert [
            stored async for stored in all_vends(store.client, store.config) if stored.vend.meter_id == two.meter_id
        ] == []


async def test_a_refused_repeat_of_a_committed_sale_gets_its_code(store: Store) -> None:
    async with two_nodes(store) as two:
        sale = two.sale()
        sold = await two.outcome(two.a, sale, repeat=False)
        assert isinstance(sold, Issued)
        await two.block()
        again = await two.outcome(two.b, sale, repeat=True)
        assert isinstance(again, Issued)
        assert (again.stored.vend.utrn, again.replayed) == (sold.stored.vend.utrn, True)


async def test_a_repeat_waits_for_the_nodes_own_commit_under_way(store: Store) -> None:
    async with two_nodes(store) as two:
        # So that the next sale asks the ledger for nothing but its commit.
        assert isinstance(await two.outcome(two.a, two.sale(), repeat=False), Issued)
        sale = two.sale()
        two.way.hold()
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(two.outcome(two.a, sale, repeat=False))
            await two.way.waiting.wait()
            barred = tasks.create_task(two.a.issue.refused(sale, PanBlocked("blocked since"), repeat=True))
            await asyncio.sleep(0)
            two.way.release()
        came = first.result()
        assert isinstance(came, Issued)
        assert barred.result().stored == came.stored


async def test_a_first_attempt_that_is_refused_writes_nothing(store: Store) -> None:
    async with two_nodes(store) as two:
        sale = two.sale(pan=Pan("9826999999999999997"))
        refused = await two.outcome(two.b, sale, repeat=False)
        assert isinstance(refused, PanNotFound)
        assert await two.b.ledger.find(PSP_ID, sale.transaction_id) is None


async def test_the_first_refusal_stays(store: Store) -> None:
    ledger = MarketNode(store, HandClock()).ledger
    transaction_id, now = new_id(), ms_of(HandClock().now())
    one = closed(PanBlocked("blocked"), PSP_ID, transaction_id, at=now, node_id="a")
    other = closed(PanNotFound("unknown"), PSP_ID, transaction_id, at=now, node_id="b")
    assert await ledger.close_refused(one) == one
    assert await ledger.close_refused(other) == one
    (outcome,) = await ledger.commit(
        [Entry(vend=vend(1, new_meter_id(), transaction_id=transaction_id), seen=CounterState())]
    )
    assert outcome == Closed(refusal=one)


async def test_a_committed_vend_is_not_closed(store: Store) -> None:
    ledger = MarketNode(store, HandClock()).ledger
    sold = vend(1, new_meter_id())
    await ledger.commit([Entry(vend=sold, seen=CounterState())])
    refusal = closed(PanBlocked("x"), PSP_ID, sold.sale.transaction_id, at=ms_of(HandClock().now()), node_id="a")
    found = await ledger.close_refused(refusal)
    assert isinstance(found, StoredVend)
    assert found.vend == sold


@dataclass
class _Trouble:
    """Raises on the next transactions of a fake etcd."""

    error: Exception
    left: int = 1_000_000

    def __call__(self) -> None:
        self.left -= 1
        if self.left >= 0:
            raise self.error


# What the ledger itself says of the PAN, and of its caller, is read before the sale is refused.
READS = 1


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_fence_whose_outcome_is_unknown_refuses_nothing(when: str) -> None:
    etcd = FakeEtcd()
    store = Store(cast("EtcdClient", etcd), replace(FAKE_CONFIG, resolve_timeout_ms=100))
    async with two_nodes(store) as two:
        sale = two.sale(pan=Pan("9826999999999999996"))
        clock = two.b.clock

        told = itertools.count()

        def lost() -> None:
            if next(told) < READS:
                return
            clock.advance(1)
            raise EtcdUnknown("nothing comes back")

        setattr(etcd, f"{when}_txn", lost)
        assert isinstance(await two.outcome(two.b, sale, repeat=True), OutcomeUnknown)
        setattr(etcd, f"{when}_txn", lambda: None)
        again = await two.outcome(two.b, sale, repeat=True)
        assert isinstance(again, PanNotFound)
        assert again.final == FENCED


async def test_a_fence_that_cannot_be_written_refuses_nothing() -> None:
    etcd = FakeEtcd()
    store = Store(cast("EtcdClient", etcd), replace(FAKE_CONFIG, resolve_timeout_ms=100))
    async with two_nodes(store) as two:
        sale = two.sale(pan=Pan("9826999999999999995"))
        etcd.before_txn = _Trouble(EtcdUnreachable("nobody there"))
        assert isinstance(await two.outcome(two.b, sale, repeat=True), LedgerUnavailable)


async def test_an_id_older_than_the_window_is_never_closed(store: Store) -> None:
    """It may have been sold, and be in the archive by now."""
    async with two_nodes(store) as two:
        old = new_id(two.b.clock.now() - timedelta(days=31))
        refused = await two.outcome(two.b, two.sale(old), repeat=True)
        assert isinstance(refused, TransactionIdTooOld)
        assert not refused.final
        assert await two.b.ledger.find(PSP_ID, old) is None
        barred = replace(two.sale(old), pan=Pan("9826999999999999994"))
        with pytest.raises(TransactionIdTooOld):
            await two.b.issue.refused(barred, PanBlocked("whatever the reason"), repeat=True)


async def test_other_content_under_a_committed_id_closes_nothing(store: Store) -> None:
    async with two_nodes(store) as two:
        sale = two.sale()
        assert isinstance(await two.outcome(two.a, sale, repeat=False), Issued)
        other = await two.outcome(two.b, replace(sale, amount=Pence(2000)), repeat=True)
        assert isinstance(other, TransactionIdReused)
        assert not other.final


async def test_a_caller_closes_so_many_ids_and_no_more(store: Store) -> None:
    async with two_nodes(store) as two:
        quota = closing_quota(two.b.clock, burst=3, per_minute=60)
        issue = replace(two.b.issue, refuse=replace(two.b.issue.refuse, quota=quota))
        unknown = Pan("9826999999999999993")
        closed_ids: list[Sale] = []

        async def ask(sale: Sale) -> UtrnError:
            with pytest.raises(UtrnError) as refused:
                await issue(Principal(PSP), sale, time_left_s=None, repeat=True)
            return refused.value

        for _ in range(3):
            closed_ids.append(two.sale(pan=unknown))
            assert isinstance(await ask(closed_ids[-1]), PanNotFound)
        more = two.sale(pan=unknown)
        assert isinstance(await ask(more), Overloaded)
        assert await two.b.ledger.find(PSP_ID, more.transaction_id) is None
        # What is closed already is answered all the same, and takes nothing.
        assert all([isinstance(await ask(id_), PanNotFound) for id_ in closed_ids * 3])
        two.b.clock.advance(1)
        assert isinstance(await ask(more), PanNotFound)
        assert isinstance(await ask(two.sale(pan=unknown)), Overloaded)


def test_what_a_refusal_keeps_is_bounded() -> None:
    facts = {f"fact_{number:02d}_{'n' * 200}": "v" * 1000 for number in range(50)}
    kept = closed(PanBlocked("m" * 10_000, **facts), PSP_ID, new_id(), at=ms_of(HandClock().now()), node_id="a")
    assert len(kept.message) <= 400
    assert len(kept.facts) <= 8
    assert all(len(name) <= 40 and len(value) <= 100 for name, value in kept.facts.items())


def test_a_reason_of_a_newer_version_is_not_guessed_at() -> None:
    kept = replace(
        closed(PanBlocked("x"), PSP_ID, new_id(), at=ms_of(HandClock().now()), node_id="a"), reason="OF_TOMORROW"
    )
    assert isinstance(kept.error(), NotReady)


async def test_the_history_tells_of_a_closed_id() -> None:
    etcd = FakeEtcd()
    store = Store(cast("EtcdClient", etcd), FAKE_CONFIG)
    node = MarketNode(store, HandClock())
    refusal = closed(PanBlocked("x", a="b"), PSP_ID, new_id(), at=ms_of(node.clock.now()), node_id="a")
    await node.ledger.close_refused(refusal)
    told = event_of(Keys(store.config.prefix), etcd.history[-1])
    assert told is not None
    assert told.change == RefusalSeen(refusal, created=True, key=(PSP_ID, refusal.transaction_id))
    assert [stored async for stored in all_vends(store.client, store.config)] == []


async def test_a_look_up_says_that_an_id_is_closed(store: Store) -> None:
    async with two_nodes(store) as two:
        sale = two.sale(pan=Pan("9826999999999999992"))
        with pytest.raises(VendNotFound) as unknown:
            await two.b.find(as_(PSP), PSP_ID, sale.transaction_id)
        assert not unknown.value.final, "a commit may be under way"
        await two.outcome(two.b, sale, repeat=True)
        for asked in (
            two.b.find(as_(PSP), PSP_ID, sale.transaction_id),
            two.b.send(as_(PSP), PSP_ID, sale.transaction_id),
        ):
            with pytest.raises(PanNotFound) as closed_:
                await asked
            assert closed_.value.final == FENCED
        with pytest.raises(Refused) as not_theirs:
            await two.b.find(as_(SUPPLIER), PSP_ID, sale.transaction_id)
        assert not_theirs.value.reason == "NOT_APPOINTED"


async def test_what_a_copy_refuses_is_asked_of_the_ledger_before_it_is_final(store: Store) -> None:
    """A watch that has lost an event: the PAN is registered, and another node has sold to it."""
    clock = HandClock()
    behind, right = MarketNode(store, clock), MarketNode(store, clock)
    ((meter_id, _),) = await open_market(right)
    async with behind.running(following=False), right.running():
        pan = Pan("9826099999999999990")
        done = await right.pans.give(as_(SUPPLIER), pan, PanForm.PLASTIC, meter_id, None)
        async with asyncio.timeout(PATIENCE_S):
            while (known := right.registry.card(pan)) is None or known.revision < done.revision:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        clock.advance(1)
        assert behind.registry.card(pan) is None
        assert (await behind.sell(PSP, pan)).stored.vend.meter_id == meter_id
