"""Duties have one owner each: deliveries by shard, and changes that are due."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property

from core.assembly.issuing import Issuing
from core.delivery.attempt import AttemptDelivery
from core.delivery.duplicate_proof import CustodyOf
from core.delivery.fresh_meters import FreshMeters
from core.delivery.guard import DeliveryGuard
from core.delivery.origins import Origins
from core.delivery.recorder import Recorder
from core.delivery.worker import DeliveryWorker
from core.domain.message_id import new_random_part
from core.issuing.config import DeliveryConfig
from core.metrics import SetAside
from core.registry.due_change_runner import DueChangeRunner


@dataclass(frozen=True, kw_only=True)
class Duties:
    """The work that one node does for all: deliveries of the shards that it owns, and due changes.

    Attributes:
        utc_ahead: How far UTC is ahead of cluster time: head ends go by UTC.
        random_part: Makes the part of a message id that nobody can guess.
    """

    issuing: Issuing
    config: DeliveryConfig
    random: random.Random
    utc_ahead: Callable[[], timedelta]
    set_aside: SetAside = field(default_factory=SetAside)
    random_part: Callable[[], str] = new_random_part

    @cached_property
    def delivery(self) -> DeliveryWorker:
        """DeliveryWorker: delivers the codes of the shards that this node owns."""
        ports, answers = self.issuing.ports, self.issuing.answers
        meters = FreshMeters(ports.registry, ports.store)
        lapse, origins = DeliveryGuard(registry=meters), Origins.by(meters, self.set_aside)
        recorder = Recorder(
            outbox=ports.outbox,
            ownership=ports.ownership,
            head_ends=ports.head_ends,
            answers=answers,
            clock=ports.clock,
            origins=origins,
            spent_here=CustodyOf(registry=meters),
        )
        attempt = AttemptDelivery(
            outbox=ports.outbox,
            head_ends=ports.head_ends,
            clock=ports.clock,
            times=self.issuing.times,
            random=self.random,
            config=self.config,
            lapsed=lapse,
            reached_by=lapse.reached_by,
            origins=origins,
            spent_here=recorder.spent_here,
            utc_ahead=self.utc_ahead,
            random_part=self.random_part,
        )
        return DeliveryWorker(
            outbox=ports.outbox,
            ownership=ports.ownership,
            head_ends=ports.head_ends,
            answers=answers,
            attempt=attempt,
            recorder=recorder,
            config=self.config,
        )

    @cached_property
    def changes(self) -> DueChangeRunner:
        """DueChangeRunner: carries out changes whose instant has come."""
        ports = self.issuing.ports
        return DueChangeRunner(
            due_by=ports.registry.due_by, turn=self.issuing.turn, clock=ports.clock, random=self.random
        )
