"""Calls as an integrator makes them, and what comes back: code, reason, details."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from utrn.admin.v1 import admin_service_pb2 as admin_pb
from utrn.admin.v1 import admin_service_pb2_grpc as admin_rpc
from utrn.v1 import appointment_service_pb2_grpc as appointment_rpc
from utrn.v1 import credit_service_pb2_grpc as credit_rpc
from utrn.v1 import meter_model_service_pb2_grpc as meter_model_rpc
from utrn.v1 import meter_service_pb2_grpc as meter_rpc
from utrn.v1 import pan_service_pb2_grpc as pan_rpc
from utrn.v1 import participant_service_pb2_grpc as participant_rpc
from utrn.v1 import registry_service_pb2_grpc as registry_rpc
from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc
from utrn.v1 import types_pb2

from app.devstack.ca import CertPaths
from app.devstack.files import PSP, SECOND_OPERATOR
from app.devstack.stack import DevStack
from app.workloads.sale_driver import secure_channel

if TYPE_CHECKING:
    # Only the stubs know this class.
    from utrn.v1.appointment_service_pb2_grpc import AppointmentServiceAsyncStub as AppointmentStub
    from utrn.v1.credit_service_pb2_grpc import CreditServiceAsyncStub as CreditStub
    from utrn.v1.meter_model_service_pb2_grpc import MeterModelServiceAsyncStub
    from utrn.v1.meter_service_pb2_grpc import MeterServiceAsyncStub
    from utrn.v1.pan_service_pb2_grpc import PanServiceAsyncStub
    from utrn.v1.participant_service_pb2_grpc import ParticipantServiceAsyncStub
    from utrn.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub
    from utrn.v1.top_up_service_pb2_grpc import TopUpServiceAsyncStub as Stub

    class RegistryStub(
        ParticipantServiceAsyncStub,
        MeterModelServiceAsyncStub,
        MeterServiceAsyncStub,
        PanServiceAsyncStub,
        RegistryServiceAsyncStub,
    ):
        """Every method about the registry."""


_REGISTRY_STUBS = (
    participant_rpc.ParticipantServiceStub, meter_model_rpc.MeterModelServiceStub, meter_rpc.MeterServiceStub,
    pan_rpc.PanServiceStub, registry_rpc.RegistryServiceStub,
)  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """What a refused call told its caller."""

    code: grpc.StatusCode
    message: str
    reason: str
    facts: dict[str, str]
    fields: list[str]
    retry_ms: int | None


def failure_of(error: grpc.aio.AioRpcError) -> Failure:
    """Return what `error` tells; the details must be there."""
    status = rpc_status.from_call(cast("grpc.Call", error))
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    found: set[type[Message]] = set()
    for detail in status.details if status is not None else ():
        for one in (info, bad, retry):
            if detail.Unpack(one):
                found.add(type(one))
    assert error_details_pb2.ErrorInfo in found, f"no ErrorInfo: {error.code()} {error.details()}"
    assert info.domain == "utrn.v1"
    retry_ms = retry.retry_delay.ToMilliseconds() if error_details_pb2.RetryInfo in found else None
    fields = [violation.field for violation in bad.field_violations]
    return Failure(error.code(), error.details() or "", info.reason, dict(info.metadata), fields, retry_ms)


@asynccontextmanager
async def caller(
    stack: DevStack, who: str = PSP, *, certs: CertPaths | None = None, node: str = "node-a"
) -> "AsyncIterator[Stub]":
    """A stub of TopUpService as `who`, or with any certificate."""
    paths = certs or stack.certs(who)
    async with secure_channel(
        [stack.node_target(node)], ca=stack.certs(PSP).ca, cert=paths.cert, key=paths.key
    ) as channel:
        yield rpc.TopUpServiceStub(channel)


@asynccontextmanager
async def registry_caller(stack: DevStack, who: str, *, node: str = "node-a") -> "AsyncIterator[RegistryStub]":
    """Every method about the registry as `who`."""
    async with _channel(stack, who, node) as channel:
        methods = SimpleNamespace()
        for stub in _REGISTRY_STUBS:
            vars(methods).update(vars(stub(channel)))
        yield cast("RegistryStub", methods)


@asynccontextmanager
async def appointments_caller(stack: DevStack, who: str, *, node: str = "node-a") -> "AsyncIterator[AppointmentStub]":
    """A stub of AppointmentService as `who`."""
    async with _channel(stack, who, node) as channel:
        yield appointment_rpc.AppointmentServiceStub(channel)


@asynccontextmanager
async def credit_caller(
    stack: DevStack, who: str, *, certs: CertPaths | None = None, node: str = "node-a"
) -> "AsyncIterator[CreditStub]":
    """A stub of CreditService as `who`, or with any certificate."""
    async with _channel(stack, who, node, certs) as channel:
        yield credit_rpc.CreditServiceStub(channel)


async def by_two(stack: DevStack, method: Any, request: Message) -> None:
    """Make an operator's call that may need two: the second operator approves it, then it is made again."""
    try:
        await method(request)
    except grpc.aio.AioRpcError as error:
        needed = failure_of(error)
        assert needed.reason == "NEEDS_APPROVAL", needed
        async with _channel(stack, SECOND_OPERATOR, "node-a") as channel:
            approval = admin_pb.ApproveOperationRequest(approval_id=needed.facts["approval_id"])
            await admin_rpc.AdminServiceStub(channel).ApproveOperation(approval)
        await method(request)


def _channel(
    stack: DevStack, who: str, node: str, certs: CertPaths | None = None
) -> AbstractAsyncContextManager[grpc.aio.Channel]:
    paths = certs or stack.certs(who)
    return secure_channel([stack.node_target(node)], ca=stack.certs(PSP).ca, cert=paths.cert, key=paths.key)


def top_up(**fields: Any) -> pb.TopUpRequest:
    """A request that is right but for `fields`."""
    return pb.TopUpRequest(**{"amount_pence": 1000, "channel": types_pb2.CHANNEL_ONLINE, **fields})


async def refused(call: Any) -> Failure:
    """Return how a call was refused; fail if it was not."""
    try:
        reply = await call
    except grpc.aio.AioRpcError as error:
        return failure_of(error)
    raise AssertionError(f"not refused: {reply}")
