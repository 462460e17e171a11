"""What answers and alerts say of a delivery."""

import pytest

from core.delivery.outcomes import (
    ALREADY_CREDITED,
    CREDIT_ADDED_LOCALLY,
    CREDITED,
    DUPLICATE,
    DUPLICATE_UTRN,
    EXCEEDS_MAX_BALANCE,
    Ended,
    Next,
    of_alert,
    of_answer,
)
from core.domain.delivery import DeliveryReason, DeliveryState
from core.domain.meter import MeterId
from core.domain.utrn import Counter
from core.ports.head_end import Alert, Answer, AnswerKind
from tests.support.vends import vend

VEND = vend(7, MeterId("00db12345678beef"))
MESSAGE_ID = "as it was sent"


def _alert(code: int, counter: int | None = 7) -> Alert:
    return Alert(
        meter_id=VEND.meter_id,
        alert_code=code,
        originator_id=None if counter is None else VEND.originator_id,
        counter=None if counter is None else Counter(counter),
    )


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        (AnswerKind.APPLIED, CREDITED),
        (AnswerKind.DUPLICATE, DUPLICATE),
        (AnswerKind.MAX_BALANCE, Ended(DeliveryState.REFUSED, DeliveryReason.MAX_BALANCE)),
        (AnswerKind.UNEXPLAINED, Next.EXPLAIN),
        (AnswerKind.TEMPORARY_FAILURE, Next.TRY_AGAIN),
    ],
)
def test_an_answer_decides_what_it_can(kind: AnswerKind, verdict: object) -> None:
    assert of_answer(Answer(message_id=MESSAGE_ID, kind=kind)) == verdict


def test_every_answer_has_a_meaning() -> None:
    for kind in AnswerKind:
        of_answer(Answer(message_id=MESSAGE_ID, kind=kind))


@pytest.mark.parametrize(("code", "says"), [(CREDIT_ADDED_LOCALLY, ALREADY_CREDITED), (DUPLICATE_UTRN, DUPLICATE)])
@pytest.mark.parametrize("unexplained", [True, False])
def test_a_credit_alert_that_names_the_code_ends_its_delivery(code: int, says: Ended, unexplained: bool) -> None:
    verdict = of_alert(_alert(code), VEND, unexplained=unexplained, trust_unnamed=False)
    assert verdict == says


def test_an_alert_about_another_code_says_nothing() -> None:
    assert of_alert(_alert(DUPLICATE_UTRN, 6), VEND, unexplained=True, trust_unnamed=True) is Next.WAIT


def test_a_refusal_alert_counts_only_after_an_unexplained_refusal() -> None:
    alert = _alert(EXCEEDS_MAX_BALANCE)
    assert of_alert(alert, VEND, unexplained=False, trust_unnamed=False) is Next.WAIT
    assert of_alert(alert, VEND, unexplained=True, trust_unnamed=False) == Ended(
        DeliveryState.REFUSED, DeliveryReason.MAX_BALANCE
    )


def test_an_alert_without_a_name_is_not_trusted_unless_told_so() -> None:
    alert = _alert(DUPLICATE_UTRN, None)
    assert of_alert(alert, VEND, unexplained=True, trust_unnamed=False) is Next.WAIT
    assert of_alert(alert, VEND, unexplained=True, trust_unnamed=True) == DUPLICATE
    assert of_alert(alert, VEND, unexplained=False, trust_unnamed=True) is Next.WAIT
