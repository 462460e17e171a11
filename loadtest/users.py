"""Who calls: tills at counters, apps on phones, and those who ask how a vend is doing."""

import itertools
import random
import secrets
import time
import uuid
from collections import deque
from typing import Any, ClassVar

from gevent.pool import Group
from locust import User, constant_throughput, task
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import types_pb2

from loadtest.client import Caller

_names = itertools.count(1)
_RECENT_MAX = 5000


def new_id() -> str:
    """Return a new transaction id, a UUIDv7 (RFC 9562)."""
    bits = secrets.randbits(74)
    stamp = (time.time_ns() // 1_000_000) & (1 << 48) - 1
    return str(uuid.UUID(int=stamp << 80 | 0x7 << 76 | (bits >> 62) << 64 | 0b10 << 62 | bits & (1 << 62) - 1))


class _CallerUser(User):
    """A user with a caller of its own; `environment.world` holds what they share."""

    abstract = True
    recent: ClassVar[deque[str]] = deque(maxlen=_RECENT_MAX)

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        world = environment.world
        self.pans: list[str] = world.pans
        # Not Locust's own random: that one is seeded alike in every user.
        self.chance = random.Random(secrets.randbits(64))  # noqa: S311  # play, not protection
        self.caller = Caller(
            world.channel(), world.journal, environment.events.request.fire, f"{type(self).__name__}-{next(_names)}"
        )

    def pence(self) -> int:
        """Return an amount as people buy them: mostly five, ten, twenty pounds, some to the penny."""
        return self.chance.choice((500, 1000, 1000, 2000, self.chance.randint(100, 5000)))


class Till(_CallerUser):
    """A shop: one step, and now and then asks twice, as a till does that lost the answer."""

    weight = 6
    wait_time = constant_throughput(1)

    @task
    def sell(self) -> None:
        """Sell."""
        request = pb.TopUpRequest(
            transaction_id=new_id(),
            pan=self.chance.choice(self.pans),
            amount_pence=self.pence(),
            channel=types_pb2.CHANNEL_COUNTER_CASH,
        )
        first = self.caller.sell(request)
        if first is not None:
            self.recent.append(request.transaction_id)
            request.repeat = True
            if self.chance.random() < 0.05 and self.caller.sell(request) != first:
                raise AssertionError("the same id was answered with another code")


class App(_CallerUser):
    """A phone: issues, then has the code sent, then looks whether it has arrived."""

    weight = 3
    wait_time = constant_throughput(0.5)

    @task
    def sell(self) -> None:
        """Sell in two steps, and look."""
        transaction_id = new_id()
        issued = self.caller.sell(
            pb.IssueUtrnRequest(
                transaction_id=transaction_id,
                pan=self.chance.choice(self.pans),
                amount_pence=self.pence(),
                channel=types_pb2.CHANNEL_APP,
            )
        )
        if issued is not None:
            self.caller.send(transaction_id)
            self.caller.look(transaction_id)
            self.recent.append(transaction_id)


class StatusPoller(_CallerUser):
    """A back office that asks and asks."""

    weight = 1
    wait_time = constant_throughput(4)

    @task
    def look(self) -> None:
        """Look up one of the latest vends."""
        if self.recent:
            self.caller.look(self.chance.choice(self.recent))


class Impatient(_CallerUser):
    """A till whose operator presses the key again and again: the same id many times at once, with short deadlines."""

    weight = 6
    wait_time = constant_throughput(1)

    @task
    def storm(self) -> None:
        """Ask five times at once for one vend."""
        request = pb.TopUpRequest(
            transaction_id=new_id(),
            pan=self.chance.choice(self.pans),
            amount_pence=self.pence(),
            channel=types_pb2.CHANNEL_COUNTER_CARD,
            # Five at once: none of them is the first attempt for sure.
            repeat=True,
        )
        group = Group()
        asking = [group.spawn(self.caller.sell, request, attempt_s=0.3) for _ in range(5)]
        group.join()
        answers = {one.value for one in asking} - {None}
        if len(answers) > 1:
            raise AssertionError("one id was answered with several codes")
        self.recent.append(request.transaction_id)
