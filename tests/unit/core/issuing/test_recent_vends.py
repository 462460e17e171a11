"""The memory of answers: a code in memory is for ever, a delivery in memory may be in doubt."""

import gc

from core.domain.effective_dated import ms_of
from core.domain.errors import PanBlocked
from core.domain.refusal import closed
from core.issuing.recent_vends import key_of
from core.ports.ledger import StoredVend
from tests.support.answers import memory
from tests.support.vends import NOW, PSP_ID, new_id, new_meter_id, vend


def test_a_delivery_in_doubt_is_not_relied_on_and_its_answer_is_still_given() -> None:
    answers = memory()
    stored = StoredVend(vend=vend(1, new_meter_id()), revision=5)
    key = key_of(stored.vend.sale)
    answers.remember(stored)
    assert answers.fresh(key) == answers.recent(key) == stored
    answers.doubt(key)
    assert (answers.fresh(key), answers.recent(key)) == (None, stored)
    answers.remember(stored)
    assert answers.fresh(key) == stored


def test_memory_is_bounded_and_forgets_doubts_too() -> None:
    answers = memory(2)
    vends = [StoredVend(vend=vend(1, new_meter_id()), revision=number) for number in range(5)]
    for stored in vends:
        answers.remember(stored)
        answers.doubt(key_of(stored.vend.sale))
    assert [answers.recent(key_of(stored.vend.sale)) is not None for stored in vends] == [False] * 3 + [True] * 2
    answers.doubt(key_of(vends[0].vend.sale))
    assert answers.fresh(key_of(vends[0].vend.sale)) is None


def test_the_garbage_collector_has_nothing_to_look_into_however_much_was_sold() -> None:
    """Else a collection of all that lives stops the node for longer the more was sold."""
    answers = memory(1000)
    for number in range(1, 501):
        answers.remember(StoredVend(vend=vend(number, new_meter_id()), revision=number))
        answers.remember(closed(PanBlocked("blocked"), PSP_ID, new_id(), at=ms_of(NOW), node_id="a"))
    gc.collect()
    looked_into = [one for kept in answers._recent.items() for one in (*kept, *kept[1]) if gc.is_tracked(one)]
    assert (len(answers._recent), looked_into) == (1000, [])


def test_what_is_kept_comes_back_as_it_was() -> None:
    answers = memory()
    stored = StoredVend(vend=vend(1, new_meter_id()), revision=5)
    refusal = closed(PanBlocked("blocked"), PSP_ID, new_id(), at=ms_of(NOW), node_id="a")
    answers.remember(stored)
    answers.remember(refusal)
    assert answers.recent(key_of(stored.vend.sale)) == stored
    assert answers.recent((refusal.participant_id, refusal.transaction_id)) == refusal
