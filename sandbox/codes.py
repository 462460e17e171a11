"""The meter's side of a UTRN, written apart from the service: check digit, counter, key, MAC. Source: GBCS 14.

Nothing here is shared with the service, so that one misunderstanding cannot hide in both.
"""

import hashlib
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_OFFSET = 0x669D529B714A0000
_D = [
    [(i + j) % 5 if j < 5 else 5 + (i + j) % 5 for j in range(10)]
    if i < 5
    else [5 + (i - j) % 5 if j < 5 else (i - j) % 5 for j in range(10)]
    for i in range(10)
]
_P0 = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]
# GBCS table 14.8c.
_INV = "1267583094"


@dataclass(frozen=True, slots=True)
class Token:
    """What the digits say: 10 bits of counter, unit, value, 32 bits of MAC."""

    counter_bits: int
    pounds: bool
    value: int
    mac: int
    high: int

    @property
    def pence(self) -> int:
        """What would be credited."""
        return self.value * 100 if self.pounds else self.value


class Malformed(Exception):
    """The digits are no code that carries credit."""


def check_digit(digits: str) -> str:
    """Return the check digit of `digits`."""
    state = 0
    for index, character in enumerate(digits):
        digit = int(character)
        for _ in range((index + 4) % 8):
            digit = _P0[digit]
        state = _D[state][digit]
    return _INV[state]


def read_token(utrn: str) -> Token:
    """Return what a 20-digit code says.

    Raises:
        Malformed: wrong length, check digit or range, or a value class that is no credit.
    """
    if len(utrn) != 20 or not (utrn.isascii() and utrn.isdigit()):
        raise Malformed("incomplete")
    if check_digit(utrn[:19]) != utrn[19]:
        raise Malformed("check digit")
    packed = int(utrn[:19]) - _OFFSET
    if packed < 0 or packed >> 57:
        raise Malformed("range")
    high = packed >> 32
    unit = high >> 13 & 3
    if unit > 1:
        raise Malformed("value class")
    return Token(high >> 15, unit == 1, high & 0x1FFF, packed & 0xFFFFFFFF, high)


def rebuild_counter(bits: int, highest: int) -> int:
    """Return the 32-bit counter whose low ten bits are `bits`, nearest to `highest`. Source: GBCS Table 27."""
    p = highest % 1024
    q = highest - p
    if bits < p - 512:
        s = bits + 1024
    elif bits > p + 512:
        s = bits - 1024
    else:
        s = bits
    return q + s


def shared_secret(scalar: int, originator_point: bytes) -> bytes:
    """Return Z, 32 bytes, from the meter's private scalar and the originator's public point."""
    public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), originator_point)
    return ec.derive_private_key(scalar, ec.SECP256R1()).exchange(ec.ECDH(), public)


def mac_is_right(token: Token, *, secret: bytes, originator_id: str, meter_id: str, originator_counter: int) -> bool:
    """Return whether the code was made for this meter, by this originator, under this 64-bit counter."""
    if originator_counter & 0xFFFFFFFF or originator_counter >> 64 or originator_counter < 0:
        return False
    originator, meter = bytes.fromhex(originator_id), bytes.fromhex(meter_id)
    counter = originator_counter.to_bytes(8, "big")
    info = bytes.fromhex("60857406080300") + originator + b"\x09\x01" + counter + meter
    key = hashlib.sha256(b"\0\0\0\1" + secret + info).digest()[:16]
    cipher = Cipher(algorithms.AES(key), modes.GCM(originator + bytes(4))).encryptor()
    cipher.authenticate_additional_data(
        b"\x11" + bytes(5) + originator + meter + b"\x01" + counter + token.high.to_bytes(4, "big")
    )
    cipher.finalize()
    return int.from_bytes(cipher.tag[12:], "big") == token.mac
