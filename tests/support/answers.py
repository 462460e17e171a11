"""The memory of answers, as a node has it, of any size."""

from cluster.codec.vend import packed, unpacked
from core.issuing.recent_vends import RecentVends


def memory(recent_max: int = 10) -> RecentVends:
    """Return an empty one."""
    return RecentVends(recent_max=recent_max, pack=packed, unpack=unpacked)
