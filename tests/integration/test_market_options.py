"""The three options side by side at running nodes, changed at run time; and how fast three nodes see each change."""

import asyncio
import hashlib
import itertools
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import timestamp_pb2
from utrn.store.v1 import records_pb2 as store_pb
from utrn.v1 import appointment_service_pb2 as appointment_pb
from utrn.v1 import errors_pb2, types_pb2
from utrn.v1 import meter_service_pb2 as meter_pb
from utrn.v1 import pan_service_pb2 as pan_pb
from utrn.v1 import participant_service_pb2 as participant_pb
from utrn.v1 import top_up_service_pb2 as top_up_pb

from app.devstack.files import OPERATOR, PSP, SUPPLIERS, StackPlan
from app.devstack.stack import DevStack
from app.node.config import load_config
from cluster.etcd.client import EtcdClient
from core.domain.delivery import CLOSED
from core.domain.money import Pence
from core.domain.utrn_value import code_value
from core.gateways.system_clock import SystemClock
from hsm.schemes import gbcs
from sandbox.codes import shared_secret
from tests.integration.test_market import meters_of
from tests.support.calls import appointments_caller, caller, failure_of, refused, registry_caller, top_up
from tests.support.patience import PATIENCE_S
from tests.support.selling import drained, new_id

if TYPE_CHECKING:
    # Only the stubs know this class.
    from utrn.v1.top_up_service_pb2_grpc import TopUpServiceAsyncStub as Stub

pytestmark = [pytest.mark.real]

NORTH, SOUTH = SUPPLIERS
NODES = ("node-a", "node-b", "node-c")
WITHIN_S = 1.0


# A generator of the supplier's own.


def externally_issued(stack: DevStack, meter_id: str, counter: int, pence: int) -> str:
    """Return the code that the supplier's generator makes for an emulated meter.

    The supplier's private key is in the HSM; the meter's own private key gives the same shared secret with the
    supplier's public one.
    """
    with sqlite3.connect(f"file:{stack.folder / 'sandbox' / 'fleet.sqlite'}?mode=ro", uri=True) as fleet:
        ((scalar,),) = fleet.execute("SELECT scalar FROM meters WHERE meter_id = ?", (meter_id,)).fetchall()
    secret = shared_secret(int(scalar, 16), bytes.fromhex(stack.make_keys()[NORTH].public_point))
    return gbcs.code(
        originator_id=SUPPLIERS[NORTH], meter_id=meter_id, counter=counter, value=code_value(Pence(pence)),
        aes_key=lambda before, after: hashlib.sha256(before + secret + after).digest()[:16],
    )  # fmt: skip


def send_made(pan: str, utrn: str, counter: int) -> top_up_pb.DeliverVendRequest:
    made = top_up_pb.ExternallyIssuedUtrn(pan=pan, utrn=utrn, utrn_counter=counter, channel=types_pb2.CHANNEL_ONLINE)
    return top_up_pb.DeliverVendRequest(transaction_id=new_id(), externally_issued=made)


# Sales in one step and in two.


def issue(pan: str, pence: int = 1000) -> top_up_pb.IssueUtrnRequest:
    return top_up_pb.IssueUtrnRequest(
        transaction_id=new_id(), pan=pan, amount_pence=pence, channel=types_pb2.CHANNEL_ONLINE
    )


async def applied(stub: "Stub", transaction_id: str, owner: str = "") -> types_pb2.Vend:
    """Return a vend once its delivery has ended, which it must have with the meter's credit."""
    asked = top_up_pb.GetVendRequest(transaction_id=transaction_id, participant_id=owner)
    ended = {int(state) for state in CLOSED}
    async with asyncio.timeout(PATIENCE_S):
        while True:
            vend = (await stub.GetVend(asked)).vend
            if vend.delivery.state in ended:
                break
            await asyncio.sleep(0.02)
    assert vend.delivery.reason == types_pb2.DELIVERY_REASON_CREDITED, vend
    return vend


