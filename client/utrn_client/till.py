"""Till: sells through any trouble, with one id per payment."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import grpc
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc
from utrn.v1 import types_pb2

from utrn_client.book import Refusal, Sale, SaleBook
from utrn_client.book_file import BookNotWritten
from utrn_client.ids import make_transaction_id
from utrn_client.verdict import Failure, Verdict, failure_of, judge_sale

if TYPE_CHECKING:
    from utrn.v1.top_up_service_pb2_grpc import TopUpServiceAsyncStub

_PAUSE_FIRST_S: Final = 0.03
_PAUSE_MOST_S: Final = 1.0
# However long the service asks to wait: what it says is not read by people, and must not hold a till for a day.
_DELAY_MOST_S: Final = 10.0
# Of what is open when a till starts: enough to be done soon, few enough to leave the line to new sales.
_OPEN_AT_ONCE: Final = 16
_NO_SUCH_ANSWER: Final = Failure(
    reason="UNKNOWN", message="an answer that is not to this sale", facts={}, outcome=None, retry_delay_s=None
)


class SaleRefused(Exception):
    """The service said no, for good: the payment goes back to the consumer. `reason` is one of docs/errors.md.

    `done()` when somebody has been told: until then the book keeps the refusal, and the next start tells it again.
    """

    def __init__(self, refusal: Refusal, done: Callable[[], None]) -> None:
        """Keep what was refused and how the book is told that somebody knows."""
        super().__init__(f"{refusal.sale.transaction_id}: {refusal.reason}: {refusal.message}")
        self.transaction_id = refusal.sale.transaction_id
        self.reason = refusal.reason
        self.done = done


class NoAnswer(Exception):
    """Nobody knows whether it was sold: no money back, no new id. The sale stays open in the book under its id."""

    def __init__(self, transaction_id: str, reason: str, message: str, do: str) -> None:
        """Keep the id and the last reason; the message says what to do."""
        said = f"{reason}: {message}" if message else reason
        super().__init__(
            f"{transaction_id}: no final answer ({said}). {do}. The sale stays open in the book: ask again with the "
            "same id, then ask the operator; no money back before there is a final answer"
        )
        self.transaction_id = transaction_id
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The code of a sale. `replayed`: it had been issued before this request.

    `done()` when the receipt is out: until then the sale is open, and the next start prints the same code again.
    """

    # Not in the text: a reader of a log could spend the code.
    code: types_pb2.IssuedCode = field(repr=False)
    replayed: bool
    done: Callable[[], None] = field(repr=False, compare=False)


