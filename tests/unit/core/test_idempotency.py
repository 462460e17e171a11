"""The memory of answers: a code in memory is for ever, a delivery in memory may be in doubt."""

from core.flows.idempotency import Answers, key_of
from core.ports.ledger import StoredVend
from tests.support.vends import new_meter_id, vend


def test_a_delivery_in_doubt_is_not_relied_on_and_its_answer_is_still_given() -> None:
    answers = Answers(recent_max=10)
    stored = StoredVend(vend=vend(1, new_meter_id()), revision=5)
    key = key_of(stored.vend.sale)
    answers.remember(stored)
    assert answers.fresh(key) == answers.recent(key) == stored
    answers.doubt(key)
    assert (answers.fresh(key), answers.recent(key)) == (None, stored)
    answers.remember(stored)
    assert answers.fresh(key) == stored


def test_memory_is_bounded_and_forgets_doubts_too() -> None:
    answers = Answers(recent_max=2)
    vends = [StoredVend(vend=vend(1, new_meter_id()), revision=number) for number in range(5)]
    for stored in vends:
        answers.remember(stored)
        answers.doubt(key_of(stored.vend.sale))
    assert [answers.recent(key_of(stored.vend.sale)) is not None for stored in vends] == [False] * 3 + [True] * 2
    answers.doubt(key_of(vends[0].vend.sale))
    assert answers.fresh(key_of(vends[0].vend.sale)) is None
