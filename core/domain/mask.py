"""masked: takes out of a text what must not be kept in it: numbers of cards, and codes that are money."""

import re

# An id of ours may be all digits: a UUID in its usual form, 32 hex digits, or an EUI-64. They are left as they are.
_IDS = r"(?<![0-9A-Za-z])(?:[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}|[0-9A-Fa-f]{32})(?![0-9A-Za-z])"
# Nothing else that we keep has so many digits in a row. Digits of every script count: a field may hold any.
_RUN = r"\d{18,}"
# As receipts print a code, and as cards are embossed: groups with something between them.
_GROUPS = r"(?<!\d)\d{4}(?:[\s.\-/_]\d{4}){3}[\s.\-/_]?\d{3,4}(?!\d)"
_FOUND = re.compile(f"({_IDS})|{_RUN}|{_GROUPS}")
_CODE_DIGITS = 20


def masked(text: str) -> str:
    """Return `text` with every number masked that is long enough for a PAN (19 digits) or a UTRN (20).

    Of a PAN its last four digits stay, as on every receipt: they tell it apart from the meter's others. Of a UTRN, or
    of anything longer, only how many digits it had: each digit that stays is one less to guess.
    """
    return _FOUND.sub(_mask, text)


def _mask(found: re.Match[str]) -> str:
    if found[1] is not None:
        return found[1]
    digits = [character for character in found[0] if character.isdecimal()]
    return f"..{''.join(digits[-4:])}" if len(digits) < _CODE_DIGITS else f"[{len(digits)} digits]"
