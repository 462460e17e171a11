"""Who is suspended, has left, or asks for what cannot be still learns what became of its sales. By the services."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from google.rpc import error_details_pb2
from utrn.v1 import credit_service_pb2 as credit_pb
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import types_pb2

from core.api.server import CallersServices
from core.api.status import Context, status_of
from core.domain.errors import UtrnError
from core.domain.meter import MeterId, Pan, PanRule
from core.domain.participant import CreditRule, Participant, ParticipantStatus, Profile
from core.domain.refusal import ClosedRefusal
from core.domain.utrn import Utrn
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.market_node import GAINING, OPERATOR, MarketNode, as_, open_market
from tests.support.servicers import Caller, calling, servicers
from tests.support.vends import PSP, PSP_ID, SUPPLIER, SUPPLIER_ID, identity_history, new_id, utrn

_PENCE, _APP, _GOODWILL = 1000, types_pb2.CHANNEL_APP, credit_pb.CREDIT_REASON_GOODWILL


@dataclass
class Shop:
    """A node's services, and one meter with its card."""

    node: MarketNode
    services: CallersServices
    meter_id: MeterId
    pan: Pan

    def top_up(self, transaction_id: str, **fields: Any) -> pb.TopUpRequest:
        asked: dict[str, Any] = {"pan": self.pan, "amount_pence": _PENCE, "channel": _APP, **fields}
        return pb.TopUpRequest(transaction_id=transaction_id, **asked)

    async def sold(self, transaction_id: str) -> str:
        """Sell as the PSP; return the code."""
        reply = await self.services.top_up.TopUp(self.top_up(transaction_id), calling(PSP))
        return reply.code.utrn

    async def bar(self, status: ParticipantStatus, who: Participant = PSP) -> None:
        await self.node.parties.set_status(as_(OPERATOR), who.participant_id, status)
        await self.until(lambda known: known.status is status, who)

    async def until(self, holds: Callable[[Participant], bool], who: Participant = PSP) -> None:
        """Return when the node's copy knows it."""
        found = self.node.registry.participant(who.participant_id)
        while found is None or not holds(found.record):
            await self.node.records.read(Participant, who.participant_id)
            found = self.node.registry.participant(who.participant_id)

    async def closed(self, transaction_id: str) -> bool:
        found = await self.node.ledger.find(PSP_ID, transaction_id)  # type: ignore[arg-type]
        return isinstance(found, ClosedRefusal)


async def refusal(asked: Awaitable[object]) -> tuple[str, str]:
    """Return the reason of a refusal, and what the caller is told that it proves: "" for nothing."""
    with pytest.raises(UtrnError) as refused:
        await asked
    (packed,) = [
        detail for detail in status_of(refused.value).details if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR)
    ]
    info = error_details_pb2.ErrorInfo()
    packed.Unpack(info)
    return info.reason, info.metadata.get("final", "")


@asynccontextmanager
async def a_shop(store: Store) -> AsyncIterator[Shop]:
    node = MarketNode(store, HandClock())
    ((meter_id, pan),) = await open_market(node)
    async with node.running():
        yield Shop(node, servicers(node), meter_id, pan)


@pytest.mark.parametrize(
    ("status", "reason"),
    [(ParticipantStatus.SUSPENDED, "CALLER_SUSPENDED"), (ParticipantStatus.LEFT, "UNKNOWN_CALLER")],
)
async def test_a_barred_seller_learns_what_became_of_its_sales(
    store: Store, status: ParticipantStatus, reason: str
) -> None:
    async with a_shop(store) as shop:
        sold, unsold, first = new_id(), new_id(), new_id()
        code = await shop.sold(sold)
        await shop.bar(status)
        top_up, who = shop.services.top_up, calling(PSP)
        for repeat in (True, False):
            again = await top_up.TopUp(shop.top_up(sold, repeat=repeat), who)
            assert (again.code.utrn, again.replayed) == (code, True)
        looked_up = await top_up.GetVend(pb.GetVendRequest(transaction_id=sold), who)
        assert looked_up.vend.code.utrn == code
        delivery = await top_up.DeliverVend(pb.DeliverVendRequest(transaction_id=sold, repeat=True), who)
        assert delivery.replayed
        # What was never sold: a first attempt proves nothing, a repeat closes the id.
        assert await refusal(top_up.TopUp(shop.top_up(first), who)) == (reason, "")
        assert not await shop.closed(first)
        assert await refusal(top_up.TopUp(shop.top_up(unsold, repeat=True), who)) == (reason, "fenced")
        assert await shop.closed(unsold)
        assert await refusal(top_up.GetVend(pb.GetVendRequest(transaction_id=unsold), who)) == (reason, "fenced")


