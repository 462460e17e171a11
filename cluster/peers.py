"""PeerWatch: hears the other nodes' hearts, and revokes the lease of one that has died.

Death is a stream that breaks while a new connection is refused, or a new process that answers at the old address. Then
nobody need wait for the lease. Silence proves nothing: a frozen node and a cut network are left to the lease. A wrong
guess costs a hand-over, never money: the epoch compared in every delivery write sees to that.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from utrn.peer.v1 import peer_service_pb2 as pb
from utrn.peer.v1 import peer_service_pb2_grpc as rpc

from cluster.client import EtcdClient, EtcdRefused, EtcdUnknown, EtcdUnreachable
from cluster.config import PeersConfig
from cluster.ownership import Member
from core.ports.clock import Clock

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.25
_DIAL_AGAIN_S = 0.1
_MINUTE_S = 60.0
_FRESH_S = 2.0


@dataclass(frozen=True, slots=True)
class Heard:
    """The last beat of a peer, when it came by the monotonic clock, and how far ahead the peer's wall clock was."""

    beat: pb.HeartbeatResponse
    at: float
    ahead_s: float


class PeerWatch:
    """Follows every other node."""

    def __init__(
        self,
        client: EtcdClient,
        config: PeersConfig,
        clock: Clock,
        *,
        node_id: str,
        members: Callable[[], Iterable[Member]],
    ) -> None:
        self._client = client
        self._config = config
        self._clock = clock
        self._node_id = node_id
        self._members = members
        self._following: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._revoked: deque[float] = deque()
        self.heard: dict[str, Heard] = {}

    async def run(self) -> NoReturn:
        """Follow whoever is a member, for ever."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                if self._config.ca is not None:
                    self._follow_members(tasks)
                await asyncio.sleep(_LOOK_EVERY_S)

    def _follow_members(self, tasks: asyncio.TaskGroup) -> None:
        wanted = {(one.node_id, one.address) for one in self._members() if one.node_id != self._node_id}
        for gone in self._following.keys() - wanted:
            self._following.pop(gone).cancel()
            self.heard.pop(gone[0], None)
        for node_id, address in wanted - self._following.keys():
            self._following[(node_id, address)] = tasks.create_task(self._follow(node_id, address))

    async def _follow(self, node_id: str, address: str) -> None:
        """Hear one node until it is no member any more."""
        while True:
            last = self.heard.get(node_id)
            try:
                async with self._channel(address) as channel:
                    call = rpc.PeerServiceStub(channel).Heartbeat(pb.HeartbeatRequest(node_id=self._node_id))
                    async for beat in call:
                        if last is not None and beat.lease_id != last.beat.lease_id and not last.beat.leaving:
                            # Another process answers at its address, or it has lost its lease by itself.
                            await self._replaced(node_id, last.beat.lease_id, beat.lease_id)
                        last = self.heard[node_id] = self._hear(beat)
            except grpc.aio.AioRpcError as error:
                log.info("a peer's heartbeat broke", extra={"peer": node_id, "status": error.code().name})
            if last is not None and not last.beat.leaving and last.beat.lease_id and await self._refused(address):
                await self._revoke(node_id, last.beat.lease_id, "its process is gone: connection refused")
                self.heard.pop(node_id, None)
            await asyncio.sleep(_DIAL_AGAIN_S)

    def clocks_ahead_s(self) -> list[float]:
        """Return by how many seconds each peer heard of late is ahead of this node's wall clock."""
        late = self._clock.monotonic() - _FRESH_S
        return [heard.ahead_s for heard in self.heard.values() if heard.at > late]

    def reach_ledger(self) -> bool:
        """Return whether any peer heard of late says that etcd acknowledges its lease."""
        late = self._clock.monotonic() - _FRESH_S
        return any(heard.beat.ledger_ready for heard in self.heard.values() if heard.at > late)

    def _hear(self, beat: pb.HeartbeatResponse) -> Heard:
        ahead_s = beat.clock_ms / 1000 - self._clock.now().timestamp() if beat.clock_ms else 0.0
        return Heard(beat, self._clock.monotonic(), ahead_s)

    async def _replaced(self, node_id: str, before: int, after: int) -> None:
        if before and after:
            await self._revoke(node_id, before, "another process answers in its place")

    async def _refused(self, address: str) -> bool:
        """Return whether nobody listens at `address`; a time-out is no answer to that."""
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(self._config.dial_timeout_ms / 1000):
                _, writer = await asyncio.open_connection(host, int(port))
                writer.close()
                await writer.wait_closed()
        except ConnectionRefusedError:
            return True
        except (OSError, TimeoutError):
            return False
        return False

    async def _revoke(self, node_id: str, lease_id: int, why: str) -> None:
        now = self._clock.monotonic()
        while self._revoked and self._revoked[0] < now - _MINUTE_S:
            self._revoked.popleft()
        if len(self._revoked) >= self._config.revokes_per_minute:
            log.warning("too many peers died within a minute; this one is left to its lease", extra={"peer": node_id})
            return
        self._revoked.append(now)
        try:
            await self._client.revoke_lease(lease_id)
            log.warning("a peer's lease is revoked", extra={"peer": node_id, "lease": lease_id, "reason": why})
        except EtcdRefused:
            # It ran out, or another peer was quicker: that took nothing from anybody.
            self._revoked.pop()
            log.info("a peer's lease was gone already", extra={"peer": node_id})
        except (EtcdUnreachable, EtcdUnknown) as error:
            log.info("a dead peer's lease is left to run out", extra={"peer": node_id, "error": str(error)})

    def _channel(self, address: str) -> grpc.aio.Channel:
        config = self._config
        if config.ca is None or config.cert is None or config.key is None:
            raise ValueError("peers are followed only with certificates")
        credentials = grpc.ssl_channel_credentials(
            config.ca.read_bytes(), config.key.read_bytes(), config.cert.read_bytes()
        )
        options: tuple[tuple[str, Any], ...] = (
            ("grpc.ssl_target_name_override", config.server_name),
            ("grpc.enable_retries", 0),
            # A connection of its own: its breaking is the news.
            ("grpc.use_local_subchannel_pool", 1),
        )
        return grpc.aio.secure_channel(address, credentials, options=options)
