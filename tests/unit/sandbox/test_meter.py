"""One emulated meter: what it takes, what it refuses, and what it says."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.meter import Alert, Meter, Result, Rules

CODES: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors" / "gbcs.json").read_text())
VECTOR = next(one for one in CODES["vectors"] if one["value"] > 100 and one["unit"] == "pence")
POINTS = {eui: bytes.fromhex(key["prepayment_public_point_hex"]) for eui, key in CODES["originators"].items()}


def meter(vector: dict[str, Any] = VECTOR, *, max_credit: int = 10**9, max_balance: int = 10**9, **rules: Any) -> Meter:
    """A meter that has lately applied a counter near the vector's, so that keyed codes can be rebuilt."""
    scalar = int(CODES["devices"][vector["device_id"]]["private_scalar_hex"], 16)
    made = Meter(vector["device_id"], False, scalar, dict(POINTS), max_credit, max_balance, rules=Rules(**rules))
    made.caches[vector["originator_id"]] = [max(0, vector["utrn_counter"] - 5)]
    return made


def by_air(one: Meter, vector: dict[str, Any] = VECTOR) -> Result:
    return one.over_the_air(vector["utrn"], vector["originator_id"], vector["utrn_counter"] << 32).result


def test_a_code_is_credited_once_by_air_and_by_keypad() -> None:
    for ways in itertools.product(("air", "keypad"), repeat=2):
        one = meter()
        results = [by_air(one) if way == "air" else one.keypad(VECTOR["utrn"]).result for way in ways]
        assert results == [Result.APPLIED, Result.DUPLICATE]
        assert one.balance_pence == VECTOR["value"]


def test_a_keypad_credit_raises_the_alert_that_proves_it() -> None:
    handled = meter().keypad(VECTOR["utrn"])
    assert (handled.alert, handled.counter) == (Alert.CREDIT_ADDED_LOCALLY, VECTOR["utrn_counter"])


def test_another_meters_code_is_refused() -> None:
    other = next(one for one in CODES["vectors"] if one["device_id"] != VECTOR["device_id"])
    assert by_air(meter(other), VECTOR) is Result.NOT_AUTHENTIC


@pytest.mark.parametrize(("limit", "result"), [("max_credit", Result.MAX_CREDIT), ("max_balance", Result.MAX_BALANCE)])
def test_limits_are_kept_and_leave_the_code_unspent(limit: str, result: Result) -> None:
    one = meter(**{limit: VECTOR["value"] - 1})
    assert by_air(one) is result
    one.max_credit_pence = one.max_balance_pence = 10**9
    assert by_air(one) is Result.APPLIED


def test_five_wrong_entries_lock_the_keypad_until_time_unlocks_it() -> None:
    one = meter()
    wrong = VECTOR["utrn"][:-1] + str((int(VECTOR["utrn"][-1]) + 1) % 10)
    assert [one.keypad(wrong).alert for _ in range(6)][-2:] == [Alert.KEYPAD_SUSPENDED, Alert.KEYPAD_LOCKED_OUT]
    assert one.keypad(VECTOR["utrn"]).result is Result.LOCKED
    one.unlock()
    assert one.keypad(VECTOR["utrn"]).result is Result.APPLIED


def test_a_counter_below_a_full_cache_is_refused_as_duplicate() -> None:
    one = meter(cache_size=2)
    one.caches[VECTOR["originator_id"]] = [VECTOR["utrn_counter"] + 1, VECTOR["utrn_counter"] + 2]
    assert by_air(one) is Result.DUPLICATE


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(CODES["vectors"]) - 1), st.booleans()), max_size=12))
def test_no_order_of_repeats_credits_a_code_twice(entries: list[tuple[int, bool]]) -> None:
    meters: dict[str, Meter] = {}
    applied: list[str] = []
    for index, keypad in entries:
        vector = CODES["vectors"][index]
        one = meters.setdefault(vector["device_id"], meter(vector))
        result = one.keypad(vector["utrn"]).result if keypad else by_air(one, vector)
        one.unlock()
        if result is Result.APPLIED:
            applied.append(vector["utrn"])
    assert len(applied) == len(set(applied))
