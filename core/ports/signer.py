"""TokenSigner: turns amounts and counters into codes, with keys that never leave the HSM."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from core.domain.code_value import CodeValue
from core.domain.errors import UtrnError
from core.domain.meter import MeterId
from core.domain.party import SupplierKey
from core.domain.token import Counter, Utrn


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
        KeyMissing and NotSupportedByMeter are final; HsmUnavailable may be repeated. Raises nothing of its own.
        """
        ...
