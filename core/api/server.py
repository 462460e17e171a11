"""Builds the grpc.aio server: TLS, limits, services, and the guard around every method."""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from utrn.admin.v1 import admin_service_pb2, admin_service_pb2_grpc
from utrn.peer.v1 import peer_service_pb2, peer_service_pb2_grpc
from utrn.v1 import (
    appointment_service_pb2,
    appointment_service_pb2_grpc,
    credit_service_pb2,
    credit_service_pb2_grpc,
    registry_service_pb2,
    registry_service_pb2_grpc,
    top_up_service_pb2,
    top_up_service_pb2_grpc,
)

from core.api.admin_servicer import AdminServicer
from core.api.appointment_servicer import AppointmentServicer
from core.api.config import ApiConfig
from core.api.credit_servicer import CreditServicer
from core.api.errors import Guard
from core.api.health import Health
from core.api.peer_servicer import PeerServicer
from core.api.registry_servicer import RegistryServicer
from core.api.top_up_servicer import TopUpServicer
from core.net.channels import server_options

TOP_UP_SERVICE = "utrn.v1.TopUpService"
# Their decisions are noted where they are made, with the records they are based on; a look-up is not noted.
_NOTED_INSIDE = frozenset(
    f"{TOP_UP_SERVICE}.{name}" for name in ("IssueUtrn", "TopUp", "SendTopUp", "CheckEligibility", "GetVend")
)


@dataclass(frozen=True, kw_only=True)
class Services:
    """What a node serves."""

    top_up: TopUpServicer
    registry: RegistryServicer
    appointments: AppointmentServicer
    credit: CreditServicer
    admin: AdminServicer
    peer: PeerServicer
    health: Health


def build_server(config: ApiConfig, services: Services, guard: Guard) -> tuple[grpc.aio.Server, int]:
    """Return a server that has not been started, and the port it listens on.

    Args:
        config: Where to listen, with which certificate.
        services: What to serve.
        guard: Put around every method.

    Raises:
        OSError: the port is taken or a file cannot be read.
    """
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", config.message_bytes_max),
            ("grpc.max_concurrent_streams", config.streams_max),
            *server_options(config.connections),
        )
    )
    for add, descriptor, servicer in (
        (top_up_service_pb2_grpc.add_TopUpServiceServicer_to_server, top_up_service_pb2, services.top_up),
        (registry_service_pb2_grpc.add_RegistryServiceServicer_to_server, registry_service_pb2, services.registry),
        (
            appointment_service_pb2_grpc.add_AppointmentServiceServicer_to_server,
            appointment_service_pb2,
            services.appointments,
        ),
        (credit_service_pb2_grpc.add_CreditServiceServicer_to_server, credit_service_pb2, services.credit),
        (admin_service_pb2_grpc.add_AdminServiceServicer_to_server, admin_service_pb2, services.admin),
        (peer_service_pb2_grpc.add_PeerServiceServicer_to_server, peer_service_pb2, services.peer),
    ):
        _add(server, add, descriptor, servicer, guard)
    health_pb2_grpc.add_HealthServicer_to_server(services.health.servicer, server)
    if config.reflection:
        public = (top_up_service_pb2, registry_service_pb2, appointment_service_pb2, credit_service_pb2)
        ours = [name.full_name for file in public for name in file.DESCRIPTOR.services_by_name.values()]
        names = (*ours, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    try:
        port = server.add_secure_port(config.listen, _credentials(config))
    except RuntimeError as error:
        raise OSError(f"api.listen: cannot listen on {config.listen}: is the port taken?") from error
    return server, port


def _add(
    server: grpc.aio.Server, add: Callable[[Any, grpc.aio.Server], None], file: Any, servicer: object, guard: Guard
) -> None:
    """Add a servicer with every method behind the guard; `add` and `file` are generated, and hardly typed."""
    (service,) = file.DESCRIPTOR.services_by_name.values()
    behind: dict[str, Callable[..., Any]] = {}
    for method in service.methods:
        ours = getattr(servicer, method.name)
        if method.server_streaming:
            behind[method.name] = guard.stream(ours)
        else:
            inside = method.full_name in _NOTED_INSIDE
            behind[method.name] = guard.unary(guard.noted_if_refused(ours) if inside else guard.noted(ours))
    add(SimpleNamespace(**behind), server)


def _credentials(config: ApiConfig) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(config.key.read_bytes(), config.cert.read_bytes())],
        root_certificates=config.client_ca.read_bytes(),
        require_client_auth=True,
    )
