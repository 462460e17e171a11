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
from utrn_client.channel import Tls, open_channel, reason_of, retry_delay_s
from utrn_client.ids import make_transaction_id
from utrn_client.till import REPEATABLE

ATTEMPTS_MAX = 20
_Reply = TypeVar("_Reply")


async def repeated(ask: Callable[[], Awaitable[_Reply]]) -> _Reply:
    """Return the answer, asking again where the service says that nothing, or nobody knows what, was done.

    Every call here may be repeated as it is: it is keyed by its transaction id.
    """
    for attempt in range(ATTEMPTS_MAX):
        try:
            return await ask()
        except grpc.aio.AioRpcError as error:
            if error.code() not in REPEATABLE or attempt == ATTEMPTS_MAX - 1:
                raise SystemExit(f"{reason_of(error)}: {error.details()}") from error
            await asyncio.sleep(retry_delay_s(error) or 0.1)
    raise AssertionError("the last attempt answers or ends")


async def deliver(channel: grpc.aio.Channel, given: argparse.Namespace) -> None:
    """Step two of two: have the code sent that an appointed PSP has sold for one of our meters."""
    stub: rpc.TopUpServiceAsyncStub = rpc.TopUpServiceStub(channel)
    request = pb.SendTopUpRequest(transaction_id=given.transaction_id, participant_id=given.psp)
    reply = await repeated(lambda: stub.SendTopUp(request, timeout=2.0))
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
    reply = await repeated(lambda: stub.AskCredit(credit_pb.AskCreditRequest(credit=credit), timeout=2.0))
    say({"state": credit_pb.CreditState.Name(reply.credit.state), "asked_by": reply.credit.asked_by})


async def decide(channel: grpc.aio.Channel, given: argparse.Namespace) -> None:
    """Another person, with another certificate, approves it; the answer is its code, whose delivery is owed."""
    stub: credit_rpc.CreditServiceAsyncStub = credit_rpc.CreditServiceStub(channel)
    request = credit_pb.DecideCreditRequest(transaction_id=given.transaction_id, approve=not given.reject)
    reply = await repeated(lambda: stub.DecideCredit(request, timeout=5.0))
    say({"state": credit_pb.CreditState.Name(reply.credit.state), "code": reply.code.utrn_printed})


def say(answer: dict[str, object]) -> None:
    """Print one line of JSON, at once."""
    print(json.dumps(answer), flush=True)  # noqa: T201  # the answer


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
    one.add_argument("pence", type=int)
    one.add_argument("--reason", choices=("goodwill", "emergency", "additional_support"), default="goodwill")
    one.add_argument("--note", default="")
    one.add_argument("--transaction-id", help="to repeat a request")
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
    host = given.server_name or nodes[0].rpartition(":")[0]
    tls = Tls(cert=Path(given.cert), key=Path(given.key), ca=Path(given.ca), server_name=host)
    async with open_channel(nodes, tls) as channel:
        await given.act(channel, given)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
