"""The till's rule: what counts as final, what stays open, and what every attempt but the first says of itself."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import types_pb2
from utrn_client.channel import options
from utrn_client.ids import FileSaleBook, MemorySaleBook, Sale, make_transaction_id
from utrn_client.outcomes import OUTCOMES, Says
from utrn_client.till import Answer, NoAnswer, SaleRefused, Till

PAN = "9" * 19
NOT_SOLD = sorted(name for name, outcome in OUTCOMES.items() if outcome.says is Says.NOT_SOLD)
OTHERS = sorted(set(OUTCOMES) - set(NOT_SOLD))


@dataclass(frozen=True)
class No:
    """A refusal as a node gives it."""

    reason: str = ""
    status: grpc.StatusCode | None = None
    final: str = ""
    domain: str = "utrn.v1"

    def message(self) -> status_pb2.Status:
        code = self.status or grpc.StatusCode[OUTCOMES[self.reason].status]
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=self.domain)
        if self.final:
            info.metadata["final"] = self.final
        packed = any_pb2.Any()
        packed.Pack(info)
        return status_pb2.Status(code=code.value[0], message="why", details=[packed] if self.reason else [])


BUSY = No("NOT_READY")


@dataclass
class Node:
    """Answers with what stands next in its script, and with the code once that is at its end."""

    script: list[Any]
    repeats: list[bool] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    called: asyncio.Event = field(default_factory=asyncio.Event)

    async def top_up(self, request: pb.TopUpRequest, context: Any) -> pb.TopUpResponse:
        self.repeats.append(request.repeat)
        self.asked.append(request.transaction_id)
        self.called.set()
        step = self.script.pop(0) if self.script else None
        if isinstance(step, No):
            await context.abort_with_status(rpc_status.to_status(step.message()))
        if step == "hang":
            await asyncio.sleep(60)
        if step == "nothing":
            return pb.TopUpResponse()
        code = types_pb2.IssuedCode(transaction_id=request.transaction_id, utrn_printed="1234 5678")
        if step == "another's":
            code.transaction_id = make_transaction_id()
        return pb.TopUpResponse(code=code, replayed=step == "replayed")


@asynccontextmanager
async def node_of(*script: Any) -> AsyncIterator[tuple[Node, grpc.aio.Channel]]:
    """A node with a script, and the kit's kind of channel to it."""
    node, server = Node(list(script)), grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        node.top_up,
        request_deserializer=pb.TopUpRequest.FromString,
        response_serializer=pb.TopUpResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("utrn.v1.TopUpService", {"TopUp": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        settings = options("localhost", by_health=False)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=settings) as channel:
            yield node, channel
    finally:
        await server.stop(30.0)


def _sale(pence: int = 1000) -> Sale:
    return Sale(transaction_id=make_transaction_id(), pan=PAN, amount_pence=pence, channel=3)


async def _asked(*script: Any, patience_s: float = 0.05) -> tuple[Answer | Exception, MemorySaleBook, Node]:
    """What a new sale comes to, its book then, and the node."""
    async with node_of(*script) as (node, channel):
        book = MemorySaleBook()
        try:
            # A busy machine may take its time for a call: what is counted here is calls.
            found: Answer | Exception = await Till(channel, book, attempt_s=20.0).ask(
                _sale(), give_up_after_s=patience_s
            )
        except (SaleRefused, NoAnswer) as error:
            found = error
        return found, book, node


@pytest.mark.slow
@pytest.mark.parametrize("reason", NOT_SOLD)
async def test_a_reason_of_the_closed_list_is_final_to_a_first_attempt(reason: str) -> None:
    found, book, node = await _asked(No(reason))
    assert isinstance(found, SaleRefused)
    assert (found.reason, node.repeats, book.open_sales()) == (reason, [False], [])
    assert [refusal.reason for refusal in book.untold_refusals()] == [reason]
    found.done()
    assert book.untold_refusals() == []


@pytest.mark.slow
@pytest.mark.parametrize("reason", OTHERS)
async def test_any_other_reason_is_never_a_cause_to_give_money_back(reason: str) -> None:
    found, book, node = await _asked(*[No(reason)] * 20)
    assert isinstance(found, NoAnswer)
    (sale,) = book.open_sales()
    assert (found.reason, found.transaction_id) == (reason, sale.transaction_id)
    assert sale.transaction_id in str(found)
    assert "ask again with the same id, then ask the operator" in str(found)
    if OUTCOMES[reason].says is not Says.ASK_AGAIN:
        assert node.repeats == [False, True][: len(node.repeats)], "one repeat, and no more: it would not help"


@pytest.mark.parametrize("reason", ["CALLER_SUSPENDED", "UNKNOWN_CALLER"])
async def test_a_seller_that_is_barred_asks_once_more_and_learns_what_became_of_its_sale(reason: str) -> None:
    sold, _, node = await _asked(No(reason), "replayed", patience_s=30.0)
    assert isinstance(sold, Answer)
    assert node.repeats == [False, True]
    refused, book, _ = await _asked(No(reason), No(reason, final="fenced"), patience_s=30.0)
    assert isinstance(refused, SaleRefused)
    assert book.open_sales() == []


@pytest.mark.slow
@pytest.mark.parametrize("reason", NOT_SOLD)
async def test_in_answer_to_a_repeat_it_is_not_final(reason: str) -> None:
    """The first attempt may be under way still: the sale was sold at another node in the meantime."""
    found, _, node = await _asked(BUSY, No(reason), No(reason, final="if-first"), "replayed", patience_s=30.0)
    assert isinstance(found, Answer)
    assert node.repeats == [False, True, True, True]
    lost, book, _ = await _asked(BUSY, *[No(reason)] * 20)
    assert isinstance(lost, NoAnswer)
    assert len(book.open_sales()) == 1


@pytest.mark.parametrize("reason", [*NOT_SOLD[:3], "KEY_MISSING", "A_REASON_OF_A_NEWER_VERSION"])
async def test_what_is_fenced_is_final_whatever_its_reason_and_attempt(reason: str) -> None:
    status = grpc.StatusCode.FAILED_PRECONDITION
    for script in ([No(reason, status, "fenced")], [BUSY, No(reason, status, "fenced")]):
        found, book, _ = await _asked(*script, patience_s=30.0)
        assert isinstance(found, SaleRefused)
        assert book.open_sales() == []


async def test_the_words_of_another_domain_are_not_the_services() -> None:
    foreign = No("PAN_BLOCKED", grpc.StatusCode.FAILED_PRECONDITION, "fenced", domain="proxy.example")
    found, book, _ = await _asked(*[foreign] * 20)
    assert isinstance(found, NoAnswer)
    assert len(book.open_sales()) == 1


@pytest.mark.parametrize("status", [one for one in grpc.StatusCode if one is not grpc.StatusCode.OK])
async def test_a_status_without_a_reason_is_unknown_whichever_it_is(status: grpc.StatusCode) -> None:
    found, book, _ = await _asked(*[No(status=status)] * 20)
    assert isinstance(found, NoAnswer)
    assert len(book.open_sales()) == 1


async def test_nothing_inside_grpc_repeats_a_sale_as_if_it_were_the_first_attempt() -> None:
    found, _, node = await _asked(No(status=grpc.StatusCode.UNAVAILABLE), "replayed", patience_s=30.0)
    assert isinstance(found, Answer)
    assert node.repeats == [False, True]


async def test_what_is_taken_from_the_book_after_a_start_is_a_repeat(tmp_path: Path) -> None:
    file, sale = tmp_path / "book", _sale()
    with closing(FileSaleBook(file)) as book:
        book.begin(sale)
    async with node_of("replayed") as (node, channel):
        with closing(FileSaleBook(file)) as book:
            (answer,) = (await Till(channel, book).resume()).values()
            assert isinstance(answer, Answer)
            assert node.repeats == [True]


async def test_open_sales_are_asked_for_side_by_side_and_hold_no_new_one() -> None:
    """Five that get no answer, three places: all are being asked for in two rounds, and a new sale in none."""
    async with node_of(*["hang"] * 5) as (node, channel):
        book, told = MemorySaleBook(), list[str]()
        before = [_sale(pence) for pence in (1, 2, 3, 4, 5)]
        for sale in before:
            book.begin(sale)
        till = Till(channel, book, attempt_s=0.5)
        async with asyncio.TaskGroup() as tasks:
            taking_up = tasks.create_task(
                till.resume(give_up_after_s=0.1, at_once=3, tell=lambda one, _: told.append(one))
            )
            while len(node.asked) < 3:
                await node.called.wait()
                node.called.clear()
            assert {sale.transaction_id for sale in before[:3]} == set(node.asked)
            node.script = [None, *node.script]
            answer = await till.sell(PAN, 1000, channel=3)
            assert not taking_up.done()
        assert answer.code.transaction_id not in told
        results = taking_up.result()
    assert set(told) == set(results) == {sale.transaction_id for sale in before}
    assert all(isinstance(result, NoAnswer) for result in results.values())
    assert len(book.open_sales()) == 6


async def test_an_attempt_that_was_given_up_on_makes_the_next_one_a_repeat() -> None:
    async with node_of("hang") as (node, channel):
        book, sale = MemorySaleBook(), _sale()
        till = Till(channel, book)
        async with asyncio.TaskGroup() as tasks:
            asking = tasks.create_task(till.ask(sale))
            await node.called.wait()
            with pytest.raises(ValueError, match="one attempt at a time"):
                await till.ask(sale)
            assert await till.resume() == {}, "it is being asked for"
            asking.cancel()
        await till.ask(sale)
        assert node.repeats == [False, True]


async def test_a_till_killed_between_answer_and_receipt_prints_the_same_code_again(tmp_path: Path) -> None:
    file = tmp_path / "book"
    async with node_of(None, "replayed") as (_, channel):
        with closing(FileSaleBook(file)) as book:
            await Till(channel, book).sell(PAN, 1000, channel=3)
            # Killed here: nobody said that the receipt is out.
        with closing(FileSaleBook(file)) as book:
            (answer,) = (await Till(channel, book).resume()).values()
            assert isinstance(answer, Answer)
            assert answer.replayed
            answer.done()
        with closing(FileSaleBook(file)) as book:
            assert book.open_sales() == []


async def test_the_block_of_a_sale_closes_the_book_only_if_it_comes_to_its_end() -> None:
    async with node_of() as (_, channel):
        book = MemorySaleBook()
        till = Till(channel, book)

        async def print_on_paper(jams: bool) -> None:
            async with till.sale(PAN, 1000, channel=3) as answer:
                assert answer.code.utrn_printed
                if jams:
                    _jam()

        with pytest.raises(OSError, match="paper"):
            await print_on_paper(jams=True)
        assert len(book.open_sales()) == 1
        await print_on_paper(jams=False)
        assert len(book.open_sales()) == 1


def _jam() -> NoReturn:
    raise OSError("no paper")


async def test_a_refusal_nobody_was_told_of_is_told_by_the_next_start_and_never_asked_again(tmp_path: Path) -> None:
    """Money may be on its way back: to ask once more might sell what is given back."""
    file = tmp_path / "book"
    async with node_of(No("NOT_APPOINTED")) as (node, channel):
        with closing(FileSaleBook(file)) as book, pytest.raises(SaleRefused):
            await Till(channel, book).sell(PAN, 1000, channel=3)
        for _ in range(2):
            with closing(FileSaleBook(file)) as book:
                (refused,) = (await Till(channel, book).resume()).values()
                assert isinstance(refused, SaleRefused)
                assert refused.reason == "NOT_APPOINTED"
                (untold,) = book.untold_refusals()
                with pytest.raises(SaleRefused):
                    await Till(channel, book).ask(untold.sale)
        with closing(FileSaleBook(file)) as book:
            (refused,) = (await Till(channel, book).resume()).values()
            assert isinstance(refused, SaleRefused)
            refused.done()
            assert await Till(channel, book).resume() == {}
    assert len(node.asked) == 1


async def test_taking_up_goes_on_past_a_sale_that_cannot_be_asked_for() -> None:
    book = MemorySaleBook()
    bad = Sale(transaction_id="bad", pan=PAN, amount_pence="a lot", channel=3)  # type: ignore[arg-type]  # on purpose
    sales: Sequence[Sale] = (_sale(1), bad, _sale(2))
    for sale in sales:
        book.begin(sale)
    async with node_of(No("CALLER_SUSPENDED"), "replayed") as (_, channel):
        results = await Till(channel, book).resume(give_up_after_s=1.0, at_once=1)
    kinds = [type(results[sale.transaction_id]) for sale in sales]
    assert kinds == [NoAnswer, TypeError, Answer]


@pytest.mark.parametrize("odd", ["nothing", "another's"])
async def test_an_ok_without_the_code_of_this_sale_is_no_answer(odd: str) -> None:
    """As of a proxy that says "OK" to anything: nothing was printed, so nothing is closed."""
    found, book, node = await _asked(odd, patience_s=20.0)
    assert isinstance(found, Answer)
    assert (found.code.transaction_id, node.repeats) == (node.asked[0], [False, True])
    found, book, node = await _asked(*[odd] * 3, patience_s=0.0)
    assert isinstance(found, NoAnswer)
    assert [sale.transaction_id for sale in book.open_sales()] == node.asked[:1]


async def test_details_that_are_garbled_say_nothing_and_end_nothing() -> None:
    garbled = status_pb2.Status(code=grpc.StatusCode.PERMISSION_DENIED.value[0], message="why")
    for name in ("ErrorInfo", "RetryInfo"):
        garbled.details.append(any_pb2.Any(type_url=f"type.googleapis.com/google.rpc.{name}", value=b"\xff\xff"))

    class Garbled(No):
        def message(self) -> status_pb2.Status:
            return garbled

    found, _, node = await _asked(Garbled(), patience_s=20.0)
    assert isinstance(found, Answer)
    assert node.repeats == [False, True]
