"""Periods and timelines as they are stored: what every record of the registry shares."""

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Protocol, TypeVar

from utrn.store.v1 import records_pb2 as pb

from core.domain.effective_dated import EffectiveDated, Period

# A named tuple made by its own name takes twice as long, and every request makes a dozen.
_new = tuple.__new__
_T = TypeVar("_T")
_S = TypeVar("_S", bound=IntEnum)


class _Dated(Protocol):
    since: int
    until: int
    recorded_at: int
    recorded_by: str


_D = TypeVar("_D", bound=_Dated)


def dates_of(period: Period[object]) -> dict[str, object]:
    """Return the fields of a stored period that every kind has: its dates, and who recorded it when."""
    return {
        "since": period.since,
        "until": period.until or 0,
        "recorded_at": period.recorded_at,
        "recorded_by": period.recorded_by,
    }


def timeline_of(records: Sequence[_D], value: Callable[[_D], _T]) -> EffectiveDated[_T]:
    """Return the timeline of stored periods; `value` reads what is of one kind."""
    if len(records) == 1:
        # As of nearly every meter and PAN; each request reads three of them.
        one = records[0]
        fields = (value(one), one.since, one.until or None, one.recorded_at, one.recorded_by)
        timeline: EffectiveDated[_T] = _new(EffectiveDated, ((_new(Period, fields),),))
        return timeline
    return EffectiveDated(
        tuple(
            [
                # Instants are plain numbers in both worlds; NewType's call would cost as much as reading one.
                Period(value(record), record.since, record.until or None, record.recorded_at, record.recorded_by)  # type: ignore[arg-type]
                for record in records
            ]
        )
    )


def states_of(timeline: EffectiveDated[_S]) -> list[pb.StatePeriod]:
    """Return a timeline of states as it is stored."""
    return [pb.StatePeriod(state=period.value, **dates_of(period)) for period in timeline.periods]  # type: ignore[arg-type]
