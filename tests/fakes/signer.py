"""FakeSigner: the TokenSigner port in software, with private scalars in the open."""

import hashlib
from collections.abc import Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric import ec

from core.domain.errors import KeyMissing, NotSupportedByMeter, UtrnError
from core.domain.utrn import Utrn
from core.ports.signer import SignRequest
from hsm.schemes.table import SCHEMES


class FakeSigner:
    """Signs with `scalars` by key id; `broken` makes every request fail."""

    def __init__(self, scalars: Mapping[str, int]) -> None:
        self._keys = {key_id: ec.derive_private_key(scalar, ec.SECP256R1()) for key_id, scalar in scalars.items()}
        self.broken: UtrnError | None = None

    async def sign(self, requests: Sequence[SignRequest]) -> Sequence[Utrn | UtrnError]:
        return [self.broken or self._sign(request) for request in requests]

    def _sign(self, request: SignRequest) -> Utrn | UtrnError:
        key, scheme = self._keys.get(request.key.key_id), SCHEMES.get(request.scheme)
        if scheme is None:
            return NotSupportedByMeter("no such scheme", scheme=request.scheme)
        if key is None or _point(key) != request.key.public_point:
            return KeyMissing("no such key", key_id=request.key.key_id)
        try:
            peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), request.meter_point)
        except ValueError:
            return NotSupportedByMeter("no point of P-256")
        secret = key.exchange(ec.ECDH(), peer)
        return scheme(
            originator_id=request.key.originator_id,
            meter_id=request.meter_id,
            counter=request.counter,
            value=request.value,
            aes_key=lambda before, after: hashlib.sha256(before + secret + after).digest()[:16],
        )


def _point(key: ec.EllipticCurvePrivateKey) -> bytes:
    numbers = key.public_key().public_numbers()
    return b"\x04" + numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")
