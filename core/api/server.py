"""Builds the grpc.aio server: TLS, limits, services, and the guard around every method."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from utrn.v1 import top_up_service_pb2, top_up_service_pb2_grpc

from core.api.config import ApiConfig
from core.api.errors import guarded
from core.api.health import Health
from core.api.top_up_servicer import TopUpServicer
from core.domain.invariant import InvariantBroken

TOP_UP_SERVICE = "utrn.v1.TopUpService"


def build_server(
    config: ApiConfig, top_up: TopUpServicer, health: Health, stop: Callable[[InvariantBroken], None]
) -> tuple[grpc.aio.Server, int]:
    """Return a server that has not been started, and the port it listens on.

    Args:
        config: Where to listen, with which certificate.
        top_up: The callers' service.
        health: Tells callers whether this node can serve.
        stop: Ends the process when a promise of this program does not hold.

    Raises:
        OSError: the port is taken or a file cannot be read.
    """
    server = grpc.aio.server(
        options=(
            ("grpc.max_receive_message_length", config.message_bytes_max),
            ("grpc.max_concurrent_streams", config.streams_max),
            # Two nodes on one port would each get half of the calls and none of the blame.
            ("grpc.so_reuseport", 0),
        )
    )
    methods = top_up_service_pb2.DESCRIPTOR.services_by_name["TopUpService"].methods
    behind_guard = {method.name: guarded(getattr(top_up, method.name), stop) for method in methods}
    top_up_service_pb2_grpc.add_TopUpServiceServicer_to_server(
        cast("TopUpServicer", SimpleNamespace(**behind_guard)), server
    )
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    if config.reflection:
        names = (TOP_UP_SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    try:
        port = server.add_secure_port(config.listen, _credentials(config))
    except RuntimeError as error:
        raise OSError(f"api.listen: cannot listen on {config.listen}: is the port taken?") from error
    return server, port


def _credentials(config: ApiConfig) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(config.key.read_bytes(), config.cert.read_bytes())],
        root_certificates=config.client_ca.read_bytes(),
        require_client_auth=True,
    )
