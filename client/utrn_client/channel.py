"""Channels to a cluster: every call spread over the nodes that say they serve.

The policy is `service_config.json`, the same file for every language (proto/service_config.json).
"""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import grpc

from utrn_client.verdict import failure_of

_NODE = re.compile(r"(?:\[(?P<six>[^\[\]\s]+)\]|(?P<name>[^\s\[\]:/@,]+)):(?P<port>[0-9]{1,5})", re.ASCII)
_PORT_MAX = 65_535


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


def options(server_name: str, *, by_health: bool = True, through_proxy: bool = False) -> list[tuple[str, Any]]:
    """Return the channel options that go with the policy.

    Args:
        server_name: Name in the nodes' certificates.
        by_health: Only nodes that say they serve; False also asks those that do not.
        through_proxy: Go through the proxy that `https_proxy` names, as gRPC does by default. Without it a variable in
            the environment of a till carries no sale anywhere.
    """
    return [
        ("grpc.service_config", service_config()),
        # A connection whose packets vanish looks alive. What is sent and not acknowledged for 5 s ends it, and where
        # nothing is sent it is pinged: every 10 s, which the nodes expect, with calls under way and without.
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
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
        ("grpc.enable_http_proxy", 1 if through_proxy else 0),
    ]


def target_of(nodes: Sequence[str]) -> str:
    """Return the gRPC target of nodes given as address:port, IPv6 in brackets; a single host name is left to DNS.

    Raises:
        ValueError: one is not of that form, or several are given and one of them is a name.
    """
    parsed = [_parsed(node) for node in nodes]
    if len(parsed) == 1 and parsed[0][0] is None:
        return nodes[0]
    addresses = [address for address, _ in parsed if address is not None]
    if not addresses or len(addresses) < len(parsed):
        raise ValueError(f"{','.join(nodes)}: several nodes are named by their addresses, as 10.0.0.1:8443")
    if all(isinstance(address, ipaddress.IPv4Address) for address in addresses):
        return "ipv4:" + ",".join(nodes)
    # One list has one kind of address: where both are given, those of IPv4 are written as IPv6 writes them.
    six = [address if address.version == 6 else f"::ffff:{address}" for address in addresses]
    return "ipv6:" + ",".join(f"[{address}]:{port}" for address, (_, port) in zip(six, parsed, strict=True))


def _parsed(node: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address | None, int]:
    """Return address and port of a node; no address where it is a name."""
    found = _NODE.fullmatch(node)
    if found is None or int(found["port"]) > _PORT_MAX:
        raise ValueError(f"{node}: must be host:port, an IPv6 address in brackets, as [fd00::1]:8443")
    try:
        address = ipaddress.ip_address(found["six"] or found["name"])
    except ValueError as error:
        if found["six"] is not None:
            raise ValueError(f"{node}: what stands in brackets must be an IPv6 address") from error
        return None, int(found["port"])
    if (found["six"] is not None) != (address.version == 6):
        raise ValueError(f"{node}: an IPv6 address stands in brackets, and no other")
    return address, int(found["port"])


def open_channel(
    nodes: Sequence[str], tls: Tls, *, by_health: bool = True, through_proxy: bool = False
) -> grpc.aio.Channel:
    """Return a channel over all `nodes` (address:port).

    Raises:
        OSError: a certificate file cannot be read.
        ValueError: `nodes` are not addresses with ports.
    """
    chosen = options(tls.server_name, by_health=by_health, through_proxy=through_proxy)
    return grpc.aio.secure_channel(target_of(nodes), tls.credentials(), options=chosen)


def reason_of(error: grpc.RpcError) -> str:
    """Return the reason of a refusal: ErrorInfo's where there is one, else the status; see docs/errors.md."""
    return failure_of(error).reason


def retry_delay_s(error: grpc.RpcError) -> float | None:
    """Return the seconds the service asks to wait before the same id is repeated; None if it says nothing."""
    return failure_of(error).retry_delay_s
