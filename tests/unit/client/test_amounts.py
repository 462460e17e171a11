"""Amounts as people type them: decimal pounds or whole pence, to the penny, and a sentence for everything else."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from utrn_client.amounts import SALE_PENCE_MAX, BadAmount, parse_pence, parse_pounds, pounds_text


@pytest.mark.parametrize(
    ("text", "pence"),
    [("10.99", 1099), ("10", 1000), ("10.5", 1050), ("0.01", 1), ("0.07", 7), ("8191", 819_100), ("1.15", 115)],
)
def test_pounds_are_exact(text: str, pence: int) -> None:
    assert parse_pounds(text) == pence


@pytest.mark.parametrize(
    "text",
    ["", " 10", "10 ", "10.", ".5", "10.999", "1e1", "1E1", "+10", "-10", "£10", "1,000", "1_000", "0x10", "١٠", "10\n",
     "nan", "inf", "Infinity", "007", "00.10", "10.9.9", "0", "0.00", "8191.01", "99999999999999999999", "１０"],
)  # fmt: skip
def test_what_is_no_amount_of_pounds_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(BadAmount) as bad:
        parse_pounds(text)
    assert "needed" in str(bad.value)


@pytest.mark.parametrize("text", ["", "10.99", "10.0", "1e3", "-1", "+1", "0", "010", " 5", "819101", "five"])
def test_what_is_no_amount_of_pence_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(BadAmount) as bad:
        parse_pence(text)
    assert "needed" in str(bad.value)


@given(st.integers(1, SALE_PENCE_MAX))
def test_every_amount_comes_back_as_it_went_out(pence: int) -> None:
    assert parse_pounds(pounds_text(pence)) == pence
    assert parse_pence(str(pence)) == pence


@given(st.text(alphabet="0123456789.-+eE ,_", max_size=12))
def test_what_is_taken_is_what_decimal_arithmetic_says_and_nothing_else_is(text: str) -> None:
    try:
        pence = parse_pounds(text)
    except BadAmount:
        return
    assert Decimal(text) * 100 == pence
    assert Decimal(text).as_tuple().exponent >= -2  # type: ignore[operator]  # finite: it is an amount
    assert not set(text) & set("-+eE ,_")