async def one_step(stub: "Stub", pan: str) -> types_pb2.Vend:
    """Issue and deliver by one call; return the vend with the meter's credit."""
    request = top_up(transaction_id=new_id(), pan=pan)
    code = (await stub.TopUp(request)).code
    vend = await applied(stub, request.transaction_id)
    assert vend.code == code, "the code that is sent is the code that was answered"
    return vend


async def two_steps(stub: "Stub", pan: str) -> types_pb2.Vend:
    """Issue, and deliver by a second call; return the vend with the meter's credit."""
    request = issue(pan)
    await stub.IssueUtrn(request)
    asked = top_up_pb.GetVendRequest(transaction_id=request.transaction_id)
    before = (await stub.GetVend(asked)).vend.delivery.state
    assert before == types_pb2.DELIVERY_STATE_NOT_REQUESTED
    await stub.DeliverVend(top_up_pb.DeliverVendRequest(transaction_id=request.transaction_id))
    return await applied(stub, request.transaction_id)


async def objection(stub: "Stub", pan: str, *, deliver: bool = False) -> str:
    """Return what stands against a sale, by its reason; "" if nothing does."""
    try:
        reply = await stub.CheckEligibility(top_up_pb.CheckEligibilityRequest(pan=pan, deliver=deliver))
    except grpc.aio.AioRpcError as error:
        return failure_of(error).reason
    return "" if reply.eligible else errors_pb2.ErrorReason.Name(reply.objections[0].reason).removeprefix(_PREFIX)


_PREFIX = "ERROR_REASON_"


async def until(asked: Callable[[], Awaitable[str]], wanted: str) -> float:
    """Return when an answer is what is wanted; time.monotonic()."""
    async with asyncio.timeout(PATIENCE_S):
        while await asked() != wanted:  # noqa: ASYNC110  # a node is asked
            await asyncio.sleep(0.005)
    return time.monotonic()


async def choose(stack: DevStack, supplier: str, selling_model: participant_pb.SellingModel.ValueType) -> None:
    """Choose a profile, as the supplier; known at once to whoever asks the same node after it is seen there."""
    async with registry_caller(stack, supplier) as registry:
        await registry.SetProfile(
            participant_pb.SetProfileRequest(
                supplier_id=supplier, profile=participant_pb.Profile(selling_model=selling_model)
            )
        )


async def hand_over(
    stack: DevStack, meter_id: str, *, back: bool = False, last_issued: int = 0
) -> meter_pb.RegistrationChange:
    """Hand a meter of North's to its generator, or back to this service."""
    before, after = meter_pb.CUSTODY_CENTRAL, meter_pb.CUSTODY_SUPPLIER
    if back:
        before, after = after, before
    async with registry_caller(stack, NORTH) as registry:
        request = meter_pb.TransferCountersRequest(
            meter_id=meter_id, custody_before=before, custody=after, last_issued=last_issued if back else None
        )
        return (await registry.TransferCounters(request)).change


# Each under its own option, at one time.


async def test_three_options_live_side_by_side_and_are_changed_at_run_time(module_stack: DevStack) -> None:
    """North makes its own codes; meanwhile South goes from option 2 to option 1. The money is right in the end."""
    await _north_generates(module_stack)
    await _south_sells_alone(module_stack)
    await _south_lets_psps_issue(module_stack)
    await _north_still_generates(module_stack)
    await _south_lets_psps_deliver(module_stack)
    await _north_comes_back(module_stack)
    result = await drained(module_stack)
    assert (result.findings, result.owed, result.credited_twice) == ([], 0, 0)
    assert result.credited == result.applied > 0


