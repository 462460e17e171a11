"""Ceilings where answers are lost: what may have been sold, or given back, is never sold a second time."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest
from utrn.store.v1 import records_pb2 as store

from cluster.codec.vend import SCHEMA
from cluster.config import EtcdConfig
from cluster.etcd.client import EtcdClient, EtcdUnknown
from cluster.etcd.keys import Keys
from cluster.ledger.ceilings import EtcdCeilings
from cluster.ledger.vends import EtcdLedger
from core.domain.ceiling import hour_of
from core.domain.effective_dated import ms_of
from core.domain.errors import OutcomeUnknown
from core.ports.ledger import CommitOutcome, Committed, Entry, Present
from tests.fakes.clock import HandClock
from tests.fakes.etcd import FakeEtcd
from tests.support.etcd import Store
from tests.support.market_node import MarketNode, open_market
from tests.support.origins import sent
from tests.support.vends import PSP, PSP_ID

CEILING, OTHERS = 100_000, 700


def _drawn(etcd: FakeEtcd, key: bytes) -> int:
    return store.CeilingRecord.FromString(etcd.keys[key].value).drawn_pence


async def test_what_may_have_been_given_back_is_not_given_back_again() -> None:
    """The answer is lost, and another node draws before the write is sent again."""
    etcd, config, clock = FakeEtcd(), EtcdConfig(endpoints=("fake:1",)), HandClock()
    ceilings = EtcdCeilings(cast("EtcdClient", etcd), config, clock, default_pence=CEILING)
    hour, key = hour_of(ms_of(clock.now())), Keys(config.prefix).ceiling(PSP_ID)
    held = (await ceilings.draw(PSP_ID, hour, held=0, wanted=100)).pence

    def another_draws() -> None:
        if _drawn(etcd, key) == 0:
            record = store.CeilingRecord(schema=SCHEMA, hour=hour, drawn_pence=OTHERS, node_id="another", draw=1)
            etcd.put(key, record.SerializeToString())
            raise EtcdUnknown("the answer was lost")

    etcd.after_txn = another_draws
    with pytest.raises(OutcomeUnknown):
        await ceilings.draw(PSP_ID, hour, held=held, wanted=0)
    assert _drawn(etcd, key) == OTHERS, "what the other node holds is still counted"


async def test_a_sale_whose_delivery_moved_before_its_answer_came_stays_charged(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger's answer is lost; sent again, the vend is found there, and no longer as it was written."""
    commit = EtcdLedger.commit

    async def answer_lost(ledger: EtcdLedger, entries: Sequence[Entry]) -> list[CommitOutcome]:
        return [_found_moved(outcome) for outcome in await commit(ledger, entries)]

    monkeypatch.setattr(EtcdLedger, "commit", answer_lost)
    node = MarketNode(store, HandClock(), ceiling_pence=CEILING)
    ((_, pan),) = await open_market(node, meters=1)
    async with node.running():
        sold = await node.sell(PSP, pan, 500)
    assert not sold.replayed, "nobody was answered before"
    assert node.ceilings.sold[PSP_ID] == 500


def _found_moved(outcome: CommitOutcome) -> CommitOutcome:
    assert isinstance(outcome, Committed)
    vend = outcome.stored.vend
    return Present(stored=replace(outcome.stored, vend=vend.with_delivery(sent(vend.delivery, 1))))
