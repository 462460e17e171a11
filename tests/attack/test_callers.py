"""Callers with a certificate of the authority and no good will."""

import grpc
import pytest

from app.devstack.files import OUTSIDER
from app.devstack.stack import DevStack
from tests.support.honest_till import beside
from tests.support.raw import raw_call, raw_channel

pytestmark = [pytest.mark.real]


async def test_an_honest_till_is_served_beside_calls_that_nobody_may_make(attacked: DevStack) -> None:
    async def attack() -> None:
        async with raw_channel(attacked, OUTSIDER) as channel:
            for _ in range(200):
                answer = await raw_call(channel, "/utrn.v1.TopUpService/GetVend", b"")
                assert answer.code is not grpc.StatusCode.OK

    assert (await beside(attacked, "200 calls that are refused", attack())).failed == 0