async def _north_generates(stack: DevStack) -> None:
    """Option 3: central issue is off; a code made elsewhere is delivered, where the counters were handed over."""
    (pan, meter_id), (other, other_meter) = meters_of(stack, NORTH)[:2]
    async with caller(stack, NORTH) as north, caller(stack) as psp:
        sold = await one_step(north, pan)
        await choose(stack, NORTH, participant_pb.SELLING_MODEL_SUPPLIER_GENERATES)
        await until(lambda: objection(north, pan), "CENTRAL_ISSUE_OFF")
        await until(lambda: objection(psp, pan), "NOT_APPOINTED")
        told = await hand_over(stack, meter_id)
        assert (told.last_issued, sold.utrn_counter) == (1, 1), "the generator goes on after it"
        early = send_made(other, externally_issued(stack, other_meter, 1, 500), 1)
        assert (await refused(north.DeliverVend(early))).reason == "COUNTER_HERE"
        assert (await refused(north.IssueUtrn(issue(pan)))).reason == "CENTRAL_ISSUE_OFF"
        assert (await refused(north.TopUp(top_up(transaction_id=new_id(), pan=pan)))).reason == "CENTRAL_ISSUE_OFF"
        request = send_made(pan, externally_issued(stack, meter_id, 2, 1234), 2)
        assert (await refused(psp.DeliverVend(request))).reason == "NOT_APPOINTED"
        assert not (await north.DeliverVend(request)).replayed
        vend = await applied(north, request.transaction_id)
        assert (vend.externally_issued, vend.code.amount_pence, vend.utrn_counter) == (True, 1234, 2)


async def _south_sells_alone(stack: DevStack) -> None:
    """Option 2, the default: the supplier in one step and in two; its PSPs are refused."""
    pan, _ = meters_of(stack, SOUTH)[0]
    await choose(stack, SOUTH, participant_pb.SELLING_MODEL_SUPPLIER_ONLY)
    async with caller(stack, SOUTH) as south, caller(stack) as psp:
        await until(lambda: objection(psp, pan), "NOT_APPOINTED")
        assert (await refused(psp.IssueUtrn(issue(pan)))).reason == "NOT_APPOINTED"
        assert (await refused(psp.TopUp(top_up(transaction_id=new_id(), pan=pan)))).reason == "NOT_APPOINTED"
        assert {(await sell(south, pan)).allowed_by for sell in (one_step, two_steps)} == {"own meter"}


async def _south_lets_psps_issue(stack: DevStack) -> None:
    """Option 1 without delivery: the PSP issues, the supplier delivers what the PSP has sold."""
    pan, _ = meters_of(stack, SOUTH)[1]
    await choose(stack, SOUTH, participant_pb.SELLING_MODEL_PSP_ISSUES)
    async with caller(stack, SOUTH) as south, caller(stack) as psp:
        await until(lambda: objection(psp, pan), "")
        assert await objection(psp, pan, deliver=True) == "NOT_APPOINTED"
        request = issue(pan)
        code = (await psp.IssueUtrn(request)).code
        send = top_up_pb.DeliverVendRequest(transaction_id=request.transaction_id)
        assert (await refused(psp.DeliverVend(send))).reason == "NOT_APPOINTED"
        assert (await refused(psp.TopUp(top_up(transaction_id=new_id(), pan=pan)))).reason == "NOT_APPOINTED"
        send.participant_id = PSP
        assert not (await south.DeliverVend(send)).replayed
        vend = await applied(south, request.transaction_id, PSP)
        assert (vend.code, vend.participant_id, vend.allowed_by) == (code, PSP, "appointment corner")


async def _north_still_generates(stack: DevStack) -> None:
    """What South has chosen is nothing to North's meters."""
    pan, meter_id = meters_of(stack, NORTH)[0]
    async with caller(stack, NORTH) as north, caller(stack) as psp:
        assert await objection(psp, pan) == "NOT_APPOINTED"
        assert await objection(north, pan) == "CENTRAL_ISSUE_OFF"
        request = send_made(pan, externally_issued(stack, meter_id, 3, 777), 3)
        await north.DeliverVend(request)
        assert (await applied(north, request.transaction_id)).code.amount_pence == 777


