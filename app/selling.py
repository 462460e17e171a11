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
from typing import Any, TextIO, cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc
from utrn.v1 import types_pb2

from core.ports.clock import Clock

_REPEATABLE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
    }
)
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
    """What became of a planned sale. `answers` holds each answer's unchanging part, serialised."""

    plan: PlannedSale
    utrn: str | None = None
    refused: str | None = None
    answers: list[bytes] = field(default_factory=list)
    requests: int = 0
    first_answer_ms: float | None = None

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
            if sold.refused is not None:
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
                reply = await self._issue(sold.plan, deadline_s)
            except grpc.aio.AioRpcError as error:
                if not self._may_repeat(sold, error, started):
                    return
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MOST_S)
                continue
            self.outcomes["replayed" if reply.replayed else "issued"] += 1
            self._journal.write("ok", id=sold.plan.transaction_id, replayed=reply.replayed)
            sold.utrn = reply.code.utrn
            sold.answers.append(reply.code.SerializeToString(deterministic=True))
            if sold.first_answer_ms is None:
                sold.first_answer_ms = (self._clock.monotonic() - started) * 1000
            return

    async def _issue(self, plan: PlannedSale, deadline_s: float) -> pb.TopUpResponse | pb.IssueUtrnResponse:
        if plan.step is Step.ONE_STEP:
            return await self._stub.TopUp(
                pb.TopUpRequest(
                    transaction_id=plan.transaction_id,
                    pan=plan.pan,
                    amount_pence=plan.amount_pence,
                    channel=types_pb2.CHANNEL_COUNTER_CASH,
                ),
                timeout=deadline_s,
            )
        return await self._stub.IssueUtrn(
            pb.IssueUtrnRequest(
                transaction_id=plan.transaction_id,
                pan=plan.pan,
                amount_pence=plan.amount_pence,
                channel=types_pb2.CHANNEL_APP,
            ),
            timeout=deadline_s,
        )

    async def _send(self, sold: Sold) -> None:
        started = self._clock.monotonic()
        while True:
            sold.requests += 1
            try:
                await self._stub.SendTopUp(
                    pb.SendTopUpRequest(transaction_id=sold.plan.transaction_id), timeout=_DEADLINE_S
                )
            except grpc.aio.AioRpcError as error:
                if not self._may_repeat(sold, error, started):
                    return
                await asyncio.sleep(0.1)
            else:
                return

    def _may_repeat(self, sold: Sold, error: grpc.aio.AioRpcError, started: float) -> bool:
        reason = reason_of(error)
        self.outcomes[reason] += 1
        self._journal.write("fail", id=sold.plan.transaction_id, reason=reason)
        if error.code() in _REPEATABLE and self._clock.monotonic() - started < self._give_up_after_s:
            return True
        sold.refused = reason
        return False


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """Return the reason of a refusal: ErrorInfo's where there is one, else the status."""
    # grpc's asyncio errors have what this function needs, and not the type it asks for.
    status = rpc_status.from_call(cast("grpc.Call", error))
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status is not None else ():
        if detail.Unpack(info):
            return str(info.reason)
    return error.code().name


def secure_channel(
    targets: Sequence[str], *, ca: Path, cert: Path, key: Path, server_name: str = "localhost"
) -> grpc.aio.Channel:
    """Return a channel that spreads calls over `targets` (host:port), with the back-off a till wants."""
    credentials = grpc.ssl_channel_credentials(ca.read_bytes(), key.read_bytes(), cert.read_bytes())
    options = (
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        ("grpc.lb_policy_name", "round_robin"),
        ("grpc.ssl_target_name_override", server_name),
        ("grpc.default_authority", server_name),
    )
    return grpc.aio.secure_channel("ipv4:" + ",".join(targets), credentials, options=options)
