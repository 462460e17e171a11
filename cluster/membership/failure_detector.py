"""FailureDetector: hears the other nodes' hearts, revokes the lease of one that has died, and says which are silent.

Death is a stream that breaks while a new connection is refused, or a new process that answers at the old address. Then
nobody need wait for the lease. Silence alone is a suspicion (cluster/membership/suspicion.py): a majority must share
it. A wrong guess costs a hand-over, never money: the epoch compared in every delivery write sees to that.

A beat counts only from the node that was dialled, of this node's ledger: whatever else answers at a peer's address,
this node itself, a third one or one of another cluster, is no sign that the peer lives.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NoReturn

import grpc
from utrn.peer.v1 import peer_service_pb2 as pb
from utrn.peer.v1 import peer_service_pb2_grpc as rpc

from cluster.config import PeersConfig
from cluster.etcd.client import EtcdClient, EtcdRefused, EtcdUnknown, EtcdUnreachable
from cluster.etcd.ledger_guard import LedgerGuard
from cluster.membership.shard_ownership import Member
from core.metrics import told_now
from core.net.address import parse_address
from core.net.channels import Remote, channel_options
from core.ports.clock import Clock

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.25
_DIAL_AGAIN_S = 0.1
# A first beat waits for a connection and a handshake.
_DIAL_S = 2.0
_TICK_S = 0.05
_TICK_MOST_S = 2 * _TICK_S
# Two beats and more are missing: peers may have taken over by right.
_STOOD_STILL_S = 0.4
_REVOKE_FOR_S = 5.0
_REVOKE_AGAIN_S = 0.05
_MINUTE_S = 60.0
# Whoever answers in a peer's place will do so again: no need to shake hands with it ten times a second.
_MISTAKEN_AGAIN_S = 1.0
_FRESH_S = 2.0


@dataclass(frozen=True, slots=True)
class PeerHeartbeat:
    """The last beat of a peer, and when it came by the monotonic clock."""

    beat: pb.HeartbeatResponse
    at: float


class FailureDetector:
    """Follows every other node."""

    def __init__(
        self,
        client: EtcdClient,
        config: PeersConfig,
        clock: Clock,
        *,
        node_id: str,
        members: Callable[[], Iterable[Member]],
        guard: LedgerGuard | None = None,
    ) -> None:
        self._client = client
        self._config = config
        self._clock = clock
        self._node_id = node_id
        self._members = members
        self._guard = LedgerGuard() if guard is None else guard
        self._following: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._revoked: deque[float] = deque()
        self.revokes = 0
        self._not_dialled = 0
        self._mistaken = 0
        self._silent_s: dict[str, float] = {}
        self.heard: dict[str, PeerHeartbeat] = {}

    async def run(self) -> NoReturn:
        """Follow whoever is a member, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._tick_forever())
            while True:
                if self._config.ca is not None:
                    self._follow_members(tasks)
                await asyncio.sleep(_LOOK_EVERY_S)

    def _follow_members(self, tasks: asyncio.TaskGroup) -> None:
        wanted = {(member.node_id, member.address) for member in self._members() if member.node_id != self._node_id}
        for gone in self._following.keys() - wanted:
            self._following.pop(gone).cancel()
            self.heard.pop(gone[0], None)
        for node_id, address in wanted - self._following.keys():
            self._following[(node_id, address)] = tasks.create_task(self._follow(node_id, address))

    async def _tick_forever(self) -> NoReturn:
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(_TICK_S)
            last, before = loop.time(), last
            self.tick(last - before)
            if last - before > _STOOD_STILL_S:
                log.warning("this node stood still", extra={"seconds": round(last - before, 3)})

    def tick(self, passed_s: float) -> None:
        """Count silence for every peer. A late tick counts for two at most: this node's stalls are nobody's silence."""
        for node_id in self.heard:
            self._silent_s[node_id] = self._silent_s.get(node_id, 0.0) + min(passed_s, _TICK_MOST_S)

    def silent(self) -> dict[str, int]:
        """Return the lease of every member that was heard under it and has not been heard for too long, by node id.

        One that was never heard under its present lease is not among them: so a network that carries nothing costs each
        lease at most once. A node that hears nobody at all is probably the one that is cut off, and says nothing.
        """
        if self._hears_nobody():
            return {}
        return {
            member.node_id: member.lease_id
            for member in self._members()
            if (heard := self.heard.get(member.node_id)) is not None
            and not heard.beat.leaving
            and heard.beat.lease_id == member.lease_id != 0
            and self._is_silent(member.node_id)
        }

    def _is_silent(self, node_id: str) -> bool:
        return self._silent_s.get(node_id, 0.0) >= self._config.suspect_ms / 1000

    def _hears_nobody(self) -> bool:
        return all(map(self._is_silent, self.heard))

    async def _follow(self, node_id: str, address: str) -> None:
        """Listen to the beats of one node until the node is no member any more."""
        while True:
            await self._hear_once(node_id, address)
            last = self.heard.get(node_id)
            if last is not None and not last.beat.leaving and last.beat.lease_id and await self._refused(address):
                await self.revoke(node_id, last.beat.lease_id, "its process is gone: connection refused")
                self.heard.pop(node_id, None)
            await asyncio.sleep(_DIAL_AGAIN_S)

    async def _hear_once(self, node_id: str, address: str) -> None:
        """Hear one node over one connection, until that breaks, brings nothing for too long, or is another's."""
        wait_s = _DIAL_S
        try:
            async with self._channel(address) as channel:
                call = rpc.PeerServiceStub(channel).Heartbeat(pb.HeartbeatRequest(node_id=self._node_id))
                while True:
                    # Without this a connection whose packets vanish is waited for until TCP gives it up.
                    async with asyncio.timeout(wait_s):
                        beat = await call.read()
                    if not isinstance(beat, pb.HeartbeatResponse):
                        return
                    if not self._is_of(node_id, beat):
                        await self._tell_mistaken(node_id, address, beat)
                        return
                    await self._take(node_id, beat)
                    wait_s = self._config.redial_ms / 1000
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            if wait_s != _DIAL_S:
                log.info("a peer's heartbeat broke", extra={"peer": node_id, "error": _named(error)})
        except OSError as error:
            # A certificate that is being replaced, or no descriptor left, which strangers can bring about:
            # a reason not to hear this peer now, and no reason to end the node.
            self._not_dialled += 1
            if told_now(self._not_dialled):
                log.warning("a peer cannot be dialled", extra={"peer": node_id, "error": str(error)})

    def _is_of(self, node_id: str, beat: pb.HeartbeatResponse) -> bool:
        """Return whether a beat is of the node that was dialled, in this node's cluster."""
        return beat.node_id == node_id and self._guard.may_be_ours(beat.incarnation)

    async def _tell_mistaken(self, node_id: str, address: str, beat: pb.HeartbeatResponse) -> None:
        self._mistaken += 1
        if told_now(self._mistaken):
            said = {"peer": node_id, "address": address, "answers": beat.node_id, "ledger": beat.incarnation}
            log.error("another node answers at a peer's address: look at its node.advertise", extra=said)
        await asyncio.sleep(_MISTAKEN_AGAIN_S)

    async def _take(self, node_id: str, beat: pb.HeartbeatResponse) -> None:
        last = self.heard.get(node_id)
        if self._hears_nobody():
            # This node was cut off, and is so no more: from now on it can tell who else is silent.
            self._silent_s.clear()
        self._guard.hear_of(node_id, beat.incarnation, beat.ledger_revision)
        self.heard[node_id] = PeerHeartbeat(beat, self._clock.monotonic())
        self._silent_s[node_id] = 0.0
        if last is not None and beat.lease_id != last.beat.lease_id and not last.beat.leaving:
            # Another process answers at its address, or it has lost its lease by itself.
            await self._replaced(node_id, last.beat.lease_id, beat.lease_id)

    def heard_of_late(self) -> dict[str, PeerHeartbeat]:
        """Return the last beat of every peer whose last beat is not old, by id: what is, not what was."""
        late = self._clock.monotonic() - _FRESH_S
        return {node_id: heard for node_id, heard in self.heard.items() if heard.at > late}

    def unheard(self) -> list[str]:
        """Return the ids of the members whose heart is not heard now; none where peers are not followed."""
        if self._config.ca is None:
            return []
        heard = self.heard_of_late()
        return sorted({member.node_id for member in self._members()} - heard.keys() - {self._node_id})

    def reach_ledger(self) -> bool:
        """Return whether any peer heard of late says that etcd acknowledges its lease."""
        return any(heard.beat.ledger_ready for heard in self.heard_of_late().values())

    def serve_with_all_keys(self) -> bool:
        """Return whether any peer heard of late serves, and lacks no supplier's key."""
        return any(one.beat.serving and one.beat.keys_complete for one in self.heard_of_late().values())

    async def _replaced(self, node_id: str, before: int, after: int) -> None:
        if before and after:
            await self.revoke(node_id, before, "another process answers in its place")

    async def _refused(self, address: str) -> bool:
        """Return whether nobody listens at `address`; a time-out is no answer to that."""
        try:
            there = parse_address(address)
            async with asyncio.timeout(self._config.dial_timeout_ms / 1000):
                _, writer = await asyncio.open_connection(there.host, there.port)
                writer.close()
                await writer.wait_closed()
        except ConnectionRefusedError:
            return True
        except (OSError, TimeoutError, ValueError):
            # A record that names no address is no sign of death either.
            return False
        return False

    async def revoke(self, node_id: str, lease_id: int, why: str) -> None:
        """Revoke a peer's lease, so that others take its shards; asked again while etcd elects a leader.

        A lease id is never used twice: asking again cannot meet another lease. One that the ledger says is another
        node's is never revoked for this one, whatever it has named in its beats.
        """
        if any(member.lease_id == lease_id and member.node_id != node_id for member in self._members()):
            self._tell_anothers_lease(node_id, lease_id)
            return
        if not self._within_budget():
            log.warning("too many peers died within a minute; this one is left to its lease", extra={"peer": node_id})
            return
        until = self._clock.monotonic() + _REVOKE_FOR_S
        while True:
            try:
                await self._client.revoke_lease(lease_id)
            except EtcdRefused:
                # It ran out, or another peer was quicker: that took nothing from anybody.
                self._revoked.pop()
                log.info("a peer's lease was gone already", extra={"peer": node_id})
                return
            except (EtcdUnreachable, EtcdUnknown) as error:
                if self._clock.monotonic() > until:
                    log.info("a dead peer's lease is left to run out", extra={"peer": node_id, "error": str(error)})
                    return
                await asyncio.sleep(_REVOKE_AGAIN_S)
            else:
                self.revokes += 1
                log.warning("a peer's lease is revoked", extra={"peer": node_id, "lease": lease_id, "reason": why})
                return

    def _tell_anothers_lease(self, node_id: str, lease_id: int) -> None:
        self._mistaken += 1
        if told_now(self._mistaken):
            log.error("a peer names another node's lease as its own", extra={"peer": node_id, "lease": lease_id})

    def _within_budget(self) -> bool:
        """Return whether one more lease may be revoked now, and count it."""
        now = self._clock.monotonic()
        while self._revoked and self._revoked[0] < now - _MINUTE_S:
            self._revoked.popleft()
        if len(self._revoked) >= self._config.revokes_per_minute:
            return False
        self._revoked.append(now)
        return True

    def _channel(self, address: str) -> grpc.aio.Channel:
        config = self._config
        if config.ca is None or config.cert is None or config.key is None:
            raise ValueError("peers are followed only with certificates")
        credentials = grpc.ssl_channel_credentials(
            config.ca.read_bytes(), config.key.read_bytes(), config.cert.read_bytes()
        )
        options = channel_options(Remote.PEER, server_name=config.server_name)
        return grpc.aio.secure_channel(address, credentials, options=options)


def _named(error: Exception) -> str:
    return error.code().name if isinstance(error, grpc.aio.AioRpcError) else type(error).__name__
