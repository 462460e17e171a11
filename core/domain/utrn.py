"""Utrn: the 20 digits with their check digit; the counter they were made under.

Source: GBCS 14.8 (check digit), GBCS UTRN construction (layout, range, counter).
"""

import re
from typing import NewType

from core.domain.errors import BadField
from core.domain.utrn_value import CodeValue, ValueClass

Utrn = NewType("Utrn", str)
Counter = NewType("Counter", int)

COUNTER_MAX = 2**32 - 1
UTRN_DIGITS = 20
# PPTD = PTUT + this offset; it gives every code 19 digits before its check digit.
PPTD_OFFSET = 7394156990786306048
PTUT_BITS = 57
COUNTER_BITS = 10
# How many counters a meter remembers. Source: GBCS 14.1, by the notes of Silicon Labs' open gas meter (a buffer of 100
# entries); the text itself is not at hand.
COUNTER_CACHE = 100
# A meter rebuilds a keyed counter so far from the last one applied. Source: GBCS Table 27.
REBUILT_AT_MOST = 511

_PERMUTE = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
    (1, 5, 7, 6, 2, 8, 3, 0, 9, 4),
    (5, 8, 0, 3, 7, 9, 6, 1, 4, 2),
    (8, 9, 1, 6, 0, 4, 3, 5, 2, 7),
    (9, 4, 5, 3, 1, 2, 6, 8, 7, 0),
    (4, 2, 8, 6, 5, 7, 3, 9, 0, 1),
    (2, 7, 9, 3, 8, 0, 6, 4, 1, 5),
    (7, 0, 4, 6, 9, 1, 3, 2, 5, 8),
)
_MULTIPLY = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
    (1, 2, 3, 4, 0, 6, 7, 8, 9, 5),
    (2, 3, 4, 0, 1, 7, 8, 9, 5, 6),
    (3, 4, 0, 1, 2, 8, 9, 5, 6, 7),
    (4, 0, 1, 2, 3, 9, 5, 6, 7, 8),
    (5, 9, 8, 7, 6, 0, 4, 3, 2, 1),
    (6, 5, 9, 8, 7, 1, 0, 4, 3, 2),
    (7, 6, 5, 9, 8, 2, 1, 0, 4, 3),
    (8, 7, 6, 5, 9, 3, 2, 1, 0, 4),
    (9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
)
# Not the textbook inverse row: GBCS has its own.
_INVERSE = (1, 2, 6, 7, 5, 8, 3, 0, 9, 4)
_FIRST_PERMUTATION = 4

_TWENTY_DIGITS = re.compile(r"[0-9]{20}", re.ASCII)


def check_digit(digits: str) -> str:
    """Return the check digit of `digits` (one or more decimal digits), as one character.

    Source: GBCS 14.8, tables 14.8a to 14.8c.
    """
    interim = 0
    for place, digit in enumerate(digits):
        interim = _MULTIPLY[interim][_PERMUTE[(place + _FIRST_PERMUTATION) % 8][int(digit)]]
    return str(_INVERSE[interim])


def parse_utrn(text: str, *, field: str = "utrn") -> Utrn:
    """Return `text` as a UTRN whose form is right: 20 digits, check digit, range, and a value class that is credit.

    Raises:
        BadField: says which of these fails, without quoting the digits.
    """
    if not _TWENTY_DIGITS.fullmatch(text):
        raise BadField(f"{field}: 20 decimal digits without spaces are needed", field=field)
    if check_digit(text[:-1]) != text[-1]:
        raise BadField(f"{field}: the check digit is wrong; a digit was mistyped", field=field)
    ptut = int(text[:-1]) - PPTD_OFFSET
    if not 0 <= ptut < 2**PTUT_BITS:
        raise BadField(f"{field}: no SMETS2 code has these leading digits", field=field)
    if (ptut >> 45) & 0b11 not in (ValueClass.PENCE, ValueClass.POUNDS):
        raise BadField(f"{field}: the code carries no credit (value class 2 or 3)", field=field)
    return Utrn(text)


def value_of(utrn: Utrn) -> CodeValue:
    """Return the value that the digits of `utrn` carry."""
    ptut = int(utrn[:-1]) - PPTD_OFFSET
    return CodeValue(ValueClass((ptut >> 45) & 0b11), (ptut >> 32) & 0x1FFF)


def truncated_counter(utrn: Utrn) -> int:
    """Return the low 10 bits of the counter, which are all that the digits carry."""
    return (int(utrn[:-1]) - PPTD_OFFSET) >> 47


def printed(utrn: Utrn) -> str:
    """Return `utrn` as receipts print it, in five groups of four."""
    return " ".join(utrn[at : at + 4] for at in range(0, UTRN_DIGITS, 4))


def duplicate_proves_credit(counter: Counter, last_issued: int) -> bool:
    """Return whether a meter that calls `counter` a duplicate must have credited it.

    It calls so what its cache holds, and everything below a full cache's lowest entry. The latter needs as many
    credited counters above `counter` as the cache has entries, and no more can be credited than were issued.

    Args:
        counter: That of the code the meter speaks of.
        last_issued: The last counter issued by anyone, read after the meter has spoken.
    """
    return last_issued - counter < COUNTER_CACHE
