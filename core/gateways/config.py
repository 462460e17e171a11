"""HeadEndConfig: where a head end is and how to reach it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Interval

from core.net.address import parse_address


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadEndConfig:
    """HeadEndConfig says how a node reaches one head end, which speaks headend.v1 over mTLS.

    Attributes:
        name: As meters name it in the registry.
        target: host:port.
        ca: PEM file of the authority of its server certificate.
        cert: PEM file of this node's client certificate.
        key: PEM file of its private key.
        server_name: Name in its certificate; empty if that is the target's host.
        call_timeout_ms: Milliseconds, 50 to 60000, for one call.
        silence_max_ms: Milliseconds, 500 to 600000, without a sign of life after which the event stream is opened anew.
        events_per_s_max: Events, 10 to 100000, taken in a second; more wait at the head end.
    """

    name: str
    target: str
    ca: Path
    cert: Path
    key: Path
    server_name: str = ""
    call_timeout_ms: Annotated[int, Interval(ge=50, le=60_000)] = 3_000
    silence_max_ms: Annotated[int, Interval(ge=500, le=600_000)] = 5_000
    events_per_s_max: Annotated[int, Interval(ge=10, le=100_000)] = 5_000

    def __post_init__(self) -> None:
        """Refuse an empty name, and an address that is none."""
        if not self.name:
            raise ValueError("name: must not be empty")
        parse_address(self.target, field="target")