class Till:
    """Sells. An id is in the book before its first attempt, and leaves it when somebody has the answer."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        book: SaleBook,
        *,
        attempt_s: float = 1.0,
        attempt_most_s: float = 5.0,
        on_attempt: Callable[[str, str], None] = lambda _id, _outcome: None,
    ) -> None:
        """Set the channel and the book of the till.

        Args:
            channel: Over all nodes; see `open_channel`.
            book: Where open sales are kept.
            attempt_s: Seconds for the first attempt, and the least for any, even as the patience ends; doubled each
                time. A frozen node costs a sale this long.
            attempt_most_s: The cap of the above.
            on_attempt: Told the id and what came of each attempt.
        """
        # Typed by the generated stub, which knows synchronous and asynchronous channels apart only by their type.
        self._stub: TopUpServiceAsyncStub = rpc.TopUpServiceStub(channel)
        self._book = book
        self._attempt_s = attempt_s
        self._attempt_most_s = attempt_most_s
        self._on_attempt = on_attempt
        self._asking: set[str] = set()

    async def sell(
        self, pan: str, amount_pence: int, *, channel: int, deliver: bool = True, give_up_after_s: float = 60.0
    ) -> Answer:
        """Sell; return the code, to be confirmed with `done()` when the receipt is out.

        Raises:
            SaleRefused: not sold, for good; to be confirmed with `done()` when somebody has been told.
            NoAnswer: it stays open in the book.
            BookNotWritten: nothing was asked.
        """
        sale = Sale(
            transaction_id=make_transaction_id(), pan=pan, amount_pence=amount_pence, channel=channel, deliver=deliver
        )
        return await self.ask(sale, give_up_after_s=give_up_after_s)

    @asynccontextmanager
    async def sale(
        self, pan: str, amount_pence: int, *, channel: int, deliver: bool = True, give_up_after_s: float = 60.0
    ) -> AsyncIterator[Answer]:
        """Sell, as a block: it gets the code and prints it; the book is closed at its end, if it did not fail.

        Raises:
            As `sell`.
        """
        answer = await self.sell(pan, amount_pence, channel=channel, deliver=deliver, give_up_after_s=give_up_after_s)
        yield answer
        answer.done()

    async def resume(
        self,
        *,
        give_up_after_s: float = 60.0,
        at_once: int = _OPEN_AT_ONCE,
        tell: Callable[[str, Answer | Exception], None] = lambda _id, _result: None,
    ) -> dict[str, Answer | Exception]:
        """Take up what is open in the book, when a till starts. Every sale has an entry, by its id.

        Sales are asked for again, as repeats, `at_once` of them side by side; refusals nobody was told of are told.
        Each is confirmed with `done()`. What goes wrong with one sale is its entry, and the others are gone on with.
        It is meant to run beside new sales: after an outage nobody at the counter should wait for those of before.

        Args:
            give_up_after_s: Patience for each.
            at_once: How many are asked for side by side, 1 or more.
            tell: Told each id and its entry as soon as it is there.
        """
        results: dict[str, Answer | Exception] = {}

        def have(transaction_id: str, result: Answer | Exception) -> None:
            results[transaction_id] = result
            tell(transaction_id, result)

        for refusal in self._book.untold_refusals():
            have(refusal.sale.transaction_id, self._refused(refusal))
        places = asyncio.Semaphore(at_once)

        async def take_up(sale: Sale) -> None:
            async with places:
                if sale.transaction_id in self._asking:
                    return
                try:
                    result: Answer | Exception = await self.ask(sale, give_up_after_s=give_up_after_s)
                except Exception as error:  # noqa: BLE001  # whatever is wrong with one, the others must be asked for
                    result = error
            have(sale.transaction_id, result)

        async with asyncio.TaskGroup() as tasks:
            for sale in self._book.open_sales():
                tasks.create_task(take_up(sale))
        return results

    async def ask(self, sale: Sale, *, give_up_after_s: float = 60.0) -> Answer:
        """Ask for the code of `sale` until there is a final answer; return it, to be confirmed with `done()`.

        Raises:
            SaleRefused: not sold, for good; to be confirmed with `done()` when somebody has been told.
            NoAnswer: it stays open in the book.
            BookNotWritten: nothing was asked.
            ValueError: the sale cannot be asked for, or is being asked for now.
        """
        if sale.transaction_id in self._asking:
            # Two attempts side by side: the answer to one would say nothing of the other.
            raise ValueError(f"the sale {sale.transaction_id} is being asked for now: one attempt at a time")
        for refusal in self._book.untold_refusals():
            if refusal.sale.transaction_id == sale.transaction_id:
                raise self._refused(refusal)
        repeat = not self._book.begin(sale)
        self._asking.add(sale.transaction_id)
        try:
            return await self._until_final(sale, repeat, time.monotonic() + give_up_after_s)
        finally:
            self._asking.discard(sale.transaction_id)

    async def _until_final(self, sale: Sale, repeat: bool, until: float) -> Answer:  # the contract's word
        attempt_s, pause_s = self._attempt_s, _PAUSE_FIRST_S
        while True:
            reply = await self._call(sale, repeat, min(attempt_s, max(self._attempt_s, until - time.monotonic())))
            if not isinstance(reply, Failure):
                self._on_attempt(sale.transaction_id, "replayed" if reply.replayed else "issued")
                return Answer(code=reply.code, replayed=reply.replayed, done=self._end(sale, "issued"))
            self._on_attempt(sale.transaction_id, reply.reason)
            verdict = judge_sale(reply, repeat=repeat)
            if verdict is Verdict.NOT_SOLD:
                raise self._close(sale, reply)
            # A repeat may bring the code, or a refusal that is fenced, even to a suspended or departed seller.
            if (repeat and verdict is Verdict.ASK_OPERATOR) or time.monotonic() >= until:
                raise _no_answer(sale, reply)
            repeat = True
            await asyncio.sleep(max(min(reply.retry_delay_s or 0.0, _DELAY_MOST_S), pause_s))
            attempt_s, pause_s = min(2 * attempt_s, self._attempt_most_s), min(2 * pause_s, _PAUSE_MOST_S)

    def _close(self, sale: Sale, failure: Failure) -> Exception:
        """Return the final refusal of a sale; it is in the book before anybody hears of it, so never asked again."""
        try:
            self._book.refuse(sale, failure.reason, failure.message)
        except BookNotWritten as error:
            return NoAnswer(sale.transaction_id, failure.reason, failure.message, str(error))
        return self._refused(Refusal(sale=sale, reason=failure.reason, message=failure.message))

    def _refused(self, refusal: Refusal) -> SaleRefused:
        return SaleRefused(refusal, self._end(refusal.sale, refusal.reason))

    def _end(self, sale: Sale, outcome: str) -> Callable[[], None]:
        return lambda: self._book.end(sale.transaction_id, outcome)

    async def _call(
        self, sale: Sale, repeat: bool, timeout_s: float
    ) -> pb.TopUpResponse | pb.IssueUtrnResponse | Failure:  # as above
        try:
            reply = await self._request(sale, repeat, timeout_s)
        except grpc.aio.AioRpcError as error:
            return failure_of(error)
        # None: gRPC could not read it. What stands between here and a node may say "OK" to anything.
        if reply is None or reply.code.transaction_id != sale.transaction_id:
            return _NO_SUCH_ANSWER
        return reply

    async def _request(
        self, sale: Sale, repeat: bool, timeout_s: float
    ) -> pb.TopUpResponse | pb.IssueUtrnResponse | None:  # as above
        common: dict[str, Any] = {
            "transaction_id": sale.transaction_id,
            "pan": sale.pan,
            "amount_pence": sale.amount_pence,
            "channel": sale.channel,
            "repeat": repeat,
        }
        if sale.deliver:
            return await self._stub.TopUp(pb.TopUpRequest(**common), timeout=timeout_s)
        return await self._stub.IssueUtrn(pb.IssueUtrnRequest(**common), timeout=timeout_s)


def _no_answer(sale: Sale, failure: Failure) -> NoAnswer:
    return NoAnswer(sale.transaction_id, failure.reason, failure.message, failure.next[:1].upper() + failure.next[1:])
