"""Channels to a cluster: every call spread over the nodes that say they serve.

The policy is `service_config.json`, the same file for every language (proto/service_config.json).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import grpc

from utrn_client.verdict import failure_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """PEM files of the caller's certificate and key, and of the nodes' authority; the name in their certificates."""

    cert: Path
    key: Path
    ca: Path
    server_name: str = "localhost"

    def credentials(self) -> grpc.ChannelCredentials:
        """Return them as gRPC wants them.

        Raises:
            OSError: a file cannot be read.
        """
        return grpc.ssl_channel_credentials(self.ca.read_bytes(), self.key.read_bytes(), self.cert.read_bytes())


def service_config() -> str:
    """Return the policy: round robin over healthy nodes; inside gRPC only calls that read are repeated."""
    return files("utrn_client").joinpath("service_config.json").read_text(encoding="utf-8")


def options(server_name: str, *, by_health: bool = True) -> list[tuple[str, Any]]:
    """Return the channel options that go with the policy.

    Args:
        server_name: Name in the nodes' certificates.
        by_health: Only nodes that say they serve; False also asks those that do not.
    """
    return [
        ("grpc.service_config", service_config()),
        # gRPC's own default waits up to two minutes before it tries a node again that was away for a second.
        ("grpc.initial_reconnect_backoff_ms", 100),
        # Also how long one attempt to connect may take: a handshake takes a moment over a WAN, or on a busy host.
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.ssl_target_name_override", server_name),
        ("grpc.default_authority", server_name),
        ("grpc.inhibit_health_checking", 0 if by_health else 1),
        # Each till its own connections: a shared one would share its fate.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def target_of(nodes: Sequence[str]) -> str:
    """Return the gRPC target of nodes given as address:port; a single host name is left to DNS."""
    if len(nodes) == 1:
        return nodes[0]
    return "ipv4:" + ",".join(nodes)


def open_channel(nodes: Sequence[str], tls: Tls, *, by_health: bool = True) -> grpc.aio.Channel:
    """Return a channel over all `nodes` (address:port).

    Raises:
        OSError: a certificate file cannot be read.
    """
    return grpc.aio.secure_channel(
        target_of(nodes), tls.credentials(), options=options(tls.server_name, by_health=by_health)
    )


def reason_of(error: grpc.RpcError) -> str:
    """Return the reason of a refusal: ErrorInfo's where there is one, else the status; see docs/errors.md."""
    return failure_of(error).reason


def retry_delay_s(error: grpc.RpcError) -> float | None:
    """Return the seconds the service asks to wait before the same id is repeated; None if it says nothing."""
    return failure_of(error).retry_delay_s
