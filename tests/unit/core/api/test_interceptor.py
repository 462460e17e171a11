"""What every call passes: a broken promise ends the node after its caller was told, whichever way it came."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from utrn.v1 import meter_model_service_pb2 as meter_model_pb
from utrn.v1 import participant_service_pb2 as participant_pb

from core.api.access import ACCESS, Noted
from core.api.health import HealthServicer
from core.api.interceptor import Interceptor
from core.api.status import Context
from core.domain.errors import CallerSuspended, NotReady, Overloaded, PanBlocked
from core.domain.invariant import InvariantBroken, check
from core.ports.audit_context import NOTES, Notes
from tests.support.market_node import OPERATOR
from tests.support.patience import PATIENCE_S
from tests.support.raw import Answer, raw_call, raw_stream
from tests.support.served import METHODS, Versioned, served
from tests.support.vends import PSP, SUPPLIER

UNARY, SALE = "/utrn.v1.MeterModelService/ListMeterModels", "/utrn.v1.TopUpService/TopUp"
STREAM, LOOK_UP = "/utrn.v1.RegistryService/LoadRecords", "/utrn.v1.TopUpService/GetVend"
CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
UNKNOWN = "/utrn.v1.RegistryService/NoSuchMethod"
_SECRET = "a promise holds: secret=1234"
# A caller that is told nothing waits so long.
_HANGS_S = 0.1


@dataclass
class Behind:
    """An interceptor, what it noted, and how it stopped the node."""

    known: Versioned
    stopped: list[InvariantBroken] = field(default_factory=list)
    noted: list[tuple[str, str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.interceptor = Interceptor(self.known.authenticate, self.stopped.append, self._note)

    def _note(self, context: Context, method: str, request: Message, outcome: str, notes: Notes) -> None:
        self.noted.append((method, outcome, request.ByteSize()))

    async def ended(self) -> int:
        """Return how often the node was stopped, once it was: the caller hears of it first."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.stopped:  # noqa: ASYNC110  # the node is watched
                await asyncio.sleep(0.001)
        return len(self.stopped)


@pytest.fixture
def behind() -> Behind:
    return Behind(Versioned(OPERATOR))


async def call(channel: grpc.aio.Channel, path: str, body: bytes = b"", timeout_s: float = 10) -> Answer:
    if path in METHODS and METHODS[path].server_streaming:
        return await raw_stream(channel, path, [body], timeout_s=timeout_s)
    return await raw_call(channel, path, body, timeout_s=timeout_s)


async def broken(request: Any, context: Context) -> Any:
    check(False, _SECRET)


async def broken_in_a_group(request: Any, context: Context) -> Any:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(broken(request, context))


async def broken_stream(request: Any, context: Context) -> AsyncIterator[Any]:
    check(False, _SECRET)
    yield


async def broken_on_a_request(requests: Any, context: Context) -> AsyncIterator[Any]:
    async for _ in requests:
        check(False, _SECRET)
        yield


class _Reply:
    def SerializeToString(self) -> bytes:  # noqa: N802
        check(False, _SECRET)
        return b""


async def broken_reply(request: Any, context: Context) -> Any:
    return _Reply()


async def broken_replies(request: Any, context: Context) -> AsyncIterator[Any]:
    yield _Reply()


async def a_bug(request: Any, context: Context) -> Any:
    raise KeyError(_SECRET)


async def refused(request: Any, context: Context) -> Any:
    raise PanBlocked("blocked")


async def answered(request: Any, context: Context) -> Any:
    return meter_model_pb.ListMeterModelsResponse()


PATHS: dict[str, tuple[str, Callable[..., Any]]] = {
    "unary": (UNARY, broken),
    "in a group of tasks": (UNARY, broken_in_a_group),
    "server stream": (WATCH, broken_stream),
    "request stream": (STREAM, broken_on_a_request),
    "health": (CHECK, broken),
    "sale": (SALE, broken),
    "conversion of a reply": (UNARY, broken_reply),
    "conversion of a stream's reply": (WATCH, broken_replies),
}


