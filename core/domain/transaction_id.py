"""TransactionId: the UUIDv7 a caller gives its vend; it carries its own time, so a pruned id can never run again."""

import re
from datetime import UTC, datetime, timedelta
from typing import NewType

from core.domain.errors import BadField, TransactionIdFromFuture, TransactionIdTooOld

TransactionId = NewType("TransactionId", str)

# RFC 9562 section 5.7: 48 bits of Unix milliseconds, version 7, variant 10.
_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.ASCII)


def parse_transaction_id(text: str, *, field: str = "transaction_id") -> TransactionId:
    """Return `text` as a transaction id.

    Raises:
        BadField: not a UUIDv7 in lower case.

    Source: RFC 9562 section 5.7.
    """
    if not _UUID7.fullmatch(text):
        raise BadField(f"{field}: a UUIDv7 in 36 lower-case characters is needed", field=field)
    return TransactionId(text)


def made_at_ms(transaction_id: TransactionId) -> int:
    """Return the Unix milliseconds at which the id was made, by the clock that made it."""
    return int(transaction_id[:8] + transaction_id[9:13], 16)


def check_window(
    transaction_id: TransactionId, *, now: datetime, wall: datetime, window: timedelta, ahead: timedelta
) -> None:
    """Return if the id may be executed at `now`: not older than `window`, not more than `ahead` in the future.

    How old it is, cluster time says, which is `now`. It is from the future only if it is ahead of both cluster time and
    this node's wall clock: where the two disagree, one of them is wrong, and the refusal would be for good.

    Raises:
        TransactionIdTooOld, TransactionIdFromFuture: never repeat.
    """
    age_ms = int(now.timestamp() * 1000) - made_at_ms(transaction_id)
    if age_ms > window / timedelta(milliseconds=1):
        made = datetime.fromtimestamp(made_at_ms(transaction_id) / 1000, tz=UTC)
        raise TransactionIdTooOld(
            f"transaction_id was made at {made:%Y-%m-%dT%H:%M:%SZ}, before the hot window of {window.days} days; "
            "look the sale up in the archive",
            window_days=window.days,
        )
    age_ms = int(max(now, wall).timestamp() * 1000) - made_at_ms(transaction_id)
    if -age_ms > ahead / timedelta(milliseconds=1):
        raise TransactionIdFromFuture(
            f"transaction_id was made {-age_ms // 1000} s in the future; set the clock of the machine that makes ids",
            ahead_max_s=int(ahead.total_seconds()),
        )


def make_transaction_id(unix_ms: int, chance: int) -> TransactionId:
    """Return a new id made at `unix_ms`, told apart from others of that millisecond by 74 bits of `chance`.

    Source: RFC 9562 section 5.7.
    """
    number = (unix_ms & (2**48 - 1)) << 80
    number |= 0x7 << 76 | (chance >> 62 & 0xFFF) << 64
    number |= 0b10 << 62 | chance & (2**62 - 1)
    digits = f"{number:032x}"
    return TransactionId(f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}")
