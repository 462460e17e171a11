"""HeadEnd: carries one code to one meter, and hears what became of it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from typing import Protocol

from core.domain.meter import MeterId, MeterKind, OriginatorId
from core.domain.utrn import Counter, Utrn


@dataclass(frozen=True, slots=True, kw_only=True)
class AddCredit:
    """One code for one meter. Same code, same `message_id`, on every attempt.

    `owner_epoch` and `not_after` are of this attempt: who sends it, and until when it may be accepted or begun to be
    carried to the meter. A head end refuses what is older than what it has seen, and what comes too late.
    """

    message_id: str
    meter_id: MeterId
    meter_kind: MeterKind
    originator_id: OriginatorId
    counter: Counter
    utrn: Utrn
    owner_epoch: int
    not_after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Capabilities of the head end; see headend.v1.GetCapabilitiesResponse."""

    name: str
    dedupes_by_message_id: bool
    status_by_message_id: bool
    alerts_name_counter: bool
    in_flight_max: int
    fences_by_epoch: bool = False
    honours_not_after: bool = False


class AnswerKind(Enum):
    """A meter's answer to a code."""

    APPLIED = auto()
    DUPLICATE = auto()
    MAX_CREDIT = auto()
    MAX_BALANCE = auto()
    NOT_AUTHENTIC = auto()
    UNEXPLAINED = auto()
    TEMPORARY_FAILURE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A meter's answer to a message."""

    message_id: str
    kind: AnswerKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """A meter's alert. `counter` and `originator_id` are None where the head end cannot tell which code is meant."""

    meter_id: MeterId
    alert_code: int
    originator_id: OriginatorId | None
    counter: Counter | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """The head end stopped trying. `maybe_applied`: the code was sent and no answer came."""

    message_id: str
    maybe_applied: bool


@dataclass(frozen=True, slots=True)
class Numbered:
    """A meter's word with the number of its event; None for an event of another kind, or a sign of life."""

    sequence: int
    said: Answer | Alert | None = None


@dataclass(frozen=True, slots=True)
class StreamRestored:
    """The event stream works (again); events may have been missed: ask for the status of what is open."""


HeadEndEvent = Answer | Alert | GivenUp | StreamRestored


class MessageState(Enum):
    """Where a message stands when no answer is known."""

    NOT_KNOWN = auto()
    IN_FLIGHT = auto()


class HeadEnd(Protocol):
    """One head end. It may lose, repeat and reorder anything, and what it says is not believed beyond its bounds."""

    @property
    def available(self) -> bool:
        """True while its event stream works. Nothing is sent to a head end that could not answer."""
        ...

    async def capabilities(self) -> Capabilities:
        """Return what it can do.

        Raises:
            HeadEndUnavailable: repeat.
        """
        ...

    async def send(self, message: AddCredit) -> None:
        """Hand over `message`; return once the head end has stored it.

        Raises:
            HeadEndUnavailable: it may or may not have been stored; send the same message again.
            HeadEndRefused: it will never be carried.
            HeadEndStale: it was not stored: it came too late, or from an owner that has been replaced.
        """
        ...

    async def status(self, message_id: str) -> Answer | GivenUp | MessageState:
        """Return where a message stands; only if the head end can be asked.

        Raises:
            HeadEndUnavailable: repeat.
        """
        ...

    def said(self, after: int) -> AsyncIterator[Numbered]:
        """Return every event that is kept after number `after`, in order, then each as it comes. For any reader.

        A number below the one before it says that the head end has begun to count anew, and tells again all it keeps.

        Raises:
            HeadEndUnavailable: ask again from the last number on.
        """
        ...

    def events(self) -> AsyncIterator[HeadEndEvent]:
        """Return answers and alerts as they come, for ever; a lost connection is resumed. For one reader."""
        ...
