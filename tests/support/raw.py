"""Calls as a stranger makes them: any bytes to any method, with any certificate of the authority."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from app.devstack.ca import CertPaths
from app.devstack.files import PSP
from app.devstack.stack import DevStack
from app.workloads.sale_driver import secure_channel

_DEADLINE_S = 30.0
_STATUS = "grpc-status-details-bin"


@dataclass(frozen=True)
class Answer:
    """How a call ended.

    Attributes:
        code: Its status.
        message: What it says, as a caller reads it.
        reason: Of its ErrorInfo; "" if it has none.
        bodies: The replies, not parsed.
    """

    code: grpc.StatusCode
    message: str = ""
    reason: str = ""
    bodies: tuple[bytes, ...] = ()


@asynccontextmanager
async def raw_channel(
    stack: DevStack, who: str = PSP, *, certs: CertPaths | None = None, node: str = "node-a"
) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to one node as `who`, or with any certificate."""
    paths = certs or stack.certs(who)
    target = [stack.node_target(node)]
    async with secure_channel(target, ca=stack.certs(PSP).ca, cert=paths.cert, key=paths.key) as channel:
        yield channel


async def raw_call(channel: grpc.aio.Channel, method: str, body: bytes, *, timeout_s: float = _DEADLINE_S) -> Answer:
    """Call `/package.Service/Method` with one request of any bytes, for one reply."""
    try:
        call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
        return Answer(grpc.StatusCode.OK, bodies=(await call(body, timeout=timeout_s),))
    except grpc.aio.AioRpcError as error:
        return answer_of(error)


async def raw_stream(
    channel: grpc.aio.Channel,
    method: str,
    bodies: Iterable[bytes] | AsyncIterable[bytes],
    *,
    most: int = 1000,
    timeout_s: float = _DEADLINE_S,
) -> Answer:
    """Call `/package.Service/Method` with a stream of requests of any bytes; read at most `most` replies.

    A method that takes one request takes it so too.
    """
    seen: list[bytes] = []
    try:
        if isinstance(bodies, list) and len(bodies) == 1:
            # A stream's writer that is overtaken by the refusal has gRPC make an INTERNAL of its own out of it.
            call: Any = channel.unary_stream(method, request_serializer=bytes, response_deserializer=bytes)(
                bodies[0], timeout=timeout_s
            )
        else:
            call = channel.stream_stream(method, request_serializer=bytes, response_deserializer=bytes)(
                _each(bodies), timeout=timeout_s
            )
        async for body in call:
            seen.append(body)
            if len(seen) >= most:
                call.cancel()
                break
    except grpc.aio.AioRpcError as error:
        return answer_of(error, tuple(seen))
    return Answer(grpc.StatusCode.OK, bodies=tuple(seen))


async def _each(bodies: Iterable[bytes] | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(bodies, AsyncIterable):
        async for body in bodies:
            yield body
        return
    for body in bodies:
        yield body


def answer_of(error: grpc.aio.AioRpcError, bodies: tuple[bytes, ...] = ()) -> Answer:
    """Return what a refused call told its caller, whatever that is."""
    details = next((value for key, value in error.trailing_metadata() or () if key == _STATUS), b"")
    status, info = status_pb2.Status(), error_details_pb2.ErrorInfo()
    try:
        status.ParseFromString(details)
    except DecodeError:
        return Answer(error.code(), error.details() or "", bodies=bodies)
    reason = next((info.reason for detail in status.details if detail.Unpack(info)), "")
    return Answer(error.code(), error.details() or "", reason, bodies)
