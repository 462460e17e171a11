"""Transaction ids: UUIDv7, made and stored before the first attempt; and the book that stores them."""

import json
import os
import secrets
import time
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TextIO


def make_transaction_id(now_ms: int | None = None) -> str:
    """Return a new id; `now_ms` is Unix time in milliseconds, the clock of this machine if absent. Source: RFC 9562."""
    stamp = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    bits = secrets.randbits(74)
    value = (stamp & (1 << 48) - 1) << 80 | 0x7 << 76 | (bits >> 62) << 64 | 0b10 << 62 | bits & (1 << 62) - 1
    return str(uuid.UUID(int=value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sale:
    """One payment that is to become a code. `channel` is utrn.v1.Channel by number; `deliver`: also send it."""

    transaction_id: str
    pan: str
    amount_pence: int
    channel: int
    deliver: bool = True


class SaleBook(Protocol):
    """Where a till keeps the sales whose answer it does not have yet. A sale is in it before its first attempt."""

    def begin(self, sale: Sale) -> None:
        """Store a sale; return when it would survive a crash."""
        ...

    def end(self, transaction_id: str, outcome: str) -> None:
        """Store that a sale has its final answer."""
        ...

    def open_sales(self) -> list[Sale]:
        """Return the sales without a final answer, oldest first: to be asked again, under the same ids."""
        ...


class FileSaleBook:
    """A SaleBook in one file of JSON lines, each on disk before it counts."""

    def __init__(self, path: Path) -> None:
        """Open the book, and read what is open in it.

        Raises:
            OSError: the file cannot be used.
        """
        self._open: dict[str, Sale] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._take(line)
        self._file: TextIO = path.open("a", encoding="utf-8")
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            # What a till that died left behind must not swallow the next sale.
            self._file.write("\n")
            self._file.flush()

    def begin(self, sale: Sale) -> None:
        """Store a sale; return when it would survive a crash."""
        self._write({"begin": asdict(sale)})
        self._open[sale.transaction_id] = sale

    def end(self, transaction_id: str, outcome: str) -> None:
        """Store that a sale has its final answer."""
        self._write({"end": transaction_id, "outcome": outcome})
        self._open.pop(transaction_id, None)

    def open_sales(self) -> list[Sale]:
        """Return the sales without a final answer, oldest first."""
        return list(self._open.values())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _take(self, line: str) -> None:
        try:
            entry = json.loads(line)
        except ValueError:
            # The last line of a till that died while writing it: its sale never began.
            return
        if "begin" in entry:
            self._open[entry["begin"]["transaction_id"]] = Sale(**entry["begin"])
        else:
            self._open.pop(entry["end"], None)

    def _write(self, entry: dict[str, object]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


class MemorySaleBook:
    """A SaleBook for tests and trials: it does not survive a crash."""

    def __init__(self) -> None:
        self._open: dict[str, Sale] = {}

    def begin(self, sale: Sale) -> None:
        """Keep a sale."""
        self._open[sale.transaction_id] = sale

    def end(self, transaction_id: str, outcome: str) -> None:
        """Forget a sale."""
        del outcome
        self._open.pop(transaction_id, None)

    def open_sales(self) -> list[Sale]:
        """Return the sales without a final answer, oldest first."""
        return list(self._open.values())
