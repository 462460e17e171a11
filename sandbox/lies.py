"""What a head end says that is not so: for drills. It never lies about a code that may be on its way to it.

A false answer to a message that the head end has accepted could not be told from a true one by anybody. What can be
told is false about everything else, and nothing of it may move money: answers to messages that it never had, alerts of
codes that were never issued, numbers out of range, names that are none, old news told again, a sequence that falls,
bytes that nobody can read.
"""

from collections.abc import Callable, Mapping

from headend.v1 import head_end_service_pb2 as pb

from sandbox.knobs import Chance

Lie = pb.StreamEventsResponse | bytes
_Known = Mapping[str, tuple[pb.SendAddCreditRequest, int, pb.Answer | None]]

_CREDIT_ADDED_LOCALLY = 0x810E
_COUNTER_MAX = 2**32 - 1
# So far above what was accepted that no code has been issued under it.
_FAR = 1000
_LONG = 30_000


class Liar:
    """Makes lies."""

    def __init__(self, chance: Chance) -> None:
        self._chance = chance

    def event(self, message: pb.SendAddCreditRequest, known: _Known) -> tuple[str, Lie]:
        """Return a lie to be told just before the answer to `message`, and the name of its kind.

        The code after that of `message` can be lied about: it is not sent before `message` is answered.
        """
        after = message.utrn_counter + 1
        lies: dict[str, Callable[[], Lie]] = {
            "applied, never sent": lambda: _answer(_id(message, after), pb.ADD_CREDIT_OUTCOME_APPLIED),
            "duplicate, never sent": lambda: _answer(_id(message, after), pb.ADD_CREDIT_OUTCOME_DUPLICATE),
            "credited, under a guessed id": lambda: _answer(_id(message, message.utrn_counter), 1),
            "another meter": lambda: _answer(_id(message, after + _FAR, self._other(message, known)), 1),
            "credit never issued": lambda: _alert(message, self._chance.pick((after + _FAR, _COUNTER_MAX))),
            "out of range": lambda: self._out_of_range(message),
            "too large": lambda: self._chance.pick((_answer("f" * _LONG, 1), _large_alert(message))),
            "told again": lambda: self._again(known),
            "sequence fell": lambda: pb.StreamEventsResponse(sequence=1),
            "unreadable": self.unreadable,
        }
        kind = self._chance.pick(tuple(lies))
        return kind, lies[kind]()

    def status(self) -> pb.GetMessageStatusResponse | bytes:
        """Return a false reply to a question about any message."""
        other = _answer(f"{'0' * 16}:{'0' * 16}:{1 << 32}:{'0' * 32}", pb.ADD_CREDIT_OUTCOME_APPLIED).answer
        if self._chance.happens(0.5):
            return self.unreadable()
        return pb.GetMessageStatusResponse(state=pb.MESSAGE_STATE_ANSWERED, answer=other)

    def unreadable(self) -> bytes:
        """Return bytes that are no message, or one whose text is none."""
        return self._chance.pick((b"\xff" * 9, b"\x0a\x7f", b"\x12\x04\x0a\x02\xc3\x28"))

    def _again(self, known: _Known) -> Lie:
        """Return an answer that was told before, to a message that has had its answer."""
        told = [answer for _, state, answer in known.values() if state == pb.MESSAGE_STATE_ANSWERED and answer]
        return pb.StreamEventsResponse(answer=self._chance.pick(told)) if told else self.unreadable()

    def _other(self, message: pb.SendAddCreditRequest, known: _Known) -> str:
        others = sorted({one.meter_id for one, _, _ in known.values()} - {message.meter_id})
        return self._chance.pick(others) if others else "0" * 16

    def _out_of_range(self, message: pb.SendAddCreditRequest) -> Lie:
        odd = _alert(message, message.utrn_counter)
        return self._chance.pick(
            (
                _answer("no message id", 1),
                _answer(_id(message, 0), 1),
                pb.StreamEventsResponse(alert=pb.Alert(meter_id=message.meter_id, alert_code=_COUNTER_MAX)),
                pb.StreamEventsResponse(alert=pb.Alert(meter_id="METER; DROP", alert_code=odd.alert.alert_code)),
                _answer(_id(message, message.utrn_counter + _FAR), 99),
            )
        )


def _id(message: pb.SendAddCreditRequest, counter: int, meter_id: str = "") -> str:
    """Return an id that was never sent: what is random in it can only be guessed."""
    return f"{message.originator_id}:{meter_id or message.meter_id}:{counter << 32}:{'0' * 32}"


def _answer(message_id: str, outcome: int) -> pb.StreamEventsResponse:
    answer = pb.Answer(message_id=message_id, outcome=pb.AddCreditOutcome.ValueType(outcome))
    return pb.StreamEventsResponse(answer=answer)


def _alert(message: pb.SendAddCreditRequest, counter: int) -> pb.StreamEventsResponse:
    return pb.StreamEventsResponse(
        alert=pb.Alert(
            meter_id=message.meter_id,
            alert_code=_CREDIT_ADDED_LOCALLY,
            utrn_counter=counter,
            originator_id=message.originator_id,
        )
    )


def _large_alert(message: pb.SendAddCreditRequest) -> pb.StreamEventsResponse:
    alert = _alert(message, message.utrn_counter)
    alert.alert.originator_id = "f" * _LONG
    return alert
