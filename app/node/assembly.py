"""Builds a node from its configuration: the one composition root. It reads certificates, and connects to nothing."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from importlib.metadata import version

from google.protobuf.message import Message
from utrn.peer.v1 import peer_service_pb2 as peer

from app.node.agreed_settings import agreed_settings
from app.node.config import Config
from app.node.connection_caps import ConnectionCaps
from app.node.head_end_states import HeadEndStates
from app.node.heartbeat import beat_of
from app.node.services import Market
from app.node.tls_watch import NodeTls
from cluster.audit.anchors import TrailAnchors
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
from core.api.admin_servicer import AdminServicer
from core.api.authenticate import Authenticate
from core.api.health import Health
from core.api.peer_servicer import PeerServicer
from core.api.server import TOP_UP_SERVICE, Services
from core.api.status import Context
from core.api.top_up_servicer import TopUpServicer
from core.delivery.attempt import AttemptDelivery
from core.delivery.duplicate_proof import CustodyOf
from core.delivery.fresh_meters import FreshMeters
from core.delivery.guard import DeliveryGuard
from core.delivery.manual_entry import AdviseByHand
from core.delivery.open_cases import OpenCases
from core.delivery.origins import Origins
from core.delivery.recorder import Recorder
from core.delivery.worker import DeliveryWorker
from core.domain.cluster_time import TimeKeeper, TimeRule
from core.gateways.audit_log_file import AuditLogFile
from core.gateways.head_end_client import GrpcHeadEnd
from core.gateways.system_clock import SystemClock
from core.issuing.authorize import Authorize
from core.issuing.ceilings import Ceilings
from core.issuing.check_eligibility import CheckEligibility
from core.issuing.counter_cache import Counters
from core.issuing.find_vend import FindVend
from core.issuing.group_commit import GroupCommitter
from core.issuing.issue import IssueVend
from core.issuing.recent_vends import RecentVends
from core.issuing.refuse_sale import RefuseSale, closing_quota
from core.issuing.request_delivery import SendIssued
from core.metrics import LoopDelay, SetAside, StageTimes
from core.operations.accept_cluster_time import AcceptTime
from core.operations.drain_node import DrainNode
from core.operations.forget_node import ForgetHeadEnd, ForgetNode
from core.operations.key_monitor import KeyWatch
from core.ports.audit_context import Notes
from core.ports.audit_log import AuditLog
from core.ports.ceilings import CeilingLedger
from core.ports.clock import Clock
from core.ports.head_end import HeadEnd
from core.ports.head_ends import HeadEndNames
from core.ports.ledger import Ledger
from core.ports.outbox import Outbox
from core.ports.ownership import Ownership
from core.ports.registry import Registry, RegistryStore
from core.ports.signer import TokenSigner
from core.registry.due_change_runner import DueChangeRunner
from core.registry.due_changes import ApplyDueChange
from hsm.signer import HsmSigner


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """What fills the ports. Drills put their own between the core and the real ones."""

    clock: Clock
    signer: TokenSigner
    ledger: Ledger
    outbox: Outbox
    ownership: Ownership
    registry: Registry
    store: RegistryStore
    trail: AuditLog
    ceilings: CeilingLedger
    head_ends: Mapping[str, HeadEnd]
    head_end_names: HeadEndNames


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
    keys: KeyWatch
    changes: DueChangeRunner
    trail: AuditLogFile
    note: Callable[[Context, str, Message, str, Notes], None]
    head_ends: Mapping[str, GrpcHeadEnd]
    head_end_states: HeadEndStates
    line: GroupCommitter
    delivery: DeliveryWorker
    services: Services
    times: StageTimes
    set_aside: SetAside
    loop_delay: LoopDelay
    time: LedgerTime
    ledger: LedgerParts
    tls: NodeTls
    connection_caps: ConnectionCaps

    @property
    def ceilings(self) -> Ceilings:
        """What this node holds of sellers' ceilings."""
        return self.services.top_up.issue.ceilings

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