async def _south_lets_psps_deliver(stack: DevStack) -> None:
    """Option 1: the PSP in one step and in two."""
    pan, _ = meters_of(stack, SOUTH)[2]
    await choose(stack, SOUTH, participant_pb.SELLING_MODEL_PSP_ISSUES_AND_DELIVERS)
    async with caller(stack) as psp:
        await until(lambda: objection(psp, pan, deliver=True), "")
        assert {(await sell(psp, pan)).allowed_by for sell in (one_step, two_steps)} == {"appointment corner"}


async def _north_comes_back(stack: DevStack) -> None:
    """From option 3 to option 2: each meter is issued for centrally once its counters are handed back."""
    pan, meter_id = meters_of(stack, NORTH)[0]
    other, _ = meters_of(stack, NORTH)[1]
    await choose(stack, NORTH, participant_pb.SELLING_MODEL_SUPPLIER_ONLY)
    async with caller(stack, NORTH) as north:
        await until(lambda: objection(north, other), "")
        assert (await refused(north.IssueUtrn(issue(pan)))).reason == "COUNTER_ELSEWHERE"
        with pytest.raises(grpc.aio.AioRpcError) as too_low:
            await hand_over(stack, meter_id, back=True, last_issued=2)
        assert failure_of(too_low.value).fields == ["last_issued"]
        # The generator has spent one more counter, whose code was keyed in, or lost.
        await hand_over(stack, meter_id, back=True, last_issued=4)
        await until(lambda: objection(north, pan), "")
        vend = await one_step(north, pan)
        assert (vend.utrn_counter, vend.externally_issued) == (5, False)
        late = send_made(pan, externally_issued(stack, meter_id, 6, 100), 6)
        assert (await refused(north.DeliverVend(late))).reason == "COUNTER_HERE", "one owner of a counter sequence"


# Three nodes.


@pytest.fixture(scope="module")
def three_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevStack]:
    """Three nodes over one etcd."""
    stack = DevStack(tmp_path_factory.mktemp("three"), StackPlan(meters=24, etcd_fsync=False, nodes=NODES))
    try:
        stack.start_all()
        yield stack
    finally:
        stack.stop_all()


@asynccontextmanager
async def stubs(stack: DevStack, who: str = PSP) -> "AsyncIterator[list[Stub]]":
    """A stub of every node."""
    async with AsyncExitStack() as open_stubs:
        yield [await open_stubs.enter_async_context(caller(stack, who, node=node)) for node in NODES]


@asynccontextmanager
async def light_load(stack: DevStack) -> AsyncIterator[list[types_pb2.IssuedCode]]:
    """South sells to its own meters, at every node, until left."""
    sold: list[types_pb2.IssuedCode] = []
    pans = [pan for pan, _ in meters_of(stack, SOUTH)[:6]]

    async def sell(stub: "Stub", first: int) -> None:
        turn = first
        while True:
            turn += 1
            sold.append((await stub.TopUp(top_up(transaction_id=new_id(), pan=pans[turn % len(pans)]))).code)
            await asyncio.sleep(0.02)

    async with stubs(stack, SOUTH) as sellers, asyncio.TaskGroup() as tasks:
        selling = [tasks.create_task(sell(stub, number)) for number, stub in enumerate(sellers)]
        yield sold
        for task in selling:
            task.cancel()


Change = Callable[[], Awaitable[Any]]


@dataclass
class Seen:
    """How long each node took to see each change, in seconds."""

    took_s: dict[str, list[float]] = field(default_factory=dict)

    async def by_all(self, name: str, change: Change, nodes: "list[Stub]", pan: str, wanted: str) -> None:
        """Make a change, and have every node asked until it knows."""
        await change()
        changed = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            knowing = [tasks.create_task(until(partial(objection, node, pan), wanted)) for node in nodes]
        self.took_s[name] = [task.result() - changed for task in knowing]


