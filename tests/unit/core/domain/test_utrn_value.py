"""Which amounts one code can carry."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.domain.errors import AmountNotEncodable
from core.domain.money import Pence
from core.domain.utrn_value import ValueClass, code_value


@pytest.mark.parametrize(
    ("pence", "value_class", "value"),
    [
        (1, ValueClass.PENCE, 1),
        (8191, ValueClass.PENCE, 8191),
        (8100, ValueClass.PENCE, 8100),
        (8200, ValueClass.POUNDS, 82),
        (819_100, ValueClass.POUNDS, 8191),
    ],
)
def test_an_amount_has_exactly_one_encoding(pence: int, value_class: ValueClass, value: int) -> None:
    coded = code_value(Pence(pence))
    assert (coded.value_class, coded.value) == (value_class, value)


@pytest.mark.parametrize(
    ("pence", "below", "above"),
    [
        (-1, None, "1"),
        (0, None, "1"),
        (8192, "8191", "8200"),
        (8201, "8200", "8300"),
        (10_050, "10000", "10100"),
        (819_099, "819000", "819100"),
        (819_101, "819100", None),
        (2**62, "819100", None),
    ],
)
def test_an_amount_no_code_carries_is_refused_with_the_nearest_that_work(
    pence: int, below: str | None, above: str | None
) -> None:
    with pytest.raises(AmountNotEncodable) as refused:
        code_value(Pence(pence))
    assert refused.value.facts.get("nearest_below_pence") == below
    assert refused.value.facts.get("nearest_above_pence") == above
    assert "nearest" in refused.value.message


@given(st.integers(-(2**63), 2**63 - 1))
def test_what_is_encoded_is_what_was_paid_or_is_refused_with_amounts_that_work(pence: int) -> None:
    try:
        assert code_value(Pence(pence)).amount == pence
    except AmountNotEncodable as refused:
        for name in ("nearest_below_pence", "nearest_above_pence"):
            if name in refused.facts:
                nearest = Pence(int(refused.facts[name]))
                assert code_value(nearest).amount == nearest
