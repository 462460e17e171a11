"""What the messages of every effective-dated record share: instants, periods, and what became of a change."""

from typing import Any

from google.protobuf import timestamp_pb2
from utrn.v1 import types_pb2

from core.api.validation import (
    instant,
)
from core.domain.effective_dated import Ms, Period
from core.transaction import Written


def stamp(ms: int | None) -> timestamp_pb2.Timestamp | None:
    """Return milliseconds as a timestamp."""
    if ms is None:
        return None
    timestamp = timestamp_pb2.Timestamp()
    timestamp.FromMilliseconds(ms)
    return timestamp


def since_of(request: object, name: str = "since", *, now: Ms | None = None) -> Ms | None:
    """Return a request's instant, at most 10 years ahead of `now`; None for at once."""
    has = request.HasField(name)  # type: ignore[attr-defined]
    return instant(getattr(request, name), name, now=now) if has else None


def result_message(written: Written) -> types_pb2.ChangeResult:
    """Return what became of a change."""
    return types_pb2.ChangeResult(revision=written.revision, changed=written.changed)


def period_message(period: Period[Any]) -> types_pb2.EffectivePeriod:
    """Return when something holds, and who recorded it."""
    return types_pb2.EffectivePeriod(
        since=stamp(period.since), until=stamp(period.until), recorded_at=stamp(period.recorded_at),
        recorded_by=period.recorded_by,
    )  # fmt: skip
