"""What answers and alerts say of a delivery."""

import pytest

from core.domain.delivery import DeliveryReason, DeliveryState
from core.domain.meter import MeterId, MeterKind, OriginatorId
from core.domain.token import Counter, Utrn
from core.flows.confirm import (
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
from core.ports.headend import AddCredit, Alert, Answer, AnswerKind
from tests.support.vends import NOW

MESSAGE = AddCredit(
    message_id="90b3d51f30010000:00db12345678beef:30064771072",
    meter_id=MeterId("00db12345678beef"),
    meter_kind=MeterKind.ESME,
    originator_id=OriginatorId("90b3d51f30010000"),
    counter=Counter(7),
    utrn=Utrn("7" * 20),
    owner_epoch=1,
    not_after=NOW,
)


def _alert(code: int, counter: int | None = 7) -> Alert:
    return Alert(
        meter_id=MESSAGE.meter_id,
        alert_code=code,
        originator_id=None if counter is None else MESSAGE.originator_id,
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
    assert of_answer(Answer(message_id=MESSAGE.message_id, kind=kind)) == verdict


def test_every_answer_has_a_meaning() -> None:
    for kind in AnswerKind:
        of_answer(Answer(message_id=MESSAGE.message_id, kind=kind))


@pytest.mark.parametrize(("code", "says"), [(CREDIT_ADDED_LOCALLY, ALREADY_CREDITED), (DUPLICATE_UTRN, DUPLICATE)])
@pytest.mark.parametrize("unexplained", [True, False])
def test_a_credit_alert_that_names_the_code_ends_its_delivery(code: int, says: Ended, unexplained: bool) -> None:
    verdict = of_alert(_alert(code), MESSAGE, unexplained=unexplained, trust_unnamed=False)
    assert verdict == says


def test_an_alert_about_another_code_says_nothing() -> None:
    assert of_alert(_alert(DUPLICATE_UTRN, 6), MESSAGE, unexplained=True, trust_unnamed=True) is Next.WAIT


def test_a_refusal_alert_counts_only_after_an_unexplained_refusal() -> None:
    alert = _alert(EXCEEDS_MAX_BALANCE)
    assert of_alert(alert, MESSAGE, unexplained=False, trust_unnamed=False) is Next.WAIT
    assert of_alert(alert, MESSAGE, unexplained=True, trust_unnamed=False) == Ended(
        DeliveryState.REFUSED, DeliveryReason.MAX_BALANCE
    )


def test_an_alert_without_a_name_is_not_trusted_unless_told_so() -> None:
    alert = _alert(DUPLICATE_UTRN, None)
    assert of_alert(alert, MESSAGE, unexplained=True, trust_unnamed=False) is Next.WAIT
    assert of_alert(alert, MESSAGE, unexplained=True, trust_unnamed=True) == DUPLICATE
    assert of_alert(alert, MESSAGE, unexplained=False, trust_unnamed=True) is Next.WAIT
