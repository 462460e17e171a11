"""How the command that runs was called, for what is called below it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """What the shared options say.

    Attributes:
        as_json: Whether answers and refusals are printed as JSON.
        server_name: Name in the nodes' certificates; "" for the host of each target.
    """

    as_json: bool = False
    server_name: str = ""


# Name of the profile that was asked for; "" for none.
PROFILE: ContextVar[str] = ContextVar("profile", default="")
_NOW: ContextVar[Invocation | None] = ContextVar("invocation", default=None)


def invocation() -> Invocation:
    """Return how the command that runs was called."""
    return _NOW.get() or Invocation()


@contextmanager
def invoked_as(how: Invocation) -> Iterator[None]:
    """Have `invocation` return this within the block."""
    token = _NOW.set(how)
    try:
        yield
    finally:
        _NOW.reset(token)
