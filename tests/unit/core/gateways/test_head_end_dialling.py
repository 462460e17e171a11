"""A head end that says nothing is dialled anew; nobody else's new connection is taken away, and nothing ends a node."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from headend.v1 import head_end_service_pb2 as pb
from headend.v1 import head_end_service_pb2_grpc as rpc

from core.domain.errors import HeadEndUnavailable
from core.gateways import head_end_client as headend_grpc
from core.gateways.config import HeadEndConfig
from core.gateways.head_end_client import GrpcHeadEnd
from core.ports.head_end import StreamRestored

pytestmark = [pytest.mark.slow]

NOTHING = Path("none")


class Silent(rpc.HeadEndServiceServicer):
    """Says one thing on each stream, then nothing any more."""

    async def GetCapabilities(self, request: Any, context: Any) -> Any:  # noqa: N802
        return pb.GetCapabilitiesResponse()

    async def StreamEvents(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        yield pb.StreamEventsResponse(sequence=1)
        await asyncio.Event().wait()


def _head_end(target: str) -> GrpcHeadEnd:
    return GrpcHeadEnd(
        HeadEndConfig(
            name="h", target=target, ca=NOTHING, cert=NOTHING, key=NOTHING, silence_max_ms=500, call_timeout_ms=1_000
        )
    )


async def test_silence_is_answered_by_a_new_channel_each_time_and_the_old_ones_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = grpc.aio.server()
    rpc.add_HeadEndServiceServicer_to_server(Silent(), server)  # type: ignore[abstract]  # what it lacks is not called
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    dialled: list[grpc.aio.Channel] = []

    def dial(config: HeadEndConfig) -> grpc.aio.Channel:
        dialled.append(grpc.aio.insecure_channel(config.target))
        return dialled[-1]

    monkeypatch.setattr(headend_grpc, "dial", dial)
    head_end, restored = _head_end(f"127.0.0.1:{port}"), 0
    async with asyncio.timeout(60):
        async for event in head_end.events():
            restored += isinstance(event, StreamRestored)
            if restored == 4:
                break
    assert len(dialled) == 4
    assert [channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN for channel in dialled] == [
        True,
        True,
        False,
        False,
    ]
    await head_end.close()
    assert all(channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN for channel in dialled)
    await server.stop(None)


async def test_who_finds_silence_second_leaves_the_new_channel_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headend_grpc, "dial", lambda config: grpc.aio.insecure_channel(config.target))
    head_end = _head_end("127.0.0.1:1")
    old = head_end._open()
    head_end._leave(old)
    new = head_end._open()
    head_end._leave(old)
    assert head_end._open() is new is not old
    await head_end.close()


async def test_a_certificate_that_cannot_be_read_now_is_a_head_end_not_reached() -> None:
    head_end = _head_end("127.0.0.1:1")
    with pytest.raises(HeadEndUnavailable, match="cannot be dialled"):
        await head_end.status("x")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await anext(aiter(head_end.events()))
