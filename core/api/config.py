"""ApiConfig: how callers reach this node."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiConfig:
    """The gRPC port. There is no plain-text mode.

    Attributes:
        listen: host:port to listen on; port 0 takes a free one.
        cert: PEM file of this node's certificate chain.
        key: PEM file of its private key.
        client_ca: PEM file of the authorities whose client certificates are accepted.
        message_bytes_max: Bytes, 1024 to 4194304, of one request. An honest one has under 1 KiB; the room above it is
            there so that an oversized field gets an answer that names it.
        streams_max: Calls, 1 to 100000, under way at once on one connection.
        drain_s: Seconds, 0 to 300, that calls under way may take after SIGTERM.
        reflection: Answer grpc.reflection (describes the public contract, reveals nothing else).
    """

    listen: str
    cert: Path
    key: Path
    client_ca: Path
    message_bytes_max: int = 2_097_152
    streams_max: int = 1000
    drain_s: float = 10.0
    reflection: bool = True

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if ":" not in self.listen:
            raise ValueError("listen: must be host:port")
        if not 1024 <= self.message_bytes_max <= 4_194_304:
            raise ValueError("message_bytes_max: must be 1024 to 4194304")
        if not 1 <= self.streams_max <= 100_000:
            raise ValueError("streams_max: must be 1 to 100000")
        if not 0 <= self.drain_s <= 300:
            raise ValueError("drain_s: must be 0 to 300")
