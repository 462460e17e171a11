"""VirtualLoop: an event loop whose time stands still while anything can run, and then jumps to the next timer.

What runs for a node runs in a context that names its life, so that one node's loop can stand still while the
others go on: as if its machine had no processor time left.
"""

import asyncio
import heapq
import selectors
from collections import deque
from collections.abc import Coroutine
from contextvars import Context, ContextVar
from typing import Any, TypeVar

_T = TypeVar("_T")

# No simulation takes longer; one that does goes round in circles.
_LONGEST_S = 3600.0
# Timers that are due at the same moment must not wait for the clock's grain.
_GRAIN_S = 1e-9

# Whose work this is: one life of one node. Unset for what no node's machine does.
LIFE: ContextVar[object] = ContextVar("LIFE")


class Stuck(Exception):
    """Nothing can run and no timer is set, or it goes on for ever: the program waits for what will never come."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """One thread, no I/O, no real time."""

    # Of asyncio's own loop, whose stubs leave them out.
    _ready: deque[asyncio.Handle]
    _scheduled: list[asyncio.TimerHandle]
    _stopping: bool

    def __init__(self) -> None:
        self._now = 0.0
        self._held: dict[object, deque[asyncio.Handle]] = {}
        self._held_until: dict[object, float] = {}
        super().__init__(selectors.SelectSelector())

    def time(self) -> float:
        return self._now

    def stall(self, life: object, seconds: float) -> None:
        """Run nothing of a node's life for so long; what comes due meanwhile runs afterwards, in its order."""
        until = self._now + seconds
        self._held.setdefault(life, deque())
        self._held_until[life] = max(until, self._held_until.get(life, 0.0))
        self.call_at(until, self._release, life, context=Context())

    def _release(self, life: object) -> None:
        if life in self._held and self._now >= self._held_until[life]:
            del self._held_until[life]
            self._ready.extend(self._held.pop(life))

    def _run_once(self) -> None:
        """Run what is ready; if nothing is, jump to the next timer. Stands in for the method of asyncio's loop."""
        timers, ready = self._scheduled, self._ready
        while timers and timers[0]._cancelled:
            heapq.heappop(timers)
        if not ready and not self._stopping:
            if not timers:
                raise Stuck
            self._now = max(self._now, timers[0].when())
            if self._now > _LONGEST_S:
                raise Stuck
        while timers and timers[0].when() < self._now + _GRAIN_S:
            ready.append(heapq.heappop(timers))
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            held = self._held.get(_life_of(handle)) if self._held else None
            if held is None:
                handle._run()
            else:
                held.append(handle)


def _life_of(handle: asyncio.Handle) -> object:
    context: Context = handle._context  # type: ignore[attr-defined]
    return context.get(LIFE, None)


def run_virtual(main: Coroutine[Any, Any, _T]) -> _T:
    """Run `main` in a loop of its own, to its end, in no time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
