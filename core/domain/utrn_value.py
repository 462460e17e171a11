"""Which amounts one code can carry, and how: GBCS value class and value.

A code has 2 bits of value class and 13 bits of value: 1 to 8191 pence, or 1 to 8191 whole pounds. Amounts that fit both
are carried in pence, so that an amount has exactly one encoding.

Source: GBCS, Prepayment Top Up Token (PTUT) layout.
"""

from dataclasses import dataclass
from enum import IntEnum

from core.domain.errors import AmountNotEncodable
from core.domain.money import PENCE_PER_POUND, Pence, pounds

VALUE_MAX = 8191
PENCE_MAX = VALUE_MAX
POUNDS_MAX_PENCE = VALUE_MAX * PENCE_PER_POUND


class ValueClass(IntEnum):
    """Unit of the value in a code. Classes 2 and 3 exist on the wire and carry no credit; they are never made here."""

    PENCE = 0
    POUNDS = 1


@dataclass(frozen=True, slots=True)
class CodeValue:
    """A value as a code carries it: `value` is 0 to 8191, in the unit of `value_class`."""

    value_class: ValueClass
    value: int

    @property
    def amount(self) -> Pence:
        """The pence that the meter credits."""
        return Pence(self.value * (PENCE_PER_POUND if self.value_class is ValueClass.POUNDS else 1))


def code_value(amount: Pence) -> CodeValue:
    """Return the one way in which a code carries `amount`.

    Raises:
        AmountNotEncodable: names the limit and the nearest amounts that work; never repeat as it is.
    """
    if 1 <= amount <= PENCE_MAX:
        return CodeValue(ValueClass.PENCE, amount)
    if PENCE_MAX < amount <= POUNDS_MAX_PENCE and amount % PENCE_PER_POUND == 0:
        return CodeValue(ValueClass.POUNDS, amount // PENCE_PER_POUND)
    raise _not_encodable(amount)


def _not_encodable(amount: Pence) -> AmountNotEncodable:
    def error(problem: str, **nearest: int) -> AmountNotEncodable:
        works = " or ".join(f"{nearest[name]} pence ({pounds(Pence(nearest[name]))} pounds)" for name in nearest)
        return AmountNotEncodable(
            f"amount_pence: {amount} {problem}; the nearest that works is {works}",
            field="amount_pence",
            amount_pence=amount,
            **nearest,
        )

    if amount < 1:
        return error("is not a payment: the least is 1 pence", nearest_above_pence=1)
    if amount > POUNDS_MAX_PENCE:
        return error("is above the 8191 pounds that one code can carry", nearest_below_pence=POUNDS_MAX_PENCE)
    below = max(amount - amount % PENCE_PER_POUND, PENCE_MAX)
    above = amount - amount % PENCE_PER_POUND + PENCE_PER_POUND
    return error(
        "cannot be carried by one code: above 81.91 pounds only whole pounds can",
        nearest_below_pence=below,
        nearest_above_pence=above,
    )
