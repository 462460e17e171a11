"""The market at running nodes: eligibility, changes of hands, credit, audit log. Refusals: test_market_bypass.py."""

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import grpc
from utrn.v1 import credit_service_pb2 as credit_pb
from utrn.v1 import meter_service_pb2 as meter_pb
from utrn.v1 import pan_service_pb2 as pan_pb
from utrn.v1 import participant_service_pb2 as participant_pb
from utrn.v1 import top_up_service_pb2 as top_up_pb
from utrn.v1 import types_pb2

from app.devstack.ca import participant_uri
from app.devstack.files import OPERATOR, OUTSIDER, SUPPLIERS
from app.devstack.fleet import meter_by_pan
from app.devstack.stack import DevStack
from tests.integration.test_command_line import as_json, utrn
from tests.support.calls import (
    caller,
    credit_caller,
    failure_of,
    refused,
    registry_caller,
    top_up,
)
from tests.support.patience import PATIENCE_S
from tests.support.selling import drained, new_id
from tests.support.stack import MakeStack

NORTH, SOUTH = SUPPLIERS


def meters_of(stack: DevStack, supplier: str) -> list[tuple[str, str]]:
    """PAN and meter of every meter of a supplier."""
    lines = map(json.loads, (stack.folder / "sandbox" / "meters.jsonl").read_text().splitlines())
    added = [line["add_meter"] for line in lines if "add_meter" in line]
    whose = {one["meter"]["meter_id"]: one["supplier_id"] for one in added}
    pairs = meter_by_pan(stack.folder / "sandbox").items()
    return [(pan, meter_id) for pan, meter_id in pairs if whose[meter_id] == supplier]


# Before money is taken.


async def test_eligibility_says_everything_that_stands_against_a_sale(module_stack: DevStack) -> None:
    pan, meter_id = meters_of(module_stack, SOUTH)[4]
    async with registry_caller(module_stack, SOUTH) as registry:
        await registry.ChangeMeter(
            meter_pb.ChangeMeterRequest(
                meter_id=meter_id,
                settings=meter_pb.MeterSettings(payment_mode=meter_pb.PAYMENT_MODE_CREDIT, max_credit_pence=2000),
            )
        )
        await registry.SetPanBlocked(pan_pb.SetPanBlockedRequest(pan=pan, blocked=True))
    asked = top_up_pb.CheckEligibilityRequest(
        pan=pan, amount_pence=3000, channel=types_pb2.CHANNEL_ONLINE, deliver=True
    )
    async with caller(module_stack) as stub:
        async with asyncio.timeout(PATIENCE_S):
            while len((reply := await stub.CheckEligibility(asked)).objections) < 3:  # noqa: ASYNC110  # the node is asked
                await asyncio.sleep(0.01)
        reasons = [objection.message for objection in reply.objections]
        assert not reply.eligible
        assert ["blocked" in reasons[0], "credit mode" in reasons[1], "at most 2000" in reasons[2]] == [True] * 3
        assert reply.objections[2].facts == {"max_credit_pence": "2000"}
        fine, _ = meters_of(module_stack, SOUTH)[5]
        assert (await stub.CheckEligibility(top_up_pb.CheckEligibilityRequest(pan=fine))).eligible
    async with caller(module_stack, OUTSIDER) as stub:
        reply = await stub.CheckEligibility(asked)
        assert (len(reply.objections), reply.supplier_id) == (1, ""), "a stranger learns nothing of the meter"


# A change of hands, with real meters.


async def test_after_a_change_of_supplier_nothing_of_the_old_one_is_sent_or_sold(make_stack: MakeStack) -> None:
    stack = make_stack(meters=4, etcd_fsync=False, knobs=("loss_before=1.0",))
    stack.start_all()
    pan, meter_id = meters_of(stack, NORTH)[0]
    sale = top_up(transaction_id=new_id(), pan=pan)
    two_step = new_id()
    async with caller(stack) as stub, registry_caller(stack, OPERATOR) as registry:
        await stub.IssueUtrn(
            top_up_pb.IssueUtrnRequest(
                transaction_id=two_step, pan=pan, amount_pence=500, channel=types_pb2.CHANNEL_APP
            )
        )
        await registry.ChangeSupplier(
            meter_pb.ChangeSupplierRequest(meter_id=meter_id, losing_supplier_id=NORTH, gaining_supplier_id=SOUTH)
        )
        assert (await refused(stub.TopUp(sale))).reason in {"NOT_APPOINTED", "PAN_NOT_CURRENT"}
        late = await refused(stub.DeliverVend(top_up_pb.DeliverVendRequest(transaction_id=two_step)))
        assert late.reason in {"NOT_APPOINTED", "PAN_NOT_CURRENT"}
        assert (await stub.GetVend(top_up_pb.GetVendRequest(transaction_id=two_step))).vend.supplier_id == NORTH
    async with registry_caller(stack, NORTH) as registry:
        (change,) = (await registry.ListRegistrationChanges(meter_pb.ListRegistrationChangesRequest())).changes
    assert (change.responsible_supplier_id, change.supplier_id_after, change.last_issued) == (NORTH, SOUTH, 1)