async def test_a_suspended_sellers_closed_id_stays_closed_when_it_is_readmitted(store: Store) -> None:
    async with a_shop(store) as shop:
        transaction_id = new_id()
        await shop.bar(ParticipantStatus.SUSPENDED)
        top_up, who = shop.services.top_up, calling(PSP)
        told = await refusal(top_up.TopUp(shop.top_up(transaction_id, repeat=True), who))
        await shop.bar(ParticipantStatus.ACTIVE)
        assert await refusal(top_up.TopUp(shop.top_up(transaction_id), who)) == told == ("CALLER_SUSPENDED", "fenced")


async def test_a_barred_caller_learns_nothing_of_others_and_sends_nothing_new(store: Store) -> None:
    async with a_shop(store) as shop:
        sold, two_step = new_id(), new_id()
        await shop.sold(sold)
        top_up = shop.services.top_up
        issued = pb.IssueUtrnRequest(transaction_id=two_step, pan=shop.pan, amount_pence=_PENCE, channel=_APP)
        await top_up.IssueUtrn(issued, calling(PSP))
        await shop.bar(ParticipantStatus.SUSPENDED, SUPPLIER)
        await shop.bar(ParticipantStatus.SUSPENDED)
        others = pb.GetVendRequest(transaction_id=sold, participant_id=PSP_ID)
        assert await refusal(top_up.GetVend(others, calling(SUPPLIER))) == ("CALLER_SUSPENDED", "")
        send = pb.DeliverVendRequest(transaction_id=two_step, repeat=True)
        assert await refusal(top_up.DeliverVend(send, calling(PSP))) == ("CALLER_SUSPENDED", "")
        theirs = pb.DeliverVendRequest(transaction_id=sold, participant_id=PSP_ID)
        assert await refusal(top_up.DeliverVend(theirs, calling(SUPPLIER))) == ("CALLER_SUSPENDED", "")
        ask = pb.CheckEligibilityRequest(pan=shop.pan)
        assert await refusal(top_up.CheckEligibility(ask, calling(PSP))) == ("CALLER_SUSPENDED", "")


async def test_a_certificate_that_was_taken_off_names_nobody(store: Store) -> None:
    async with a_shop(store) as shop:
        sold = new_id()
        await shop.sold(sold)
        other = identity_history("Corner", "psp-corner-2").periods[-1].value
        await shop.node.parties.set_identities(as_(OPERATOR), PSP_ID, other.name, other.identities)
        await shop.until(lambda known: known.identities == other.identities)
        asked = shop.services.top_up.TopUp(shop.top_up(sold, repeat=True), calling(PSP))
        assert await refusal(asked) == ("UNKNOWN_CALLER", "")


async def test_a_departed_sellers_certificate_is_its_takers(store: Store) -> None:
    async with a_shop(store) as shop:
        sold = new_id()
        await shop.sold(sold)
        await shop.bar(ParticipantStatus.LEFT)
        taken = (*GAINING.identities, *PSP.identities)
        await shop.node.parties.set_identities(as_(OPERATOR), GAINING.participant_id, GAINING.name, taken)
        await shop.until(lambda known: known.identities == taken, GAINING)
        top_up = shop.services.top_up
        asked = top_up.GetVend(pb.GetVendRequest(transaction_id=sold), calling(PSP))
        assert await refusal(asked) == ("VEND_UNKNOWN", "")


WRONG: list[dict[str, Any]] = [{"pan": "12"}, {"amount_pence": 0}, {"amount_pence": 8199}, {"channel": 0}]


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_repeat_with_a_wrong_field_is_closed_too(store: Store, wrong: dict[str, Any]) -> None:
    async with a_shop(store) as shop:
        sold, unsold, first = new_id(), new_id(), new_id()
        await shop.sold(sold)
        top_up, who = shop.services.top_up, calling(PSP)
        reason, final = await refusal(top_up.TopUp(shop.top_up(first, **wrong), who))
        assert (reason in {"BAD_FIELD", "AMOUNT_NOT_ENCODABLE"}, final) == (True, "if-first")
        assert not await shop.closed(first)
        assert await refusal(top_up.TopUp(shop.top_up(unsold, repeat=True, **wrong), who)) == (reason, "fenced")
        # Another node, by whose rules the field is right, sells nothing under it any more.
        assert await refusal(top_up.TopUp(shop.top_up(unsold), who)) == (reason, "fenced")
        reused = await refusal(top_up.TopUp(shop.top_up(sold, repeat=True, **wrong), who))
        assert reused == ("TRANSACTION_ID_REUSED", "")


