"""Revoked certificates of a participant: kept for good, by whoever may, and never all of the last operator's."""

from datetime import timedelta

import pytest

from core.access.approvals import TwoPeople
from core.domain.effective_dated import Ms, ms_of
from core.domain.errors import BadField, LastOperator
from core.domain.participant import REVOKED_MAX, Participant, Revocations
from core.registry.participants import ParticipantAdmin
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.market_node import OPERATOR, MarketNode, as_, open_market
from tests.support.vends import PSP, PSP_ID

ONE, OTHER = "1" * 64, "2" * 64


@pytest.fixture
def node(store: Store) -> MarketNode:
    return MarketNode(store, HandClock())


async def _psp(node: MarketNode) -> Participant:
    known = await node.records.read(Participant, PSP_ID)
    assert known is not None
    return known.record


async def test_what_is_revoked_stays_so_whatever_comes_after(node: MarketNode) -> None:
    await open_market(node)
    now = ms_of(node.clock.now())
    await node.parties.revoke(as_(OPERATOR), PSP_ID, Revocations(fingerprints=(ONE,), issued_before=now))
    await node.parties.revoke(as_(OPERATOR), PSP_ID, Revocations(fingerprints=(OTHER,), issued_before=Ms(now - 9)))
    await node.parties.set_identities(as_(OPERATOR), PSP_ID, "Renamed", PSP.identities)
    revoked = (await _psp(node)).revoked
    assert revoked == Revocations(fingerprints=(ONE, OTHER), issued_before=now)
    assert revoked.covers(ONE, node.clock.now())
    assert revoked.covers("3" * 64, node.clock.now() - timedelta(milliseconds=1))
    assert not revoked.covers("3" * 64, node.clock.now())
    # Said again, nothing is written.
    again = await node.parties.revoke(as_(OPERATOR), PSP_ID, Revocations(fingerprints=(ONE,)))
    assert not again.changed


async def test_a_participant_keeps_so_many_fingerprints_and_is_told_what_to_do(node: MarketNode) -> None:
    await open_market(node)
    many = tuple(f"{number:064x}" for number in range(REVOKED_MAX))
    await node.parties.revoke(as_(OPERATOR), PSP_ID, Revocations(fingerprints=many))
    with pytest.raises(BadField, match="issued before an instant"):
        await node.parties.revoke(as_(OPERATOR), PSP_ID, Revocations(fingerprints=(ONE,)))
    await node.parties.revoke(as_(OPERATOR), PSP_ID, Revocations(issued_before=ms_of(node.clock.now())))


async def test_the_last_operators_certificates_are_not_revoked(node: MarketNode) -> None:
    await open_market(node)
    alone = TwoPeople(store=node.records, clock=node.clock, wait_ms=0)
    parties = ParticipantAdmin(store=node.records, clock=node.clock, consents=alone)
    with pytest.raises(LastOperator):
        await parties.revoke(as_(OPERATOR), OPERATOR.participant_id, Revocations(fingerprints=(ONE,)))
