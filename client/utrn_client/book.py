"""The book of sales: where a till keeps what it has asked for, until the receipt is out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Protocol

from utrn_client.book_file import BookFile, Damage

# The largest whole number that every language's JSON holds exactly.
_WHOLE_MAX: Final = 2**53 - 1
_INT32_MAX: Final = 2**31 - 1
_TEXT_MAX: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Sale:
    """One payment that is to become a code. `channel` is utrn.v1.Channel by number; `deliver`: also send it.

    `more`: fields that a later version of this program wrote for it, as JSON has them; carried along, and not judged.
    """

    transaction_id: str
    pan: str
    amount_pence: int
    channel: int
    deliver: bool = True
    more: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A final refusal of a sale that nobody has been told of yet: the reason (docs/errors.md) and its sentence."""

    sale: Sale
    reason: str
    message: str


class SaleBook(Protocol):
    """Where a till keeps its sales: from before the first attempt until somebody has the answer."""

    def begin(self, sale: Sale) -> bool:
        """Store a sale; return when it would survive a crash. True if the book had never heard of its id.

        Raises:
            ValueError: a field is not what it should be, or the id is open with other content.
            BookNotWritten: it is not stored; nothing may be asked.
        """
        ...

    def refuse(self, sale: Sale, reason: str, message: str) -> None:
        """Store that a sale is refused for good, and that nobody has been told yet.

        Raises:
            BookNotWritten: it is not stored; nobody may be told that it is final.
        """
        ...

    def end(self, transaction_id: str, outcome: str) -> None:
        """Store that the answer is out: the receipt printed, or the refusal told.

        Raises:
            BookNotWritten: it is not stored; the next start tells the same once more.
        """
        ...

    def open_sales(self) -> list[Sale]:
        """Return the sales to be asked for again under the same ids, oldest first."""
        ...

    def untold_refusals(self) -> list[Refusal]:
        """Return the final refusals that nobody has been told of, oldest first: never to be asked again."""
        ...


class MemorySaleBook:
    """A SaleBook for tests and trials: it does not survive a crash."""

    def __init__(self) -> None:
        self._open: dict[str, Sale] = {}
        self._refused: dict[str, Refusal] = {}
        self._known: set[str] = set()

    def begin(self, sale: Sale) -> bool:
        """Keep a sale; True if the book had never heard of its id."""
        new = sale.transaction_id not in self._known
        if self._open.setdefault(sale.transaction_id, sale) != sale:
            raise ValueError(f"the sale {sale.transaction_id} is open with other content: one payment, one id")
        self._known.add(sale.transaction_id)
        return new

    def is_open(self, transaction_id: str) -> bool:
        """Return whether a sale is to be asked for again."""
        return transaction_id in self._open

    def refuse(self, sale: Sale, reason: str, message: str) -> None:
        """Keep a refusal."""
        self._known.add(sale.transaction_id)
        self._open.pop(sale.transaction_id, None)
        self._refused[sale.transaction_id] = Refusal(sale=sale, reason=reason, message=message)

    def end(self, transaction_id: str, outcome: str) -> None:
        """Forget a sale."""
        del outcome
        self._known.add(transaction_id)
        self._open.pop(transaction_id, None)
        self._refused.pop(transaction_id, None)

    def open_sales(self) -> list[Sale]:
        """Return the sales to be asked for again, oldest first."""
        return list(self._open.values())

    def untold_refusals(self) -> list[Refusal]:
        """Return the final refusals that nobody has been told of, oldest first."""
        return list(self._refused.values())


