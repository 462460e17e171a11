"""The SMETS2 algorithm: amount and counter -> PTUT -> PPTD -> UTRN, bit for bit as GBCS has it.

Source: GBCS 13.2 and 14 (UTRN, message authentication code for prepayment), 14.8 (check digit).
"""

from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from core.domain.utrn import COUNTER_MAX, PPTD_OFFSET, Utrn, check_digit
from core.domain.utrn_value import CodeValue

NAME = "gbcs"

# AlgorithmID of OtherInfo: AES-128-GCM as KeyDerivation purpose (2.16.756.5.8.3.0).
_ALGORITHM_ID = bytes.fromhex("60857406080300")
_EUI_BYTES = b"\x09"
_COMMAND = b"\x01"
_COUNTER_SHIFT = 32
_KDF_COUNTER = b"\x00\x00\x00\x01"
_SECURITY_CONTROL = b"\x11"


def other_info(originator: bytes, target: bytes, counter: int) -> bytes:
    """Return the 33 bytes of OtherInfo for a 32-bit UTRN `counter`; both EUI-64 as 8 bytes."""
    wide = (counter << _COUNTER_SHIFT).to_bytes(8, "big")
    return _ALGORITHM_ID + originator + _EUI_BYTES + _COMMAND + wide + target


def kdf_input(originator: bytes, target: bytes, counter: int) -> tuple[bytes, bytes]:
    """Return what is hashed before and after the shared secret; the first 16 bytes of the hash are the AES key."""
    return _KDF_COUNTER, other_info(originator, target, counter)


def code(
    *, originator_id: str, meter_id: str, counter: int, value: CodeValue, aes_key: Callable[[bytes, bytes], bytes]
) -> Utrn:
    """Return the UTRN of `value` under `counter`. Same input, same digits.

    Args:
        originator_id: EUI-64, 16 hex digits.
        meter_id: EUI-64, 16 hex digits.
        counter: UTRN Counter, 1 to 2**32 - 1.
        value: What the code carries.
        aes_key: Given what to hash before and after the shared secret, returns the 16-byte key of this one counter.

    Raises:
        ValueError: the counter or the value is out of range.
    """
    if not 0 <= counter <= COUNTER_MAX:
        raise ValueError("the UTRN counter must be 0 to 4294967295")
    if not 0 <= value.value <= 0x1FFF:
        raise ValueError("the value must be 0 to 8191")
    originator, target = bytes.fromhex(originator_id), bytes.fromhex(meter_id)
    high = (counter & 0x3FF) << 15 | value.value_class << 13 | value.value
    key = aes_key(*kdf_input(originator, target, counter))
    mac = _mac(key, originator, target, counter, high)
    digits = str((high << 32 | mac) + PPTD_OFFSET)
    return Utrn(digits + check_digit(digits))


def counter_of(originator_counter: int) -> int:
    """Return the UTRN Counter of a 64-bit Originator Counter.

    Raises:
        ValueError: its low 32 bits are not zero, as those of every UTRN are.
    """
    if not 0 <= originator_counter < 2**64 or originator_counter & COUNTER_MAX:
        raise ValueError("the low 32 bits of a UTRN's Originator Counter must be zero")
    return originator_counter >> _COUNTER_SHIFT


def _mac(key: bytes, originator: bytes, target: bytes, counter: int, high: int) -> int:
    """Return the last 32 bits of the GMAC."""
    wide = (counter << _COUNTER_SHIFT).to_bytes(8, "big")
    aad = _SECURITY_CONTROL + bytes(5) + originator + target + b"\x01" + wide + high.to_bytes(4, "big")
    tag = AESGCM(key).encrypt(originator + bytes(4), b"", aad)
    return int.from_bytes(tag[-4:], "big")
