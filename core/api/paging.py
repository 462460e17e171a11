"""Pages of lists: as many items as one message carries, whatever their number and size."""

from collections.abc import Iterable
from typing import Final, TypeVar

from google.protobuf.message import Message

# Callers take 4 MiB by gRPC's own default. What stands under one key is never parted: of appointments that may be one
# record of etcd, 1.5 MiB.
PAGE_BYTES_MAX: Final = 1_000_000

_M = TypeVar("_M", bound=Message)


def fit(items: Iterable[tuple[str, _M]], after: str) -> tuple[list[_M], str]:
    """Return what one answer carries of a page, and where the next one goes on.

    Args:
        items: The page in order, each with the key after which the next page would begin. Not read further than needed.
        after: Where the next page begins if all of it fits; "" at the end of the list.
    """
    kept: list[_M] = []
    size, last = 0, ""
    for key, message in items:
        size += message.ByteSize()
        if kept and size > PAGE_BYTES_MAX and key != last:
            return kept, last
        kept.append(message)
        last = key
    return kept, after