async def test_a_committed_sale_that_another_node_takes_for_malformed_gets_its_code(store: Store) -> None:
    async with a_shop(store) as shop:
        sold = new_id()
        code = await shop.sold(sold)
        strict = replace(shop.services.top_up, pan_rule=PanRule(digits=7))
        again = await strict.TopUp(shop.top_up(sold, repeat=True), calling(PSP))
        assert (again.code.utrn, again.replayed) == (code, True)


async def test_under_what_is_no_id_nothing_is_sold(store: Store) -> None:
    async with a_shop(store) as shop:
        top_up = shop.services.top_up
        for repeat in (False, True):
            asked = top_up.TopUp(shop.top_up("no id", repeat=repeat), calling(PSP))
            assert await refusal(asked) == ("BAD_FIELD", "fenced")


async def test_an_externally_issued_code_is_a_sale_too(store: Store) -> None:
    async with a_shop(store) as shop:
        top_up, transaction_id = shop.services.top_up, new_id()
        made = pb.ExternallyIssuedUtrn(pan=shop.pan, utrn=utrn(7), utrn_counter=7, channel=_APP)
        first = pb.DeliverVendRequest(transaction_id=transaction_id, externally_issued=made)
        assert await refusal(top_up.DeliverVend(first, calling(SUPPLIER))) == ("COUNTER_HERE", "")
        again = pb.DeliverVendRequest(transaction_id=transaction_id, externally_issued=made, repeat=True)
        assert await refusal(top_up.DeliverVend(again, calling(SUPPLIER))) == ("COUNTER_HERE", "fenced")
        bad = pb.ExternallyIssuedUtrn(pan=shop.pan, utrn=Utrn("1" * 20), utrn_counter=7, channel=_APP)
        malformed = pb.DeliverVendRequest(transaction_id=new_id(), externally_issued=bad, repeat=True)
        assert await refusal(top_up.DeliverVend(malformed, calling(SUPPLIER))) == ("BAD_FIELD", "fenced")


async def test_an_approval_that_is_repeated_closes_the_id_of_what_it_cannot_issue(store: Store) -> None:
    async with a_shop(store) as shop:
        node, transaction_id = shop.node, new_id()
        rule, two_people = (
            CreditRule(each_max_pence=1000, day_max_pence=1500),
            identity_history("North", "north-1", "north-2"),
        )
        last = two_people.periods[-1].value
        await node.parties.set_identities(as_(OPERATOR), SUPPLIER_ID, last.name, last.identities)
        await node.parties.set_profile(as_(SUPPLIER), SUPPLIER_ID, Profile(credit=rule), None)
        await shop.until(lambda known: known.identities == last.identities, SUPPLIER)
        supplier = replace(SUPPLIER, identity_history=two_people)
        second = cast("Context", Caller(replace(SUPPLIER, identity_history=identity_history("North", "north-2"))))
        credit = shop.services.credit
        asked = credit_pb.Credit(
            transaction_id=transaction_id, pan=shop.pan, amount_pence=500, reason=credit_pb.CREDIT_REASON_GOODWILL
        )
        await credit.RequestCredit(credit_pb.RequestCreditRequest(credit=asked), calling(supplier))
        written = await node.pans.block(as_(supplier), shop.pan, blocked=True)
        while (held := node.registry.card(shop.pan)) is None or held.revision < written.revision:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        for repeat, final in ((False, "if-first"), (True, "fenced"), (False, "fenced")):
            decide = credit_pb.DecideCreditRequest(transaction_id=transaction_id, approve=True, repeat=repeat)
            assert await refusal(credit.DecideCredit(decide, second)) == ("PAN_BLOCKED", final)


async def test_an_attempt_that_a_library_makes_by_itself_is_no_first_one(store: Store) -> None:
    """Its caller does not see it: a refusal to it would be taken for the answer to the first attempt."""
    async with a_shop(store) as shop:
        transaction_id, top_up = new_id(), shop.services.top_up
        by_itself = cast("Context", Caller(PSP, metadata=(("grpc-previous-rpc-attempts", "1"),)))
        unknown = shop.top_up(transaction_id, pan="9826000000000000009")
        first = await refusal(top_up.TopUp(unknown, calling(PSP)))
        assert (first[1], await shop.closed(transaction_id)) == ("if-first", False)
        assert await refusal(top_up.TopUp(unknown, by_itself)) == (first[0], "fenced")
        assert await shop.closed(transaction_id)
