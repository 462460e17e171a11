"""Requests that nobody sends in good faith: built from a method's descriptor, or bytes that are broken on purpose."""

import random
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

_TEXTS: Final = (
    "", "\0", "a\0b", " ", "\n", "\x1b[31mred\x1b[0m", "\u202e", "\U0001f4a3", "１２３４", "½", "-0", "+7", "1e9",
    "0x10", "../../etc/passwd", '"}{"', "%s%n", "'; --", "spiffe://utrn/participant/operator-ops\\0.x",
    "9826000000000000009", "00db150000000001", "0" * 19, "supplier-nobody", "node-nobody", "x" * 300,
    "é" * 1500, "2026-11-31", "NaN",
    "3f2504e0-4f89-71d3-9a0c-0305e82c3301",
)  # fmt: skip
_NUMBERS: Final = (0, 1, -1, 2, 99, 1000, 2**31 - 1, -(2**31), 2**32, 2**53, 2**63 - 1, -(2**63), 2**64 - 1)
_BYTES: Final = (b"", b"\0", b"\xff" * 65, b"\x04" + b"\0" * 64, b"-----BEGIN CERTIFICATE-----\n", b"\x30\x82\xff\xff")
_RANGES: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1), FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1), FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}  # fmt: skip
_DEEP: Final = 5


def nasty_message(kind: Any, chance: random.Random) -> Message:
    """Return a message of a generated class, in whose fields are values at and beyond the edges."""
    message: Message = kind()
    _fill(message, kind.DESCRIPTOR, chance, _DEEP)
    return message


def _fill(message: Any, descriptor: Descriptor, chance: random.Random, deep: int) -> None:
    for field in descriptor.fields:
        if chance.random() < 0.25:
            continue
        if field.message_type is not None:
            if deep:
                for _ in range(chance.choice((1, 1, 2, 30)) if field.is_repeated else 1):
                    part = getattr(message, field.name)
                    part = part.add() if field.is_repeated else part
                    part.SetInParent()
                    _fill(part, field.message_type, chance, deep - 1)
        elif field.is_repeated:
            getattr(message, field.name).extend(_value(field, chance) for _ in range(chance.choice((1, 2, 25))))
        else:
            setattr(message, field.name, _value(field, chance))


def _value(field: FieldDescriptor, chance: random.Random) -> Any:
    if field.cpp_type in _RANGES:
        least, most = _RANGES[field.cpp_type]
        known = [value.number for value in field.enum_type.values] if field.enum_type is not None else []
        return chance.choice([*(number for number in _NUMBERS if least <= number <= most), *known * 3])
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return chance.random() < 0.5
    if field.type == FieldDescriptor.TYPE_BYTES:
        return chance.choice(_BYTES)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return chance.choice(_TEXTS)
    return chance.choice((0.0, -0.0, 1e308, float("inf"), float("nan")))


def mutated(body: bytes, chance: random.Random) -> bytes:
    """Return bytes with a few of them changed, cut out, doubled, or with something put between."""
    raw = bytearray(body)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(raw) + 1)
        match chance.randrange(5):
            case 0 if raw:
                raw[at % len(raw)] ^= 1 << chance.randrange(8)
            case 1:
                del raw[at : at + chance.randint(1, 8)]
            case 2:
                raw[at:at] = chance.randbytes(chance.randint(1, 8))
            case 3:
                # The same fields again: the last of a oneof is meant, parts are merged.
                raw += raw[at:]
            case _:
                # A lone surrogate and an overlong slash are no UTF-8.
                raw[at:at] = chance.choice((b"\xed\xa0\x80", b"\xc0\xaf", b"\0"))
    return bytes(raw[:200_000])


def broken_bytes(chance: random.Random) -> bytes:
    """Return bytes that are hardly a message: groups without end, parts in parts, lengths that lie, noise."""
    match chance.randrange(5):
        case 0:
            return b"\x0b" * chance.choice((10, 1000, 5000))
        case 1:
            body = b""
            for _ in range(chance.choice((50, 150, 400))):
                body = b"\x0a" + _varint(len(body)) + body
            return body
        case 2:
            return b"\x0a" + _varint(chance.choice((5, 2**31, 2**63, 2**70))) + b"abc"
        case 3:
            return chance.randbytes(chance.randint(1, 200))
        case _:
            return b"\x08" + b"\xff" * chance.choice((9, 10, 11))


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(0x80 | number & 0x7F)
        number >>= 7
    out.append(number)
    return bytes(out)
