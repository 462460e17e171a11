"""Virtual time."""

import asyncio


def now_s() -> float:
    """Return the seconds since the run began."""
    return asyncio.get_running_loop().time()
