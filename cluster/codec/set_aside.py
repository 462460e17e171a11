"""SetAsideRecords: what this program cannot understand: left as it is, said once with its key, counted by kind."""

import logging
from collections.abc import Mapping

log = logging.getLogger(__name__)

# A ledger full of them must not fill this node's memory: beyond this many of a kind only their number counts.
_KEPT_MAX = 10_000


class SetAsideRecords:
    """The records set aside now, of every kind. A question that needs such a record is never answered as absent."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[bytes, int]] = {}

    @property
    def counts(self) -> Mapping[str, int]:
        """How many records of each kind are set aside."""
        return {kind: len(keys) for kind, keys in self._kept.items()}

    def note(self, kind: str, key: bytes, revision: int, error: Exception) -> None:
        """Set a record aside, as of its revision; said once for each."""
        keys = self._kept.setdefault(kind, {})
        if keys.get(key) == revision or (key not in keys and len(keys) >= _KEPT_MAX):
            return
        keys[key] = revision
        log.error(
            "a record cannot be understood, and is set aside",
            extra={
                "kind": kind,
                "key": key.decode(errors="backslashreplace"),
                "revision": revision,
                "error": f"{type(error).__name__}: {error}",
            },
        )

    def clear(self, kind: str, key: bytes) -> None:
        """Forget a record: it is gone, or can be understood now."""
        keys = self._kept.get(kind)
        if keys and keys.pop(key, None) is not None:
            text = key.decode(errors="backslashreplace")
            log.info("a record set aside is understood now, or gone", extra={"kind": kind, "key": text})