async def test_every_node_sees_every_kind_of_change_within_a_second(three_nodes: DevStack) -> None:
    pan, meter_id = meters_of(three_nodes, NORTH)[0]
    name = appointment_pb.AppointmentName(supplier_id=NORTH, psp_id=PSP, appointment_id="corner")
    seen = Seen()

    def profile(selling_model: participant_pb.SellingModel.ValueType) -> Change:
        return lambda: choose(three_nodes, NORTH, selling_model)

    async with (
        registry_caller(three_nodes, OPERATOR) as operator, appointments_caller(three_nodes, NORTH) as appointing,
        stubs(three_nodes) as nodes, light_load(three_nodes) as sold,
    ):  # fmt: skip

        def appointment(*, suspended: bool) -> Change:
            request = appointment_pb.SuspendAppointmentRequest(name=name, suspended=suspended)
            return lambda: appointing.SuspendAppointment(request)

        def status(value_type: participant_pb.ParticipantStatus.ValueType) -> Change:
            return lambda: operator.SetParticipantStatus(
                participant_pb.SetParticipantStatusRequest(participant_id=PSP, status=value_type)
            )

        def card(*, blocked: bool) -> Change:
            return lambda: operator.SetPanBlocked(pan_pb.SetPanBlockedRequest(pan=pan, blocked=blocked))

        def mode(value_type: meter_pb.PaymentMode.ValueType) -> Change:
            settings = meter_pb.MeterSettings(payment_mode=value_type)
            return lambda: operator.ChangeMeter(meter_pb.ChangeMeterRequest(meter_id=meter_id, settings=settings))

        def supplier(losing: str, gaining: str) -> Change:
            request = meter_pb.ChangeSupplierRequest(
                meter_id=meter_id, losing_supplier_id=losing, gaining_supplier_id=gaining
            )
            return lambda: operator.ChangeSupplier(request)

        # Each with the change that takes it back.
        there_and_back: tuple[tuple[tuple[str, Change, str], tuple[str, Change, str]], ...] = (
            (
                ("profile, refusing", profile(participant_pb.SELLING_MODEL_SUPPLIER_ONLY), "NOT_APPOINTED"),
                ("profile, allowing", profile(participant_pb.SELLING_MODEL_PSP_ISSUES_AND_DELIVERS), ""),
            ),
            (
                ("appointment suspended", appointment(suspended=True), "NOT_APPOINTED"),
                ("appointment resumed", appointment(suspended=False), ""),
            ),
            (
                ("PSP suspended", status(participant_pb.PARTICIPANT_STATUS_SUSPENDED), "CALLER_SUSPENDED"),
                ("PSP readmitted", status(participant_pb.PARTICIPANT_STATUS_ACTIVE), ""),
            ),
            (("PAN blocked", card(blocked=True), "PAN_BLOCKED"), ("PAN unblocked", card(blocked=False), "")),
            (
                ("credit mode", mode(meter_pb.PAYMENT_MODE_CREDIT), "METER_IN_CREDIT_MODE"),
                ("prepayment mode", mode(meter_pb.PAYMENT_MODE_PREPAYMENT), ""),
            ),
            (
                ("change of supplier", supplier(NORTH, SOUTH), "PAN_NOT_CURRENT"),
                ("change of supplier, back", supplier(SOUTH, NORTH), ""),
            ),
        )
        for what, change, wanted in itertools.chain.from_iterable(there_and_back):
            before = len(sold)
            async with asyncio.timeout(PATIENCE_S):
                while len(sold) < before + len(NODES):  # noqa: ASYNC110  # the load is looked at
                    await asyncio.sleep(0.005)
            await seen.by_all(what, change, nodes, pan, wanted)
    assert {what: took for what, took in seen.took_s.items() if max(took) >= WITHIN_S} == {}
    assert len(seen.took_s) == 12


# An instant, at three nodes.


@dataclass(frozen=True)
class Written:
    """A vend as the ledger has it: under whose registration, when, its counter, and the revision that made it."""

    supplier_id: str
    issued_ms: int
    counter: int
    revision: int


