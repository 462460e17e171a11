"""The sandbox's own reckoning against the known answers, apart from the service's."""

import json
from pathlib import Path
from typing import Any

import pytest

from sandbox.codes import Malformed, check_digit, mac_is_right, read_token, rebuild_counter, shared_secret

VECTORS = Path(__file__).parents[2] / "vectors"
CODES: dict[str, Any] = json.loads((VECTORS / "gbcs.json").read_text())
COUNTERS = json.loads((VECTORS / "gbcs-counter-reconstruction.json").read_text())["vectors"]
CHECKS = json.loads((VECTORS / "gbcs-check-digit.json").read_text())["vectors"]


@pytest.mark.parametrize("vector", CHECKS, ids=lambda vector: vector["digits"])
def test_check_digit(vector: dict[str, str]) -> None:
    assert check_digit(vector["digits"]) == vector["check"]


def test_every_counter_is_rebuilt_as_known() -> None:
    assert len(COUNTERS) == 231
    for vector in COUNTERS:
        rebuilt = rebuild_counter(vector["truncated"], vector["cache_highest"])
        assert rebuilt == vector["deduced"], vector
        assert (rebuilt == vector["true_counter"]) is vector["recoverable"], vector


@pytest.mark.parametrize("vector", CODES["vectors"], ids=lambda vector: vector["utrn"])
def test_every_code_verifies_with_the_meters_own_key(vector: dict[str, Any]) -> None:
    token = read_token(vector["utrn"])
    scalar = int(CODES["devices"][vector["device_id"]]["private_scalar_hex"], 16)
    point = bytes.fromhex(CODES["originators"][vector["originator_id"]]["prepayment_public_point_hex"])
    secret = shared_secret(scalar, point)

    def right(counter: int) -> bool:
        return mac_is_right(
            token,
            secret=secret,
            originator_id=vector["originator_id"],
            meter_id=vector["device_id"],
            originator_counter=counter,
        )

    counter = vector["utrn_counter"] << 32
    assert (token.pounds, token.value) == (vector["unit"] == "pounds", vector["value"])
    assert right(counter)
    assert not right(counter + 1), "a counter with low bits set is refused"
    assert not right(counter ^ (1 << 40))


@pytest.mark.parametrize("place", range(20))
def test_a_tampered_digit_is_refused(place: int) -> None:
    utrn = CODES["vectors"][0]["utrn"]
    with pytest.raises(Malformed):
        read_token(utrn[:place] + str((int(utrn[place]) + 1) % 10) + utrn[place + 1 :])


@pytest.mark.parametrize("unit", [2, 3])
def test_value_classes_that_are_no_credit_are_refused(unit: int) -> None:
    digits = str(7394156990786306048 + (unit << 45 | 100 << 32))
    with pytest.raises(Malformed):
        read_token(digits + check_digit(digits))
