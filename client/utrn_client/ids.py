"""Transaction ids: UUIDv7, made and stored before the first attempt; and the names of what stores them (book.py)."""

import secrets
import time
import uuid

from utrn_client.book import FileSaleBook, MemorySaleBook, Sale, SaleBook

__all__ = ["FileSaleBook", "MemorySaleBook", "Sale", "SaleBook", "make_transaction_id"]


def make_transaction_id(now_ms: int | None = None) -> str:
    """Return a new id; `now_ms` is Unix time in milliseconds, the clock of this machine if absent. Source: RFC 9562."""
    stamp = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    bits = secrets.randbits(74)
    value = (stamp & (1 << 48) - 1) << 80 | 0x7 << 76 | (bits >> 62) << 64 | 0b10 << 62 | bits & (1 << 62) - 1
    return str(uuid.UUID(int=value))
