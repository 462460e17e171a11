"""What cannot be undone takes two operators and time, is done once, and only while both of them are what they were."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest

from cluster.etcd import preconditions
from core.access.approvals import TwoPeople
from core.domain.approval import LIFE_MS, Approval, ApprovalState, Asked
from core.domain.errors import (
    LastOperator,
    NeedsApproval,
    RecordChanged,
    RecordExists,
    RoleNotAllowed,
    SecondOperatorNeeded,
    TwoPeopleNeeded,
    UtrnError,
)
from core.domain.participant import Participant, ParticipantId, ParticipantStatus, Role
from core.registry.participants import NewParticipant
from core.transaction import Written
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.market_node import GAINING, OPERATOR, MarketNode, as_, open_market, put_all
from tests.support.vends import PSP, PSP_ID, SUPPLIER, SUPPLIER_ID, identity_history

SECOND = replace(
    OPERATOR, participant_id=ParticipantId("operator-two"), identity_history=identity_history("Two", "operator-two")
)
THIRD = replace(
    OPERATOR,
    participant_id=ParticipantId("operator-three"),
    identity_history=identity_history("Three", "operator-three"),
)
WAIT_S = 900


@dataclass
class Office:
    """A market with one operator or more, and what they ask for."""

    node: MarketNode
    two: TwoPeople

    async def status(self, who: Participant, whom: Participant, status: ParticipantStatus) -> Written:
        asked = Asked(method="SetParticipantStatus", request=f"{whom.participant_id} {status}".encode(), subject="")
        return await self.node.parties.set_status(as_(who), whom.participant_id, status, asked=asked)

    async def offboard(self, who: Participant, whom: Participant = SUPPLIER) -> Written:
        return await self.status(who, whom, ParticipantStatus.LEFT)

    async def add_operator(self, who: Participant, name: str = "operator-new") -> Written:
        new = NewParticipant(
            participant_id=ParticipantId(name), role=Role.OPERATOR, name=name, identities=(f"spiffe://{name}",)
        )
        asked = Asked(method="AddParticipant", request=name.encode(), subject="")
        return await self.node.parties.add(as_(who), new, asked=asked)

    async def approved(self, act: Callable[[Participant], Awaitable[Written]], by: Participant = SECOND) -> str:
        """Ask as the first operator, approve as another; return the approval's id."""
        with pytest.raises(NeedsApproval) as needed:
            await act(OPERATOR)
        approval_id = needed.value.facts["approval_id"]
        await self.two.approve(as_(by), approval_id)
        return approval_id

    async def there(self, participant_id: ParticipantId) -> ParticipantStatus:
        known = await self.node.records.read(Participant, participant_id)
        assert known is not None
        return known.record.status

    def wait(self, seconds: float = WAIT_S) -> None:
        self.node.clock.advance(seconds)


@pytest.fixture
async def office(store: Store) -> Office:
    """Two operators."""
    clock = HandClock()
    node = MarketNode(store, clock)
    await open_market(node)
    await put_all(node, [SECOND])
    two = TwoPeople(store=node.records, clock=clock, wait_ms=WAIT_S * 1000)
    node.parties = replace(node.parties, consents=two)
    return Office(node, two)


async def test_a_supplier_is_ended_by_two_operators_after_the_waiting_time_and_once(office: Office) -> None:
    approval_id = await office.approved(office.offboard)
    with pytest.raises(NeedsApproval) as waits:
        await office.offboard(OPERATOR)
    assert waits.value.facts["state"] == "approved"
    office.wait()
    assert (await office.offboard(OPERATOR)).changed
    assert await office.there(SUPPLIER_ID) is ParticipantStatus.LEFT
    known = await office.node.records.read(Approval, approval_id)
    assert known is not None
    assert known.record.state is ApprovalState.DONE
    assert not (await office.offboard(OPERATOR)).changed, "what is so already needs nobody"


