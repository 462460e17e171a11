"""Builds the grpc.aio server: TLS, limits, services, and the interceptor that every call passes."""

from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2
from utrn.admin.v1 import admin_service_pb2_grpc
from utrn.peer.v1 import peer_service_pb2_grpc
from utrn.v1 import (
    appointment_service_pb2,
    appointment_service_pb2_grpc,
    credit_service_pb2,
    credit_service_pb2_grpc,
    errors_pb2,
    meter_model_service_pb2,
    meter_model_service_pb2_grpc,
    meter_service_pb2,
    meter_service_pb2_grpc,
    pan_service_pb2,
    pan_service_pb2_grpc,
    participant_service_pb2,
    participant_service_pb2_grpc,
    registry_service_pb2,
    registry_service_pb2_grpc,
    top_up_service_pb2,
    top_up_service_pb2_grpc,
)

from core.api.admin_servicer import AdminServicer
from core.api.appointment_servicer import AppointmentServicer
from core.api.config import ApiConfig
from core.api.credit_servicer import CreditServicer
from core.api.health import Health
from core.api.interceptor import Interceptor
from core.api.meter_model_servicer import MeterModelServicer
from core.api.meter_servicer import MeterServicer
from core.api.pan_servicer import PanServicer
from core.api.participant_servicer import ParticipantServicer
from core.api.peer_servicer import PeerServicer
from core.api.registry_servicer import RegistryServicer
from core.api.top_up_servicer import TopUpServicer
from core.net.channels import server_options

TOP_UP_SERVICE = "utrn.v1.TopUpService"
# The callers' contract, which reflection shows: no operators', no nodes', nothing of what is stored.
_PUBLIC: Final[tuple[Any, ...]] = (
    top_up_service_pb2, participant_service_pb2, meter_model_service_pb2, meter_service_pb2, pan_service_pb2,
    registry_service_pb2, appointment_service_pb2, credit_service_pb2, errors_pb2, health_pb2, reflection_pb2,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CallersServices:
    """Every service of utrn.v1: what participants call."""

    top_up: TopUpServicer
    participants: ParticipantServicer
    meter_models: MeterModelServicer
    meters: MeterServicer
    pans: PanServicer
    registry: RegistryServicer
    appointments: AppointmentServicer
    credit: CreditServicer


@dataclass(frozen=True, kw_only=True)
class Services:
    """Services holds the servicers of one node."""

    callers: CallersServices
    admin: AdminServicer
    peer: PeerServicer
    health: Health


def build_server(
    config: ApiConfig, services: Services, interceptor: Interceptor, credentials: grpc.ServerCredentials
) -> tuple[grpc.aio.Server, int]:
    """Return a server that has not been started, and the port it listens on.

    Args:
        config: Where to listen, and within which limits.
        services: What to serve.
        interceptor: What every call passes.
        credentials: The certificate to show, and whose to accept.

    Raises:
        OSError: the port is taken.
    """
    server = grpc.aio.server(
        interceptors=(interceptor,),
        options=(
            ("grpc.max_receive_message_length", config.message_bytes_max),
            ("grpc.max_concurrent_streams", config.streams_max),
            *server_options(config.connections),
        ),
    )
    add_services(server, services, reflected=config.reflection)
    try:
        port = server.add_secure_port(config.listen, credentials)
    except RuntimeError as error:
        raise OSError(f"api.listen: cannot listen on {config.listen}: is the port taken?") from error
    return server, port


def add_services(server: grpc.aio.Server, services: Services, *, reflected: bool) -> None:
    """Add every service of a node to a server."""
    callers = services.callers
    top_up_service_pb2_grpc.add_TopUpServiceServicer_to_server(callers.top_up, server)
    participant_service_pb2_grpc.add_ParticipantServiceServicer_to_server(callers.participants, server)
    meter_model_service_pb2_grpc.add_MeterModelServiceServicer_to_server(callers.meter_models, server)
    meter_service_pb2_grpc.add_MeterServiceServicer_to_server(callers.meters, server)
    pan_service_pb2_grpc.add_PanServiceServicer_to_server(callers.pans, server)
    registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(callers.registry, server)
    appointment_service_pb2_grpc.add_AppointmentServiceServicer_to_server(callers.appointments, server)
    credit_service_pb2_grpc.add_CreditServiceServicer_to_server(callers.credit, server)
    admin_service_pb2_grpc.add_AdminServiceServicer_to_server(services.admin, server)
    peer_service_pb2_grpc.add_PeerServiceServicer_to_server(services.peer, server)
    health_pb2_grpc.add_HealthServicer_to_server(services.health.servicer, server)
    if reflected:
        names = [service.full_name for file in _PUBLIC for service in file.DESCRIPTOR.services_by_name.values()]
        reflection.enable_server_reflection(names, server, pool=public_pool())


def public_pool() -> DescriptorPool:
    """Return the descriptors of the callers' contract and of what it imports, and no others."""
    pool, known = DescriptorPool(), set[str]()

    def add(file: FileDescriptor) -> None:
        if file.name in known:
            return
        known.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        pool.AddSerializedFile(file.serialized_pb)

    for file in _PUBLIC:
        add(file.DESCRIPTOR)
    return pool
