"""Step 3: same transaction id, same answer; repeats in flight wait for the first, recent answers come from memory."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from core.domain.participant import ParticipantId
from core.domain.refusal import ClosedRefusal
from core.domain.transaction_id import TransactionId
from core.domain.vend import Sale, check_same
from core.ports.ledger import Found, StoredVend

VendKey = tuple[ParticipantId, TransactionId]
# The revision of a vend's record, 0 of a refusal; and the record as the ledger has it.
Packed = tuple[int, bytes]
Pack = Callable[[Found], Packed]
Unpack = Callable[[Packed], Found]


@dataclass(frozen=True, slots=True)
class Issued:
    """The committed answer of a vend. `replayed`: it had been committed before this request."""

    stored: StoredVend
    replayed: bool


class NotCommitted(Enum):
    """Why a vend was not committed though no error occurred."""

    # A record that it was based on has moved, or its permit ran out while it waited.
    AUTHORIZE_AGAIN = auto()


VendAnswer = Issued | NotCommitted


def key_of(sale: Sale) -> VendKey:
    """Return what names the vend of `sale`."""
    return sale.participant_id, sale.transaction_id


class RecentVends:
    """The vends that this node is committing, and its recent answers.

    A vend's code can never change, nor can the refusal that closed an id, so memory is as good as the ledger; a
    delivery kept here may be old, and whoever writes on it compares its revision.

    `pack` makes a kept answer small and uninteresting to the garbage collector: a collection of all that lives stops
    the node, and must not last longer the more was sold (docs/decisions/0036).
    """

    def __init__(self, *, recent_max: int, pack: Pack, unpack: Unpack) -> None:
        self._recent_max = recent_max
        self._pack = pack
        self._unpack = unpack
        self._recent: OrderedDict[VendKey, Packed] = OrderedDict()
        self._in_doubt: set[VendKey] = set()
        self._in_flight: dict[VendKey, tuple[Sale, asyncio.Future[VendAnswer]]] = {}

    def recent(self, key: VendKey) -> Found | None:
        """Return what is under an id, its delivery as it lately was; None if the ledger must be asked."""
        packed = self._recent.get(key)
        return None if packed is None else self._unpack(packed)

    def fresh(self, key: VendKey) -> StoredVend | None:
        """Return the vend of an id as it lately was, unless its delivery is in doubt."""
        found = None if key in self._in_doubt else self.recent(key)
        return found if isinstance(found, StoredVend) else None

    def remember(self, found: Found) -> None:
        """Keep what is under an id for its next repeat."""
        if isinstance(found, ClosedRefusal):
            key = found.participant_id, found.transaction_id
        else:
            key = key_of(found.vend.sale)
        self._recent[key] = self._pack(found)
        self._in_doubt.discard(key)
        if len(self._recent) > self._recent_max:
            oldest, _ = self._recent.popitem(last=False)
            self._in_doubt.discard(oldest)

    def doubt(self, key: VendKey) -> None:
        """Mark a vend's delivery as possibly old: the ledger is read before it is relied on. The code never changes."""
        if key in self._recent:
            self._in_doubt.add(key)

    def in_flight(self, key: VendKey) -> tuple[Sale, asyncio.Future[VendAnswer]] | None:
        """Return the earlier request for the same vend and the answer that it is waiting for, or None."""
        return self._in_flight.get(key)

    def begin(self, sale: Sale, answer: asyncio.Future[VendAnswer]) -> None:
        """Register `answer` as the future that repeats of `sale` wait for."""
        key = key_of(sale)
        self._in_flight[key] = (sale, answer)
        answer.add_done_callback(lambda _: self._in_flight.pop(key, None))


def replay(sale: Sale, found: Found) -> Issued:
    """Return the answer that `sale` got when it was committed.

    Raises:
        TransactionIdReused: the committed vend has other content.
        Refused: fenced: the id was closed, whatever its content.
    """
    if isinstance(found, ClosedRefusal):
        raise found.error()
    check_same(sale, found.vend.sale)
    return Issued(found, replayed=True)