async def test_a_supplier_that_left_comes_back_by_two_operators_with_its_originator_and_certificates(
    office: Office,
) -> None:
    await office.approved(office.offboard)
    office.wait()
    await office.offboard(OPERATOR)
    back = partial(office.status, whom=SUPPLIER, status=ParticipantStatus.ACTIVE)
    await office.approved(back)
    office.wait()
    assert (await back(OPERATOR)).changed
    after = await office.node.records.read(Participant, SUPPLIER_ID)
    assert after is not None
    assert (after.record.status, after.record.identities) == (ParticipantStatus.ACTIVE, SUPPLIER.identities)
    assert after.record.supplier_key == SUPPLIER.supplier_key
    # A PSP comes back under another name, as ever.
    await office.status(OPERATOR, PSP, ParticipantStatus.LEFT)
    with pytest.raises(RecordChanged, match="has left"):
        await office.status(OPERATOR, PSP, ParticipantStatus.ACTIVE)


async def test_one_whose_certificate_is_anothers_by_now_does_not_come_back_with_it(office: Office) -> None:
    await office.approved(office.offboard)
    office.wait()
    await office.offboard(OPERATOR)
    taker = NewParticipant(
        participant_id=ParticipantId("taker"), role=Role.PSP, name="Taker", identities=SUPPLIER.identities
    )
    await office.node.parties.add(as_(OPERATOR), taker)
    back = partial(office.status, whom=SUPPLIER, status=ParticipantStatus.ACTIVE)
    await office.approved(back)
    office.wait()
    with pytest.raises(RecordChanged):
        await back(OPERATOR)
    assert await office.there(SUPPLIER_ID) is ParticipantStatus.LEFT


async def test_one_operator_alone_does_not_get_further_by_asking_again(office: Office) -> None:
    for _ in range(3):
        with pytest.raises(NeedsApproval) as needed:
            await office.offboard(OPERATOR)
        office.wait()
    with pytest.raises(TwoPeopleNeeded):
        await office.two.approve(as_(OPERATOR), needed.value.facts["approval_id"])
    assert await office.there(SUPPLIER_ID) is ParticipantStatus.ACTIVE


async def test_an_approval_is_of_that_request_and_no_other(office: Office) -> None:
    await office.approved(office.offboard)
    office.wait()
    with pytest.raises(NeedsApproval):
        await office.offboard(OPERATOR, GAINING)


