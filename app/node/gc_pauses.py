"""CollectorPauses: how long Python's garbage collector stops this process. Nothing runs meanwhile, not even beats."""

import gc
import time
from typing import Any


class CollectorPauses:
    """Counts collections of all that lives, which last the longer the more there is; young ones last microseconds.

    `seconds` is the time of all of them, `longest` that of the longest one, in seconds.
    """

    _OLDEST = 2

    def __init__(self) -> None:
        self.count = 0
        self.seconds = 0.0
        self.longest = 0.0
        self._began = 0.0

    def install(self) -> None:
        """Listen to the collector from now on."""
        gc.callbacks.append(self)

    def remove(self) -> None:
        """Listen no more."""
        gc.callbacks.remove(self)

    def __call__(self, phase: str, info: dict[str, Any]) -> None:
        """Record the beginning, or the end, of a collection."""
        if info["generation"] != self._OLDEST:
            return
        if phase == "start":
            self._began = time.perf_counter()
            return
        lasted = time.perf_counter() - self._began
        self.count += 1
        self.seconds += lasted
        self.longest = max(self.longest, lasted)
