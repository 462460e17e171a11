"""MessageId: names one Add Credit for ever: "originator:meter:counter:random", written and read in one place.

The counter is the 64-bit Originator Counter, whose upper half is the UTRN Counter. Source: DUIS RequestID; GBCS
Originator Counter. The random part is drawn once for each delivery and stored with it before its first send
(docs/decisions/0029): whoever was not sent the message cannot name it.
"""

import re
import secrets

from core.domain.meter import MeterId, OriginatorId
from core.domain.utrn import Counter

_COUNTER_SHIFT = 32
_RANDOM_BYTES = 16
# An EUI-64 twice, the decimal digits of a number below 2**64, and 16 random bytes in hex.
_FORM = re.compile(r"([0-9a-f]{16}):([0-9a-f]{16}):([1-9][0-9]{9,19}):[0-9a-f]{32}", re.ASCII)


def new_random_part() -> str:
    """Return the random part of a message id: 32 hex digits that nobody can guess."""
    return secrets.token_hex(_RANDOM_BYTES)


def message_id(originator_id: OriginatorId, meter_id: MeterId, counter: Counter, random_part: str) -> str:
    """Return the message id of the code made under `counter`; `random_part` as `new_random_part` makes it."""
    return f"{originator_id}:{meter_id}:{counter << _COUNTER_SHIFT}:{random_part}"


def parse_message_id(text: str) -> tuple[OriginatorId, MeterId, Counter] | None:
    """Return the code that a message id speaks of; None if `text` is none that this service can have made.

    That it was made, and sent, only the whole of it shows.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    counter, rest = divmod(int(found[3]), 1 << _COUNTER_SHIFT)
    if rest or counter >= 1 << _COUNTER_SHIFT:
        return None
    return OriginatorId(found[1]), MeterId(found[2]), Counter(counter)