async def test_without_the_compare_one_approval_is_used_twice(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both consents are had before either is used: the compare in the write lets one of them through."""
    await office.approved(office.add_operator)
    office.wait()
    asked = Asked(method="AddParticipant", request=b"operator-new", subject="")
    consent = await office.two.to_add_operator(as_(OPERATOR), asked)

    async def same(*_: object) -> object:
        return consent

    monkeypatch.setattr(TwoPeople, "to_add_operator", same)
    await office.add_operator(OPERATOR)
    with pytest.raises(RecordExists):
        await office.add_operator(OPERATOR, "operator-other")
    monkeypatch.setattr(preconditions, "consent_unmoved", lambda *_: [])
    await office.add_operator(OPERATOR, "operator-other")


async def test_withdrawn_and_expired_approvals_allow_nothing(office: Office) -> None:
    approval_id = await office.approved(office.offboard)
    await office.two.withdraw(as_(SECOND), approval_id)
    office.wait()
    with pytest.raises(NeedsApproval) as anew:
        await office.offboard(OPERATOR)
    assert anew.value.facts["state"] == "waiting"
    await office.two.approve(as_(SECOND), approval_id)
    office.wait(WAIT_S + LIFE_MS / 1000 + 1)
    with pytest.raises(RecordChanged):
        await office.two.withdraw(as_(OPERATOR), approval_id)
    with pytest.raises(NeedsApproval) as expired:
        await office.offboard(OPERATOR)
    assert expired.value.facts["state"] == "waiting"


async def test_whoever_was_barred_since_has_consented_to_nothing(office: Office) -> None:
    await put_all(office.node, [THIRD])
    await office.approved(office.offboard)
    office.wait()
    await office.status(THIRD, SECOND, ParticipantStatus.SUSPENDED)
    with pytest.raises(RoleNotAllowed):
        await office.offboard(OPERATOR)
    assert await office.there(SUPPLIER_ID) is ParticipantStatus.ACTIVE


async def test_only_one_of_the_two_carries_it_out(office: Office) -> None:
    await put_all(office.node, [THIRD])
    await office.approved(office.offboard)
    office.wait()
    with pytest.raises(TwoPeopleNeeded):
        await office.offboard(THIRD)
    assert (await office.offboard(SECOND)).changed


async def test_what_protects_people_waits_for_nobody(office: Office) -> None:
    assert (await office.status(OPERATOR, SUPPLIER, ParticipantStatus.SUSPENDED)).changed
    assert (await office.status(OPERATOR, SUPPLIER, ParticipantStatus.ACTIVE)).changed
    assert (await office.status(OPERATOR, SECOND, ParticipantStatus.SUSPENDED)).changed


async def test_the_last_active_operator_is_neither_suspended_nor_ended(office: Office) -> None:
    await office.status(OPERATOR, SECOND, ParticipantStatus.SUSPENDED)
    for status in (ParticipantStatus.SUSPENDED, ParticipantStatus.LEFT):
        with pytest.raises(LastOperator):
            await office.status(OPERATOR, OPERATOR, status)


async def test_two_that_bar_each_other_at_once_leave_one(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    of_first = await office.two.to_bar_operator(OPERATOR.participant_id)
    await office.status(OPERATOR, SECOND, ParticipantStatus.SUSPENDED)

    async def seen_before(*_: object) -> object:
        return of_first

    monkeypatch.setattr(TwoPeople, "to_bar_operator", seen_before)
    with pytest.raises(RecordChanged):
        await office.status(SECOND, OPERATOR, ParticipantStatus.SUSPENDED)
    assert await office.there(OPERATOR.participant_id) is ParticipantStatus.ACTIVE


async def test_an_operator_comes_in_or_back_or_changes_certificates_by_two(office: Office) -> None:
    async def certificates() -> Written:
        asked = Asked(method="SetIdentities", request=b"x", subject="")
        name, uris = "Two", ("spiffe://thief",)
        return await office.node.parties.set_identities(as_(OPERATOR), SECOND.participant_id, name, uris, asked=asked)

    with pytest.raises(NeedsApproval):
        await office.add_operator(OPERATOR)
    with pytest.raises(NeedsApproval):
        await certificates()
    await office.status(OPERATOR, SECOND, ParticipantStatus.SUSPENDED)
    with pytest.raises(SecondOperatorNeeded):
        await office.status(OPERATOR, SECOND, ParticipantStatus.ACTIVE)
    # Otherwise whoever suspends all others would be the only one, who may add whom it likes.
    with pytest.raises(UtrnError) as refused:
        await office.add_operator(OPERATOR, "operator-evil")
    assert refused.type in (SecondOperatorNeeded, NeedsApproval)


async def test_the_only_operator_adds_a_second_one_and_nothing_else(store: Store) -> None:
    clock = HandClock()
    node = MarketNode(store, clock)
    await open_market(node)
    two = TwoPeople(store=node.records, clock=clock, wait_ms=0)
    node.parties = replace(node.parties, consents=two)
    office = Office(node, two)
    with pytest.raises(SecondOperatorNeeded):
        await office.offboard(OPERATOR)
    assert (await office.add_operator(OPERATOR)).changed
    with pytest.raises(NeedsApproval):
        await office.add_operator(OPERATOR, "operator-third")
    assert await office.there(PSP_ID) is ParticipantStatus.ACTIVE
