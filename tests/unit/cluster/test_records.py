"""Stored forms: what is written is read back; a newer schema is refused."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from utrn.store.v1 import records_pb2 as pb

from cluster.records import (
    NewerSchema,
    card_of,
    card_value,
    meter_of,
    meter_value,
    participant_of,
    participant_value,
    vend_of,
    vend_value,
)
from core.domain.delivery import DeliveryReason, DeliveryState
from core.domain.meter import Pan
from core.domain.vend import Operation
from tests.support.vends import NOW, PSP, SUPPLIER, card, meter, new_meter_id, vend


@given(st.integers(1, 2**32 - 1), st.sampled_from(Operation), st.integers(1, 8191), st.integers(0, 10**9))
def test_a_vend_comes_back_as_it_was(counter: int, operation: Operation, pence: int, micros: int) -> None:
    one = vend(counter, new_meter_id(), operation=operation, pence=pence)
    later = NOW + timedelta(microseconds=micros)
    if operation is not Operation.ISSUE:
        sent = one.delivery.send(later, 7)
        one = one.with_delivery(sent.close(DeliveryState.APPLIED, DeliveryReason.CREDITED, later, 9))
    assert vend_of(vend_value(one)) == one


def test_registry_records_come_back_as_they_were() -> None:
    for participant in (SUPPLIER, PSP):
        assert participant_of(participant_value(participant)) == participant
    one = meter(new_meter_id())
    assert meter_of(meter_value(one)) == one
    two = card(Pan("1" * 19), one.meter_id, blocked=True)
    assert card_of(card_value(two)) == two


def test_a_newer_schema_is_refused_loudly() -> None:
    record = pb.VendRecord.FromString(vend_value(vend(1, new_meter_id())))
    record.schema = 2
    with pytest.raises(NewerSchema, match="schema 2"):
        vend_of(record.SerializeToString())
