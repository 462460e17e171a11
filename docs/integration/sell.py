"""Sells one top-up as a PSP does: check, sell, repeat until there is an answer, look where the delivery stands."""

import argparse
import asyncio
import json
import time
from pathlib import Path

import grpc
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc
from utrn.v1 import types_pb2
from utrn_client.channel import Tls, open_channel, reason_of
from utrn_client.ids import make_transaction_id

REPEAT_S = 30.0


async def sell(stub: "rpc.TopUpServiceAsyncStub", pan: str, pence: int) -> dict[str, object]:
    """Return the code of one paid sale, and where its delivery stands; what stands against it, if it is refused."""
    asked = pb.CheckEligibilityRequest(pan=pan, amount_pence=pence, channel=types_pb2.CHANNEL_ONLINE, deliver=True)
    eligibility = await stub.CheckEligibility(asked, timeout=2.0)
    if not eligibility.eligible:
        return {"eligible": False, "because": [one.message for one in eligibility.objections]}
    # The consumer pays here. A till stores the id with the sale before it calls (utrn_client.ids.FileSaleBook).
    transaction_id = make_transaction_id()
    request = pb.TopUpRequest(
        transaction_id=transaction_id, pan=pan, amount_pence=pence, channel=types_pb2.CHANNEL_ONLINE
    )
    code = (await repeated(stub, request)).code
    vend = (await stub.GetVend(pb.GetVendRequest(transaction_id=transaction_id), timeout=2.0)).vend
    state = types_pb2.DeliveryState.Name(vend.delivery.state)
    return {"eligible": True, "code": code.utrn_printed, "transaction_id": transaction_id, "delivery": state}


async def repeated(stub: "rpc.TopUpServiceAsyncStub", request: pb.TopUpRequest) -> pb.TopUpResponse:
    """Return the answer, asking again under the same id as long as nobody has said no."""
    until = time.monotonic() + REPEAT_S
    while True:
        try:
            return await stub.TopUp(request, timeout=2.0)
        except grpc.aio.AioRpcError as error:
            unsure = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            if not unsure or time.monotonic() > until:
                raise SystemExit(f"{reason_of(error)}: {error.details()}") from error
            await asyncio.sleep(0.2)


async def main() -> None:
    """Read the arguments, sell, print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("target", "cert", "key", "ca"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("pan")
    parser.add_argument("pence", type=int)
    given = parser.parse_args()
    tls = Tls(cert=Path(given.cert), key=Path(given.key), ca=Path(given.ca))
    async with open_channel(given.target.split(","), tls) as channel:
        print(json.dumps(await sell(rpc.TopUpServiceStub(channel), given.pan, given.pence)))  # noqa: T201  # the answer


if __name__ == "__main__":
    asyncio.run(main())
