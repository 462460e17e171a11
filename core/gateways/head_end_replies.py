"""What a head end says -> what the core believes it to have said. Whatever is out of bounds is set aside, by name.

A head end is another company's program. Its replies are bounded in alphabet, size and range here, before anything else
sees them; none of them, whatever it holds, may raise anything but `OutOfBounds`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from google.protobuf.message import DecodeError, Message
from headend.v1 import head_end_service_pb2 as pb

from core.domain.message_id import parse_message_id
from core.domain.meter import MeterId, OriginatorId
from core.domain.utrn import Counter
from core.ports.head_end import Alert, Answer, AnswerKind, Capabilities, GivenUp, HeadEndEvent, MessageState

_M = TypeVar("_M", bound=Message)
# The largest honest event is an answer of about 150 bytes.
EVENT_BYTES_MAX: Final = 4096
# GBCS alert codes are 16 bits. Source: GBCS, device alerts.
_ALERT_CODE_MAX = 0xFFFF
_NAME_MAX = 100
_EUI64 = re.compile(r"[0-9a-f]{16}", re.ASCII)
_ANSWERS = {
    pb.ADD_CREDIT_OUTCOME_APPLIED: AnswerKind.APPLIED,
    pb.ADD_CREDIT_OUTCOME_DUPLICATE: AnswerKind.DUPLICATE,
    pb.ADD_CREDIT_OUTCOME_MAX_CREDIT: AnswerKind.MAX_CREDIT,
    pb.ADD_CREDIT_OUTCOME_MAX_BALANCE: AnswerKind.MAX_BALANCE,
    pb.ADD_CREDIT_OUTCOME_INVALID: AnswerKind.NOT_AUTHENTIC,
    pb.ADD_CREDIT_OUTCOME_REFUSED_UNEXPLAINED: AnswerKind.UNEXPLAINED,
    pb.ADD_CREDIT_OUTCOME_TEMPORARY_FAILURE: AnswerKind.TEMPORARY_FAILURE,
}


class OutOfBounds(Exception):
    """A reply that the core sets aside. `why` is one of a few fixed words: it labels a metric."""

    def __init__(self, why: str) -> None:
        """Keep why."""
        super().__init__(why)
        self.why = why


@dataclass(frozen=True, slots=True)
class Reply(Generic[_M]):
    """A reply as it came: the message, or why there is none."""

    message: _M | None
    why: str = ""

    def read(self) -> _M:
        """Return the message; raise OutOfBounds if there is none."""
        if self.message is None:
            raise OutOfBounds(self.why)
        return self.message


def reader(kind: type[_M]) -> Callable[[bytes], Reply[_M]]:
    """Return what reads replies of a kind without ever raising: gRPC ends a whole stream on one that raises."""

    def read(raw: bytes) -> Reply[_M]:
        if len(raw) > EVENT_BYTES_MAX:
            return Reply(None, "too large")
        try:
            return Reply(kind.FromString(raw))
        except DecodeError:
            return Reply(None, "not readable")

    return read


def event_of(reply: pb.StreamEventsResponse) -> HeadEndEvent | None:
    """Return the event of a reply; None for a sign of life and for what this version does not know.

    Raises:
        OutOfBounds: set it aside.
    """
    match reply.WhichOneof("event"):
        case "answer":
            return answer_of(reply.answer)
        case "alert":
            return _alert_of(reply.alert)
        case "given_up":
            return given_up_of(reply.given_up.message_id, reply.given_up.state)
        case _:
            return None


def answer_of(answer: pb.Answer) -> Answer | None:
    """Return a meter's answer; None for an outcome that this version does not know: silence proves nothing either.

    Raises:
        OutOfBounds: set it aside.
    """
    _check_message_id(answer.message_id)
    kind = _ANSWERS.get(answer.outcome)
    return None if kind is None else Answer(message_id=answer.message_id, kind=kind)


def given_up_of(message_id: str, state: int) -> GivenUp:
    """Return what is told of a message given up; raise OutOfBounds if that is none."""
    _check_message_id(message_id)
    return GivenUp(message_id=message_id, maybe_applied=state == pb.MESSAGE_STATE_NO_ANSWER)


def status_of(reply: pb.GetMessageStatusResponse, message_id: str) -> Answer | GivenUp | MessageState:
    """Return where the message asked about stands.

    Raises:
        OutOfBounds: the reply speaks of another message.
    """
    match reply.state:
        case pb.MESSAGE_STATE_ANSWERED:
            if reply.answer.message_id != message_id:
                raise OutOfBounds("another message")
            return answer_of(reply.answer) or MessageState.NOT_KNOWN
        case pb.MESSAGE_STATE_NOT_DELIVERED | pb.MESSAGE_STATE_NO_ANSWER:
            return given_up_of(message_id, reply.state)
        case pb.MESSAGE_STATE_IN_FLIGHT:
            return MessageState.IN_FLIGHT
        case _:
            return MessageState.NOT_KNOWN


def capabilities_of(reply: pb.GetCapabilitiesResponse) -> Capabilities:
    """Return what a head end can do."""
    return Capabilities(
        name="".join(
            character for character in reply.name[:_NAME_MAX] if character.isascii() and character.isprintable()
        ),
        dedupes_by_message_id=reply.dedupes_by_message_id,
        status_by_message_id=reply.status_by_message_id,
        alerts_name_counter=reply.alerts_name_counter,
        in_flight_max=reply.in_flight_max,
        fences_by_epoch=reply.fences_by_epoch,
        honours_not_after=reply.honours_not_after,
    )


def _alert_of(alert: pb.Alert) -> Alert:
    if not _EUI64.fullmatch(alert.meter_id):
        raise OutOfBounds("meter id")
    if alert.originator_id and not _EUI64.fullmatch(alert.originator_id):
        raise OutOfBounds("originator id")
    if not 0 < alert.alert_code <= _ALERT_CODE_MAX:
        raise OutOfBounds("alert code")
    # Half a name of a code names none.
    named = bool(alert.originator_id and alert.utrn_counter)
    return Alert(
        meter_id=MeterId(alert.meter_id),
        alert_code=alert.alert_code,
        originator_id=OriginatorId(alert.originator_id) if named else None,
        counter=Counter(alert.utrn_counter) if named else None,
    )


def _check_message_id(message_id: str) -> None:
    if parse_message_id(message_id) is None:
        raise OutOfBounds("message id")
