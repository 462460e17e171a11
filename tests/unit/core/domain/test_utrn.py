"""The 20 digits: check digit, range, value class, counter bits."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.domain.errors import BadField
from core.domain.utrn import PPTD_OFFSET, check_digit, parse_utrn, printed, truncated_counter, value_of

VECTORS = Path(__file__).parents[3] / "vectors"
CHECK_DIGITS = json.loads((VECTORS / "gbcs-check-digit.json").read_text())["vectors"]
CODES = json.loads((VECTORS / "gbcs.json").read_text())["vectors"]


def _utrn(ptut: int) -> str:
    digits = str(PPTD_OFFSET + ptut)
    return digits + check_digit(digits)


@pytest.mark.parametrize("vector", CHECK_DIGITS, ids=lambda vector: vector["digits"])
def test_the_check_digit_is_that_of_gbcs(vector: dict[str, str]) -> None:
    assert check_digit(vector["digits"]) == vector["check"]


@pytest.mark.parametrize("vector", CODES, ids=lambda vector: vector["utrn"])
def test_a_code_says_its_value_and_counter_bits(vector: dict[str, object]) -> None:
    utrn = parse_utrn(str(vector["utrn"]))
    assert value_of(utrn).value_class.name.lower() == vector["unit"]
    assert value_of(utrn).value == vector["value"]
    assert truncated_counter(utrn) == int(str(vector["utrn_counter"])) % 1024


@given(st.integers(0, 2**57 - 1), st.integers(0, 19), st.integers(1, 9))
def test_one_mistyped_digit_is_always_found(ptut: int, place: int, shift: int) -> None:
    utrn = _utrn(ptut & ~(1 << 46))
    wrong = utrn[:place] + str((int(utrn[place]) + shift) % 10) + utrn[place + 1 :]
    parse_utrn(utrn)
    with pytest.raises(BadField):
        parse_utrn(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1" * 19,
        "1" * 21,
        "7394 1569 9078 6306 0480",
        "x" * 20,
        "٣" * 20,
        _utrn(1 << 46),
        _utrn(3 << 45),
        "0" * 19 + "3",
    ],
)
def test_what_is_no_credit_code_is_refused_without_quoting_it(text: str) -> None:
    with pytest.raises(BadField) as refused:
        parse_utrn(text)
    assert text == "" or text not in refused.value.message


def test_a_code_is_printed_in_five_groups_of_four() -> None:
    assert printed(parse_utrn(_utrn(0))) == " ".join([_utrn(0)[at : at + 4] for at in range(0, 20, 4)])


@given(st.integers(0, 1023))
def test_the_counter_bits_are_the_top_ten(bits: int) -> None:
    assert truncated_counter(parse_utrn(_utrn(bits << 47))) == bits
