"""TokenSigner: turns amounts and counters into codes, with keys that never leave the HSM. KeyFinder: finds them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from core.domain.errors import UtrnError
from core.domain.meter import MeterId
from core.domain.participant import SupplierKey
from core.domain.utrn import Counter, Utrn
from core.domain.utrn_value import CodeValue


@dataclass(frozen=True, slots=True, kw_only=True)
class SignRequest:
    """All that decides the 20 digits. `meter_point` is the meter's P-256 public point, 65 bytes uncompressed."""

    scheme: str
    key: SupplierKey
    meter_id: MeterId
    meter_point: bytes
    counter: Counter
    value: CodeValue


class TokenSigner(Protocol):
    """Signs in batches: the batch that signs is the batch that commits."""

    async def sign(self, requests: Sequence[SignRequest]) -> Sequence[Utrn | UtrnError]:
        """Return one code or one error per request, in order. Same request, same digits; stores nothing.

        A code returned here must not leave the process before the ledger has committed it. Errors, per request:
        NotSupportedByMeter is final; HsmUnavailable and KeyMissing may be repeated at another node, whose HSM may have
        the key. Raises nothing of its own.
        """
        ...


class KeyFinder(Protocol):
    """Looks for keys in this node's HSM."""

    async def has_key(self, key: SupplierKey) -> bool | None:
        """Return whether the key is there now, and is the one it should be; None if nobody can say now."""
        ...

    def doubted(self) -> set[SupplierKey]:
        """Return the keys that a signature did not find since this was last asked."""
        ...
