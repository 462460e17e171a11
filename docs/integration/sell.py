"""Sells one top-up as a PSP does: take up what is open, check, store the id, sell, repeat until there is an answer."""

import argparse
import asyncio
import json
import sys
from pathlib import Path

import grpc
from utrn.v1 import errors_pb2, types_pb2
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc
from utrn_client.channel import Tls, open_channel, reason_of
from utrn_client.ids import FileSaleBook
from utrn_client.till import REPEATABLE, Answer, NoAnswer, SaleRefused, Till

EXIT_REFUSED, EXIT_NO_ANSWER = 1, 75


async def sell(channel: grpc.aio.Channel, till: Till, pan: str, pence: int, *, deliver: bool) -> int:
    """Sell, and print the code, or what stands against it; return the exit code."""
    stub: rpc.TopUpServiceAsyncStub = rpc.TopUpServiceStub(channel)
    through = types_pb2.CHANNEL_ONLINE
    asked = pb.CheckEligibilityRequest(pan=pan, amount_pence=pence, channel=through, deliver=deliver)
    eligibility = await stub.CheckEligibility(asked, timeout=2.0)
    if not eligibility.eligible:
        names = [errors_pb2.ErrorReason.Name(one.reason) for one in eligibility.objections]
        say({"eligible": False, "objections": [name.removeprefix("ERROR_REASON_") for name in names]})
        return EXIT_REFUSED
    # The consumer pays here. The till makes the id, and has it on disk before it calls.
    try:
        answer = await till.sell(pan, pence, channel=through, deliver=deliver)
    except (SaleRefused, NoAnswer) as error:
        return say_trouble({}, error)
    say(sold(answer))
    transaction_id = answer.code.transaction_id
    vend = (await stub.GetVend(pb.GetVendRequest(transaction_id=transaction_id), timeout=2.0)).vend
    say({"transaction_id": transaction_id, "delivery": types_pb2.DeliveryState.Name(vend.delivery.state)})
    return 0


async def take_up(till: Till) -> int:
    """Ask again for every sale that was open when this till last stopped, under their ids; return the exit code."""
    worst = 0
    for transaction_id, result in (await till.resume()).items():
        if isinstance(result, Answer):
            say({**sold(result), "taken_up": True})
        else:
            worst = max(worst, say_trouble({"transaction_id": transaction_id, "taken_up": True}, result))
    return worst


def sold(answer: Answer) -> dict[str, object]:
    """Return what goes on the receipt: the code in five groups of four."""
    code = answer.code
    return {"transaction_id": code.transaction_id, "code": code.utrn_printed, "replayed": answer.replayed}


def say_trouble(about: dict[str, object], error: Exception) -> int:
    """Print why there is no code: refused for good, or no answer yet; return the exit code."""
    refused = isinstance(error, SaleRefused)
    say({**about, "refused" if refused else "no_answer": str(error)})
    return EXIT_REFUSED if refused else EXIT_NO_ANSWER


def say(answer: dict[str, object]) -> None:
    """Print one line of JSON, at once."""
    print(json.dumps(answer), flush=True)  # noqa: T201  # the answer


async def main() -> int:
    """Read the arguments, take up what is open, sell; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("target", "cert", "key", "ca"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--server-name", help="name in the nodes' certificates, where --target has addresses")
    parser.add_argument("--sales", default="sales.jsonl", help="where open sales are kept")
    parser.add_argument("--two-step", action="store_true", help="issue only; the delivery is asked for later")
    parser.add_argument("pan", nargs="?")
    parser.add_argument("pence", nargs="?", type=int)
    given = parser.parse_args()
    nodes = given.target.split(",")
    host = given.server_name or nodes[0].rpartition(":")[0]
    tls = Tls(cert=Path(given.cert), key=Path(given.key), ca=Path(given.ca), server_name=host)
    book = FileSaleBook(Path(given.sales))
    try:
        async with open_channel(nodes, tls) as channel:
            till = Till(channel, book)
            worst = await take_up(till)
            if given.pan is not None and given.pence is not None:
                worst = max(worst, await sell(channel, till, given.pan, given.pence, deliver=not given.two_step))
            return worst
    except grpc.aio.AioRpcError as error:
        # Of a question: whatever was sold is in the book, or its code was printed.
        unsure = error.code() in REPEATABLE
        say({"no_answer" if unsure else "refused": f"{reason_of(error)}: {error.details()}"})
        return EXIT_NO_ANSWER if unsure else EXIT_REFUSED
    finally:
        book.close()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