@pytest.mark.parametrize("path", PATHS)
async def test_a_broken_promise_ends_the_node_after_its_caller_was_told(behind: Behind, path: str) -> None:
    name, behaviour = PATHS[path]
    async with served({name: behaviour}, [behind.interceptor]) as channel:
        answer = await call(channel, name)
    assert (answer.code, "secret" in answer.message) == (grpc.StatusCode.INTERNAL, False)
    assert await behind.ended() == 1
    assert behind.interceptor.answered[(name.rpartition("/")[2], "INTERNAL")] == 1
    assert behind.interceptor.calls == 0


@pytest.fixture
def _lost_here() -> Iterator[None]:
    """What gRPC loses is told when it is collected: in the test that lost it."""
    yield
    gc.collect()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("_lost_here")
async def test_without_the_interceptor_the_caller_of_what_is_broken_hangs(path: str) -> None:
    """The control: gRPC catches Exception, and tells nobody of a broken promise."""
    name, behaviour = PATHS[path]
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    async with served({name: behaviour}, []) as channel:
        answer = await call(channel, name, timeout_s=_HANGS_S)
    assert answer.code is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("path", [UNARY, STREAM, CHECK, WATCH, UNKNOWN])
async def test_a_promise_that_breaks_while_its_caller_is_looked_up_ends_the_node(path: str) -> None:
    behind = Behind(Versioned(None, InvariantBroken(_SECRET)))
    behaviours = {one: behaviour for one, behaviour in PATHS.values() if one == path}
    async with served(behaviours, [behind.interceptor]) as channel:
        assert (await call(channel, path)).code is grpc.StatusCode.INTERNAL
    assert await behind.ended() == 1


async def test_a_broken_promise_ends_the_node_even_if_its_caller_is_gone(behind: Behind) -> None:
    waiting = asyncio.Event()

    async def breaks_late(request: Any, context: Context) -> Any:
        waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            check(False, _SECRET)

    async with served({UNARY: breaks_late}, [behind.interceptor]) as channel, asyncio.TaskGroup() as tasks:
        calling = tasks.create_task(call(channel, UNARY))
        await waiting.wait()
        calling.cancel()
        await behind.ended()


async def test_a_bug_is_answered_internal_and_ends_nothing(behind: Behind) -> None:
    async with served({UNARY: a_bug}, [behind.interceptor]) as channel:
        answer = await call(channel, UNARY)
    assert (answer.code, "secret" in answer.message) == (grpc.StatusCode.INTERNAL, False)
    assert behind.stopped == []


async def test_bytes_that_are_no_message_are_a_wrong_field_and_no_traceback(
    behind: Behind, caplog: pytest.LogCaptureFixture
) -> None:
    async with served({UNARY: answered, STREAM: broken_on_a_request}, [behind.interceptor]) as channel:
        for path in (UNARY, STREAM):
            answer = await call(channel, path, b"\xff\xff\xff")
            assert (answer.code, answer.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_FIELD")
            assert answer.message.startswith("request: ")
    assert [record for record in caplog.records if record.exc_info and record.name != "asyncio"] == []
    assert behind.stopped == []


async def test_without_the_interceptor_a_parsers_text_reaches_the_caller() -> None:
    """The control."""
    async with served({UNARY: answered}, []) as channel:
        answer = await call(channel, UNARY, b"\xff\xff\xff")
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNKNOWN, "")


async def test_neither_role_nor_size_is_asked_after_the_bytes_are_parsed(behind: Behind) -> None:
    behind.known.who = PSP
    async with served({UNARY: answered, STREAM: broken_on_a_request}, [behind.interceptor]) as channel:
        for path in (UNARY, STREAM):
            assert (await call(channel, path, b"\xff")).reason == "ROLE_NOT_ALLOWED"
        behind.known.who = OPERATOR
        assert "at most" in (await call(channel, UNARY, b"\xff" * 100_000)).message


async def test_who_is_barred_may_still_look_up_what_became_of_its_sales(behind: Behind) -> None:
    behind.known.refusal = CallerSuspended("suspended")
    async with served({UNARY: answered, LOOK_UP: answered, SALE: answered}, [behind.interceptor]) as channel:
        found = [(await call(channel, path)).reason for path in (UNARY, LOOK_UP, SALE)]
    assert found == ["CALLER_SUSPENDED", "", ""]


