"""Sells vends as tills and apps do: an id stored before the first attempt, repeats after silence, a journal of it all.

Speaks only utrn.v1 over mTLS; the demo, the drills and the benchmark are its users.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TextIO

import grpc
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc
from utrn.v1 import types_pb2
from utrn_client.channel import Tls, open_channel
from utrn_client.verdict import Verdict, failure_of, judge_request, judge_sale

from core.ports.clock import Clock

_PAUSE_MOST_S = 1.0
_DEADLINE_S = 5.0
_IMPATIENT_S = 0.004


class Step(Enum):
    """How the sale is asked for."""

    ONE_STEP = "one-step"
    TWO_STEP = "two-step"
    CODE_ONLY = "code-only"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSale:
    """One payment to be turned into a code.

    Attributes:
        asked_times: How often the till asks, as one does that lost the answer.
        impatient: Its first call ends after a few milliseconds, answered or not.
    """

    transaction_id: str
    pan: str
    amount_pence: int
    step: Step
    asked_times: int = 1
    impatient: bool = False


@dataclass(slots=True)
class Sold:
    """What became of a planned sale.

    Attributes:
        utrn: Its code.
        refused: The reason of a final refusal: not sold.
        unknown: The last reason, where there was no final answer in time: nobody knows.
        answers: Each answer's unchanging part, serialised.
    """

    plan: PlannedSale
    utrn: str | None = None
    refused: str | None = None
    unknown: str | None = None
    answers: list[bytes] = field(default_factory=list)
    requests: int = 0
    first_answer_ms: float | None = None
    first_answer_at: float | None = None

    @property
    def consistent(self) -> bool:
        """True if every answer was the same bytes."""
        return len(set(self.answers)) <= 1


class Journal:
    """Every call and its outcome as JSON lines; `None` as path keeps nothing."""

    def __init__(self, path: Path | None, clock: Clock) -> None:
        self._file: TextIO | None = path.open("a", encoding="utf-8") if path is not None else None
        self._clock = clock

    def write(self, event: str, **facts: Any) -> None:  # whatever JSON can hold
        """Add one line, and have it on disk before going on: an id must be stored before it is used."""
        if self._file is not None:
            line = {"at": round(self._clock.monotonic(), 6), "event": event, **facts}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class Seller:
    """A caller of TopUpService with the retry rule of its contract: same id, until an answer is final."""

    def __init__(self, channel: grpc.aio.Channel, journal: Journal, clock: Clock, *, give_up_after_s: float) -> None:
        self._stub = rpc.TopUpServiceStub(channel)
        self._journal = journal
        self._clock = clock
        self._give_up_after_s = give_up_after_s
        self.outcomes: Counter[str] = Counter()

    async def sell(self, plan: PlannedSale) -> Sold:
        """Return what became of `plan`, after asking as often as it takes and as it says."""
        sold = Sold(plan)
        self._journal.write("planned", id=plan.transaction_id, amount=plan.amount_pence, step=plan.step.value)
        for _ in range(plan.asked_times):
            await self._ask_until_final(sold)
            if sold.refused is not None or sold.unknown is not None:
                return sold
        if plan.step is Step.TWO_STEP:
            await self._send(sold)
        return sold

    async def find(self, transaction_id: str) -> types_pb2.Vend:
        """Return what the service knows of a vend."""
        reply = await self._stub.GetVend(pb.GetVendRequest(transaction_id=transaction_id), timeout=5.0)
        return reply.vend

    async def _ask_until_final(self, sold: Sold) -> None:
        started = self._clock.monotonic()
        pause_s = 0.05
        while True:
            sold.requests += 1
            try:
                deadline_s = _IMPATIENT_S if sold.plan.impatient and sold.requests == 1 else _DEADLINE_S
                reply = await self._issue(sold.plan, deadline_s, repeat=sold.requests > 1)
            except grpc.aio.AioRpcError as error:
                if not self._may_repeat(sold, error, started, repeat=sold.requests > 1):
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MOST_S)
                continue
            self.outcomes["replayed" if reply.replayed else "issued"] += 1
            self._journal.write("ok", id=sold.plan.transaction_id, replayed=reply.replayed)
            sold.utrn = reply.code.utrn
            sold.answers.append(reply.code.SerializeToString(deterministic=True))
            if sold.first_answer_ms is None:
                sold.first_answer_at = self._clock.monotonic()
                sold.first_answer_ms = (sold.first_answer_at - started) * 1000
            return

    async def _issue(
        self, plan: PlannedSale, deadline_s: float, *, repeat: bool
    ) -> pb.TopUpResponse | pb.IssueUtrnResponse:
        if plan.step is Step.ONE_STEP:
            return await self._stub.TopUp(
                pb.TopUpRequest(
                    transaction_id=plan.transaction_id,
                    pan=plan.pan,
                    amount_pence=plan.amount_pence,
                    channel=types_pb2.CHANNEL_COUNTER_CASH,
                    repeat=repeat,
                ),
                timeout=deadline_s,
            )
        return await self._stub.IssueUtrn(
            pb.IssueUtrnRequest(
                transaction_id=plan.transaction_id,
                pan=plan.pan,
                amount_pence=plan.amount_pence,
                channel=types_pb2.CHANNEL_APP,
                repeat=repeat,
            ),
            timeout=deadline_s,
        )

    async def _send(self, sold: Sold) -> None:
        started = self._clock.monotonic()
        repeat = False
        while True:
            sold.requests += 1
            request = pb.DeliverVendRequest(transaction_id=sold.plan.transaction_id, repeat=repeat)
            try:
                await self._stub.DeliverVend(request, timeout=_DEADLINE_S)
            except grpc.aio.AioRpcError as error:
                if not self._may_repeat(sold, error, started, repeat=repeat, sale=False):
                    return
                repeat = True
                await asyncio.sleep(0.1)
            else:
                return

    def _may_repeat(
        self, sold: Sold, error: grpc.aio.AioRpcError, started: float, *, repeat: bool, sale: bool = True
    ) -> bool:
        failure = failure_of(error)
        verdict = (judge_sale if sale else judge_request)(failure, repeat=repeat)
        self.outcomes[failure.reason] += 1
        self._journal.write("fail", id=sold.plan.transaction_id, reason=failure.reason)
        if verdict is Verdict.NOT_SOLD:
            sold.refused = failure.reason
        elif (repeat and verdict is Verdict.ASK_OPERATOR) or self._clock.monotonic() - started >= self._give_up_after_s:
            sold.unknown = failure.reason
        return sold.refused is None and sold.unknown is None


def secure_channel(
    targets: Sequence[str], *, ca: Path, cert: Path, key: Path, by_health: bool = False
) -> grpc.aio.Channel:
    """Return the client kit's channel over `targets` (host:port); by default also to nodes that do not serve."""
    return open_channel(targets, Tls(cert=cert, key=key, ca=ca), by_health=by_health)
