"""Till: sells through any trouble, with one id per payment."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc
from utrn.v1 import types_pb2

from utrn_client.channel import reason_of, retry_delay_s
from utrn_client.ids import Sale, SaleBook, make_transaction_id

if TYPE_CHECKING:
    from utrn.v1.top_up_service_pb2_grpc import TopUpServiceAsyncStub

# What may be repeated under the same id; everything else is final (docs/errors.md).
REPEATABLE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
    }
)
_PAUSE_FIRST_S = 0.05
_PAUSE_MOST_S = 1.0


class SaleRefused(Exception):
    """The service said no, for good. `reason` is one of docs/errors.md; the payment must go back to the consumer."""

    def __init__(self, reason: str, message: str) -> None:
        """Keep both."""
        super().__init__(f"{reason}: {message}")
        self.reason = reason


class NoAnswer(Exception):
    """No final answer within the time given. The sale stays open in the book: ask again, never make a new id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The code of a sale. `replayed`: it had been issued before this request."""

    code: types_pb2.IssuedCode
    replayed: bool


class Till:
    """Sells. An id is in the book before its first attempt, and leaves it with the final answer."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        book: SaleBook,
        *,
        attempt_s: float = 1.0,
        attempt_most_s: float = 5.0,
        on_attempt: Callable[[str, str], None] = lambda _id, _outcome: None,
    ) -> None:
        """Take a channel and a book.

        Args:
            channel: Over all nodes; see `open_channel`.
            book: Where open sales are kept.
            attempt_s: Seconds for the first attempt; doubled each time. A frozen node costs a sale this long.
            attempt_most_s: The cap of the above.
            on_attempt: Told the id and what came of each attempt.
        """
        # Typed by the generated stub, which knows synchronous and asynchronous channels apart only by their type.
        self._stub: TopUpServiceAsyncStub = rpc.TopUpServiceStub(channel)
        self._book = book
        self._attempt_s = attempt_s
        self._attempt_most_s = attempt_most_s
        self._on_attempt = on_attempt

    async def sell(
        self, pan: str, amount_pence: int, *, channel: int, deliver: bool = True, give_up_after_s: float = 60.0
    ) -> Answer:
        """Sell; return the code.

        Raises:
            SaleRefused: never repeat it.
            NoAnswer: it stays open in the book.
        """
        sale = Sale(
            transaction_id=make_transaction_id(),
            pan=pan,
            amount_pence=amount_pence,
            channel=channel,
            deliver=deliver,
        )
        return await self.ask(sale, give_up_after_s=give_up_after_s)

    async def resume(self, *, give_up_after_s: float = 60.0) -> dict[str, Answer | Exception]:
        """Ask again for every sale that is open in the book: to be called when a till starts."""
        results: dict[str, Answer | Exception] = {}
        for sale in self._book.open_sales():
            try:
                results[sale.transaction_id] = await self.ask(sale, give_up_after_s=give_up_after_s)
            except (SaleRefused, NoAnswer) as error:
                results[sale.transaction_id] = error
        return results

    async def ask(self, sale: Sale, *, give_up_after_s: float = 60.0) -> Answer:
        """Ask for the code of `sale` until there is a final answer.

        Raises:
            SaleRefused: never repeat it.
            NoAnswer: it stays open in the book.
        """
        self._book.begin(sale)
        until = time.monotonic() + give_up_after_s
        attempt_s, pause_s = self._attempt_s, _PAUSE_FIRST_S
        while True:
            try:
                reply = await self._call(sale, min(attempt_s, max(0.05, until - time.monotonic())))
            except grpc.aio.AioRpcError as error:
                reason = reason_of(error)
                self._on_attempt(sale.transaction_id, reason)
                if error.code() not in REPEATABLE:
                    self._book.end(sale.transaction_id, reason)
                    raise SaleRefused(reason, error.details() or "") from error
                if time.monotonic() >= until:
                    raise NoAnswer(f"{reason} for {give_up_after_s:.0f} s; ask for the same id again") from error
                await asyncio.sleep(max(retry_delay_s(error) or 0.0, pause_s))
                attempt_s, pause_s = min(2 * attempt_s, self._attempt_most_s), min(2 * pause_s, _PAUSE_MOST_S)
            else:
                self._on_attempt(sale.transaction_id, "replayed" if reply.replayed else "issued")
                self._book.end(sale.transaction_id, "issued")
                return Answer(code=reply.code, replayed=reply.replayed)

    async def _call(self, sale: Sale, timeout_s: float) -> pb.TopUpResponse | pb.IssueUtrnResponse:
        common: dict[str, Any] = {
            "transaction_id": sale.transaction_id,
            "pan": sale.pan,
            "amount_pence": sale.amount_pence,
            "channel": sale.channel,
        }
        if sale.deliver:
            return await self._stub.TopUp(pb.TopUpRequest(**common), timeout=timeout_s)
        return await self._stub.IssueUtrn(pb.IssueUtrnRequest(**common), timeout=timeout_s)