def build(config: Config, *, between: Callable[[Adapters], Adapters] = lambda adapters: adapters) -> Node:
    """Return the node that `config`, which has been checked, describes.

    `between` puts something between the core and its adapters; drills use it to crash at a chosen step.
    """
    system, base = SystemClock(), _base(config)
    clock = ClusterClock(TimeKeeper(TimeRule()), system)
    tls, signer, client, aside = NodeTls(config, clock), HsmSigner(config.hsm), base.client, base.aside
    outbox, registry = EtcdOutbox(client, config.etcd, clock, aside), EtcdRegistryReplica(client, config.etcd, aside)
    cluster = _cluster(config, base, system, _Standby(signer=signer, outbox=outbox, registry=registry))
    time = _time(config, client, clock, cluster)
    set_aside, times, loop_delay = SetAside(), StageTimes(), LoopDelay()
    head_ends = {one.name: GrpcHeadEnd(one, set_aside) for one in config.head_ends}
    names = EtcdHeadEnds(client, config.etcd, system, node_id=config.node.node_id, own=head_ends)
    trail = AuditLogFile(config.node.trail, config.node.node_id, clock, TrailAnchors(client, config.etcd, system))
    ports = between(
        Adapters(
            clock=clock,
            signer=signer,
            ledger=EtcdLedger(client, config.etcd, clock, lambda: base.space.full),
            outbox=outbox,
            ownership=cluster.ownership,
            registry=registry,
            store=EtcdRegistryStore(client, config.etcd, clock, aside, lambda: base.space.full),
            trail=trail,
            ceilings=_ceilings(config, client, clock),
            head_ends=head_ends,
            head_end_names=names,
        )
    )
    answers = RecentVends(recent_max=config.flow.recent_answers_max, pack=packed, unpack=unpacked)
    turn, counters = ApplyDueChange(store=ports.store, clock=clock), _counters(config, clock)
    line = _line(config, ports, answers, times, counters)
    vending = _vending(config, ports, answers, line, turn)
    market = _market(config, ports, registry, turn, vending, tls)
    delivery = _delivery(config, ports, answers, times, set_aside, time.utc_ahead)
    keys = KeyWatch(keys=registry.supplier_keys, finder=signer, clock=clock)
    health = _health(registry, signer, keys, cluster, time, base)
    states = HeadEndStates(names, ports.head_ends, delivery, clock)
    beat = partial(beat_of, time, cluster.ownership, health, outbox, line, delivery, loop_delay, keys, states, base)
    return Node(
        config=config,
        client=client,
        outbox=outbox,
        signer=signer,
        cluster=cluster,
        registry=registry,
        keys=keys,
        changes=DueChangeRunner(due_by=registry.due_by, turn=turn, clock=clock, random=_chance()),
        trail=trail,
        note=market.note,
        head_ends=head_ends,
        head_end_states=states,
        line=line,
        delivery=delivery,
        services=_services(
            market,
            health,
            top_up=_top_up(config, ports, answers, vending, counters, market),
            admin=_admin(market, registry, _view_of_cluster(config, client, time, cluster, beat, delivery, base)),
            peer_=PeerServicer(beat, every_s=config.peers.heartbeat_ms / 1000),
        ),
        times=times,
        set_aside=set_aside,
        loop_delay=loop_delay,
        time=time,
        ledger=base,
        tls=tls,
        connection_caps=_connection_caps(config, tls),
    )


def _ceilings(config: Config, client: EtcdClient, clock: Clock) -> EtcdCeilings:
    default, node_id = config.flow.ceiling_pence, config.node.node_id
    return EtcdCeilings(client, config.etcd, clock, default_pence=default, node_id=node_id)


def _services(
    market: Market, health: Health, *, top_up: TopUpServicer, admin: AdminServicer, peer_: PeerServicer
) -> Services:
    return Services(
        top_up=top_up,
        registry=market.registry_servicer(),
        appointments=market.appointment_servicer(),
        credit=market.credit_servicer(),
        admin=admin,
        peer=peer_,
        health=health,
    )


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
    keys: KeyWatch,
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


def _admin(market: Market, registry: EtcdRegistryReplica, view: EtcdCluster) -> AdminServicer:
    return AdminServicer(
        authenticate=Authenticate(registry, market.certificate_of),
        cluster=view,
        drain=DrainNode(view, market.clock),
        forget=ForgetNode(view),
        forget_head_end=ForgetHeadEnd(view),
        accept_time=AcceptTime(view, registry.due_by, market.consents),
        two_people=market.consents,
    )


def _counters(config: Config, clock: Clock) -> Counters:
    flow = config.flow
    return Counters(
        clock,
        trust_s=flow.counter_trust_s,
        sequences_max=flow.counter_cache_max,
        alarm=flow.unapplied_alarm,
        refuse=flow.unapplied_refuse,
    )


