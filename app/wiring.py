"""Builds a node from its configuration: the one composition root. Nothing here does I/O."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version

from app.clock import SystemClock
from app.config import Config
from cluster.client import EtcdClient
from cluster.ledger import EtcdLedger
from cluster.outbox import EtcdOutbox
from cluster.ownership import EtcdOwnership
from cluster.registry import EtcdRegistry
from core.api.authenticate import Authenticate
from core.api.health import Health
from core.api.server import TOP_UP_SERVICE
from core.api.top_up_servicer import TopUpServicer
from core.flows.authorise import Authorise
from core.flows.commit import CommitLine
from core.flows.counters import Counters
from core.flows.deliver import DeliveryWorker
from core.flows.delivery_attempt import AttemptDelivery
from core.flows.idempotency import Answers
from core.flows.issue import IssueVend
from core.flows.lookup import FindVend
from core.flows.send import SendIssued
from core.gateways.headend_grpc import GrpcHeadEnd
from core.observe import StageTimes
from core.ports.clock import Clock
from core.ports.headend import HeadEnd
from core.ports.ledger import Ledger
from core.ports.outbox import Outbox
from core.ports.ownership import Ownership
from core.ports.registry import Registry
from core.ports.signer import TokenSigner
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
    head_ends: Mapping[str, HeadEnd]


@dataclass(frozen=True, kw_only=True)
class Node:
    """All parts of one node, not yet running."""

    config: Config
    client: EtcdClient
    outbox: EtcdOutbox
    signer: HsmSigner
    ownership: EtcdOwnership
    registry: EtcdRegistry
    head_ends: Mapping[str, GrpcHeadEnd]
    line: CommitLine
    delivery: DeliveryWorker
    top_up: TopUpServicer
    health: Health
    times: StageTimes


def build(config: Config, *, between: Callable[[Adapters], Adapters] = lambda adapters: adapters) -> Node:
    """Return the node that `config` describes.

    Args:
        config: The node's configuration, checked.
        between: Puts something between the core and its adapters; drills use it to crash at a chosen step.
    """
    clock = SystemClock()
    client = EtcdClient(config.etcd)
    signer = HsmSigner(config.hsm)
    ownership = EtcdOwnership(
        client,
        config.etcd,
        clock,
        node_id=config.node.node_id,
        address=config.api.listen,
        zone=config.node.zone,
        version=version("utrn"),
    )
    registry = EtcdRegistry(client, config.etcd)
    outbox = EtcdOutbox(client, config.etcd, clock)
    head_ends = {one.name: GrpcHeadEnd(one) for one in config.head_ends}
    ports = between(
        Adapters(
            clock=clock,
            signer=signer,
            ledger=EtcdLedger(client, config.etcd, clock),
            outbox=outbox,
            ownership=ownership,
            registry=registry,
            head_ends=head_ends,
        )
    )
    times = StageTimes()
    answers = Answers(recent_max=config.flow.recent_answers_max)
    line = _line(config, ports, answers, times)
    return Node(
        config=config,
        client=client,
        outbox=outbox,
        signer=signer,
        ownership=ownership,
        registry=registry,
        head_ends=head_ends,
        line=line,
        delivery=_delivery(config, ports, answers, times),
        top_up=_top_up(config, ports, answers, line),
        health=Health(
            {"registry": lambda: registry.ready, "hsm": lambda: signer.ready},
            (TOP_UP_SERVICE,),
        ),
        times=times,
    )


def _line(config: Config, ports: Adapters, answers: Answers, times: StageTimes) -> CommitLine:
    flow = config.flow
    counters = Counters(
        ports.clock,
        trust_s=flow.counter_trust_s,
        sequences_max=flow.counter_cache_max,
        alarm=flow.unapplied_alarm,
        refuse=flow.unapplied_refuse,
    )
    return CommitLine(
        ledger=ports.ledger,
        signer=ports.signer,
        counters=counters,
        answers=answers,
        clock=ports.clock,
        times=times,
        batch_max=flow.batch_max,
        in_flight_max=flow.in_flight_max,
        attempts_max=flow.commit_attempts_max,
    )


def _delivery(config: Config, ports: Adapters, answers: Answers, times: StageTimes) -> DeliveryWorker:
    attempt = AttemptDelivery(
        outbox=ports.outbox,
        head_ends=ports.head_ends,
        clock=ports.clock,
        times=times,
        random=random.Random(),  # noqa: S311  # spreads retries; guards nothing
        config=config.delivery,
    )
    return DeliveryWorker(
        outbox=ports.outbox,
        ownership=ports.ownership,
        head_ends=ports.head_ends,
        answers=answers,
        attempt=attempt,
        config=config.delivery,
    )


def _top_up(config: Config, ports: Adapters, answers: Answers, line: CommitLine) -> TopUpServicer:
    return TopUpServicer(
        authenticate=Authenticate(ports.registry),
        issue=IssueVend(
            authorise=Authorise(ports.registry),
            answers=answers,
            line=line,
            ledger=ports.ledger,
            clock=ports.clock,
            config=config.flow,
        ),
        send=SendIssued(registry=ports.registry, ledger=ports.ledger, answers=answers, clock=ports.clock),
        find=FindVend(ports.ledger),
        pan_rule=config.flow.pan,
    )
