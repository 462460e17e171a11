"""The net around every method: a broken promise ends the node and is answered INTERNAL, whichever way it came."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import grpc
import pytest
from google.protobuf import empty_pb2

from core.api.errors import Context, Guard
from core.domain.errors import PanBlocked
from core.domain.invariant import InvariantBroken, check


class Call:
    """The context of a call: keeps the status it ends with, as gRPC does, and the order of things."""

    def __init__(self, happened: list[str], *, fails: bool = False) -> None:
        self.happened, self.fails = happened, fails
        self.status: grpc.Status | None = None

    async def abort_with_status(self, status: grpc.Status) -> None:
        if self.fails:
            raise RuntimeError("the caller is gone")
        self.status = status
        self.happened.append("told")
        raise grpc.aio.AbortError


async def broken(request: empty_pb2.Empty, context: Context) -> empty_pb2.Empty:
    check(False, "a promise holds: secret=1234")
    return empty_pb2.Empty()


async def broken_stream(request: empty_pb2.Empty, context: Context) -> AsyncIterator[empty_pb2.Empty]:
    yield empty_pb2.Empty()
    check(False, "a promise holds: secret=1234")


async def a_bug(request: empty_pb2.Empty, context: Context) -> empty_pb2.Empty:
    raise KeyError("secret=1234")


async def refused(request: empty_pb2.Empty, context: Context) -> empty_pb2.Empty:
    raise PanBlocked("blocked")


Method = Callable[[empty_pb2.Empty, Context], Awaitable[empty_pb2.Empty]]
WAYS: dict[str, Callable[[Guard, Method], Any]] = {
    "unary": lambda guard, method: guard.unary(method),
    "noted": lambda guard, method: guard.unary(guard.noted(method)),
    "noted if refused": lambda guard, method: guard.unary(guard.noted_if_refused(method)),
}


async def _drive(answer: Any, call: Call) -> None:
    """Call a method behind the guard, as gRPC does; it ends in an abort."""
    reply = answer(empty_pb2.Empty(), cast("Context", call))
    with pytest.raises(grpc.aio.AbortError):
        await (_read_all(reply) if hasattr(reply, "__aiter__") else reply)


async def _read_all(replies: AsyncIterator[empty_pb2.Empty]) -> None:
    async for _ in replies:
        pass


def _guard(happened: list[str]) -> tuple[Guard, list[InvariantBroken]]:
    stopped: list[InvariantBroken] = []

    def stop(broken_: InvariantBroken) -> None:
        stopped.append(broken_)
        happened.append("stopped")

    return Guard(stop), stopped


@pytest.mark.parametrize("way", [*WAYS, "stream"])
async def test_a_broken_promise_ends_the_node_and_is_answered_internal(way: str) -> None:
    happened: list[str] = []
    guard, stopped = _guard(happened)
    call = Call(happened)
    await _drive(guard.stream(broken_stream) if way == "stream" else WAYS[way](guard, broken), call)
    assert call.status is not None
    assert call.status.code is grpc.StatusCode.INTERNAL
    assert "secret" not in call.status.details
    assert len(stopped) == 1
    assert happened == ["told", "stopped"], "the caller hears of it before the process ends"
    assert sum(count for (_, reason), count in guard.answered.items() if reason == "INTERNAL") == 1
    assert guard.calls == 0


@pytest.mark.parametrize("way", WAYS)
async def test_a_bug_is_answered_internal_and_ends_nothing(way: str) -> None:
    happened: list[str] = []
    guard, stopped = _guard(happened)
    call = Call(happened)
    await _drive(WAYS[way](guard, a_bug), call)
    assert call.status is not None
    assert call.status.code is grpc.StatusCode.INTERNAL
    assert "secret" not in call.status.details
    assert stopped == []


async def test_a_refusal_is_answered_as_such() -> None:
    happened: list[str] = []
    guard, stopped = _guard(happened)
    call = Call(happened)
    await _drive(guard.unary(refused), call)
    assert call.status is not None
    assert (call.status.code, stopped) == (grpc.StatusCode.FAILED_PRECONDITION, [])


async def test_a_broken_promise_ends_the_node_even_if_the_caller_cannot_be_told() -> None:
    happened: list[str] = []
    guard, stopped = _guard(happened)
    answer = guard.unary(broken)
    with pytest.raises(RuntimeError, match="gone"):
        await answer(empty_pb2.Empty(), cast("Context", Call(happened, fails=True)))
    assert len(stopped) == 1
