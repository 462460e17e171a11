"""Methods of the test's own, served over a real connection in this process, under the paths of the contract."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

import grpc
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from utrn.admin.v1 import admin_service_pb2
from utrn.peer.v1 import peer_service_pb2
from utrn.v1 import (
    appointment_service_pb2,
    credit_service_pb2,
    meter_model_service_pb2,
    meter_service_pb2,
    pan_service_pb2,
    participant_service_pb2,
    registry_service_pb2,
    top_up_service_pb2,
)

from core.access.certificates import PeerCertificate
from core.api.authenticate import Authenticate
from core.api.status import Context
from core.domain.errors import Refused, UtrnError
from core.domain.participant import Participant, Principal

FILES = (
    top_up_service_pb2, participant_service_pb2, meter_model_service_pb2, meter_service_pb2, pan_service_pb2,
    registry_service_pb2, appointment_service_pb2, credit_service_pb2, admin_service_pb2,
    peer_service_pb2, health_pb2, reflection_pb2,
)  # fmt: skip
# Every method of a node, by the path of a call.
METHODS: dict[str, Any] = {
    f"/{service.full_name}/{method.name}": method
    for file in FILES
    for service in cast("Any", file).DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


_EVER = (datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC))


class Versioned:
    """Knows every caller as one participant, or refuses each."""

    def __init__(self, who: Participant | None, refusal: BaseException | None = None) -> None:
        self.who, self.refusal = who, refusal

    def __call__(self, context: Context) -> Principal:
        principal, barred = self.even_barred(context)
        if barred is not None:
            raise barred
        return principal

    def even_barred(self, context: Context) -> tuple[Principal, Refused | None]:
        if self.who is None or (self.refusal is not None and not isinstance(self.refusal, Refused)):
            raise self.refusal or UtrnError("nobody")
        return Principal(self.who), self.refusal

    def is_node(self, context: Context) -> bool:
        return False

    def certificate_of(self, context: Context) -> PeerCertificate:
        return PeerCertificate(
            identity="spiffe://x", fingerprint="00" * 32, issued_at=_EVER[0], starts=_EVER[0], ends=_EVER[1]
        )

    @property
    def authenticate(self) -> Authenticate:
        return cast("Authenticate", self)


@asynccontextmanager
async def served(
    methods: Mapping[str, Any], interceptors: Sequence[grpc.aio.ServerInterceptor]
) -> AsyncIterator[grpc.aio.Channel]:
    """Serve behaviours by path, each of the kind and with the messages that the contract has there."""
    server = grpc.aio.server(interceptors=tuple(interceptors))
    for path, behaviour in methods.items():
        _, service, name = path.split("/")
        handler = grpc.method_handlers_generic_handler(service, {name: _handler(METHODS[path], behaviour)})
        server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)


def _handler(method: Any, behaviour: Any) -> Any:
    kind = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[(method.client_streaming, method.server_streaming)]
    return kind(
        behaviour,
        request_deserializer=method.input_type._concrete_class.FromString,
        response_serializer=lambda reply: reply.SerializeToString(),
    )
