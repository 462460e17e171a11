"""Sells one top-up as a PSP does: take up what is open, check, store the id, sell, repeat until there is an answer."""

import argparse
import asyncio
import contextlib
import json
import sys
import traceback
from pathlib import Path

import grpc
from utrn.v1 import errors_pb2, types_pb2
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc
from utrn_client.amounts import BadAmount, parse_pence
from utrn_client.book_file import BookInUse, BookNotWritten
from utrn_client.channel import Tls, open_channel
from utrn_client.ids import FileSaleBook
from utrn_client.till import Answer, NoAnswer, SaleRefused, Till
from utrn_client.verdict import failure_of

# Money may go back to the consumer on EXIT_REFUSED alone.
EXIT_REFUSED, EXIT_BOOK, EXIT_NO_ANSWER = 1, 74, 75


async def sell(channel: grpc.aio.Channel, till: Till, pan: str, pence: int, *, deliver: bool) -> int:
    """Sell, and print the code, or what stands against it; return the exit code."""
    stub: rpc.TopUpServiceAsyncStub = rpc.TopUpServiceStub(channel)
    through = types_pb2.CHANNEL_ONLINE
    asked = pb.CheckEligibilityRequest(pan=pan, amount_pence=pence, channel=through, deliver=deliver)
    eligibility = await stub.CheckEligibility(asked, timeout=2.0)
    if not eligibility.eligible:
        names = [errors_pb2.ErrorReason.Name(objection.reason) for objection in eligibility.objections]
        say({"eligible": False, "objections": [name.removeprefix("ERROR_REASON_") for name in names]})
        return EXIT_REFUSED
    # The consumer pays here. The till makes the id, and has it on disk before it calls.
    try:
        answer = await till.sell(pan, pence, channel=through, deliver=deliver)
    except (SaleRefused, NoAnswer) as error:
        return tell_trouble(error, {})
    tell(answer, {})
    # Sold, whatever becomes of this question.
    transaction_id = answer.code.transaction_id
    try:
        vend = (await stub.GetVend(pb.GetVendRequest(transaction_id=transaction_id), timeout=2.0)).vend
        state = types_pb2.DeliveryState.Name(vend.delivery.state)
    except grpc.aio.AioRpcError as error:
        state = f"not known: {failure_of(error).reason}"
    say({"transaction_id": transaction_id, "delivery": state})
    return 0


async def take_up(till: Till) -> int:
    """Take up every sale that was open when this till last stopped, under their ids; return the exit code."""
    worst = 0

    def told(transaction_id: str, result: Answer | Exception) -> None:
        nonlocal worst
        if isinstance(result, Answer):
            tell(result, {"taken_up": True})
        else:
            worst = max(worst, tell_trouble(result, {"transaction_id": transaction_id, "taken_up": True}))

    await till.resume(tell=told)
    return worst


def tell(answer: Answer, about: dict[str, object]) -> None:
    """Print the receipt, the code in five groups of four; then, and not before, close the sale in the book."""
    code = answer.code
    say({"transaction_id": code.transaction_id, "code": code.utrn_printed, "replayed": answer.replayed, **about})
    answer.done()


def tell_trouble(error: Exception, about: dict[str, object]) -> int:
    """Print why there is no code: refused for good, or nobody knows yet; return the exit code."""
    if isinstance(error, SaleRefused):
        say({"transaction_id": error.transaction_id, **about, "refused": str(error).partition(": ")[2]})
        error.done()
        return EXIT_REFUSED
    if isinstance(error, NoAnswer):
        about = {"transaction_id": error.transaction_id, **about}
    say({**about, "no_answer": str(error)})
    return EXIT_NO_ANSWER


def say(answer: dict[str, object]) -> None:
    """Print one line of JSON, at once."""
    print(json.dumps(answer), flush=True)  # noqa: T201  # the answer


def parse() -> argparse.Namespace:
    """Return the arguments; end with what is wrong with them."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("target", "cert", "key", "ca"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--server-name", help="name in the nodes' certificates, where --target has addresses")
    parser.add_argument("--sales", default="sales.jsonl", help="the book: where open sales are kept")
    parser.add_argument("--two-step", action="store_true", help="issue only; the delivery is asked for later")
    parser.add_argument("pan", nargs="?", help="left out: take up what is open, and sell nothing")
    parser.add_argument("pence", nargs="?", help="whole pence, as 1099 for 10.99 pounds")
    given = parser.parse_args()
    if given.pan is not None:
        try:
            given.pence = parse_pence(given.pence or "")
        except BadAmount as bad:
            parser.error(str(bad) if given.pence else "an amount is needed after the PAN: whole pence, as 1099")
    return given


async def trade(given: argparse.Namespace, book: FileSaleBook) -> int:
    """Take up what is open, sell; return the exit code: the new sale's, where there is one."""
    nodes = given.target.split(",")
    host = given.server_name or nodes[0].rpartition(":")[0].strip("[]")
    tls = Tls(cert=Path(given.cert), key=Path(given.key), ca=Path(given.ca), server_name=host)
    for damage in book.damaged:
        sys.stderr.write(f"{book.path}, line {damage.line} is set aside: {damage.why}; look whether it was a sale\n")
    async with open_channel(nodes, tls) as channel:
        till = Till(channel, book)
        # Beside the new sale: who stands at the counter does not wait for those of before.
        taking_up = asyncio.create_task(take_up(till))  # noqa: TID251  # ends with this block
        try:
            if given.pan is None:
                return await taking_up
            return await sell(channel, till, given.pan, given.pence, deliver=not given.two_step)
        finally:
            await taking_up


async def main() -> int:
    """Read the arguments, open the book, trade; return the exit code."""
    given = parse()
    try:
        book = FileSaleBook(Path(given.sales))
    except (BookInUse, OSError) as error:
        say({"book": str(error)})
        return EXIT_BOOK
    try:
        return await trade(given, book)
    except BookNotWritten as error:
        say({"book": str(error)})
        return EXIT_BOOK
    except grpc.aio.AioRpcError as error:
        # Of the question before the sale: there is no sale yet.
        failure = failure_of(error)
        text = f"{failure.reason}: {failure.message}. No sale was begun: take no money"
        say({"no_answer" if failure.may_be_repeated else "refused": text})
        return EXIT_NO_ANSWER if failure.may_be_repeated else EXIT_REFUSED
    except Exception:  # noqa: BLE001  # whatever it is, it is no refusal, and Python would end with 1
        with contextlib.suppress(OSError):
            traceback.print_exc()
        return EXIT_NO_ANSWER
    finally:
        book.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
