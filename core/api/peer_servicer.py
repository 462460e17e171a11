"""PeerService: this node's heart. It beats from the event loop: a stuck loop stops it, a busy one does not."""
# ruff: noqa: N802

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from utrn.peer.v1 import peer_service_pb2 as pb
from utrn.peer.v1 import peer_service_pb2_grpc as rpc

from core.api.status import Context

PEER_SERVICE: Final = "utrn.peer.v1.PeerService"


class PeerServicer(rpc.PeerServiceServicer):
    """Beats for every peer that listens."""

    def __init__(self, beat: Callable[[], pb.HeartbeatResponse], *, every_s: float) -> None:
        """Set the function that makes a beat, and the seconds between two beats."""
        self._beat = beat
        self._every_s = every_s
        self._leaving = asyncio.Event()

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: Context) -> AsyncIterator[pb.HeartbeatResponse]:
        """Beat until the node leaves."""
        while not self._leaving.is_set():
            yield self._beat()
            try:
                async with asyncio.timeout(self._every_s):
                    await self._leaving.wait()
            except TimeoutError:
                continue
        last = self._beat()
        last.leaving = True
        yield last

    def leave(self) -> None:
        """Tell every listener that this node leaves in good order."""
        self._leaving.set()
