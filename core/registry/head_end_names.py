"""Whoever sets a meter's head end names one that is there: a mistyped one would reach nobody, and nobody would know."""

from core.domain.errors import HeadEndUnknown, NotReady
from core.domain.meter import Meter
from core.ports.head_ends import HeadEndNames


def check_head_ends(names: HeadEndNames, after: Meter, before: Meter | None = None) -> None:
    """Return if every head end that `after` names, and `before` did not, is there.

    Raises:
        HeadEndUnknown: one is not; the facts name it and those that are.
        NotReady: this node does not know yet which are; repeat at another.
    """
    had = set() if before is None else _named(before)
    new = _named(after) - had
    if not new:
        return
    known = names()
    if known is None:
        raise NotReady("this node does not know the head ends yet; ask another")
    for name in sorted(new - known):
        there = ", ".join(sorted(known)) or "none"
        raise HeadEndUnknown(f"head_end: no head end of this name; there are: {there}", head_end=name, known=there)


def _named(meter: Meter) -> set[str]:
    return {period.value.head_end for period in meter.settings.periods}
