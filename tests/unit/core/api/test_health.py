"""Health: a watcher that does not read holds nobody, and reflection shows no more than callers need."""

import asyncio
from typing import Any, cast

import pytest
from etcdpb import rpc_pb2
from google.protobuf import descriptor_pool
from grpc_health.v1 import health_pb2 as pb
from headend.v1 import head_end_service_pb2
from utrn.admin.v1 import admin_service_pb2
from utrn.peer.v1 import peer_service_pb2
from utrn.store.v1 import records_pb2

from core.api.health import Health
from core.api.server import public_pool
from tests.support.patience import PATIENCE_S

_NOTHING: Any = cast("Any", None)


async def test_a_watcher_that_does_not_read_holds_neither_others_nor_the_end() -> None:
    health = Health({"always": lambda: True}, ("utrn.v1.TopUpService",))
    stuck = health.servicer.Watch(pb.HealthCheckRequest(), _NOTHING)
    # It has been given its first reply, and never comes back for more.
    await anext(stuck)
    watching = health.servicer.Watch(pb.HealthCheckRequest(service="utrn.v1.TopUpService"), _NOTHING)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(health.run())
        told = [(await anext(watching)).status]
        while told[-1] != pb.HealthCheckResponse.SERVING:
            told.append((await anext(watching)).status)
        health.leave()
        told.append((await anext(watching)).status)
        running.cancel()
    assert told[-2:] == [pb.HealthCheckResponse.SERVING, pb.HealthCheckResponse.NOT_SERVING]


async def test_a_service_that_is_not_here_is_told_so_to_whoever_watches_it() -> None:
    watching = Health({}, ()).servicer.Watch(pb.HealthCheckRequest(service="no.such.Service"), _NOTHING)
    assert (await anext(watching)).status == pb.HealthCheckResponse.SERVICE_UNKNOWN


def test_reflection_shows_the_callers_contract_and_nothing_else() -> None:
    pool = public_pool()
    assert pool.FindServiceByName("utrn.v1.TopUpService")
    assert pool.FindEnumTypeByName("utrn.v1.ErrorReason")
    for file in (admin_service_pb2, peer_service_pb2, records_pb2, head_end_service_pb2, rpc_pb2):
        descriptor = cast("Any", file).DESCRIPTOR
        for one in (*descriptor.message_types_by_name.values(), *descriptor.services_by_name.values()):
            # The control: the pool that reflection has by itself knows every one.
            assert descriptor_pool.Default().FindFileContainingSymbol(one.full_name)
            with pytest.raises(KeyError):
                pool.FindFileContainingSymbol(one.full_name)
