"""KeyMonitor: which supplier's key this node's HSM lacks, asked again and again: keys come back, and keys are lost."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from core.domain.participant import ParticipantId, SupplierKey
from core.ports.clock import Clock
from core.ports.signer import KeyFinder

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
# How old a proof may be, and how many old ones are renewed in one look: the HSM is there for sales.
_PROOF_MAX_S = 30.0
_RENEWED_AT_ONCE = 4


@dataclass(frozen=True, slots=True, order=True)
class MissingKey:
    """A registered key that the HSM does not have, or in whose place it has another one."""

    supplier_id: ParticipantId
    key_id: str

    def __str__(self) -> str:
        """Return it as operators read it."""
        return f"{self.supplier_id}/{self.key_id}"


class KeyMonitor:
    """Finds and proves the key of every supplier before its first sale, and again as long as the node runs."""

    def __init__(
        self, *, keys: Callable[[], Mapping[ParticipantId, SupplierKey]], finder: KeyFinder, clock: Clock
    ) -> None:
        """Take the source of registered keys and the finder of keys in the HSM."""
        self._keys = keys
        self._finder = finder
        self._clock = clock
        # When each key was last looked for, and whether it was found then.
        self._looked: dict[SupplierKey, tuple[float, bool]] = {}

    @property
    def missing(self) -> list[MissingKey]:
        """The registered keys that were looked for and not found, in order."""
        return sorted(
            MissingKey(supplier_id, key.key_id)
            for supplier_id, key in self._keys().items()
            if not self._looked.get(key, (0.0, True))[1]
        )

    @property
    def complete(self) -> bool:
        """True if every registered key was looked for and found."""
        return all(self._looked.get(key, (0.0, False))[1] for key in self._keys().values())

    async def run(self) -> NoReturn:
        """Look for ever."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_EVERY_S)

    async def look(self) -> None:
        """Look for what was never looked for, for what was missing, and for some of what was found long ago."""
        keys = set(self._keys().values())
        for gone in self._looked.keys() - keys:
            del self._looked[gone]
        for key in self._due(keys):
            found = await self._finder.has_key(key)
            if found is not None:
                self._note(key, found)

    def _due(self, keys: set[SupplierKey]) -> list[SupplierKey]:
        doubted = self._finder.doubted() & keys
        first = [key for key in keys if key in doubted or not self._looked.get(key, (0.0, False))[1]]
        old = self._clock.monotonic() - _PROOF_MAX_S
        rest = sorted((key for key in keys.difference(first) if self._looked[key][0] < old), key=self._age)
        return first + rest[:_RENEWED_AT_ONCE]

    def _age(self, key: SupplierKey) -> float:
        return self._looked[key][0]

    def _note(self, key: SupplierKey, found: bool) -> None:
        before = self._looked.get(key)
        self._looked[key] = (self._clock.monotonic(), found)
        if before is not None and before[1] == found:
            return
        if found:
            log.info("a key is in the HSM, and is the right one", extra={"key_id": key.key_id})
        else:
            whose = [supplier_id for supplier_id, one in self._keys().items() if one == key]
            log.error(
                "a registered key is not in the HSM, or another is in its place",
                extra={"supplier_id": ",".join(whose), "key_id": key.key_id},
            )
