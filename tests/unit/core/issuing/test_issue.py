"""The way in: deadlines, and refusals that must not hide an earlier answer."""

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, cast

import pytest

from cluster.config import EtcdConfig
from cluster.etcd.client import EtcdClient
from cluster.ledger.ceilings import EtcdCeilings
from cluster.ledger.vends import EtcdLedger
from core.domain.errors import DeadlineTooShort, HsmUnavailable, PanBlocked, TransactionIdReused, UtrnError
from core.domain.meter import MeterId, Pan
from core.domain.money import Pence
from core.domain.participant import Principal
from core.domain.vend import Channel, Operation, Sale
from core.issuing.ceilings import Ceilings
from core.issuing.config import FlowConfig
from core.issuing.issue import IssueVend
from core.issuing.recent_vends import Issued
from tests.support.answers import memory
from tests.support.market import MemoryRegistry, authorize, refusing
from tests.support.vends import PSP, PSP_ID, card, market, meter, new_id, new_meter_id
from tests.unit.core.issuing.test_group_commit import Line

PAN = Pan("9" * 19)


def one_meter() -> MemoryRegistry:
    only = meter(new_meter_id())
    return market(only, pans={PAN: only.meter_id})


def _issue(line: Line, registry: MemoryRegistry) -> IssueVend:
    config = EtcdConfig(endpoints=("fake:1",))
    return IssueVend(
        authorize=authorize(registry, line.clock),
        answers=line.answers,
        line=line.line,
        clock=line.clock,
        config=FlowConfig(),
        refuse=refusing(EtcdLedger(cast("EtcdClient", line.etcd), config, line.clock), line.answers, line.clock),
        ceilings=Ceilings(
            EtcdCeilings(cast("EtcdClient", line.etcd), config, line.clock, default_pence=10_000_000), line.clock
        ),
    )


def _sale() -> Sale:
    return Sale(
        participant_id=PSP_ID,
        transaction_id=new_id(),
        operation=Operation.ISSUE,
        pan=PAN,
        amount=Pence(500),
        channel=Channel.APP,
    )


async def test_a_deadline_too_short_does_nothing() -> None:
    line = Line()
    with pytest.raises(DeadlineTooShort):
        await _issue(line, one_meter())(Principal(PSP), _sale(), time_left_s=0.019)
    await line.line.drain()
    assert line.etcd.keys == {}


async def test_a_card_blocked_after_the_sale_still_gets_the_answer_of_the_sale() -> None:
    line, registry, sale = Line(), one_meter(), _sale()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(line.line.run())
        issue = _issue(line, registry)
        first = await issue(Principal(PSP), sale, time_left_s=None)
        (only,) = registry.meters
        registry.cards[PAN] = card(PAN, MeterId(only), blocked=True)
        # Another node, which remembers nothing.
        elsewhere = replace(issue, answers=memory())
        again = await elsewhere(Principal(PSP), sale, time_left_s=None)
        with pytest.raises(PanBlocked):
            await elsewhere(Principal(PSP), _sale(), time_left_s=None)
        running.cancel()
    assert (again.stored, again.replayed) == (first.stored, True)


@pytest.mark.parametrize("first_fails", [True, False])
async def test_other_content_under_an_id_in_flight_is_judged_by_what_becomes_of_the_first(*, first_fails: bool) -> None:
    line, registry, sale = Line(), one_meter(), _sale()
    other = replace(sale, amount=Pence(600))
    issue = _issue(line, registry)
    if first_fails:
        line.signer.broken = HsmUnavailable("no HSM")
    async with asyncio.TaskGroup() as tasks:
        asking = tasks.create_task(_outcome(issue(Principal(PSP), sale, time_left_s=None)))
        await asyncio.sleep(0)
        asking_other = tasks.create_task(_outcome(issue(Principal(PSP), other, time_left_s=None)))
        await asyncio.sleep(0)
        running = tasks.create_task(line.line.run())
        first = await asking
        line.signer.broken = None
        second = await asking_other
        running.cancel()
    if first_fails:
        assert (type(first), second) == (HsmUnavailable, Pence(600))
    else:
        assert (first, type(second)) == (Pence(500), TransactionIdReused)


async def _outcome(asked: Coroutine[Any, Any, Issued]) -> Pence | UtrnError:
    try:
        return (await asked).stored.vend.sale.amount
    except UtrnError as error:
        return error
