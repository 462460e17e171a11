"""A stolen certificate, and what one person alone may not do."""

import asyncio
import urllib.request
from collections import Counter

import pytest
from prometheus_client.parser import text_string_to_metric_families
from utrn.v1 import participant_service_pb2 as participant_pb
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import types_pb2

from app.devstack.files import OPERATOR, PSP, SECOND_OPERATOR, SUPPLIERS, StackPlan
from app.devstack.stack import DevStack
from app.node.config import load_config
from cluster.audit.ledger_scan import all_vends
from cluster.etcd.client import EtcdClient
from core.issuing.config import FlowConfig
from tests.support.raw import Answer, raw_call, raw_channel
from tests.support.selling import new_id, pans
from tests.support.vends import POINT

PLAN = StackPlan(meters=40, etcd_fsync=False, nodes=("node-a", "node-b"), flow=("approval_wait_s = 1",))

pytestmark = [pytest.mark.real]
ISSUE = "/utrn.v1.TopUpService/IssueUtrn"


async def mint(stack: DevStack, who: str, pence: int, *, rounds: int = 1) -> list[Answer]:
    """Have codes made for every meter as `who`, at both nodes at the same time; as fast as they are answered."""
    answers: list[Answer] = []
    waiting = pans(stack) * rounds

    async def thief(node: str) -> None:
        async with raw_channel(stack, who, node=node) as channel:
            while waiting:
                request = pb.IssueUtrnRequest(
                    transaction_id=new_id(), pan=waiting.pop(), amount_pence=pence, channel=types_pb2.CHANNEL_ONLINE
                )
                answers.append(await raw_call(channel, ISSUE, request.SerializeToString()))

    async with asyncio.TaskGroup() as thieves:
        for node in stack.plan.nodes:
            for _ in range(4):
                thieves.create_task(thief(node))
    return answers


async def minted(stack: DevStack, who: str) -> int:
    """Return the pence that the ledger has of `who`'s."""
    config = load_config(stack.node_config("node-a")).etcd
    client = EtcdClient(config)
    try:
        sales = [stored.vend.sale async for stored in all_vends(client, config)]
    finally:
        await client.close()
    return sum(sale.amount for sale in sales if sale.participant_id == who)


def figures(stack: DevStack, name: str, who: str) -> list[float]:
    """Return a figure of a seller, as each node tells it."""
    found = []
    for node in stack.plan.nodes:
        with urllib.request.urlopen(stack.metrics_url(node), timeout=10) as page:  # noqa: S310  # our own node
            families = text_string_to_metric_families(page.read().decode())
            samples = [sample for family in families for sample in family.samples]
        found += [sample.value for sample in samples if sample.name == name and sample.labels["participant"] == who]
    return found


async def test_a_stolen_certificate_mints_up_to_the_ceiling_and_is_seen(attacked: DevStack) -> None:
    """Nothing is configured: the ceiling is there."""
    thief, ceiling, pence = next(iter(SUPPLIERS)), FlowConfig().ceiling_pence, 800_000
    answers = await mint(attacked, thief, pence)
    said = Counter(answer.reason for answer in answers)
    assert said["CEILING_REACHED"] > 0
    assert ceiling - 2 * pence < await minted(attacked, thief) <= ceiling
    assert sum(figures(attacked, "utrn_sold_pence_total", thief)) == await minted(attacked, thief)
    assert max(figures(attacked, "utrn_ceiling_used", thief)) > 0.8
    refused = next(answer for answer in answers if answer.reason == "CEILING_REACHED")
    assert "utrn participant ceiling" in refused.message
    assert "give the money back" in refused.message


async def test_an_operator_moves_a_ceiling_and_both_nodes_hold_to_it(attacked: DevStack) -> None:
    set_ceiling = "/utrn.v1.ParticipantService/SetCeiling"
    lower = participant_pb.SetCeilingRequest(participant_id=PSP, ceiling_pence=200_000).SerializeToString()
    async with raw_channel(attacked) as channel:
        assert (await raw_call(channel, set_ceiling, lower)).reason == "ROLE_NOT_ALLOWED"
    async with raw_channel(attacked, OPERATOR) as channel:
        assert not (await raw_call(channel, set_ceiling, lower)).reason
    answers = await mint(attacked, PSP, 10_000, rounds=2)
    assert {answer.reason for answer in answers} == {"", "CEILING_REACHED"}
    assert 150_000 < await minted(attacked, PSP) <= 200_000


async def test_one_stolen_operator_ends_no_supplier_and_makes_itself_no_second(attacked: DevStack) -> None:
    supplier = list(SUPPLIERS)[1]
    accomplice = participant_pb.Participant(
        participant_id="operator-third", role=participant_pb.ROLE_OPERATOR, name="T", identities=["spiffe://third"]
    )
    leaves, suspended = participant_pb.PARTICIPANT_STATUS_LEFT, participant_pb.PARTICIPANT_STATUS_SUSPENDED
    ends = participant_pb.SetParticipantStatusRequest(participant_id=supplier, status=leaves)
    alone = {
        "ParticipantService/SetParticipantStatus": ends,
        "ParticipantService/AddParticipant": participant_pb.AddParticipantRequest(participant=accomplice),
        "ParticipantService/SetSupplierKey": participant_pb.SetSupplierKeyRequest(
            participant_id=supplier,
            supplier_key=participant_pb.SupplierKey(originator_id=SUPPLIERS[supplier], key_id="01", public_point=POINT),
        ),
        "ParticipantService/SetIdentities": participant_pb.SetIdentitiesRequest(
            participant_id=SECOND_OPERATOR, name="S", identities=["spiffe://third"]
        ),
    }
    async with raw_channel(attacked, OPERATOR) as channel, raw_channel(attacked, OPERATOR, node="node-b") as other:
        for method, request in alone.items():
            for _ in range(3):
                for way in (channel, other):
                    answer = await raw_call(way, f"/utrn.v1.{method}", request.SerializeToString())
                    assert answer.reason == "NEEDS_APPROVAL"
        itself = participant_pb.SetParticipantStatusRequest(participant_id=OPERATOR, status=leaves)
        second = participant_pb.SetParticipantStatusRequest(participant_id=SECOND_OPERATOR, status=suspended)
        set_status = "/utrn.v1.ParticipantService/SetParticipantStatus"
        assert not (await raw_call(channel, set_status, second.SerializeToString())).reason
        assert (await raw_call(channel, set_status, itself.SerializeToString())).reason == "LAST_OPERATOR"
        # What was asked for before is recorded; alone, nobody gets further with it.
        assert (await raw_call(channel, set_status, ends.SerializeToString())).reason == "NEEDS_APPROVAL"
        add = participant_pb.AddParticipantRequest(participant=accomplice).SerializeToString()
        assert (await raw_call(channel, "/utrn.v1.ParticipantService/AddParticipant", add)).reason == "NEEDS_APPROVAL"
