"""Step 1: the peer's TLS certificate -> a Principal."""

from dataclasses import dataclass

from core.api.errors import Context
from core.domain.errors import CallerSuspended, NotReady, Refused, UnknownCaller
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
            UnknownCaller, CallerSuspended: this proves nothing about earlier sales.
            NotReady: repeat at another node.
        """
        principal, refusal = self.even_barred(context)
        if refusal is not None:
            raise refusal
        return principal

    def even_barred(self, context: Context) -> tuple[Principal, Refused | None]:
        """Return who is calling, and why the caller may do nothing new: it is suspended, or has left; None if it may.

        Whoever sold may always learn what became of its sales.

        Raises:
            UnknownCaller: no participant uses or used this certificate.
            NotReady: repeat at another node.
        """
        if not self.registry.ready:
            raise NotReady("this node is still reading the registry; ask another")
        uris = uris_of(context)
        for uri in uris:
            participant = self.registry.caller(uri)
            if participant is not None and participant.standing is not Standing.LEFT:
                suspended = participant.standing is Standing.SUSPENDED
                return Principal(participant, uri), _suspended() if suspended else None
        for uri in uris:
            departed = self.registry.departed(uri)
            if departed is not None:
                return Principal(departed, uri), _unknown()
        raise _unknown()


def _suspended() -> Refused:
    return CallerSuspended("this participant is suspended; ask the operator")


def _unknown() -> Refused:
    return UnknownCaller("the client certificate's SAN URI names no participant; ask the operator to register it")


def uris_of(context: Context) -> list[str]:
    """Return the SAN URIs of the certificate that TLS has verified."""
    return [uri.decode("utf-8", "replace") for uri in context.auth_context().get(_SAN_URIS, ())]
