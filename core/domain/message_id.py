"""MessageId: names one Add Credit for ever: "originator:meter:counter", written and read in one place.

The counter is the 64-bit Originator Counter, whose upper half is the UTRN Counter. Source: DUIS RequestID; GBCS
Originator Counter.
"""

import re

from core.domain.meter import MeterId, OriginatorId
from core.domain.token import Counter

_COUNTER_SHIFT = 32
# An EUI-64 twice, and the decimal digits of a number below 2**64.
_FORM = re.compile(r"([0-9a-f]{16}):([0-9a-f]{16}):([1-9][0-9]{9,19})", re.ASCII)


def message_id(originator_id: OriginatorId, meter_id: MeterId, counter: Counter) -> str:
    """Return the message id of the code made under `counter`."""
    return f"{originator_id}:{meter_id}:{counter << _COUNTER_SHIFT}"


def parse_message_id(text: str) -> tuple[OriginatorId, MeterId, Counter] | None:
    """Return what a message id names; None if `text` is none that this service can have made."""
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    counter, rest = divmod(int(found[3]), 1 << _COUNTER_SHIFT)
    if rest or counter >= 1 << _COUNTER_SHIFT:
        return None
    return OriginatorId(found[1]), MeterId(found[2]), Counter(counter)
