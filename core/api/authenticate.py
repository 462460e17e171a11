"""Step 2: the peer's TLS certificate -> a Principal."""

from dataclasses import dataclass

from core.api.errors import Context
from core.domain.errors import CallerSuspended, NotReady, UnknownCaller
from core.domain.party import Principal, Standing
from core.ports.registry import Registry

# Only URIs: a DNS name or an e-mail address that looks like one must not be taken for an identity.
_SAN_URIS = "peer_uri"


@dataclass(frozen=True, slots=True)
class Authenticate:
    """Knows callers by the SAN URI of the certificate that TLS has verified; nothing in a request can name a caller."""

    registry: Registry

    def __call__(self, context: Context) -> Principal:
        """Return who is calling.

        Raises:
            UnknownCaller, CallerSuspended: do not repeat.
            NotReady: repeat at another node.
        """
        if not self.registry.ready:
            raise NotReady("this node is still reading the registry; ask another")
        for uri in uris_of(context):
            participant = self.registry.caller(uri)
            if participant is not None and participant.standing is not Standing.LEFT:
                if participant.standing is Standing.SUSPENDED:
                    raise CallerSuspended("this participant is suspended; ask the operator")
                return Principal(participant, uri)
        raise UnknownCaller("the client certificate's SAN URI names no participant; ask the operator to register it")


def uris_of(context: Context) -> list[str]:
    """Return the SAN URIs of the certificate that TLS has verified."""
    return [uri.decode("utf-8", "replace") for uri in context.auth_context().get(_SAN_URIS, ())]
