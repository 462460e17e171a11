"""The servicers of a node over its flows, called as gRPC calls them, without a network between."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import grpc
from google.protobuf.message import Message

from core.access.certificates import Authority, PeerCertificate
from core.api.appointment_servicer import AppointmentServicer
from core.api.authenticate import Authenticate
from core.api.credit_servicer import CreditServicer
from core.api.registry_servicer import RegistryServicer
from core.api.status import Context
from core.api.top_up_servicer import TopUpServicer
from core.delivery.manual_entry import AdviseByHand
from core.domain.participant import Participant
from core.issuing.check_eligibility import CheckEligibility
from core.issuing.config import DeliveryConfig
from core.registry.appointments import Appoint
from tests.support.lines import RULE
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


class Servicers:
    """Every servicer of utrn.v1 over one node, by the name of its service."""

    def __init__(self, node: MarketNode, roots: bytes) -> None:
        authenticate = Authenticate(node.registry, certificate_of)
        self.registry = RegistryServicer(
            authenticate=authenticate, parties=node.parties, meters=node.meters, exchange=node.exchange,
            hand_over=node.hand_over, pans=node.pans, load=node.load(roots), reconcile=node.reconcile, view=node.view,
            clock=node.clock, pan_rule=RULE,
        )  # fmt: skip
        self.appointments = AppointmentServicer(
            authenticate=authenticate, view=node.view,
            appoint=Appoint(store=node.records, clock=node.clock, authority=lambda: Authority.of(roots)),
        )  # fmt: skip
        self.credit = CreditServicer(
            authenticate=authenticate, credit=node.credit, clock=node.clock, pan_rule=RULE
        )  # fmt: skip
        self.top_up = TopUpServicer(
            authenticate=authenticate, issue=node.issue, send=node.send, find=node.find,
            check=CheckEligibility(authorise=node.authorise, ledger=node.ledger, counters=node.counters),
            advise=AdviseByHand(node.clock, DeliveryConfig()),
            cases=node.cases, pan_rule=RULE,
        )  # fmt: skip


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
