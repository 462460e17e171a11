"""SalesCheck: holds the ledger's vends against the audit files of the nodes that sold them.

Whoever can write to etcd can change what a vend is worth, whose it is, or its digits; the files say what was sold.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from core.domain.participant import ParticipantId
from core.domain.refusal import ClosedRefusal
from core.domain.transaction_id import TransactionId
from core.domain.vend import Operation, Vend
from core.gateways.audit_log_format import SOLD, utrn_hash
from core.gateways.audit_log_reader import Verdict
from core.ports.audit_anchors import AnchorState

VendKey = tuple[ParticipantId, TransactionId]

_SALES = frozenset(one.name for one in Operation if one is not Operation.DELIVER)
# A node that lives seals a block at least every five seconds, and what it notes within 0.2 s: what was sold later after
# the last block of a node that died than this is not excused by its death.
_DIED_WITHIN = timedelta(seconds=7)


class _Sold(NamedTuple):
    """What a file says of a sale. `key` is that of the file; `utrn` the digits, hashed with it."""

    pence: int
    channel: int
    meter: str
    supplier: str
    originator: str
    counter: int
    utrn: str
    revision: int
    key: bytes


class _Allowed(NamedTuple):
    """What a file says of the decision before it."""

    pence: int
    channel: int
    meter: str


@dataclass(slots=True)
class Found:
    """What the comparison has come to.

    Attributes:
        compared: Vends that are as they were sold.
        without_digits: Of these, those whose digits no file tells: their node died as it sold them.
        excused: Vends that no file knows, of the last seconds of a node that died.
        not_judged: Vends that no file knows, and a file that is not here or goes on may.
        problems: One sentence for each vend that is not what was sold.
    """

    compared: int = 0
    without_digits: int = 0
    excused: int = 0
    not_judged: int = 0
    problems: list[str] = field(default_factory=list)


class SalesCheck:
    """Takes in the lines of audit files, then the vends."""

    def __init__(self, *, every_file: bool) -> None:
        """Say whether every anchored file will be taken in: only then a vend that none knows is one too many."""
        self._every_file = every_file
        self._allowed: dict[tuple[str, str], list[_Allowed]] = defaultdict(list)
        self._sold: dict[tuple[str, str], list[_Sold]] = defaultdict(list)
        self._open_until: datetime | None = None
        self._died: list[datetime] = []

    def line(self, one: dict[str, Any], key: bytes) -> None:
        """Take in a line of a file whose digits are hashed with `key`."""
        sale = one["caller"], one["ask"]
        if one["act"] == SOLD:
            said = _Sold(
                pence=one["pence"],
                channel=one["channel"],
                meter=one["subject"],
                supplier=one["supplier"],
                originator=one["originator"],
                counter=one["counter"],
                utrn=one["utrn"],
                revision=one["revision"],
                key=key,
            )
            self._sold[sale].append(said)
        elif one["act"] in _SALES and one["outcome"] == "allowed":
            self._allowed[sale].append(_Allowed(one["pence"], one.get("channel", 0), one["subject"]))

    def file(self, said: Verdict) -> None:
        """Take in how far a file goes."""
        try:
            until = datetime.fromisoformat(said.sealed_at)
        except ValueError:
            return
        if said.state is AnchorState.OPEN:
            self._open_until = until if self._open_until is None else min(until, self._open_until)
        elif said.state is AnchorState.DIED:
            self._died.append(until)

    def compare(self, held: Iterable[tuple[VendKey, Vend | ClosedRefusal | None]], revision: int) -> Found:
        """Return what is not as it was sold, in the ledger as of `revision`."""
        found, seen = Found(), set[tuple[str, str]]()
        for key, one in held:
            if one is None:
                found.problems.append(f"{_name(key)}: what the ledger has cannot be read")
                seen.add(key)
            elif isinstance(one, Vend):
                seen.add(key)
                self._compare(found, key, one)
        for sale, lines in self._sold.items():
            if sale not in seen and any(0 < line.revision <= revision for line in lines):
                found.problems.append(f"{_name(sale)}: was sold, and is not in the ledger")
        return found

    def _compare(self, found: Found, key: VendKey, vend: Vend) -> None:
        if (vend.sale.participant_id, vend.sale.transaction_id) != key:
            found.problems.append(f"{_name(key)}: names another participant or id in itself")
        elif key in self._sold:
            differing = min((_differing(line, vend) for line in self._sold[key]), key=len)
            self._count(found, key, differing, digits=all(line.key for line in self._sold[key]))
        elif key in self._allowed:
            differing = min((_not_as_allowed(line, vend) for line in self._allowed[key]), key=len)
            self._count(found, key, differing, digits=False)
        elif not self._every_file or (self._open_until is not None and vend.issued_at > self._open_until):
            found.not_judged += 1
        elif any(timedelta() < vend.issued_at - until < _DIED_WITHIN for until in self._died):
            found.excused += 1
        else:
            found.problems.append(f"{_name(key)}: no file has a decision to sell it")

    @staticmethod
    def _count(found: Found, key: VendKey, differing: list[str], *, digits: bool) -> None:
        if differing:
            found.problems.append(f"{_name(key)}: not as it was sold: {', '.join(differing)}")
            return
        found.compared += 1
        found.without_digits += not digits


def _differing(line: _Sold, vend: Vend) -> list[str]:
    pairs = {
        "amount": (line.pence, vend.sale.amount),
        "channel": (line.channel, int(vend.sale.channel)),
        "meter": (line.meter, vend.meter_id),
        "supplier": (line.supplier, vend.supplier_id),
        "originator": (line.originator, vend.originator_id),
        "counter": (line.counter, vend.counter),
        "digits": (line.utrn, utrn_hash(line.key, vend.utrn) if line.key else line.utrn),
    }
    return [name for name, (sold, held) in pairs.items() if sold != held]


def _not_as_allowed(line: _Allowed, vend: Vend) -> list[str]:
    pairs = {
        "amount": (line.pence, vend.sale.amount),
        # A credit has no channel, and older files say none.
        "channel": (line.channel or int(vend.sale.channel), int(vend.sale.channel)),
        "meter": (line.meter, vend.meter_id),
    }
    return [name for name, (allowed, held) in pairs.items() if allowed != held]


def _name(key: tuple[str, str]) -> str:
    return f"vend {key[0]}/{key[1]}"
