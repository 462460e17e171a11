"""PanIndex: which PANs mention a meter, so that a meter's cards are found among millions without looking at each."""

import re

# In a stored PAN a meter's id is a field of 16 characters: its length, then lower-case hex digits.
_METER = re.compile(rb"\x10([0-9a-f]{16})")
_NOTHING: frozenset[int] = frozenset()


class PanIndex:
    """PANs by the meters that their records mention, now or at any time; about 100 bytes for each."""

    def __init__(self) -> None:
        """Begin with no PAN."""
        # Most meters have one PAN, which then needs no container.
        self._pans: dict[int, str | tuple[str, ...]] = {}

    def change(self, pan: str, before: bytes | None, after: bytes | None) -> None:
        """Update the index for a PAN whose record changed from `before` to `after`; None for no record."""
        had, has = _meters_in(before), _meters_in(after)
        for meter in had - has:
            self._set(meter, tuple(one for one in self._get(meter) if one != pan))
        for meter in has - had:
            self._set(meter, (*self._get(meter), pan))

    def pans_of(self, meter_id: str) -> tuple[str, ...]:
        """Return the PANs whose records mention a meter, an EUI-64 in lower-case hex; it may be some too many."""
        return self._get(int(meter_id, 16))

    def _get(self, meter: int) -> tuple[str, ...]:
        found = self._pans.get(meter, ())
        return (found,) if isinstance(found, str) else found

    def _set(self, meter: int, pans: tuple[str, ...]) -> None:
        if not pans:
            self._pans.pop(meter, None)
        else:
            self._pans[meter] = pans[0] if len(pans) == 1 else pans


def _meters_in(value: bytes | None) -> frozenset[int]:
    return _NOTHING if value is None else frozenset(int(one, 16) for one in _METER.findall(value))
