"""Pages of lists, as AIP-158 (google.aip.dev/158) asks for: page_size, page_token, next_page_token."""

import base64
import binascii
import re
from collections.abc import Iterable
from typing import Final, TypeVar

from google.protobuf.message import Message

from core.domain.errors import BadField

# Callers take 4 MiB by gRPC's own default. What stands under one key is never parted: of appointments that may be one
# record of etcd, 1.5 MiB.
PAGE_BYTES_MAX: Final = 1_000_000
PAGE_SIZE_MAX: Final = 1000
_PAGE_SIZE = 100
_KEY = re.compile(r"[a-z0-9/-]{1,200}", re.ASCII)
_TOKEN_LENGTH_MAX = 300

_M = TypeVar("_M", bound=Message)


def page_size(asked: int) -> int:
    """Return how many items a page has at most; raise BadField if a negative number is asked for."""
    if asked < 0:
        raise BadField("page_size: must not be negative", field="page_size")
    return min(asked or _PAGE_SIZE, PAGE_SIZE_MAX)


def page_token(key: str) -> str:
    """Return the token of the page that begins after `key`; "" at the end of the list."""
    return base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def page_start(token: str) -> str:
    """Return the key after which a page begins, "" for the first; raise BadField if no answer can have had the token.

    The key decides only where reading begins. What the caller may see is decided for each item.
    """
    if not token:
        return ""
    try:
        padded = token[:_TOKEN_LENGTH_MAX] + "=" * (-len(token) % 4)
        key = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        key = ""
    if not _KEY.fullmatch(key) or page_token(key) != token:
        raise BadField("page_token: must be next_page_token of an earlier answer", field="page_token")
    return key


def fit(items: Iterable[tuple[str, _M]], after: str, *, most: int = PAGE_SIZE_MAX) -> tuple[list[_M], str]:
    """Return what one answer carries of a page, and where the next one goes on.

    Args:
        items: The page in order, each with the key after which the next page would begin. Not read further than needed.
        after: Where the next page begins if all of it fits; "" at the end of the list.
        most: How many items at most, but for those of one key, which are never parted.
    """
    kept: list[_M] = []
    size, last = 0, ""
    for key, message in items:
        size += message.ByteSize()
        if kept and key != last and (size > PAGE_BYTES_MAX or len(kept) >= most):
            return kept, last
        kept.append(message)
        last = key
    return kept, after
