"""The servicers of a node over its flows, called as gRPC calls them, without a network between."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import grpc
from google.protobuf.message import Message

from core.access.certificates import PeerCertificate
from core.api.authenticate import Authenticate
from core.api.registry_servicer import RegistryServicer
from core.api.server import CallersServices
from core.api.status import Context
from core.assembly.services import callers_services
from core.domain.participant import Participant
from core.issuing.config import DeliveryConfig
from tests.support.market_node import MarketNode


@dataclass(frozen=True)
class Caller:
    """The context of a call, of which only these are asked; the certificate is a participant's first."""

    who: Participant
    metadata: tuple[tuple[str, str], ...] = ()

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self.metadata

    def time_remaining(self) -> float | None:
        return None


def calling(who: Participant) -> Context:
    """Return the context of a call by `who`."""
    return cast("Context", Caller(who))


def certificate_of(context: Context) -> PeerCertificate:
    """Return the first certificate of who calls, valid for ever."""
    identity = cast("Caller", context).who.identities[0]
    since, until = datetime(1970, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC)
    return PeerCertificate(identity=identity, fingerprint="00" * 32, issued_at=since, starts=since, ends=until)


def servicers(node: MarketNode, roots: bytes = b"") -> CallersServices:
    """Return every servicer of utrn.v1 over one node; appointments are verified under `roots`."""
    return callers_services(
        node.issuing, node.under(roots), Authenticate(node.registry, certificate_of), DeliveryConfig()
    )


class NoNetwork:
    """A channel to a node's own servicer: what a message is encoded to is what the other side reads."""

    def __init__(self, servicer: RegistryServicer, who: Participant, message_bytes_max: int) -> None:
        self.servicer, self.context = servicer, calling(who)
        self.message_bytes_max = message_bytes_max
        self.largest = 0

    @property
    def channel(self) -> grpc.aio.Channel:
        return cast("grpc.aio.Channel", self)

    def unary_unary(self, *_: Any, **__: Any) -> None:
        """Stubs ask for every method; none of these is called."""

    def stream_stream(self, path: str, *, request_serializer: Any, response_deserializer: Any, **_: Any) -> Any:
        """Return the method of that path."""
        method = getattr(self.servicer, path.rsplit("/", 1)[-1])

        async def crossing(requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
            async for request in requests:
                raw = request_serializer(request)
                self.largest = max(self.largest, len(raw))
                assert len(raw) <= self.message_bytes_max, "gRPC would refuse it"
                yield type(request).FromString(raw)

        async def call(requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
            async for reply in method(crossing(requests), self.context):
                yield response_deserializer(reply.SerializeToString())

        return call
