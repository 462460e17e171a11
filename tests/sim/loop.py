"""VirtualLoop: an event loop whose time stands still while anything can run, and then jumps to the next timer."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


# No simulation takes longer; one that does goes round in circles.
_LONGEST_S = 3600.0


class Stuck(Exception):
    """Nothing can run and no timer is set, or it goes on for ever: the program waits for what will never come."""


class _JumpingSelector(selectors.SelectSelector):
    """Instead of waiting, moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stuck
        self.now += max(0.0, timeout)
        if self.now > _LONGEST_S:
            raise Stuck
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """One thread, no I/O, no real time."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        # Timers that are due at the same moment must not wait for the clock's grain.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._jumping.now


def run_virtual(main: Coroutine[Any, Any, _T]) -> _T:
    """Run `main` in a loop of its own, to its end, in no time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
