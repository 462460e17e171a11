"""ApiConfig: how callers reach this node."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from core.net.address import parse_address
from core.net.channels import ServerLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiConfig:
    """ApiConfig says how a node listens for callers over gRPC; the node has no plain-text mode.

    Attributes:
        listen: host:port to listen on; port 0 takes a free one.
        cert: PEM file of this node's certificate chain.
        key: PEM file of its private key.
        client_ca: PEM file of the authorities of callers' certificates; those of nodes are `peers.ca`.
        client_crl: PEM file of the revocation lists of those authorities, and of their intermediates; absent: none.
        message_bytes_max: Bytes, 1024 to 4194304, of one request. An honest one has under 1 KiB; the room above it is
            there so that an oversized field gets an answer that names it.
        streams_max: Calls, 1 to 100000, under way at once on one connection.
        caller_calls_max: Calls, 1 to 100000, of one participant under way at once at this node; more are OVERLOADED.
            What costs much (loads, lists, reconciling) has bounds of its own, of a few.
        caller_watches_max: Watches of health, 1 to 100000, of one participant at once at this node.
        caller_refusals_per_s: Refusals, 0 to 100000, a second that one participant may cause for long, and twenty
            seconds' worth at once; then its calls are OVERLOADED. All who are no participant share
            one such measure. 0 for any number.
        handshake_s: Seconds, 1 to 120, that a connection may take for TLS.
        connection_idle_s: Seconds, 10 to 86400, without a call under way after which a connection is ended in good
            order: gRPC opens the next one by itself.
        connection_age_s: Seconds, 10 to 86400, after which every connection is ended in good order, so that callers
            come back to all nodes, and with the certificate that they have now.
        connection_age_grace_s: Seconds, 5 to 3600, that calls under way on it may then still take.
        connections_per_address: Connections, 0 to 1000000, that one address may hold at this node; those that have not
            called are ended first. 0 for any number, as behind a load balancer that hides who calls.
        connections_per_certificate: Connections, 0 to 1000000, that have called with one certificate; 0 for any number.
        ping_min_s: Seconds, 0.1 to 300, between a caller's pings. Who pings more often is thrown out.
        drain_s: Seconds, 0 to 300, that calls under way may take after SIGTERM.
        reflection: Answer grpc.reflection (describes the public contract, reveals nothing else).
    """

    listen: str
    cert: Path
    key: Path
    client_ca: Path
    client_crl: Path | None = None
    message_bytes_max: Annotated[int, Interval(ge=1024, le=4_194_304)] = 2_097_152
    streams_max: Annotated[int, Interval(ge=1, le=100_000)] = 1000
    caller_calls_max: Annotated[int, Interval(ge=1, le=100_000)] = 1000
    caller_watches_max: Annotated[int, Interval(ge=1, le=100_000)] = 5000
    caller_refusals_per_s: Annotated[float, Interval(ge=0, le=100_000)] = 100.0
    handshake_s: Annotated[float, Interval(ge=1, le=120)] = 10.0
    connection_idle_s: Annotated[float, Interval(ge=10, le=86_400)] = 300.0
    connection_age_s: Annotated[float, Interval(ge=10, le=86_400)] = 3600.0
    connection_age_grace_s: Annotated[float, Interval(ge=5, le=3_600)] = 300.0
    connections_per_address: Annotated[int, Interval(ge=0, le=1_000_000)] = 2000
    connections_per_certificate: Annotated[int, Interval(ge=0, le=1_000_000)] = 500
    ping_min_s: Annotated[float, Interval(ge=0.1, le=300)] = 5.0
    drain_s: Annotated[float, Interval(ge=0, le=300)] = 10.0
    reflection: bool = True

    def __post_init__(self) -> None:
        """Refuse an address that is none."""
        parse_address(self.listen, field="listen")

    @property
    def connections(self) -> ServerLimits:
        """The limits that gRPC keeps for each connection, in seconds."""
        return ServerLimits(
            handshake_s=self.handshake_s,
            idle_s=self.connection_idle_s,
            age_s=self.connection_age_s,
            age_grace_s=self.connection_age_grace_s,
            ping_min_s=self.ping_min_s,
        )
