"""Reconciliation of PANs, meters and suppliers: every error that is seeded is found, and nothing else is."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from core.domain.errors import BadField, NotYours, RoleNotAllowed
from core.domain.meter import MeterId, Pan, PanForm, PanStatus, PaymentMode
from core.domain.participant import Participant, ParticipantId
from core.registry import reconcile
from core.registry.meters import new_meter
from core.registry.reconcile import Claim, Finding, FindingKind
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.market_node import GAINING, GAINING_ID, OPERATOR, MarketNode, as_, open_market, put_all
from tests.support.vends import PSP, SUPPLIER, SUPPLIER_ID, always, card, meter, new_meter_id

K = FindingKind
Found = set[tuple[FindingKind, Pan | None, MeterId | None]]


async def _lists(*parts: Sequence[Claim]) -> AsyncIterator[Sequence[Claim]]:
    for part in parts:
        yield part


async def _found(node: MarketNode, who: Participant, supplier_id: str | None, *lists: Sequence[Claim]) -> list[Finding]:
    whose = None if supplier_id is None else ParticipantId(supplier_id)
    async with node.running():
        return [one async for part in node.reconcile(as_(who), whose, _lists(*lists)) for one in part.found]


def _keys(found: Sequence[Finding]) -> Found:
    assert len({(finding.kind, finding.pan, finding.meter_id) for finding in found}) == len(found), (
        "nothing is told twice"
    )
    return {(finding.kind, finding.pan, finding.meter_id) for finding in found}


async def test_where_everything_fits_nothing_is_found(store: Store) -> None:
    node = MarketNode(store, HandClock())
    made = await open_market(node, 3)
    claims = [Claim(pan=pan, meter_id=meter_id) for meter_id, pan in made]
    assert await _found(node, OPERATOR, None) == []
    assert await _found(node, SUPPLIER, SUPPLIER_ID, claims) == []


async def test_every_seeded_error_is_found_and_only_for_whom_it_concerns(store: Store) -> None:
    node = MarketNode(store, HandClock())
    (gone, old), (moved, mine), (double, first) = await open_market(node, 3)
    bare, quiet = meter(new_meter_id()), meter(new_meter_id())
    in_credit = replace(quiet.settings.periods[0].value, payment_mode=PaymentMode.CREDIT)
    lost, second, app = (Pan(f"98268{number:014d}") for number in range(3))
    await put_all(
        node,
        [
            new_meter(bare, SUPPLIER, bare.effective_through),
            new_meter(replace(quiet, settings=always(in_credit)), SUPPLIER, quiet.effective_through),
            card(lost, MeterId("00db990000000001")),
            card(second, double),
            replace(card(app, double), form=PanForm.APP),
        ],
    )
    await node.meters.end(as_(SUPPLIER), gone, None)
    await node.meters.change_supplier(as_(OPERATOR), moved, SUPPLIER_ID, GAINING_ID, None)
    own: Found = {
        (K.WITHOUT_METER, old, gone),
        (K.WITHOUT_METER, lost, MeterId("00db990000000001")),
        (K.OF_EARLIER_SUPPLIER, mine, moved),
        (K.METER_WITHOUT_PAN, None, bare.meter_id),
    }
    told = _keys(await _found(node, SUPPLIER, SUPPLIER_ID))
    several = {key for key in told if key[0] is K.SEVERAL_CARDS}
    assert told - several == own
    assert several <= {(K.SEVERAL_CARDS, first, double), (K.SEVERAL_CARDS, second, double)}
    assert len(several) == 1, "one of the two is one too many; the one in an app is not"
    assert _keys(await _found(node, GAINING, GAINING_ID)) == {(K.METER_WITHOUT_PAN, None, moved)}
    everybody = _keys(await _found(node, OPERATOR, None))
    assert everybody == told | {(K.METER_WITHOUT_PAN, None, moved)}


async def test_an_earlier_tenants_card_is_named(store: Store) -> None:
    node = MarketNode(store, HandClock())
    ((meter_id, pan),) = await open_market(node)
    await node.meters.change_tenant(as_(SUPPLIER), meter_id, None, 1)
    assert _keys(await _found(node, SUPPLIER, SUPPLIER_ID)) == {
        (K.OF_EARLIER_TENANT, pan, meter_id),
        (K.METER_WITHOUT_PAN, None, meter_id),
    }


async def test_a_list_that_says_otherwise(store: Store) -> None:
    node = MarketNode(store, HandClock())
    (one, good), (two, blocked), (three, untold) = await open_market(node, 3)
    await node.pans.block(as_(SUPPLIER), blocked, blocked=True)
    unknown = Pan("9826777777777777777")
    claims = [
        Claim(pan=good, meter_id=two),
        Claim(pan=blocked, meter_id=two),
        Claim(pan=unknown, meter_id=one),
    ]
    assert _keys(await _found(node, SUPPLIER, SUPPLIER_ID, claims[:1], claims[1:])) == {
        (K.STANDS_FOR_ANOTHER, good, two),
        (K.NOT_USABLE, blocked, two),
        (K.NOT_REGISTERED, unknown, one),
        (K.NOT_TOLD, untold, three),
        (K.METER_WITHOUT_PAN, None, two),
    }
    known = node.registry.card(blocked)
    assert known is not None
    assert known.record.uses.periods[-1].value.status is PanStatus.BLOCKED, "nothing was changed"


async def test_nobody_reconciles_what_is_anothers(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    node = MarketNode(store, HandClock())
    ((meter_id, pan),) = await open_market(node)
    for who, supplier_id in ((GAINING, SUPPLIER_ID), (SUPPLIER, None)):
        with pytest.raises(NotYours):
            await _refused(node, who, supplier_id)
    with pytest.raises(RoleNotAllowed):
        await _refused(node, PSP, None)
    monkeypatch.setattr(reconcile, "_CLAIMS_MAX", 1)
    claim = Claim(pan=pan, meter_id=meter_id)
    with pytest.raises(BadField):
        await _refused(node, SUPPLIER, SUPPLIER_ID, [claim], [claim])


async def _refused(node: MarketNode, who: Participant, supplier_id: str | None, *lists: Sequence[Claim]) -> None:
    whose = None if supplier_id is None else ParticipantId(supplier_id)
    async for _ in node.reconcile(as_(who), whose, _lists(*lists)):
        pass
