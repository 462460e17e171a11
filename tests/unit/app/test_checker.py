"""The checker on histories small enough to see through."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from app.drills.checker import Credited, Run, check_run, linearizable
from app.drills.history import Call, History, read_history
from cluster.history import CounterSeen, LedgerEvent, OwnerGone, OwnerSeen, VendSeen
from core.domain.delivery import DeliveryReason, DeliveryState
from core.domain.vend import Vend
from tests.support.vends import NOW, ORIGINATOR, new_meter_id, vend


def _call(began: float, ended: float | None, outcome: str = "ok", **facts: object) -> Call:
    settings = {"caller": "till", "transaction_id": "id", "pan": "p", "amount_pence": 100, "digest": "d", **facts}
    return Call(began=began, ended=ended, outcome=outcome, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("calls", "explained"),
    [
        ([_call(0, 1), _call(2, 3)], True),
        ([_call(0, 1), _call(2, 3, digest="other")], False),
        ([_call(0, 2), _call(1, 3, digest="other")], False),
        ([_call(0, None, "unknown"), _call(2, 3)], True),
        ([_call(0, None, "unknown", amount_pence=5), _call(2, 3)], True),
        ([_call(0, 1), _call(2, 3, amount_pence=5)], False),
        ([_call(0, 1), _call(2, 3, "refused", amount_pence=5, reason="TRANSACTION_ID_REUSED")], True),
        ([_call(0, 1, "refused", amount_pence=5, reason="TRANSACTION_ID_REUSED"), _call(2, 3)], False),
        ([_call(0, 4, "refused", amount_pence=5, reason="TRANSACTION_ID_REUSED"), _call(2, 3)], True),
        ([_call(0, 1, "refused", reason="PAN_BLOCKED"), _call(2, 3)], True),
        # An unknown call may take effect late, but not before it began.
        ([_call(0, 1, "refused", amount_pence=5, reason="TRANSACTION_ID_REUSED"), _call(2, None, "unknown")], False),
    ],
)
def test_calls_of_one_id_are_explained_by_some_order_or_are_not(calls: list[Call], *, explained: bool) -> None:
    assert linearizable(calls) is explained


def _sold(stored: Vend) -> Call:
    return _call(
        0, 1, transaction_id=stored.sale.transaction_id, pan=stored.sale.pan, amount_pence=stored.sale.amount,
        utrn=stored.utrn,
    )  # fmt: skip


def _credit(stored: Vend) -> Credited:
    return Credited(
        meter_id=stored.meter_id,
        originator_id=stored.originator_id,
        counter=stored.counter,
        utrn=stored.utrn,
        pence=stored.sale.amount,
    )


def _applied(stored: Vend, epoch: int) -> Vend:
    sent = stored.delivery.send(NOW, epoch)
    return stored.with_delivery(sent.close(DeliveryState.APPLIED, DeliveryReason.CREDITED, NOW, epoch))


def _good() -> tuple[Vend, Run]:
    stored = vend(1, new_meter_id())
    ledger = [
        LedgerEvent(1, OwnerSeen(0, "node-a", 1)),
        LedgerEvent(2, VendSeen(stored, created=True)),
        LedgerEvent(3, VendSeen(_applied(stored, 1), created=False)),
    ]
    return stored, Run(calls=[_sold(stored)], ledger=ledger, credits=[_credit(stored)])


def _fired(run: Run) -> set[int]:
    return {finding.invariant for finding in check_run(run)}


def test_a_run_in_which_all_went_well_has_no_findings() -> None:
    _, run = _good()
    assert check_run(run) == []


def test_each_broken_promise_is_found_under_its_number() -> None:
    stored, run = _good()
    other = replace(stored, utrn=vend(1, stored.meter_id, pence=1100).utrn)
    second = vend(1, stored.meter_id)
    begun = list(run.ledger)
    deposed = [*begun[:2], LedgerEvent(3, OwnerGone(0)), LedgerEvent(4, OwnerSeen(0, "node-b", 4)),
               LedgerEvent(5, VendSeen(_applied(stored, 1), created=False))]  # fmt: skip
    later = replace(stored, issued_at=stored.issued_at + timedelta(seconds=1))
    assert 1 in _fired(replace(run, ledger=[*begun, LedgerEvent(9, VendSeen(later, created=False))]))
    assert 2 in _fired(replace(run, ledger=[*begun, LedgerEvent(9, VendSeen(second, created=True))]))
    fell = [LedgerEvent(number, CounterSeen(ORIGINATOR, stored.meter_id, last)) for number, last in ((10, 2), (11, 1))]
    assert 2 in _fired(replace(run, ledger=[*begun, *fell]))
    assert {3, 4} <= _fired(replace(run, calls=[_sold(other)]))
    assert 3 in _fired(replace(run, ledger=[]))
    assert 4 in _fired(replace(run, credits=[_credit(other)]))
    assert 4 in _fired(replace(run, logs=[f"sent {stored.utrn} to a meter"]))
    assert 5 in _fired(replace(run, ledger=deposed))
    assert 6 in _fired(replace(run, credits=[_credit(stored), _credit(stored)]))
    assert 6 in _fired(replace(run, credits=[]))
    assert 7 in _fired(replace(run, window_s=10.0, id_age_s={stored.sale.transaction_id: 11.0}))
    assert 8 in _fired(replace(run, not_authentic=1))
    assert 9 in _fired(replace(run, owed=1))
    assert 9 in _fired(replace(run, free_shards=1))
    assert 10 in _fired(replace(run, overloaded_without_delay=1))
    assert 11 in _fired(replace(run, leases=1))


def test_a_history_is_read_back_as_it_was_also_after_a_crash(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    history = History(file)
    first = history.begin("till-1", "id-1", "p", 100, at=1.0)
    history.begin("till-2", "id-2", "p", 200, at=2.0)
    history.answered(first, utrn="7" * 20, content=b"all", replayed=False, at=3.0)
    refused = history.begin("till-3", "id-1", "p", 101, at=4.0)
    history.refused(refused, "TRANSACTION_ID_REUSED", at=5.0)
    history.close()
    assert read_history(file) == history.calls
    assert [call.outcome for call in history.calls] == ["ok", "unknown", "refused"]
