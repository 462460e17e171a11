"""Step 8: what an answer, an alert or a silence says about one delivery. Pure decisions; `deliver.py` acts on them."""

from dataclasses import dataclass
from enum import Enum, auto

from core.domain.delivery import DeliveryReason, DeliveryState
from core.domain.vend import Vend
from core.ports.head_end import Alert, Answer, AnswerKind, GivenUp

# GBCS alert codes that speak of one code. Source: GBCS, device alerts.
CREDIT_ADDED_LOCALLY = 0x810E
DUPLICATE_UTRN = 0x8F51
NOT_AUTHENTIC = 0x8F63
NOT_FOR_THIS_DEVICE = 0x8F64
EXCEEDS_MAX_CREDIT = 0x8F5B
EXCEEDS_MAX_BALANCE = 0x8F47


@dataclass(frozen=True, slots=True)
class Ended:
    """The delivery ends so."""

    state: DeliveryState
    reason: DeliveryReason


class Next(Enum):
    """What to do when the delivery has not ended."""

    WAIT = auto()
    EXPLAIN = auto()
    TRY_AGAIN = auto()
    # The head end's stream broke and is back: an answer may have been lost, and nothing is known to have failed.
    ASK_AGAIN = auto()


Verdict = Ended | Next

CREDITED = Ended(DeliveryState.APPLIED, DeliveryReason.CREDITED)
ALREADY_CREDITED = Ended(DeliveryState.APPLIED, DeliveryReason.ALREADY_CREDITED)
# What a duplicate says by itself; whether it proves the credit depends on how many codes are newer (`prove.py`).
DUPLICATE = Ended(DeliveryState.NEEDS_CHECK, DeliveryReason.DUPLICATE_UNPROVEN)

_ANSWERS: dict[AnswerKind, Verdict] = {
    AnswerKind.APPLIED: CREDITED,
    # Credited before, over the air or by keypad; or further behind than the meter remembers.
    AnswerKind.DUPLICATE: DUPLICATE,
    AnswerKind.MAX_CREDIT: Ended(DeliveryState.REFUSED, DeliveryReason.MAX_CREDIT),
    AnswerKind.MAX_BALANCE: Ended(DeliveryState.REFUSED, DeliveryReason.MAX_BALANCE),
    AnswerKind.NOT_AUTHENTIC: Ended(DeliveryState.REFUSED, DeliveryReason.NOT_AUTHENTIC),
    # An electricity meter never says why; it may have credited the code before. Only its alert can tell.
    AnswerKind.UNEXPLAINED: Next.EXPLAIN,
    AnswerKind.TEMPORARY_FAILURE: Next.TRY_AGAIN,
}
# What these alerts say is final whether or not an answer came with them.
CREDIT_ALERTS: dict[int, Ended] = {CREDIT_ADDED_LOCALLY: ALREADY_CREDITED, DUPLICATE_UTRN: DUPLICATE}
_REFUSAL_ALERTS: dict[int, Ended] = {
    EXCEEDS_MAX_CREDIT: Ended(DeliveryState.REFUSED, DeliveryReason.MAX_CREDIT),
    EXCEEDS_MAX_BALANCE: Ended(DeliveryState.REFUSED, DeliveryReason.MAX_BALANCE),
    NOT_AUTHENTIC: Ended(DeliveryState.REFUSED, DeliveryReason.NOT_AUTHENTIC),
    NOT_FOR_THIS_DEVICE: Ended(DeliveryState.REFUSED, DeliveryReason.NOT_AUTHENTIC),
}


def of_answer(answer: Answer) -> Verdict:
    """Return what a meter's answer says."""
    return _ANSWERS[answer.kind]


def of_given_up(_: GivenUp) -> Verdict:
    """Return what a message given up says: nothing about the meter, so the same code is sent again."""
    return Next.TRY_AGAIN


def of_alert(alert: Alert, vend: Vend, *, unexplained: bool, trust_unnamed: bool) -> Verdict:
    """Return what an alert of the vend's meter says of the vend's code.

    Args:
        alert: The alert.
        vend: The vend whose delivery is in hand.
        unexplained: The meter has refused this message without a reason. Only then does a refusal alert end the
            delivery: a consumer's wrong keypad entry raises the same alerts.
        trust_unnamed: Take an alert that names no code as speaking of this one, if `unexplained`.
    """
    if alert.counter is None:
        if not (trust_unnamed and unexplained):
            return Next.WAIT
    elif (alert.originator_id, alert.counter) != (vend.originator_id, vend.counter):
        return Next.WAIT
    if alert.alert_code in CREDIT_ALERTS:
        return CREDIT_ALERTS[alert.alert_code]
    if unexplained:
        return _REFUSAL_ALERTS.get(alert.alert_code, Next.WAIT)
    return Next.WAIT
