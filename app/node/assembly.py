"""Builds a node from its configuration: the one composition root. It reads certificates, and connects to nothing."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version

from google.protobuf.message import Message
from utrn.peer.v1 import peer_service_pb2 as peer

from app.node.agreed_settings import agreed_settings
from app.node.config import Config
from app.node.connection_caps import ConnectionCaps
from app.node.head_end_states import HeadEndStates
from app.node.heartbeat import beat_of
from app.node.tls_watch import NodeTls
from cluster.audit.anchors import EtcdAuditAnchors
from cluster.codec.set_aside import SetAsideRecords
from cluster.codec.vend import packed, unpacked
from cluster.etcd.client import EtcdClient
from cluster.etcd.informer import CopyState
from cluster.etcd.ledger_guard import LedgerGuard
from cluster.etcd.space import LedgerSpace
from cluster.ledger.ceilings import EtcdCeilings
from cluster.ledger.outbox import EtcdOutbox
from cluster.ledger.state_file import StateFile
from cluster.ledger.vends import EtcdLedger
from cluster.ledger.watch import LedgerParts, LedgerWatch
from cluster.membership.clock_sight import sight_of
from cluster.membership.cluster_admin import EtcdCluster
from cluster.membership.failure_detector import FailureDetector
from cluster.membership.head_ends import EtcdHeadEnds
from cluster.membership.shard_ownership import EtcdOwnership, Readiness
from cluster.membership.suspicion import Suspicions
from cluster.registry.replica import EtcdRegistryReplica
from cluster.registry.store import EtcdRegistryStore
from cluster.timekeeping.ledger_time import ClusterClock, LedgerTime
from core.access.approvals import TwoPeople
from core.api.admin_servicer import AdminServicer
from core.api.authenticate import Authenticate
from core.api.call_audit import CallAudit
from core.api.health import Health
from core.api.peer_servicer import PeerServicer
from core.api.server import TOP_UP_SERVICE, Services
from core.api.status import Context
from core.assembly.administration import Administration
from core.assembly.duties import Duties
from core.assembly.issuing import Issuing
from core.assembly.ports import Ports
from core.assembly.services import callers_services
from core.delivery.worker import DeliveryWorker
from core.domain.cluster_time import TimeKeeper, TimeRule
from core.gateways.audit_log_file import AuditLogFile
from core.gateways.head_end_client import GrpcHeadEnd
from core.gateways.system_clock import SystemClock
from core.issuing.ceilings import Ceilings
from core.issuing.group_commit import GroupCommitter
from core.issuing.recent_vends import RecentVends
from core.metrics import LoopDelay, SetAside, StageTimes
from core.operations.accept_cluster_time import AcceptTime
from core.operations.drain_node import DrainNode
from core.operations.forget_node import ForgetHeadEnd, ForgetNode
from core.operations.key_monitor import KeyMonitor
from core.ports.audit_context import Notes
from core.ports.clock import Clock
from core.registry.due_change_runner import DueChangeRunner
from core.registry.registrations import registrations
from hsm.signer import HsmSigner


@dataclass(frozen=True, kw_only=True)
class ClusterParts:
    """The parts that know the other nodes, and their client of etcd."""

    client: EtcdClient
    ownership: EtcdOwnership
    peers: FailureDetector
    suspicions: Suspicions


@dataclass(frozen=True, kw_only=True)
class Node:
    """All parts of one node, not yet running."""

    config: Config
    client: EtcdClient
    outbox: EtcdOutbox
    signer: HsmSigner
    cluster: ClusterParts
    registry: EtcdRegistryReplica
    keys: KeyMonitor
    changes: DueChangeRunner
    audit_log: AuditLogFile
    authenticate: Authenticate
    note: Callable[[Context, str, Message, str, Notes], None]
    head_ends: Mapping[str, GrpcHeadEnd]
    head_end_states: HeadEndStates
    line: GroupCommitter
    ceilings: Ceilings
    delivery: DeliveryWorker
    services: Services
    times: StageTimes
    set_aside: SetAside
    loop_delay: LoopDelay
    time: LedgerTime
    ledger: LedgerParts
    tls: NodeTls
    connection_caps: ConnectionCaps

    def copies(self) -> list[CopyState]:
        """Return how each copy of a part of the ledger is."""
        return [self.registry.state, self.outbox.state, *self.cluster.ownership.copies(), self.ledger.watch.copy]


@dataclass(frozen=True, kw_only=True)
class _Standby:
    """What must be ready before a node may own shards: its HSM, and its copies of what is owed and of the registry."""

    signer: HsmSigner
    outbox: EtcdOutbox
    registry: EtcdRegistryReplica

    def fitness(self) -> Readiness:
        """Return what is ready now."""
        return Readiness(hsm_ready=self.signer.ready, mirror_ready=self.outbox.mirrored and self.registry.ready)


def build(config: Config, *, between: Callable[[Ports], Ports] = lambda adapters: adapters) -> Node:
    """Return the node that `config`, which has been checked, describes.

    `between` puts something between the core and its adapters; drills use it to crash at a chosen step.
    """
    system, base = SystemClock(), _base(config)
    clock = ClusterClock(TimeKeeper(TimeRule()), system)
    tls, signer, client, aside = NodeTls(config, clock), HsmSigner(config.hsm), base.client, base.aside
    outbox, registry = EtcdOutbox(client, config.etcd, clock, aside), EtcdRegistryReplica(client, config.etcd, aside)
    cluster = _cluster(config, base, system, _Standby(signer=signer, outbox=outbox, registry=registry))
    time = _time(config, client, clock, cluster)
    set_aside, loop_delay = SetAside(), LoopDelay()
    head_ends = {head_end.name: GrpcHeadEnd(head_end, set_aside) for head_end in config.head_ends}
    names = EtcdHeadEnds(client, config.etcd, system, node_id=config.node.node_id, own=head_ends)
    anchors = EtcdAuditAnchors(client, config.etcd, system)
    audit_log = AuditLogFile(config.node.trail, config.node.node_id, clock, anchors)
    ports = between(
        Ports(
            clock=clock,
            signer=signer,
            ledger=EtcdLedger(client, config.etcd, clock, lambda: base.space.full),
            outbox=outbox,
            ownership=cluster.ownership,
            registry=registry,
            store=EtcdRegistryStore(client, config.etcd, clock, aside, lambda: base.space.full),
            audit_log=audit_log,
            ceilings=_ceilings(config, client, clock),
            head_ends=head_ends,
            head_end_names=names,
        )
    )
    issuing, administration, two_people = _deciding(config, ports, tls)
    duties = _duties(config, issuing, time, set_aside)
    line, delivery, authenticate = issuing.line, duties.delivery, Authenticate(registry, tls.certificates)
    keys = KeyMonitor(keys=registry.supplier_keys, finder=signer, clock=clock)
    health = _health(registry, signer, keys, cluster, time, base)
    states = HeadEndStates(names, ports.head_ends, delivery, clock)
    beat = partial(beat_of, time, cluster.ownership, health, outbox, line, delivery, loop_delay, keys, states, base)
    view = _view_of_cluster(config, client, time, cluster, beat, delivery, base)
    return Node(
        config=config,
        client=client,
        outbox=outbox,
        signer=signer,
        cluster=cluster,
        registry=registry,
        keys=keys,
        changes=duties.changes,
        audit_log=audit_log,
        authenticate=authenticate,
        note=CallAudit(audit_log=audit_log, clock=clock, caller=registry.caller, certificate_of=tls.certificates).note,
        head_ends=head_ends,
        head_end_states=states,
        line=line,
        ceilings=issuing.ceilings,
        delivery=delivery,
        services=Services(
            callers=callers_services(issuing, administration, authenticate, config.delivery),
            admin=_admin(authenticate, registry, view, two_people, clock),
            peer=PeerServicer(beat, every_s=config.peers.heartbeat_ms / 1000),
            health=health,
        ),
        times=issuing.times,
        set_aside=set_aside,
        loop_delay=loop_delay,
        time=time,
        ledger=base,
        tls=tls,
        connection_caps=_connection_caps(config, tls),
    )


def _duties(config: Config, issuing: Issuing, time: LedgerTime, set_aside: SetAside) -> Duties:
    return Duties(
        issuing=issuing, config=config.delivery, random=_chance(), utc_ahead=time.utc_ahead, set_aside=set_aside
    )


def _deciding(config: Config, ports: Ports, tls: NodeTls) -> tuple[Issuing, Administration, TwoPeople]:
    flow = config.flow
    issuing = Issuing(
        ports=ports,
        config=flow,
        node_id=config.node.node_id,
        answers=RecentVends(recent_max=flow.recent_answers_max, pack=packed, unpack=unpacked),
    )
    two_people = TwoPeople(store=ports.store, clock=ports.clock, wait_ms=1000 * flow.approval_wait_s)
    new = registrations(
        ports.clock,
        burst=flow.registrations_burst,
        per_minute=flow.registrations_per_minute,
        suppliers_register=flow.suppliers_register,
    )
    administration = Administration(
        issuing=issuing, consents=two_people, authority=lambda: tls.trust.callers, registrations=new
    )
    return issuing, administration, two_people


def _ceilings(config: Config, client: EtcdClient, clock: Clock) -> EtcdCeilings:
    default, node_id = config.flow.ceiling_pence, config.node.node_id
    return EtcdCeilings(client, config.etcd, clock, default_pence=default, node_id=node_id)


def _view_of_cluster(
    config: Config,
    client: EtcdClient,
    time: LedgerTime,
    cluster: ClusterParts,
    beat: Callable[[], peer.HeartbeatResponse],
    delivery: DeliveryWorker,
    base: LedgerParts,
) -> EtcdCluster:
    return EtcdCluster(
        client=client,
        config=config.etcd,
        clock=time.clock,
        ownership=cluster.ownership,
        peers=cluster.peers,
        beat=beat,
        owed=delivery.owed_by_shard,
        ledger_problems=lambda: base.problems,
        ledger_full=lambda: base.space.full,
        keeper=time,
    )


def _health(
    registry: EtcdRegistryReplica,
    signer: HsmSigner,
    keys: KeyMonitor,
    cluster: ClusterParts,
    time: LedgerTime,
    base: LedgerParts,
) -> Health:
    conditions = {
        "registry": lambda: registry.ready,
        "hsm": lambda: signer.ready,
        # Until the node has looked it must not have said SERVING: one that does not fit ends with exit code 78.
        "ledger-identity": lambda: base.watch.identified,
        "agreed": lambda: base.watch.agreed,
        # Sales of a supplier whose key is missing here go where it is; if it is nowhere, the others' go on here.
        "keys": lambda: not keys.missing or not cluster.peers.serve_with_all_keys(),
        "drained": lambda: not cluster.ownership.drained,
        "time": lambda: time.known,
        # Cut off alone, it sends callers to the others; with all of them, it still replays what was committed.
        "ledger": lambda: cluster.ownership.lease_good or not cluster.peers.reach_ledger(),
    }
    return Health(conditions, (TOP_UP_SERVICE,))


def _base(config: Config) -> LedgerParts:
    guard, aside = LedgerGuard(), SetAsideRecords()
    client = EtcdClient(config.etcd, guard)
    state = StateFile(config.node.trail, config.node.node_id)
    watch = LedgerWatch(client, config.etcd, guard, state, agreed_settings(config))
    space = LedgerSpace(client, config.etcd.quota_bytes)
    return LedgerParts(client=client, guard=guard, watch=watch, aside=aside, space=space)


def _cluster(config: Config, base: LedgerParts, clock: Clock, standby: _Standby) -> ClusterParts:
    # A client of its own: what keeps a lease or takes one away must not wait as long as a commit may, nor behind one.
    client = EtcdClient(replace(config.etcd, call_timeout_ms=config.etcd.ownership_timeout_ms), base.guard)
    ownership = EtcdOwnership(
        client,
        config.etcd,
        clock,
        node_id=config.node.node_id,
        address=config.node.advertise or config.api.listen,
        zone=config.node.zone,
        version=version("utrn"),
        fitness=standby.fitness,
        aside=base.aside,
    )
    peers = FailureDetector(
        client,
        config.peers,
        clock,
        node_id=config.node.node_id,
        members=lambda: ownership.members().values(),
        guard=base.guard,
    )
    suspicions = Suspicions(
        client, config.etcd, config.peers, clock, me=ownership, silent=peers.silent, revoke=peers.revoke
    )
    return ClusterParts(client=client, ownership=ownership, peers=peers, suspicions=suspicions)


def _time(config: Config, client: EtcdClient, clock: ClusterClock, cluster: ClusterParts) -> LedgerTime:
    """Return this node's part in keeping cluster time."""
    return LedgerTime(
        client,
        config.etcd,
        clock,
        node_id=config.node.node_id,
        sight=partial(sight_of, cluster.ownership, cluster.peers),
        may_write=lambda: cluster.ownership.lease_good,
    )


def _connection_caps(config: Config, tls: NodeTls) -> ConnectionCaps:
    return ConnectionCaps(
        tls.certificates.callers,
        per_address=config.api.connections_per_address,
        per_certificate=config.api.connections_per_certificate,
    )


def _chance() -> random.Random:
    return random.Random()  # noqa: S311  # spreads retries; guards nothing


def _admin(
    authenticate: Authenticate, registry: EtcdRegistryReplica, view: EtcdCluster, two_people: TwoPeople, clock: Clock
) -> AdminServicer:
    return AdminServicer(
        authenticate=authenticate,
        cluster=view,
        drain=DrainNode(view, clock),
        forget=ForgetNode(view),
        forget_head_end=ForgetHeadEnd(view),
        accept_time=AcceptTime(view, registry.due_by, two_people),
        two_people=two_people,
    )
