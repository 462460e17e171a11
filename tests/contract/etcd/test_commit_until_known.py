"""The one loop that sends writes until their outcome is known: refusals, lost answers, and one after the other."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from etcdpb import rpc_pb2 as pb
from etcdpb import rpc_pb2_grpc as rpc

from cluster.audit.anchors import EtcdAuditAnchors
from cluster.config import EtcdConfig
from cluster.etcd import commit as commit_module
from cluster.etcd import ops
from cluster.etcd.client import EtcdClient, EtcdReadDenied, EtcdRefused, EtcdUnknown, EtcdUnreachable
from cluster.etcd.commit import NotKnown, NotWritten, OutcomeKnown, Settled, commit_each, commit_until_known
from cluster.etcd.write_batcher import WriteBatcher
from cluster.ledger.vends import EtcdLedger
from cluster.membership.cluster_admin import EtcdCluster
from cluster.registry.store import EtcdRegistryStore
from core.domain.delivery import NOT_REQUESTED
from core.domain.effective_dated import ms_of
from core.domain.errors import LedgerUnavailable, OutcomeUnknown, PanBlocked, UtrnError
from core.domain.participant import ParticipantId
from core.domain.record import Kind, Ref
from core.domain.refusal import closed
from core.gateways.system_clock import SystemClock
from core.ports.audit_anchors import Anchor
from core.ports.ledger import Committed, CounterState, Entry
from core.ports.registry import RegistryWrite
from tests.fakes.clock import HandClock
from tests.fakes.etcd import FakeEtcd
from tests.support.etcd import RealEtcd, Store
from tests.support.machines import idle_time
from tests.support.vends import PSP, PSP_ID, new_id, new_meter_id, vend

CONFIG = EtcdConfig(endpoints=("fake:1",), resolve_timeout_ms=300)
FULL = EtcdRefused("etcd: RESOURCE_EXHAUSTED: mvcc: database space exceeded", malformed=False)
LOST = EtcdUnknown("etcd: UNAVAILABLE")
AWAY = EtcdUnreachable("no etcd member can be reached")


class Says:
    """Raises one thing after the other on transactions, the last one for ever; None lets one through.

    A lost one is carried out or not, as `late` says: it may be, after everything else.
    """

    def __init__(self, etcd: FakeEtcd, clock: HandClock, *said: Exception | None) -> None:
        self.said, self.clock, self.asked = list(said), clock, 0
        etcd.before_txn = self

    def __call__(self) -> None:
        self.clock.advance(0.05)
        self.asked += 1
        now = self.said.pop(0) if len(self.said) > 1 else self.said[0]
        if now is not None:
            raise now


class Bench:
    """Everything that writes, over one fake etcd."""

    def __init__(self) -> None:
        self.etcd, self.clock = FakeEtcd(), HandClock()
        client = cast("EtcdClient", self.etcd)
        self.client = client
        self.ledger = EtcdLedger(client, CONFIG, self.clock)
        self.store = EtcdRegistryStore(client, CONFIG, self.clock)
        self.group = WriteBatcher(client, self.clock, batch_max=64, resolve_s=0.3, waiting_max=10)
        self.cluster = EtcdCluster(
            client=client, config=CONFIG, clock=self.clock, ownership=cast("object", None),  # type: ignore[arg-type]
            peers=cast("object", None), beat=lambda: None, owed=dict, keeper=idle_time(Store(client, CONFIG)),  # type: ignore[arg-type,return-value]
        )  # fmt: skip
        self.anchors = EtcdAuditAnchors(client, CONFIG, self.clock)

    async def commit(self) -> object:
        (outcome,) = await self.ledger.commit([Entry(vend=vend(1, new_meter_id()), seen=CounterState())])
        if isinstance(outcome, UtrnError):
            raise outcome
        return outcome

    async def send(self) -> object:
        (outcome,) = await self.ledger.commit(
            [Entry(vend=replace(vend(1, new_meter_id()), delivery=NOT_REQUESTED), seen=CounterState())]
        )
        assert isinstance(outcome, Committed)
        queued = outcome.stored.vend.with_delivery(outcome.stored.vend.delivery.queue(self.clock.now()))
        self.arm()
        return await self.ledger.request_delivery(outcome.stored, queued, ())

    async def close(self) -> object:
        refusal = closed(PanBlocked("x"), PSP_ID, new_id(), at=ms_of(self.clock.now()), node_id="a")
        return await self.ledger.close_refused(refusal)

    async def register(self) -> object:
        return await self.store.write(RegistryWrite(expect=[(Ref(Kind.PARTICIPANT, PSP_ID), 0)], put=[PSP]))

    async def deliver(self) -> object:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(self.group.run())
            try:
                return await self.group.write(pb.TxnRequest(success=[ops.put(b"k", b"v")]))
            finally:
                running.cancel()

    async def drain(self) -> object:
        return await self.cluster.drain("node-a", by=ParticipantId("op"), at=datetime(2026, 11, 24, tzinfo=UTC))

    def arm(self) -> None:
        """Called once what prepares a write is done."""


WRITERS = ["commit", "send", "close", "register", "deliver", "drain"]


async def _write(name: str, *said: Exception | None) -> tuple[object, int]:
    """Return what came of a write while etcd said so, and how often it was sent."""
    bench = Bench()
    armed: list[Says] = []
    arm: Callable[[], None] = lambda: armed.append(Says(bench.etcd, bench.clock, *said))  # noqa: E731
    bench.arm = arm  # type: ignore[method-assign]
    if name != "send":
        arm()
    writer: Callable[[], Awaitable[object]] = getattr(bench, name)
    try:
        return await writer(), armed[0].asked
    except UtrnError as error:
        return error, armed[0].asked
    except ExceptionGroup as group:
        return group.exceptions[0], armed[0].asked


@pytest.mark.parametrize("name", WRITERS)
async def test_what_etcd_refuses_was_not_written_and_is_no_bug(name: str) -> None:
    came, asked = await _write(name, FULL)
    assert (type(came), asked) == (LedgerUnavailable, 1)


@pytest.mark.parametrize("name", WRITERS)
async def test_what_cannot_be_sent_was_not_written(name: str) -> None:
    came, asked = await _write(name, AWAY)
    assert (type(came), asked) == (LedgerUnavailable, 1)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("then", [FULL, AWAY, LOST])
async def test_a_refusal_after_a_lost_answer_does_not_say_that_nothing_was_written(name: str, then: Exception) -> None:
    came, asked = await _write(name, LOST, then)
    assert isinstance(came, OutcomeUnknown)
    assert asked > 2, "it is asked until time is up"


@pytest.mark.parametrize("name", WRITERS)
async def test_a_lost_answer_is_found_out_by_sending_again(name: str) -> None:
    came, asked = await _write(name, LOST, FULL, AWAY, None)
    assert not isinstance(came, Exception)
    assert came is not None
    assert asked == 4


async def test_what_was_lost_may_be_carried_out_after_the_refusal() -> None:
    """Why a refusal after a lost answer settles nothing: the positive control of the rule."""
    bench = Bench()
    one = vend(1, new_meter_id())
    late = asyncio.Event()

    async def txn(request: pb.TxnRequest) -> pb.TxnResponse:
        if not late.is_set():
            late.set()
            raise LOST
        bench.clock.advance(1)
        raise FULL

    carried_out = bench.etcd.txn
    bench.etcd.txn = txn  # type: ignore[method-assign]
    (outcome,) = await bench.ledger.commit([Entry(vend=one, seen=CounterState())])
    assert isinstance(outcome, OutcomeUnknown)
    # The first sending arrives now, after all.
    bench.etcd.txn = carried_out  # type: ignore[method-assign]
    await bench.ledger.commit([Entry(vend=one, seen=CounterState())])
    assert await bench.ledger.find(PSP_ID, one.sale.transaction_id) is not None


async def test_without_the_memory_of_the_lost_answer_it_would_be_called_unwritten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = commit_until_known

    async def forgetful(
        client: EtcdClient, clock: HandClock, txn: pb.TxnRequest, *, until: float, **_: bool
    ) -> Settled:
        settled = await real(client, clock, txn, until=until)
        return NotWritten(settled.error) if isinstance(settled, NotKnown) and settled.error is FULL else settled

    monkeypatch.setattr(commit_module, "commit_until_known", forgetful)
    came, _ = await _write("commit", LOST, FULL)
    assert isinstance(came, LedgerUnavailable)


@pytest.mark.parametrize("lost", [False, True])
async def test_one_bad_child_sinks_no_neighbour(lost: bool) -> None:
    bench = Bench()
    good = [pb.TxnRequest(success=[ops.put(b"good%d" % number, b"v")]) for number in range(4)]
    large = pb.TxnRequest(success=[ops.put(b"bad%d" % number, b"v") for number in range(200)])
    if lost:
        Says(bench.etcd, bench.clock, LOST, None)
    settled = await commit_each(
        bench.client, bench.clock, [*good[:2], large, *good[2:]], until=bench.clock.monotonic() + 5
    )
    assert [type(one) for one in settled] == [
        OutcomeKnown,
        OutcomeKnown,
        NotKnown if lost else NotWritten,
        OutcomeKnown,
        OutcomeKnown,
    ]
    assert isinstance(settled[2], NotKnown | NotWritten)
    assert {bytes(key) for key in bench.etcd.keys} == {b"good%d" % number for number in range(4)}


async def test_an_anchor_that_is_not_kept_is_tried_again_whatever_etcd_said() -> None:
    for said in ([FULL], [AWAY], [LOST]):
        bench = Bench()
        Says(bench.etcd, bench.clock, *said)
        with pytest.raises(LedgerUnavailable):
            await bench.anchors.put("node-a-1", Anchor(0, "00"))


class DenyingMember(rpc.KVServicer):
    """An etcd member with auth, at which this node has no rights. `asked`: how often it was."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self.code, self.asked = code, 0

    async def Range(  # noqa: N802
        self, request: pb.RangeRequest, context: "grpc.aio.ServicerContext[pb.RangeRequest, pb.RangeResponse]"
    ) -> pb.RangeResponse:
        self.asked += 1
        await context.abort(self.code, "etcdserver: permission denied")

    async def Txn(  # noqa: N802
        self, request: pb.TxnRequest, context: "grpc.aio.ServicerContext[pb.TxnRequest, pb.TxnResponse]"
    ) -> pb.TxnResponse:
        self.asked += 1
        await context.abort(self.code, "etcdserver: permission denied")

    Put: Any = Txn
    DeleteRange: Any = Txn
    Compact: Any = Txn