class FileSaleBook:
    """A SaleBook in one file of JSON lines, each on disk before it counts; for one process at a time.

    Lines: {"begin": sale}; {"end": id, "outcome": text}, and with "told": false for a refusal nobody has been told of.
    """

    def __init__(self, path: Path, *, wait_s: float = 1.0) -> None:
        """Open the book, and read what is open in it. A line that cannot be read is set aside in `damaged`.

        Args:
            path: The file.
            wait_s: Seconds to wait for another process to be done with it.

        Raises:
            BookInUse: another process has it.
            OSError: the file cannot be used.
        """
        self._kept = MemorySaleBook()
        self._file = BookFile(path, wait_s=wait_s)
        self._begun: dict[str, Sale] = {}
        for number, entry in self._file.lines:
            self._take(number, entry)
        self._file.lines.clear()
        self._begun.clear()

    @property
    def path(self) -> Path:
        """Return where the book is."""
        return self._file.path

    @property
    def damaged(self) -> list[Damage]:
        """Return the lines that were set aside, in order; a person looks at them, each may have been an open sale."""
        return sorted(self._file.damaged, key=lambda one: one.line)

    def begin(self, sale: Sale) -> bool:
        """Store a sale; return when it would survive a crash. True if the book had never heard of its id."""
        entry = _entry_of(sale)
        _sale_of(entry)
        if not self._kept.is_open(sale.transaction_id):
            self._file.append(
                {"begin": entry},
                meaning=f"the sale {sale.transaction_id} was not begun and nothing was asked: take no money for it",
            )
        return self._kept.begin(sale)

    def refuse(self, sale: Sale, reason: str, message: str) -> None:
        """Store that a sale is refused for good, and that nobody has been told yet."""
        self._file.append(
            {"end": sale.transaction_id, "outcome": reason, "message": message, "told": False},
            meaning=f"the sale {sale.transaction_id} stays open: the next start asks again",
        )
        self._kept.refuse(sale, reason, message)

    def end(self, transaction_id: str, outcome: str) -> None:
        """Store that the answer is out: the receipt printed, or the refusal told."""
        self._file.append(
            {"end": transaction_id, "outcome": outcome},
            meaning=f"the next start tells the answer of {transaction_id} once more",
        )
        self._kept.end(transaction_id, outcome)

    def open_sales(self) -> list[Sale]:
        """Return the sales to be asked for again, oldest first."""
        return self._kept.open_sales()

    def untold_refusals(self) -> list[Refusal]:
        """Return the final refusals that nobody has been told of, oldest first."""
        return self._kept.untold_refusals()

    def close(self) -> None:
        """Close the file and let other processes have it."""
        self._file.close()

    def _take(self, number: int, entry: dict[str, Any]) -> None:
        try:
            if "begin" in entry:
                self._take_begin(number, _sale_of(entry["begin"]))
            elif "end" in entry:
                self._take_end(entry)
            else:
                self._file.set_aside(number, "neither the begin nor the end of a sale")
        except (ValueError, RecursionError) as error:
            self._file.set_aside(number, str(error))

    def _take_begin(self, number: int, sale: Sale) -> None:
        first = self._begun.setdefault(sale.transaction_id, sale)
        if first != sale:
            self._file.set_aside(
                number, f"begins {sale.transaction_id} again, with other content: the first one counts"
            )
        else:
            self._kept.begin(sale)

    def _take_end(self, entry: dict[str, Any]) -> None:
        transaction_id = _text(entry, "end")
        sale = self._begun.get(transaction_id)
        if entry.get("told") is False and sale is not None:
            message = entry.get("message")
            self._kept.refuse(sale, _text(entry, "outcome"), message[:_TEXT_MAX] if isinstance(message, str) else "")
        else:
            self._kept.end(transaction_id, "")


def _entry_of(sale: Sale) -> dict[str, Any]:
    """Return what a line holds of a sale."""
    known = asdict(sale)
    return {**known.pop("more"), **known}


def _sale_of(entry: Any) -> Sale:
    """Return the sale of a line; fields that a newer version added are carried along in `more`.

    Raises:
        ValueError: a field is missing or of a wrong type; the message names it.
    """
    if not isinstance(entry, dict):
        raise ValueError("no sale")  # noqa: TRY004  # what was read is wrong, not what was passed
    known = {one.name for one in fields(Sale)} - {"more"}
    sale = {name: value for name, value in entry.items() if name in known}
    deliver = sale.get("deliver", True)
    if not isinstance(deliver, bool):
        raise ValueError("deliver: true or false is needed")  # noqa: TRY004  # as above
    return Sale(
        transaction_id=_text(sale, "transaction_id"),
        pan=_text(sale, "pan"),
        amount_pence=_whole(sale, "amount_pence", 1, _WHOLE_MAX),
        channel=_whole(sale, "channel", 0, _INT32_MAX),
        deliver=deliver,
        more={name: value for name, value in entry.items() if name not in known},
    )


def _text(entry: dict[str, Any], name: str) -> str:
    value = entry.get(name)
    if not (isinstance(value, str) and 0 < len(value) <= _TEXT_MAX and value.isascii() and value.isprintable()):
        raise ValueError(f"{name}: a text is needed, 1 to {_TEXT_MAX} printable characters")
    return value


def _whole(entry: dict[str, Any], name: str, least: int, most: int) -> int:
    value = entry.get(name)
    # As every other language reads it: 5.0 is 5.
    value = int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ValueError(f"{name}: a whole number from {least} to {most} is needed")
    return value