async def written(stack: DevStack, meter_id: str) -> tuple[list[Written], int]:
    """Return every vend of a meter, and the revision at which its one change was carried out."""
    config = load_config(stack.node_config("node-a")).etcd
    client = EtcdClient(config)
    try:
        vends, _ = await client.list_prefix(f"{config.prefix}vend/".encode())
        changes, _ = await client.list_prefix(f"{config.prefix}change/{NORTH}/".encode())
    finally:
        await client.close()
    records = [(store_pb.VendRecord.FromString(kv.value), kv.create_revision) for kv in vends]
    (change,) = [kv for kv in changes if kv.key.decode().endswith(meter_id)]
    return [
        Written(one.supplier_id, one.issued_at.ToMilliseconds(), one.utrn_counter, revision)
        for one, revision in records
        if one.meter_id == meter_id
    ], change.mod_revision


async def test_a_change_of_supplier_takes_place_at_its_instant_on_three_nodes(three_nodes: DevStack) -> None:
    """Recorded two seconds ahead: at one meter both sides ask every node all the time, at the other nobody asks."""
    (pan, raced), (_, quiet) = meters_of(three_nodes, NORTH)[1:3]
    new_pan = "9826000000000000116"
    instant = SystemClock().now() + timedelta(seconds=2)
    since = timestamp_pb2.Timestamp()
    since.FromMilliseconds(int(instant.timestamp() * 1000))
    async with registry_caller(three_nodes, OPERATOR) as operator:
        for meter_id in (raced, quiet):
            await operator.ChangeSupplier(
                meter_pb.ChangeSupplierRequest(
                    meter_id=meter_id, losing_supplier_id=NORTH, gaining_supplier_id=SOUTH, since=since
                )
            )
        await operator.AssignPan(pan_pb.AssignPanRequest(pan=new_pan, meter_id=raced, since=since))
    refusals: set[str] = set()
    async with stubs(three_nodes) as psps, stubs(three_nodes, SOUTH) as souths, asyncio.TaskGroup() as tasks:
        for old, new in zip(psps, souths, strict=True):
            tasks.create_task(_race(old, pan, instant.timestamp() + 0.5, refusals))
            tasks.create_task(_race(new, new_pan, instant.timestamp() + 0.5, refusals))
    assert refusals <= {"PAN_UNKNOWN", "NOT_APPOINTED", "PAN_NOT_CURRENT", "REGISTRY_MOVED"}
    vends, turned = await written(three_nodes, raced)
    assert {vend.supplier_id for vend in vends} == {NORTH, SOUTH}
    for vend in vends:
        before = vend.supplier_id == NORTH
        assert (vend.revision < turned) == before
        assert (vend.issued_ms < since.ToMilliseconds()) == before
    for supplier_id in (NORTH, SOUTH):
        counters = sorted(vend.counter for vend in vends if vend.supplier_id == supplier_id)
        assert counters == list(range(1, len(counters) + 1)), "each side has a sequence of its own, and it is dense"
    note = await _note_of(three_nodes, quiet)
    assert note.at == since, "nobody asked, and it took place"
    assert note.carried_out_at.ToMilliseconds() - since.ToMilliseconds() < 2000


async def _race(stub: "Stub", pan: str, until_s: float, refusals: set[str]) -> None:
    """Sell one after another until an instant has passed."""
    clock = SystemClock()
    while clock.now().timestamp() < until_s:
        try:
            await stub.IssueUtrn(issue(pan, 100))
        except grpc.aio.AioRpcError as error:
            refusals.add(failure_of(error).reason)
        await asyncio.sleep(0.01)


async def _note_of(stack: DevStack, meter_id: str) -> meter_pb.RegistrationChange:
    """Return the note of a meter's change once it has been carried out."""
    async with registry_caller(stack, NORTH, node="node-c") as registry, asyncio.timeout(PATIENCE_S):
        while True:
            changes = (await registry.ListRegistrationChanges(meter_pb.ListRegistrationChangesRequest())).changes
            found = [change for change in changes if change.meter_id == meter_id]
            if found:
                return found[0]
            await asyncio.sleep(0.02)
