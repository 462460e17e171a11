"""SalesCheck: a vend that is not what was sold is found, and what cannot be judged is counted and not blamed."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from app.verification.sales import Found, SalesCheck
from core.domain.effective_dated import Ms
from core.domain.errors import PanBlocked
from core.domain.meter import MeterId, OriginatorId
from core.domain.money import Pence
from core.domain.participant import ParticipantId
from core.domain.refusal import closed
from core.domain.utrn import Counter
from core.domain.vend import Channel, Vend
from core.gateways.audit_log_format import decision_line, sale_line
from core.gateways.audit_log_reader import Verdict
from core.ports.audit_anchors import AnchorState
from tests.support.audit import decision
from tests.support.vends import NOW, utrn, vend, with_authorization

KEY = b"k" * 32


def _sold(one: Vend, revision: int = 7, key: bytes = KEY) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(sale_line(one, revision, key))
    return line


def _allowed(one: Vend) -> dict[str, Any]:
    sale = one.sale
    said = decision(1)._replace(
        caller=sale.participant_id, ask=sale.transaction_id, subject=one.meter_id, amount=sale.amount, channel=3
    )
    line: dict[str, Any] = json.loads(decision_line(said))
    return line


def _check(held: list[Vend], *lines: dict[str, Any], ends: tuple[Verdict, ...] = (), every_file: bool = True) -> Found:
    check = SalesCheck(every_file=every_file)
    for line in lines:
        check.line(line, KEY)
    for end in ends:
        check.file(end)
    return check.compare([((one.sale.participant_id, one.sale.transaction_id), one) for one in held], 100)


def _vend() -> Vend:
    return vend(5, MeterId("00db120000000001"))


def _of_sale(**fields: Any) -> Callable[[Vend], Vend]:
    return lambda one: replace(one, sale=replace(one.sale, **fields))


_EDITS: dict[str, Callable[[Vend], Vend]] = {
    "amount": _of_sale(amount=Pence(9000)),
    "channel": _of_sale(channel=Channel.COUNTER_CASH),
    "meter": lambda one: with_authorization(one, meter_id=MeterId("00db120000000002")),
    "supplier": lambda one: with_authorization(one, supplier_id=ParticipantId("supplier-south")),
    "originator": lambda one: with_authorization(one, originator_id=OriginatorId("90b3d51f30010002")),
    "counter": lambda one: replace(one, counter=Counter(6)),
    "digits": lambda one: replace(one, utrn=utrn(5, 1000, mac=1)),
}


def test_what_is_as_it_was_sold_passes_however_often_its_counter_moved_before() -> None:
    one = _vend()
    other = replace(one, counter=Counter(4), utrn=utrn(4))
    found = _check([one], _allowed(one), _sold(other, revision=0), _sold(one))
    assert (found.compared, found.without_digits, found.problems) == (1, 0, [])


@pytest.mark.parametrize("what", _EDITS)
def test_whatever_is_edited_of_a_vend_is_found_and_named(what: str) -> None:
    one = _vend()
    (problem,) = _check([_EDITS[what](one)], _allowed(one), _sold(one)).problems
    assert problem.endswith(f": {what}")
    assert one.sale.transaction_id in problem


@pytest.mark.parametrize("what", ["amount", "channel", "meter"])
def test_of_a_sale_whose_node_died_before_it_noted_it_the_decision_is_compared(what: str) -> None:
    one = _vend()
    found = _check([one], _allowed(one))
    assert (found.compared, found.without_digits, found.problems) == (1, 1, [])
    (problem,) = _check([_EDITS[what](one)], _allowed(one)).problems
    assert problem.endswith(f": {what}")


def test_a_vend_moved_to_another_participant_is_found_whichever_half_is_edited() -> None:
    one, check = _vend(), SalesCheck(every_file=True)
    check.line(_sold(one), KEY)
    moved = _of_sale(participant_id=ParticipantId("psp-other"))(one)
    key = one.sale.participant_id, one.sale.transaction_id
    assert len(check.compare([(key, moved)], 100).problems) == 1
    other = moved.sale.participant_id, moved.sale.transaction_id
    assert len(check.compare([(other, moved)], 100).problems) == 2


def test_a_vend_that_nobody_decided_is_found_and_one_that_is_gone_too() -> None:
    one, two = _vend(), _vend()
    found = _check([one], _sold(two), _sold(_vend(), revision=101), _sold(_vend(), revision=0))
    assert [problem.partition(": ")[2] for problem in found.problems] == [
        "no file has a decision to sell it",
        "was sold, and is not in the ledger",
    ]


def test_a_vend_that_was_replaced_by_a_refusal_is_gone() -> None:
    one = _vend()
    check = SalesCheck(every_file=True)
    check.line(_sold(one), KEY)
    key = one.sale.participant_id, one.sale.transaction_id
    refusal = closed(PanBlocked("no"), *key, at=Ms(0), node_id="n")
    assert len(check.compare([(key, refusal)], 100).problems) == 1
    assert len(check.compare([(key, None)], 100).problems) == 1


def _file(state: AnchorState, until: datetime) -> Verdict:
    return Verdict(state=state, sealed_at=until.isoformat())


def test_what_no_file_can_know_yet_or_any_more_is_counted_and_not_blamed() -> None:
    one, second = _vend(), timedelta(seconds=1)
    goes_on = _check([one], ends=(_file(AnchorState.OPEN, NOW - second), _file(AnchorState.OPEN, NOW + second)))
    assert (goes_on.not_judged, goes_on.problems) == (1, [])
    died = _check([one], ends=(_file(AnchorState.DIED, NOW - second),))
    assert (died.excused, died.problems) == (1, [])
    assert _check([one], every_file=False).not_judged == 1


@pytest.mark.parametrize(
    "end",
    [
        _file(AnchorState.OPEN, NOW + timedelta(seconds=1)),
        _file(AnchorState.DIED, NOW + timedelta(seconds=1)),
        _file(AnchorState.DIED, NOW - timedelta(seconds=8)),
        _file(AnchorState.FINISHED, NOW - timedelta(seconds=1)),
        Verdict(state=AnchorState.OPEN, sealed_at="yesterday"),
    ],
)
def test_beyond_the_last_seconds_of_a_node_that_died_no_vend_is_excused(end: Verdict) -> None:
    assert len(_check([_vend()], ends=(end,)).problems) == 1


def test_a_file_without_an_anchor_tells_all_but_the_digits() -> None:
    one, check = _vend(), SalesCheck(every_file=True)
    check.line(_sold(one), b"")
    found = check.compare([((one.sale.participant_id, one.sale.transaction_id), _EDITS["digits"](one))], 100)
    assert (found.compared, found.without_digits) == (1, 1)
