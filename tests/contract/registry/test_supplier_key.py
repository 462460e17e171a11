"""A supplier's key that was mistyped is corrected, by two operators; its originator never changes."""

from dataclasses import replace

import pytest

from core.access.approvals import TwoPeople
from core.domain.approval import Asked
from core.domain.errors import BadField, NeedsApproval, ParticipantNotFound
from core.domain.participant import Participant, ParticipantId, SupplierKey
from core.registry.participants import ParticipantAdmin
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.market_node import OPERATOR, MarketNode, as_, open_market, put_all
from tests.support.vends import PSP_ID, SUPPLIER, SUPPLIER_ID, identity_history

SECOND = replace(
    OPERATOR, participant_id=ParticipantId("operator-two"), identity_history=identity_history("Two", "operator-two")
)


@pytest.fixture
def node(store: Store) -> MarketNode:
    return MarketNode(store, HandClock())


def _right(key_id: str = "0b") -> SupplierKey:
    assert SUPPLIER.supplier_key is not None
    return replace(SUPPLIER.supplier_key, key_id=key_id)


async def _key(node: MarketNode) -> SupplierKey | None:
    known = await node.records.read(Participant, SUPPLIER_ID)
    assert known is not None
    return known.record.supplier_key


async def test_a_mistyped_key_is_corrected_and_the_originator_never_changes(node: MarketNode) -> None:
    await open_market(node)
    done = await node.parties.set_supplier_key(as_(OPERATOR), SUPPLIER_ID, _right())
    assert done.changed
    assert await _key(node) == _right()
    with pytest.raises(BadField, match="can never change"):
        await node.parties.set_supplier_key(
            as_(OPERATOR), SUPPLIER_ID, replace(_right(), originator_id="90b3d51f300100ff")
        )
    with pytest.raises(ParticipantNotFound):
        await node.parties.set_supplier_key(as_(OPERATOR), PSP_ID, _right())


async def test_one_operator_alone_only_asks_for_it(node: MarketNode) -> None:
    await open_market(node)
    await put_all(node, [SECOND])
    two = TwoPeople(store=node.records, clock=node.clock, wait_ms=0)
    parties = ParticipantAdmin(store=node.records, clock=node.clock, consents=two)
    asked = Asked(method="SetSupplierKey", request=b"x", subject="")
    before = await _key(node)
    with pytest.raises(NeedsApproval):
        await parties.set_supplier_key(as_(OPERATOR), SUPPLIER_ID, _right(), asked=asked)
    assert await _key(node) == before