def _line(
    config: Config, ports: Adapters, answers: RecentVends, times: StageTimes, counters: Counters
) -> GroupCommitter:
    flow = config.flow
    return GroupCommitter(
        ledger=ports.ledger,
        signer=ports.signer,
        counters=counters,
        answers=answers,
        clock=ports.clock,
        times=times,
        trail=ports.trail,
        batch_max=flow.batch_max,
        in_flight_max=flow.in_flight_max,
        attempts_max=flow.commit_attempts_max,
    )


def _recorder(ports: Adapters, answers: RecentVends, meters: FreshMeters, origins: Origins) -> Recorder:
    return Recorder(
        outbox=ports.outbox,
        ownership=ports.ownership,
        head_ends=ports.head_ends,
        answers=answers,
        clock=ports.clock,
        origins=origins,
        spent_here=CustodyOf(registry=meters),
    )


def _delivery(
    config: Config,
    ports: Adapters,
    answers: RecentVends,
    times: StageTimes,
    set_aside: SetAside,
    utc_ahead: Callable[[], timedelta],
) -> DeliveryWorker:
    meters = FreshMeters(ports.registry, ports.store)
    lapse, origins = DeliveryGuard(registry=meters), Origins.by(meters, set_aside)
    recorder = _recorder(ports, answers, meters, origins)
    attempt = AttemptDelivery(
        outbox=ports.outbox,
        head_ends=ports.head_ends,
        clock=ports.clock,
        times=times,
        random=_chance(),
        config=config.delivery,
        lapsed=lapse,
        reached_by=lapse.reached_by,
        origins=origins,
        spent_here=recorder.spent_here,
        utc_ahead=utc_ahead,
    )
    return DeliveryWorker(
        outbox=ports.outbox,
        ownership=ports.ownership,
        head_ends=ports.head_ends,
        answers=answers,
        attempt=attempt,
        recorder=recorder,
        config=config.delivery,
    )


def _vending(
    config: Config, ports: Adapters, answers: RecentVends, line: GroupCommitter, turn: ApplyDueChange
) -> IssueVend:
    authorise = Authorize(
        registry=ports.registry,
        store=ports.store,
        turn=turn,
        clock=ports.clock,
        trail=ports.trail,
        head_ends=ports.head_end_names,
    )
    return IssueVend(
        authorise=authorise,
        answers=answers,
        line=line,
        clock=ports.clock,
        config=config.flow,
        refuse=_refuse(config, ports, answers),
        ceilings=Ceilings(ports.ceilings, ports.clock),
    )


def _refuse(config: Config, ports: Adapters, answers: RecentVends) -> RefuseSale:
    flow = config.flow
    return RefuseSale(
        ledger=ports.ledger,
        answers=answers,
        clock=ports.clock,
        quota=closing_quota(ports.clock, burst=flow.closings_burst, per_minute=flow.closings_per_minute),
        id_window=flow.hot_window,
        node_id=config.node.node_id,
    )


def _connection_caps(config: Config, tls: NodeTls) -> ConnectionCaps:
    return ConnectionCaps(
        tls.certificates.callers,
        per_address=config.api.connections_per_address,
        per_certificate=config.api.connections_per_certificate,
    )


def _market(
    config: Config,
    ports: Adapters,
    registry: EtcdRegistryReplica,
    turn: ApplyDueChange,
    vending: IssueVend,
    tls: NodeTls,
) -> Market:
    return Market(
        config=config,
        store=ports.store,
        registry=registry,
        trail=ports.trail,
        clock=ports.clock,
        turn=turn,
        vending=vending,
        head_ends=ports.head_end_names,
        certificate_of=tls.certificates,
        callers=lambda: tls.trust.callers,
    )


def _top_up(
    config: Config, ports: Adapters, answers: RecentVends, vending: IssueVend, counters: Counters, market: Market
) -> TopUpServicer:
    authorise, find = vending.authorise, FindVend(ports.ledger)
    return TopUpServicer(
        authenticate=Authenticate(ports.registry, market.certificate_of),
        issue=vending,
        send=SendIssued(authorise=authorise, find=find, ledger=ports.ledger, answers=answers, clock=ports.clock),
        find=find,
        check=CheckEligibility(authorise=authorise, ledger=ports.ledger, counters=counters),
        advise=AdviseByHand(ports.clock, config.delivery),
        cases=OpenCases(
            ledger=ports.ledger,
            outbox=ports.outbox,
            answers=answers,
            clock=ports.clock,
            consents=market.consents,
        ),
        pan_rule=config.flow.pan,
    )


def _chance() -> random.Random:
    return random.Random()  # noqa: S311  # spreads retries; guards nothing
