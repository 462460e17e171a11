"""What a supplier does beside selling: deliver what its PSP has sold, and give credit without payment by two people."""

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import grpc
from utrn.v1 import credit_service_pb2 as credit_pb
from utrn.v1 import credit_service_pb2_grpc as credit_rpc
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc
from utrn.v1 import types_pb2
from utrn_client.amounts import BadAmount, parse_pence
from utrn_client.channel import Tls, open_channel
from utrn_client.ids import make_transaction_id
from utrn_client.verdict import failure_of

ATTEMPTS_MAX = 20
EXIT_REFUSED, EXIT_NO_ANSWER = 1, 75
_Reply = TypeVar("_Reply")


async def repeated(ask: Callable[[], Awaitable[_Reply]], transaction_id: str) -> _Reply:
    """Return the answer, asking again where the service says that nothing, or nobody knows what, was done.

    Every call here may be repeated as it is: it is keyed by its transaction id.
    """
    for attempt in range(ATTEMPTS_MAX):
        try:
            return await ask()
        except grpc.aio.AioRpcError as error:
            failure = failure_of(error)
            if not failure.may_be_repeated or attempt == ATTEMPTS_MAX - 1:
                trouble = "no_answer" if failure.may_be_repeated else "refused"
                say({"transaction_id": transaction_id, trouble: f"{failure.reason}: {failure.message}; {failure.next}"})
                raise SystemExit(EXIT_NO_ANSWER if failure.may_be_repeated else EXIT_REFUSED) from error
            await asyncio.sleep(failure.retry_delay_s or 0.1)
    raise AssertionError("the last attempt answers or ends")


async def deliver(channel: grpc.aio.Channel, given: argparse.Namespace) -> None:
    """Step two of two: have the code sent that an appointed PSP has sold for one of our meters."""
    stub: rpc.TopUpServiceAsyncStub = rpc.TopUpServiceStub(channel)
    # Nobody here knows whether it was asked for before, by an earlier run of this program: so it says that it may be.
    request = pb.DeliverVendRequest(transaction_id=given.transaction_id, participant_id=given.psp, repeat=True)
    reply = await repeated(lambda: stub.DeliverVend(request, timeout=2.0), given.transaction_id)
    say({"delivery": types_pb2.DeliveryState.Name(reply.delivery.state), "replayed": reply.replayed})


async def ask(channel: grpc.aio.Channel, given: argparse.Namespace) -> None:
    """One person asks for credit. The id is told before the call: whoever gets no answer asks again under it."""
    stub: credit_rpc.CreditServiceAsyncStub = credit_rpc.CreditServiceStub(channel)
    transaction_id = given.transaction_id or make_transaction_id()
    say({"transaction_id": transaction_id})
    reason = credit_pb.CreditReason.Value(f"CREDIT_REASON_{given.reason.upper()}")
    credit = credit_pb.Credit(
        transaction_id=transaction_id, pan=given.pan, amount_pence=given.pence, reason=reason, note=given.note
    )
    request = credit_pb.RequestCreditRequest(credit=credit)
    reply = await repeated(lambda: stub.RequestCredit(request, timeout=2.0), transaction_id)
    say({"state": credit_pb.CreditState.Name(reply.credit.state), "asked_by": reply.credit.asked_by})


async def decide(channel: grpc.aio.Channel, given: argparse.Namespace) -> None:
    """Another person, with another certificate, approves it; the answer is its code, whose delivery is owed."""
    stub: credit_rpc.CreditServiceAsyncStub = credit_rpc.CreditServiceStub(channel)
    request = credit_pb.DecideCreditRequest(transaction_id=given.transaction_id, approve=not given.reject)
    reply = await repeated(lambda: stub.DecideCredit(request, timeout=5.0), given.transaction_id)
    say({"state": credit_pb.CreditState.Name(reply.credit.state), "code": reply.code.utrn_printed})


def say(answer: dict[str, object]) -> None:
    """Print one line of JSON, at once."""
    print(json.dumps(answer), flush=True)  # noqa: T201  # the answer


def pence(text: str) -> int:
    """Return an amount as it was typed; tell argparse what is wrong with it."""
    try:
        return parse_pence(text)
    except BadAmount as bad:
        raise argparse.ArgumentTypeError(str(bad)) from bad


def parse() -> argparse.Namespace:
    """Return the arguments; `act` is what to do."""
    shared = argparse.ArgumentParser(add_help=False)
    for name in ("target", "cert", "key", "ca"):
        shared.add_argument(f"--{name}", required=True)
    shared.add_argument("--server-name", help="name in the nodes' certificates, where --target has addresses")
    parser = argparse.ArgumentParser(description=__doc__)
    acts = parser.add_subparsers(required=True)
    one = acts.add_parser("deliver", parents=[shared], help=deliver.__doc__)
    one.add_argument("psp")
    one.add_argument("transaction_id")
    one.set_defaults(act=deliver)
    one = acts.add_parser("ask", parents=[shared], help=ask.__doc__)
    one.add_argument("pan")
    one.add_argument("pence", type=pence, help="whole pence, as 500 for 5 pounds")
    one.add_argument("--reason", choices=("goodwill", "emergency", "additional_support"), default="goodwill")
    one.add_argument("--note", default="")
    one.add_argument("--transaction-id", help="to repeat a request: the id it was told before")
    one.set_defaults(act=ask)
    one = acts.add_parser("decide", parents=[shared], help=decide.__doc__)
    one.add_argument("transaction_id")
    one.add_argument("--reject", action="store_true")
    one.set_defaults(act=decide)
    return parser.parse_args()


async def main() -> None:
    """Read the arguments and do it."""
    given = parse()
    nodes = given.target.split(",")
    host = given.server_name or nodes[0].rpartition(":")[0].strip("[]")
    tls = Tls(cert=Path(given.cert), key=Path(given.key), ca=Path(given.ca), server_name=host)
    async with open_channel(nodes, tls) as channel:
        await given.act(channel, given)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
