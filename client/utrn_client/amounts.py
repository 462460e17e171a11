"""Amounts of money as people type them: decimal pounds or whole pence, never by way of a float."""

import re
from typing import Final

# The most that one code carries: 8191 pounds.
SALE_PENCE_MAX: Final = 819_100
_POUNDS: Final = re.compile(r"(0|[1-9][0-9]{0,12})(?:\.([0-9]{1,2}))?", re.ASCII)
_PENCE: Final = re.compile(r"0|[1-9][0-9]{0,14}", re.ASCII)


class BadAmount(ValueError):
    """The text is no amount; the message says which form an amount has."""


def parse_pounds(text: str, *, least: int = 1, most: int = SALE_PENCE_MAX) -> int:
    """Return decimal pounds, such as 10, 10.5 or 10.99, as pence.

    Args:
        text: As it was typed: digits, and at most two more after a point. No sign, exponent, space or separator.
        least: The fewest pence.
        most: The most pence.

    Raises:
        BadAmount: it is no such amount.
    """
    found = _POUNDS.fullmatch(text)
    if found is None:
        raise BadAmount(f"{text!r} is no amount of pounds, such as 10 or 12.34: a whole number of pence is needed")
    pence = int(found[1]) * 100 + int((found[2] or "").ljust(2, "0"))
    return _bounded(pence, least, most, f"{text!r}: {pounds_text(least)} to {pounds_text(most)} pounds are needed")


def parse_pence(text: str, *, least: int = 1, most: int = SALE_PENCE_MAX) -> int:
    """Return whole pence, such as 1099, as a number.

    Raises:
        BadAmount: it is no such amount.
    """
    if _PENCE.fullmatch(text) is None:
        raise BadAmount(f"{text!r} is no amount: whole pence are needed, as 1099 for 10.99 pounds")
    return _bounded(int(text), least, most, f"{text!r}: {least} to {most} pence are needed")


def pounds_text(pence: int) -> str:
    """Return pence as decimal pounds with two decimals, as 10.99."""
    sign, whole = "-" if pence < 0 else "", abs(pence)
    return f"{sign}{whole // 100}.{whole % 100:02d}"


def _bounded(pence: int, least: int, most: int, needed: str) -> int:
    if not least <= pence <= most:
        raise BadAmount(needed)
    return pence