async def test_a_method_that_is_not_there_is_unimplemented_for_whoever_is_known(behind: Behind) -> None:
    async with served({UNARY: answered}, [behind.interceptor]) as channel:
        assert (await call(channel, UNKNOWN)).code is grpc.StatusCode.UNIMPLEMENTED
        behind.known.refusal = CallerSuspended("suspended")
        assert (await call(channel, UNKNOWN)).reason == "CALLER_SUSPENDED"
    assert {method for method, _ in behind.interceptor.answered} == {"unknown method"}


async def test_health_is_told_while_nobody_can_say_who_calls(behind: Behind) -> None:
    behind.known.who, behind.known.refusal = None, NotReady("reading")
    health = HealthServicer(("",))
    async with served({CHECK: health.Check, UNARY: answered}, [behind.interceptor]) as channel:
        assert (await call(channel, CHECK)).code is grpc.StatusCode.OK
        assert (await call(channel, UNARY)).reason == "NOT_READY"


async def test_a_caller_that_is_suspended_while_it_watches_hears_no_more(behind: Behind) -> None:
    beating = asyncio.Event()

    async def two(request: Any, context: Context) -> AsyncIterator[Any]:
        yield meter_model_pb.ListMeterModelsResponse()
        await beating.wait()
        yield meter_model_pb.ListMeterModelsResponse()

    async with served({WATCH: two}, [behind.interceptor]) as channel, asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(call(channel, WATCH))
        behind.known.who, behind.known.refusal = None, CallerSuspended("nobody any more")
        beating.set()
    assert watching.result().code is not grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("path", "behaviour", "expected"),
    [
        (UNARY, answered, [("ListMeterModels", "allowed", 0)]),
        (UNARY, refused, [("ListMeterModels", "PAN_BLOCKED", 0)]),
        (SALE, answered, [("TopUp", "repeated", 0)]),
        (SALE, refused, [("TopUp", "PAN_BLOCKED", 0)]),
        (CHECK, answered, []),
    ],
)
async def test_what_notes_no_decision_of_its_own_is_noted(
    behind: Behind, path: str, behaviour: Callable[..., Any], expected: list[tuple[str, str, int]]
) -> None:
    async with served({path: behaviour}, [behind.interceptor]) as channel:
        await call(channel, path)
    assert behind.noted == expected


@pytest.mark.parametrize("path", sorted(path for path in METHODS if ACCESS[path].noted is not Noted.NONE))
async def test_whoever_is_shown_anything_leaves_a_line(behind: Behind, path: str) -> None:
    """Every method: of each, whoever may call it is noted, the looks at what was sold before too."""
    method = METHODS[path]
    reply = method.output_type._concrete_class()

    async def one(request: Any, context: Context) -> Any:
        return reply

    async def many(requests: Any, context: Context) -> AsyncIterator[Any]:
        yield reply

    behind.known.who = next(one for one in (OPERATOR, PSP, SUPPLIER) if one.role in ACCESS[path].roles)
    async with served({path: many if method.server_streaming else one}, [behind.interceptor]) as channel:
        assert (await call(channel, path)).code is grpc.StatusCode.OK
    assert [name for name, _, _ in behind.noted] == [method.name]


async def test_what_noted_its_own_refusal_is_not_noted_twice(behind: Behind) -> None:
    async def decides(request: Any, context: Context) -> Any:
        notes = NOTES.get()
        assert notes is not None
        notes.decided = True
        raise PanBlocked("blocked")

    async def busy(request: Any, context: Context) -> Any:
        raise Overloaded("busy")

    async with served({SALE: decides, LOOK_UP: busy}, [behind.interceptor]) as channel:
        await call(channel, SALE)
        await call(channel, LOOK_UP)
    assert behind.noted == []


async def test_what_a_role_may_not_ask_is_noted_with_what_it_was_about(behind: Behind) -> None:
    behind.known.who = PSP
    body = participant_pb.SetParticipantStatusRequest(
        participant_id="supplier-north", status=participant_pb.PARTICIPANT_STATUS_LEFT
    ).SerializeToString()
    path = "/utrn.v1.ParticipantService/SetParticipantStatus"
    async with served({path: answered}, [behind.interceptor]) as channel:
        await call(channel, path, body)
        await call(channel, path, b"\xff")
    assert behind.noted == [
        ("SetParticipantStatus", "ROLE_NOT_ALLOWED", len(body)),
        ("SetParticipantStatus", "ROLE_NOT_ALLOWED", 0),
    ]
