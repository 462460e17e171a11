"""The history of a run as callers saw it: every call, its beginning, its end and its outcome; kept as JSON lines."""

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from core.domain.errors import FENCED, IF_FIRST

__all__ = ["FENCED", "IF_FIRST", "Call", "CallKey", "History", "read_history", "successes"]

# Who sold, and under which id: ids are unique for each participant only.
CallKey = tuple[str, str]


@dataclass(slots=True, kw_only=True)
class Call:
    """One attempt of one caller. Times are monotonic seconds.

    `outcome`: "ok", "refused", or "unknown" (it may have been carried out, or may yet be). `content`: what else must be
    the same for two sales to be one, besides the amount. `digest`: of all bytes of the answer that must never differ.
    `final` of a refusal: FENCED, IF_FIRST, or "" if it says nothing of the sale. `repeat`: it said that it was one.
    """

    caller: str
    participant: str
    transaction_id: str
    content: str
    amount_pence: int
    began: float
    ended: float | None = None
    outcome: str = "unknown"
    reason: str = ""
    utrn: str = ""
    digest: str = ""
    replayed: bool = False
    repeat: bool = False
    final: str = ""

    @property
    def key(self) -> CallKey:
        """Return what names the sale."""
        return self.participant, self.transaction_id


class History:
    """Collects calls, and writes each one down when it begins and when it ends."""

    def __init__(self, file: Path | None = None) -> None:
        self.calls: list[Call] = []
        self._numbers: dict[int, int] = {}
        self._file: TextIO | None = file.open("a", encoding="utf-8") if file is not None else None

    def begin(
        self, caller: str, key: CallKey, content: str, amount_pence: int, *, repeat: bool, at: float | None = None
    ) -> Call:
        """Note that a call begins."""
        call = Call(
            caller=caller,
            participant=key[0],
            transaction_id=key[1],
            content=content,
            amount_pence=amount_pence,
            repeat=repeat,
            began=time.monotonic() if at is None else at,
        )
        self.calls.append(call)
        self._write("begin", call)
        return call

    def answered(self, call: Call, *, utrn: str, content: bytes, replayed: bool, at: float | None = None) -> None:
        """Note that a call was answered with a code."""
        call.outcome, call.utrn, call.replayed = "ok", utrn, replayed
        call.digest = hashlib.sha256(content).hexdigest()
        self._end(call, at)

    def refused(self, call: Call, reason: str, *, final: str, at: float | None = None) -> None:
        """Note that a call was refused: FENCED, or IF_FIRST."""
        call.outcome, call.reason, call.final = "refused", reason, final
        self._end(call, at)

    def unknown(self, call: Call, reason: str, *, at: float | None = None) -> None:
        """Note that a call got no answer that says what happened."""
        call.reason = reason
        self._end(call, at)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _end(self, call: Call, at: float | None) -> None:
        call.ended = time.monotonic() if at is None else at
        self._write("end", call)

    def _write(self, event: str, call: Call) -> None:
        if self._file is not None:
            number = self._numbers.setdefault(id(call), len(self._numbers))
            self._file.write(json.dumps({"event": event, "call": number, **asdict(call)}) + "\n")


def read_history(file: Path) -> list[Call]:
    """Return the calls of a history's file, each as it was last written: one without an end is of unknown outcome.

    Raises:
        OSError: it cannot be read.
        ValueError: a line is not of a history.
    """
    calls: dict[int, Call] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        facts = json.loads(line)
        del facts["event"]
        number = facts.pop("call")
        calls[number] = Call(**facts)
    return [calls[number] for number in sorted(calls)]


def successes(calls: Iterable[Call]) -> list[float]:
    """Return when callers got codes, in order."""
    return sorted(call.ended for call in calls if call.outcome == "ok" and call.ended is not None)