async def test_credit_without_payment_reaches_the_meter_by_two_people(module_stack: DevStack) -> None:
    pan, _ = meters_of(module_stack, NORTH)[7]
    second = module_stack.pki.participant("north-second", uri="spiffe://utrn/person/north-second")
    async with registry_caller(module_stack, OPERATOR) as registry:
        identities = [participant_uri(NORTH), "spiffe://utrn/person/north-second"]
        await registry.SetIdentities(
            participant_pb.SetIdentitiesRequest(participant_id=NORTH, name=NORTH, identities=identities)
        )
    asked = credit_pb.Credit(
        transaction_id=new_id(), pan=pan, amount_pence=500, reason=credit_pb.CREDIT_REASON_EMERGENCY, note="cold snap"
    )
    decision = credit_pb.DecideCreditRequest(transaction_id=asked.transaction_id, approve=True)
    async with credit_caller(module_stack, NORTH) as credit:
        await credit.RequestCredit(credit_pb.RequestCreditRequest(credit=asked))
        assert (await refused(credit.DecideCredit(decision))).reason == "TWO_PEOPLE_NEEDED"
    async with credit_caller(module_stack, NORTH, certs=second) as credit:
        async with asyncio.timeout(PATIENCE_S):
            while (given := await _decided(credit, decision)) is None:  # noqa: ASYNC110  # the node is asked
                await asyncio.sleep(0.01)
        report = await credit.ListCredits(credit_pb.ListCreditsRequest())
    assert (report.approved, report.approved_pence) == (1, 500)
    result = await drained(module_stack)
    assert not result.findings
    async with caller(module_stack, NORTH) as stub:
        vend = (await stub.GetVend(top_up_pb.GetVendRequest(transaction_id=asked.transaction_id))).vend
    assert (vend.code.utrn, vend.channel) == (given.code.utrn, types_pb2.CHANNEL_NOT_PAID)


async def _decided(credit: Any, decision: credit_pb.DecideCreditRequest) -> credit_pb.DecideCreditResponse | None:
    """Return the answer once the node knows the second certificate."""
    try:
        answer: credit_pb.DecideCreditResponse = await credit.DecideCredit(decision)
    except grpc.aio.AioRpcError as error:
        if failure_of(error).reason != "UNKNOWN_CALLER":
            raise
        return None
    return answer


# The commands.


def _as(stack: DevStack, who: str) -> list[str]:
    certs = stack.certs(who)
    return [
        "--target", stack.node_target("node-a"), "--cert", str(certs.cert), "--key", str(certs.key),
        "--ca", str(certs.ca),
    ]  # fmt: skip


def test_the_audit_log_of_a_node_can_be_read_and_verified(module_stack: DevStack) -> None:
    certs = module_stack.certs(SOUTH)
    _, meter_id = meters_of(module_stack, NORTH)[9]
    utrn("meter", "end", meter_id, *_as(module_stack, SOUTH), code=1)

    def files() -> list[str]:
        """A node's file is there, and is anchored, some time after what it noted first."""
        return [str(one) for one in (module_stack.folder / "trail").glob("*.trail")]

    until = time.monotonic() + 15
    told: list[dict[str, Any]] = []
    while not told and time.monotonic() < until:
        if files():
            told = as_json(utrn("audit", "show", *files(), "--subject", meter_id, "--refused", "--json"))["decisions"]
    assert as_json(utrn("audit", "verify", *files(), "--json"))["ok"]
    found = as_json(utrn("audit", "show", *files(), "--refused", "--json"))["decisions"]
    assert all(one["outcome"] != "allowed" for one in found)
    config = str(module_stack.node_config("node-a"))
    while not (anchored := as_json(utrn("audit", "verify", *files(), "--config", config, "--json"))["anchored"]):
        assert time.monotonic() < until
    assert {Path(file).name for file in files()} >= set(anchored)
    assert [(one["caller"], one["act"], one["outcome"]) for one in told] == [(SOUTH, "EndMeter", "NOT_YOURS")]
    _holds_no_secret("".join(Path(file).read_text() for file in files()), module_stack, certs.key)


def _holds_no_secret(audit_log: str, stack: DevStack, key: Path) -> None:
    """No key, no PIN, no whole PAN, no code: of a PAN the last four digits, of a code nothing."""
    decisions = "".join(line for line in audit_log.splitlines() if "sha256" not in line)
    assert decisions
    secrets = [*key.read_text().splitlines()[1:-1], *meter_by_pan(stack.folder / "sandbox")]
    secrets += [one.read_text().strip() for one in stack.folder.rglob("*pin*") if one.is_file()]
    assert len(secrets) > 5
    assert not [secret for secret in secrets if secret in decisions]
    assert not re.search(r"[0-9]{17,}", decisions)
