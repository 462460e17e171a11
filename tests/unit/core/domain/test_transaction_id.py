"""UUIDv7: what is one, and when one may still be executed."""

from datetime import UTC, datetime, timedelta

import pytest

from core.domain.errors import BadField, TransactionIdFromFuture, TransactionIdTooOld
from core.domain.transaction_id import TransactionId, check_window, made_at_ms, parse_transaction_id

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
WINDOW, AHEAD = timedelta(days=30), timedelta(minutes=5)


def _made_at(instant: datetime) -> TransactionId:
    head = f"{int(instant.timestamp() * 1000):012x}"
    return parse_transaction_id(f"{head[:8]}-{head[8:]}-7abc-8def-0123456789ab")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0" * 36,
        "019ab3d2-8a00-4abc-8def-0123456789ab",
        "019ab3d2-8a00-7abc-cdef-0123456789ab",
        "019AB3D2-8A00-7ABC-8DEF-0123456789AB",
        "019ab3d28a007abc8def0123456789ab",
        "019ab3d2-8a00-7abc-8def-0123456789ab ",
        "019ab3d2-8a00-7abc-8def-0123456789ab\n",
    ],
)
def test_what_is_no_uuid7_is_refused(text: str) -> None:
    with pytest.raises(BadField):
        parse_transaction_id(text)


def test_an_id_tells_when_it_was_made() -> None:
    assert made_at_ms(_made_at(NOW)) == int(NOW.timestamp() * 1000)


@pytest.mark.parametrize("age", [-AHEAD, timedelta(0), WINDOW])
def test_an_id_inside_the_window_may_be_executed(age: timedelta) -> None:
    check_window(_made_at(NOW - age), now=NOW, wall=NOW, window=WINDOW, ahead=AHEAD)


def test_an_id_older_than_the_window_may_not_be_executed() -> None:
    with pytest.raises(TransactionIdTooOld, match="archive"):
        check_window(_made_at(NOW - WINDOW - timedelta(milliseconds=1)), now=NOW, wall=NOW, window=WINDOW, ahead=AHEAD)


def test_an_id_from_the_future_may_not_be_executed() -> None:
    with pytest.raises(TransactionIdFromFuture, match="clock"):
        check_window(_made_at(NOW + AHEAD + timedelta(milliseconds=1)), now=NOW, wall=NOW, window=WINDOW, ahead=AHEAD)


@pytest.mark.parametrize("off", [timedelta(hours=-1), timedelta(hours=1), timedelta(days=-2), timedelta(days=2)])
def test_a_wrong_clock_of_the_two_makes_no_right_id_one_from_the_future(off: timedelta) -> None:
    check_window(_made_at(NOW + AHEAD), now=NOW, wall=NOW + off, window=WINDOW, ahead=AHEAD)
    check_window(_made_at(NOW + AHEAD), now=NOW + off, wall=NOW, window=WINDOW, ahead=AHEAD)
    late = _made_at(max(NOW, NOW + off) + AHEAD + timedelta(milliseconds=1))
    with pytest.raises(TransactionIdFromFuture):
        check_window(late, now=NOW, wall=NOW + off, window=WINDOW, ahead=AHEAD)


def test_how_old_an_id_is_the_wall_clock_does_not_say() -> None:
    old, ahead = _made_at(NOW - WINDOW), NOW + timedelta(days=2)
    check_window(old, now=NOW, wall=ahead, window=WINDOW, ahead=AHEAD)
    with pytest.raises(TransactionIdTooOld):
        check_window(old, now=ahead, wall=NOW, window=WINDOW, ahead=AHEAD)
