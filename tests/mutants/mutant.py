"""Mutant: one small, realistic fault of the product, and what must notice it."""

from dataclasses import dataclass
from pathlib import Path


class Misfit(Exception):
    """The fragment is not in its file exactly once: the code has changed, and the mutant must follow it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One fault.

    Attributes:
        name: Says what is wrong, in words joined by hyphens.
        file: Where, from the project's root.
        old: The fragment that is replaced: whole lines or a part of one, in the file exactly once.
        new: What stands there instead.
        killer: What must turn red: a test's node id, or the number of seeds of the simulation, one of which must.
        why: What a survivor would cost: money, a sale, a delivery.
        quick: Whether it belongs to the slice that every run of the test suite makes.
    """

    name: str
    file: str
    old: str
    new: str
    killer: str | int
    why: str
    quick: bool = False

    def apply(self, text: str) -> str:
        """Return the file's text with the fault in it.

        Raises:
            Misfit: as named.
        """
        found = text.count(self.old)
        if found != 1 or self.old == self.new:
            raise Misfit(f"{self.name}: the fragment is in {self.file} {found} times, not once")
        return text.replace(self.old, self.new)

    def text_in(self, root: Path) -> str:
        """Return the text of the file in a tree, as it is there."""
        return (root / self.file).read_text(encoding="utf-8")
