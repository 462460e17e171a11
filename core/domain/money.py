"""Pence: integer money. There is no other money in this program."""

from typing import NewType

Pence = NewType("Pence", int)

PENCE_PER_POUND = 100


def pounds(amount: Pence) -> str:
    """Return `amount` as people write it, such as "81.91"."""
    sign = "-" if amount < 0 else ""
    whole, rest = divmod(abs(amount), PENCE_PER_POUND)
    return f"{sign}{whole}.{rest:02d}"