@asynccontextmanager
async def served(member: DenyingMember) -> AsyncIterator[EtcdClient]:
    server = grpc.aio.server()
    rpc.add_KVServicer_to_server(member, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = EtcdClient(EtcdConfig(endpoints=(f"127.0.0.1:{port}",)))
    try:
        yield client
    finally:
        await client.close()
        await server.stop(grace=None)


@pytest.mark.parametrize("code", [grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED])
async def test_a_read_that_is_denied_is_asked_once_and_called_what_it_is(code: grpc.StatusCode) -> None:
    member = DenyingMember(code)
    async with served(member) as client:
        with pytest.raises(EtcdReadDenied, match="permission denied"):
            await client.range(pb.RangeRequest(key=b"k"))
        assert member.asked == 1
        ledger = EtcdLedger(client, CONFIG, HandClock())
        with pytest.raises(LedgerUnavailable, match="does not let this node read"):
            await ledger.find(PSP_ID, new_id())
        with pytest.raises(LedgerUnavailable, match="does not let this node read"):
            await EtcdRegistryStore(client, CONFIG, HandClock()).read(type(PSP), PSP_ID)
        assert member.asked == 3


async def test_a_read_that_no_member_answers_is_asked_until_time_is_up() -> None:
    """The control: what another member may answer is asked again."""
    member = DenyingMember(grpc.StatusCode.UNAVAILABLE)
    async with served(member) as client:
        with suppress(EtcdReadDenied), pytest.raises(EtcdUnreachable, match="no etcd member answered"):
            await client.range(pb.RangeRequest(key=b"k"))
        assert member.asked > 3


@pytest.mark.real
async def test_a_delivery_asked_for_while_etcd_is_full_is_asked_for_again_later(tmp_path: Path) -> None:
    etcd = RealEtcd(tmp_path, options=("--quota-backend-bytes", str(16 * 1024 * 1024)))
    config, clock = etcd.config(), SystemClock()
    client = EtcdClient(config)
    ledger = EtcdLedger(client, config, clock)
    try:
        one = replace(vend(1, new_meter_id()), delivery=NOT_REQUESTED)
        (outcome,) = await ledger.commit([Entry(vend=one, seen=CounterState())])
        assert isinstance(outcome, Committed)
        with pytest.raises(EtcdRefused, match="space exceeded"):
            await _fill(client)
        queued = outcome.stored.vend.with_delivery(outcome.stored.vend.delivery.queue(clock.now()))
        with pytest.raises(LedgerUnavailable, match="takes no writes now"):
            await ledger.request_delivery(outcome.stored, queued, ())
        refusal = closed(PanBlocked("x"), PSP_ID, new_id(), at=ms_of(clock.now()), node_id="a")
        with pytest.raises(LedgerUnavailable):
            await ledger.close_refused(refusal)
        found = await ledger.find(PSP_ID, one.sale.transaction_id)
        assert found == outcome.stored, "what was committed is still answered"
    finally:
        await client.close()
        etcd.stop()


async def _fill(client: EtcdClient) -> None:
    for number in range(400):
        await client.txn(pb.TxnRequest(success=[ops.put(b"filler/%d" % number, bytes(200_000))]))
