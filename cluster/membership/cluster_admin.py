"""EtcdCluster: the Cluster port: what etcd, the peers' beats and this node's own mirror say, put together."""

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from etcdpb import rpc_pb2 as pb
from google.protobuf import timestamp_pb2
from utrn.peer.v1 import peer_service_pb2 as peer
from utrn.store.v1 import records_pb2 as store

from cluster.codec.vend import SCHEMA
from cluster.config import EtcdConfig
from cluster.etcd import ops, preconditions
from cluster.etcd.client import EtcdClient, EtcdUnreachable
from cluster.etcd.commit import commit_or_raise
from cluster.etcd.keys import Keys
from cluster.membership.failure_detector import FailureDetector
from cluster.membership.shard_ownership import EtcdOwnership, Member, Owner
from cluster.timekeeping.ledger_time import LedgerTime
from core.domain.approval import NO_CONSENT_NEEDED, Consent
from core.domain.participant import ParticipantId
from core.ports.clock import Clock
from core.ports.cluster_admin import (
    Cluster,
    ClusterStatus,
    Drain,
    HeadEndStatus,
    MemberStatus,
    NodeStatus,
    ShardStatus,
    TimeStatus,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EtcdCluster:
    """Sees and tells the cluster. `beat` is this node's own beat, `owed` its mirror's deliveries by shard."""

    client: EtcdClient
    config: EtcdConfig
    clock: Clock
    ownership: EtcdOwnership
    peers: FailureDetector
    beat: Callable[[], peer.HeartbeatResponse]
    owed: Callable[[], Mapping[int, int]]
    keeper: LedgerTime
    ledger_problems: Callable[[], Sequence[str]] = tuple
    ledger_full: Callable[[], bool] = lambda: False

    async def status(self) -> ClusterStatus:
        """Return what is now; without etcd, what was last known, and that etcd does not answer."""
        members = self.ownership.members()
        asked = await self.client.members()
        leases: dict[str, tuple[int, int]] = {}
        head = 0
        with contextlib.suppress(EtcdUnreachable):
            head = (await self.client.range(pb.RangeRequest(key=b"\0", count_only=True))).header.revision
            for name, member in members.items():
                leases[name] = await self._lease(member.lease_id)
        owners, owed = self.ownership.owners(), self.owed()
        counts = Counter(owner.node_id for owner in owners.values())
        beats = self._beats()
        drains, roster = self.ownership.drains(), self.ownership.roster()
        nodes = [
            replace(
                self._node(members.get(name), name, leases, beats.get(name), head),
                shards=counts[name],
                drained=name in drains,
            )
            for name in sorted(members.keys() | drains.keys() | roster.keys())
        ]
        return ClusterStatus(
            asked=self.ownership.node_id,
            revision=head,
            nodes=tuple(_expected(node, roster.get(node.node_id)) for node in nodes),
            shards=tuple(_shard(shard, owners.get(shard), owed.get(shard, 0)) for shard in range(self.config.shards)),
            members=tuple(_member(endpoint, status) for endpoint, status in asked.items()),
            head_ends=_head_ends({one: beats.get(one) for one in members}),
            reading=not self.ownership.seen,
            time=self.time(),
            ledger_problems=tuple(self.ledger_problems()),
            ledger_full=self.ledger_full(),
        )

    def time(self) -> TimeStatus:
        """Return what this node makes of cluster time."""
        state = self.keeper.state()
        return TimeStatus(
            known=state.known,
            now_ms=state.now or 0,
            ledger_ms=state.ledger or 0,
            doubt=state.doubt.value,
            clocks_agree=state.off_ms is not None,
            clocks_off_ms=state.off_ms or 0,
        )

    async def accept_time(self, *, by: ParticipantId, consent: Consent = NO_CONSENT_NEEDED) -> None:
        """Set cluster time to the wall clocks that agree."""
        await self.keeper.accept(by, consent)

    async def drain(self, node_id: str, *, by: ParticipantId, at: datetime) -> Drain:
        """Write the drain."""
        stamp = timestamp_pb2.Timestamp()
        stamp.FromDatetime(at)
        record = store.DrainRecord(schema=SCHEMA, node_id=node_id, by=by, at=stamp)
        await self._write(ops.put(self._key(node_id), record.SerializeToString(deterministic=True)))
        return Drain(node_id=node_id, since=at.astimezone(UTC), by=by)

    async def forget(self, node_id: str) -> bool:
        """Delete roster and drain, if the node has no lease."""
        keys = Keys(self.config.prefix)
        off = [ops.delete(keys.roster(node_id)), ops.delete(keys.drain(node_id))]
        return await self._write(*off, only_if=preconditions.absent(keys.node(node_id)))

    async def forget_head_end(self, name: str) -> None:
        """Delete the name."""
        await self._write(ops.delete(Keys(self.config.prefix).head_end(name)))

    async def undrain(self, node_id: str) -> None:
        """Delete the drain."""
        await self._write(ops.delete(self._key(node_id)))

    def _key(self, node_id: str) -> bytes:
        return Keys(self.config.prefix).drain(node_id)

    async def _write(self, *then: pb.RequestOp, only_if: Sequence[pb.Compare] = ()) -> bool:
        # Safe to send again: carried out twice, each of these is the same as once.
        txn = pb.TxnRequest(compare=only_if, success=then)
        resolve_s = self.config.resolve_timeout_ms / 1000
        settled = await commit_or_raise(self.client, self.clock, txn, resolve_s=resolve_s)
        return settled.reply.succeeded

    async def _lease(self, lease_id: int) -> tuple[int, int]:
        left, granted = await self.client.lease_left_s(lease_id)
        return max(0, left) * 1000, granted * 1000

    def _node(
        self,
        member: Member | None,
        node_id: str,
        leases: Mapping[str, tuple[int, int]],
        beat: peer.HeartbeatResponse | None,
        head: int,
    ) -> NodeStatus:
        if member is None:
            return NodeStatus(node_id=node_id)
        left_ms, ttl_ms = leases.get(node_id, (0, 0))
        there = NodeStatus(
            node_id=node_id,
            address=member.address,
            zone=member.zone,
            version=member.version,
            alive=True,
            hsm_ready=member.hsm_ready,
            mirror_ready=member.mirror_ready,
            lease_left_ms=left_ms,
            lease_ttl_ms=ttl_ms,
            beat_age_ms=self._beat_age_ms(node_id),
        )
        if beat is None:
            return there
        return replace(
            there,
            heard=True,
            serving=beat.serving,
            failing=tuple(beat.failing),
            mirror_lag=max(0, head - beat.mirror_revision) if head else -1,
            issues_in_flight=beat.issues_in_flight,
            deliveries_in_flight=beat.deliveries_in_flight,
            missing_keys=tuple(beat.missing_keys),
            clock_off_ms=beat.clock_ms - beat.time_ms if beat.time_ms else 0,
        )

    def _beats(self) -> dict[str, peer.HeartbeatResponse]:
        """Return the beat of this node and of every peer heard of late: an old one says what was."""
        heard = {node_id: heard.beat for node_id, heard in self.peers.heard_of_late().items()}
        return {**heard, self.ownership.node_id: self.beat()}

    def _beat_age_ms(self, node_id: str) -> int:
        if node_id == self.ownership.node_id:
            return 0
        heard = self.peers.heard.get(node_id)
        return -1 if heard is None else round((self.clock.monotonic() - heard.at) * 1000)


def _shard(shard: int, owner: Owner | None, owed: int) -> ShardStatus:
    if owner is None:
        return ShardStatus(shard=shard, owner="", epoch=0, owed=owed)
    return ShardStatus(shard=shard, owner=owner.node_id, epoch=owner.epoch, owed=owed)


def _expected(node: NodeStatus, roster: store.RosterRecord | None) -> NodeStatus:
    """Return the node with what the roster knows of it."""
    if roster is None:
        return node
    return replace(
        node,
        address=node.address or roster.address,
        zone=node.zone or roster.zone,
        since=roster.since.ToDatetime(tzinfo=UTC) if roster.HasField("since") else None,
    )


def _head_ends(beats: Mapping[str, peer.HeartbeatResponse | None]) -> tuple[HeadEndStatus, ...]:
    """Return every head end that a beat speaks of, with what all beats say of it."""
    said: dict[str, list[tuple[str, peer.HeadEndBeat]]] = {}
    for node_id, beat in sorted(beats.items()):
        for one in () if beat is None else beat.head_ends:
            said.setdefault(one.name, []).append((node_id, one))
    return tuple(
        HeadEndStatus(
            name=name,
            configured_at=tuple(node_id for node_id, one in found if one.configured),
            missing_at=tuple(node_id for node_id, one in found if not one.configured),
            reached_by=tuple(node_id for node_id, one in found if one.available),
            parked=sum(one.parked for _, one in found),
            oldest_parked_ms=max(one.oldest_parked_ms for _, one in found),
        )
        for name, found in sorted(said.items())
    )


def _member(endpoint: str, status: pb.StatusResponse | None) -> MemberStatus:
    if status is None:
        return MemberStatus(endpoint=endpoint, healthy=False)
    return MemberStatus(
        endpoint=endpoint,
        answers=True,
        errors=tuple(status.errors),
        healthy=status.leader != 0,
        leader=status.leader == status.header.member_id,
        version=status.version,
        db_bytes=status.dbSize,
        raft_term=status.raftTerm,
        raft_index=status.raftIndex,
    )


if TYPE_CHECKING:
    _: type[Cluster] = EtcdCluster
