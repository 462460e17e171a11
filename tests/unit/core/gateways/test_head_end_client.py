"""The gateway to a head end that sends anything at all: what is out of bounds is set aside, and the stream goes on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from headend.v1 import head_end_service_pb2 as pb

from core.domain.errors import HeadEndRefused, HeadEndStale, HeadEndUnavailable
from core.domain.meter import MeterId, MeterKind, OriginatorId
from core.domain.utrn import Counter, Utrn
from core.gateways.config import HeadEndConfig
from core.gateways.head_end_client import GrpcHeadEnd
from core.metrics import SetAside
from core.ports.head_end import AddCredit, Alert, Answer, AnswerKind, MessageState, StreamRestored
from tests.support.patience import PATIENCE_S

pytestmark = [pytest.mark.slow]

METER, ORIGINATOR = MeterId("00db12345678beef"), OriginatorId("90b3d51f30010000")
MESSAGE_ID = f"{ORIGINATOR}:{METER}:{7 << 32}:{'5e' * 16}"
MESSAGE = AddCredit(
    message_id=MESSAGE_ID, meter_id=METER, meter_kind=MeterKind.ESME, originator_id=ORIGINATOR, counter=Counter(7),
    utrn=Utrn("7" * 20), owner_epoch=3, not_after=datetime(2026, 11, 24, tzinfo=UTC),
)  # fmt: skip
APPLIED = pb.StreamEventsResponse(
    sequence=900, answer=pb.Answer(message_id=MESSAGE_ID, outcome=pb.ADD_CREDIT_OUTCOME_APPLIED)
)
UNREADABLE = [b"\xff" * 9, b"\x0a\x7f", b"\x12\x04\x0a\x02\xc3\x28"]


@dataclass
class Stranger:
    """A head end that replies with whatever it is given: messages, bytes that are none, or a status."""

    events: list[Message | bytes | grpc.StatusCode] = field(default_factory=list)
    status: Message | bytes = b""
    can: Message | bytes = b""
    send: grpc.Status | grpc.StatusCode | None = None
    asked: list[pb.StreamEventsRequest] = field(default_factory=list)
    sent: list[pb.SendAddCreditRequest] = field(default_factory=list)

    async def stream(self, request: pb.StreamEventsRequest, context: Any) -> AsyncIterator[Message | bytes]:
        self.asked.append(request)
        yield pb.StreamEventsResponse(sequence=request.after_sequence)
        for event in self.events:
            if isinstance(event, grpc.StatusCode):
                await context.abort(event, "broken")
            else:
                yield event
        await asyncio.Event().wait()

    async def take(self, request: pb.SendAddCreditRequest, context: Any) -> Message:
        self.sent.append(request)
        if isinstance(self.send, grpc.StatusCode):
            await context.abort(self.send, "no")
        elif self.send is not None:
            await context.abort_with_status(self.send)
        return pb.SendAddCreditResponse()


@asynccontextmanager
async def reached(stranger: Stranger, events_per_s_max: int = 5_000) -> AsyncIterator[tuple[GrpcHeadEnd, SetAside]]:
    """Serve `stranger`, and reach it through the gateway."""

    def leave(reply: Message | bytes) -> bytes:
        return reply if isinstance(reply, bytes) else reply.SerializeToString()

    async def status(*_: Any) -> Message | bytes:
        return stranger.status

    async def can(*_: Any) -> Message | bytes:
        return stranger.can

    handlers: dict[str, Any] = {
        "SendAddCredit": grpc.unary_unary_rpc_method_handler(stranger.take, pb.SendAddCreditRequest.FromString, leave),
        "GetMessageStatus": grpc.unary_unary_rpc_method_handler(status, None, leave),
        "GetCapabilities": grpc.unary_unary_rpc_method_handler(can, None, leave),
        "StreamEvents": grpc.unary_stream_rpc_method_handler(stranger.stream, pb.StreamEventsRequest.FromString, leave),
    }
    server = grpc.aio.server(options=[("grpc.max_send_message_length", -1)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("headend.v1.HeadEndService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    set_aside = SetAside()
    nothing = Path("none")
    head_end = GrpcHeadEnd(
        HeadEndConfig(
            name="odd",
            target=f"127.0.0.1:{port}",
            ca=nothing,
            cert=nothing,
            key=nothing,
            events_per_s_max=events_per_s_max,
        ),
        set_aside,
    )
    head_end._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    try:
        yield head_end, set_aside
    finally:
        await head_end.close()
        await server.stop(30.0)


async def _first(head_end: GrpcHeadEnd, kind: type) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        async for event in head_end.events():
            if isinstance(event, kind):
                return event
    raise AssertionError


def _answer(message_id: str) -> pb.StreamEventsResponse:
    return pb.StreamEventsResponse(
        sequence=5, answer=pb.Answer(message_id=message_id, outcome=pb.ADD_CREDIT_OUTCOME_APPLIED)
    )


def _alert(**fields: Any) -> pb.StreamEventsResponse:
    told: dict[str, Any] = {
        "meter_id": METER,
        "alert_code": 0x810E,
        "originator_id": ORIGINATOR,
        "utrn_counter": 7,
    } | fields
    return pb.StreamEventsResponse(sequence=5, alert=pb.Alert(**told))


R = "5e" * 16
ODD: list[tuple[str, Message | bytes, str]] = [
    ("bytes that are no message", UNREADABLE[0], "event: not readable"),
    ("a message cut off", UNREADABLE[1], "event: not readable"),
    ("text that is none", UNREADABLE[2], "event: not readable"),
    ("30 kB of originator", _alert(originator_id="f" * 30_000), "event: too large"),
    ("30 kB of message id", _answer("f" * 30_000), "event: too large"),
    ("1 kB of originator", _alert(originator_id="f" * 1000), "event: originator id"),
    ("no message id", _answer("hello"), "event: message id"),
    ("no message id of ours: a bare counter", _answer(f"{ORIGINATOR}:{METER}:7:{R}"), "event: message id"),
    ("no random part", _answer(f"{ORIGINATOR}:{METER}:{7 << 32}"), "event: message id"),
    ("a random part that is too long", _answer(f"{MESSAGE_ID}00"), "event: message id"),
    ("counter 0", _answer(f"{ORIGINATOR}:{METER}:0:{R}"), "event: message id"),
    ("a counter of 33 bits", _answer(f"{ORIGINATOR}:{METER}:{1 << 64}:{R}"), "event: message id"),
    ("capital letters", _answer(MESSAGE_ID.upper()), "event: message id"),
    ("other digits", _answer(f"{ORIGINATOR}:{METER}:\u0667{'0' * 12}:{R}"), "event: message id"),
    ("given up under no id", pb.StreamEventsResponse(given_up=pb.GivenUp(message_id="x")), "event: message id"),
    ("an alert of no meter", _alert(meter_id=""), "event: meter id"),
    ("an alert of a name", _alert(meter_id="kitchen"), "event: meter id"),
    ("alert code 0", _alert(alert_code=0), "event: alert code"),
    ("alert code of 32 bits", _alert(alert_code=2**32 - 1), "event: alert code"),
]  # fmt: skip


@pytest.mark.parametrize(("odd", "why"), [row[1:] for row in ODD], ids=[row[0] for row in ODD])
async def test_an_event_out_of_bounds_is_set_aside_and_the_next_one_is_heard(odd: Message | bytes, why: str) -> None:
    async with reached(Stranger(events=[odd, APPLIED])) as (head_end, set_aside):
        heard = [event async for event in _until_answer(head_end)]
        assert head_end.available
    assert heard == [StreamRestored(), Answer(message_id=MESSAGE_ID, kind=AnswerKind.APPLIED)]
    assert set_aside.counts == {("odd", why): 1}


async def _until_answer(head_end: GrpcHeadEnd) -> AsyncIterator[Any]:
    async with asyncio.timeout(PATIENCE_S):
        async for event in head_end.events():
            yield event
            if isinstance(event, Answer):
                return


async def test_an_alert_that_names_half_a_code_names_none() -> None:
    for fields in ({"originator_id": ""}, {"utrn_counter": 0}):
        async with reached(Stranger(events=[_alert(**fields)])) as (head_end, _):
            alert = await _first(head_end, Alert)
        assert (alert.originator_id, alert.counter) == (None, None)


async def test_a_sequence_that_falls_is_counted_and_nothing_is_told_for_a_second_time() -> None:
    fell = pb.StreamEventsResponse(sequence=1)
    stranger = Stranger(events=[APPLIED, fell, grpc.StatusCode.UNAVAILABLE])
    async with reached(stranger) as (head_end, set_aside):
        heard = head_end.events()
        async with asyncio.timeout(PATIENCE_S):
            while len(stranger.asked) < 2:
                await anext(heard)
    assert stranger.asked[1].after_sequence == 900
    assert set_aside.counts["odd", "event: sequence fell"] == 1


class Restarted(Stranger):
    """A head end that restarts its sequence at 1, and tells only what is above the number it is asked for."""

    async def stream(self, request: pb.StreamEventsRequest, context: Any) -> AsyncIterator[Message | bytes]:
        self.asked.append(request)
        if len(self.asked) == 1:
            yield pb.StreamEventsResponse(sequence=0)
            yield APPLIED
            await context.abort(grpc.StatusCode.UNAVAILABLE, "restarted")
        yield pb.StreamEventsResponse(sequence=2)
        if request.after_sequence < 2:
            yield pb.StreamEventsResponse(sequence=2, answer=APPLIED.answer)
        await asyncio.Event().wait()


async def test_a_head_end_that_restarts_its_sequence_is_read_from_the_start() -> None:
    stranger = Restarted()
    async with reached(stranger) as (head_end, set_aside), asyncio.timeout(30):
        answers = 0
        async for event in head_end.events():
            answers += isinstance(event, Answer)
            if answers == 2:
                break
    assert [(one.after_sequence, one.only_new) for one in stranger.asked] == [(0, True), (900, False), (0, False)]
    assert set_aside.counts["odd", "event: counts anew"] == 1


async def test_a_stream_that_breaks_at_the_same_place_for_ever_goes_on_behind_it() -> None:
    """An event of 5 MB: gRPC itself refuses it, and it would come again with every new stream."""
    large = pb.StreamEventsResponse(sequence=901, answer=pb.Answer(message_id="f" * 5_000_000))
    stranger = Stranger(events=[APPLIED, large])
    async with reached(stranger) as (head_end, set_aside):
        async with asyncio.timeout(PATIENCE_S):
            async for _ in head_end.events():
                if stranger.asked[-1].only_new and len(stranger.asked) > 1:
                    break
    assert {one.after_sequence for one in stranger.asked[1:-1]} == {900}
    assert set_aside.counts["odd", "event: stream stuck"] == 1


@pytest.mark.parametrize("can", [*UNREADABLE[:2], b"\x0a\x02\xc3\x28"])
async def test_capabilities_that_nobody_can_read_are_none_and_the_stream_opens(can: bytes) -> None:
    async with reached(Stranger(events=[APPLIED], can=can)) as (head_end, set_aside):
        await _first(head_end, Answer)
        assert not (await head_end.capabilities()).status_by_message_id
    assert set_aside.counts == {("odd", "capabilities: not readable"): 1}


STATUSES: list[tuple[Message | bytes, str]] = [
    *((one, "status: not readable") for one in UNREADABLE),
    (
        pb.GetMessageStatusResponse(state=pb.MESSAGE_STATE_ANSWERED, answer=pb.Answer(message_id="f" * 30_000)),
        "status: too large",
    ),
    (
        pb.GetMessageStatusResponse(
            state=pb.MESSAGE_STATE_ANSWERED,
            answer=pb.Answer(message_id=MESSAGE_ID.replace("beef", "beee"), outcome=pb.ADD_CREDIT_OUTCOME_APPLIED),
        ),
        "status: another message",
    ),
]


@pytest.mark.parametrize(("status", "why"), STATUSES)
async def test_a_status_out_of_bounds_is_no_status(status: Message | bytes, why: str) -> None:
    async with reached(Stranger(status=status)) as (head_end, set_aside):
        assert await head_end.status(MESSAGE_ID) is MessageState.NOT_KNOWN
    assert set_aside.counts == {("odd", why): 1}


async def test_a_flood_of_events_waits_at_the_head_end() -> None:
    """At 100 a second the 240th comes after two turns of the second at least."""
    flood: list[Message | bytes | grpc.StatusCode] = [pb.StreamEventsResponse(sequence=5)] * 240
    async with reached(Stranger(events=[*flood, APPLIED]), 100) as (head_end, _):
        began = asyncio.get_running_loop().time()
        await _first(head_end, Answer)
        took = asyncio.get_running_loop().time() - began
    assert took > 1.0


async def test_a_flood_of_events_waits_at_the_head_end_for_whoever_records_them() -> None:
    """At 10 a second the 32nd comes after two turns of the second at least."""
    flood: list[Message | bytes | grpc.StatusCode] = [pb.StreamEventsResponse(sequence=5)] * 30
    async with reached(Stranger(events=[*flood, APPLIED]), 10) as (head_end, _), asyncio.timeout(PATIENCE_S):
        began = asyncio.get_running_loop().time()
        async for numbered in head_end.said(0):
            if numbered.said is not None:
                break
        took = asyncio.get_running_loop().time() - began
    assert took > 1.0


def _stale(reason: str) -> grpc.Status:
    status = status_pb2.Status(code=code_pb2.FAILED_PRECONDITION)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="headend.v1"))
    return rpc_status.to_status(status)


SENDS: list[tuple[grpc.Status | grpc.StatusCode, type[Exception], str]] = [
    (_stale("EARLIER_OWNER"), HeadEndStale, "stale: earlier owner"),
    (_stale("TOO_LATE"), HeadEndStale, "stale: too late"),
    (_stale("f" * 1000), HeadEndStale, "stale: not said why"),
    (grpc.StatusCode.FAILED_PRECONDITION, HeadEndStale, "stale: not said why"),
    (grpc.StatusCode.UNAVAILABLE, HeadEndUnavailable, ""),
    (grpc.StatusCode.PERMISSION_DENIED, HeadEndRefused, ""),
]


@pytest.mark.parametrize(("status", "error", "why"), SENDS)
async def test_what_a_head_end_says_to_a_message(
    status: grpc.Status | grpc.StatusCode, error: type[Exception], why: str
) -> None:
    stranger = Stranger(send=status)
    async with reached(stranger) as (head_end, set_aside):
        with pytest.raises(error):
            await head_end.send(MESSAGE)
    assert set_aside.counts == ({("odd", why): 1} if why else {})
    (sent,) = stranger.sent
    assert (sent.owner_epoch, sent.not_after.ToDatetime(UTC)) == (3, MESSAGE.not_after)
