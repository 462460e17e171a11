"""Stored forms: what is written is read back; a newer schema is refused."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from utrn.store.v1 import records_pb2 as pb

from cluster.codec.registry import name_of, record_of, value_of
from cluster.codec.vend import NewerSchema, vend_of, vend_value
from core.domain.delivery import DeliveryReason, DeliveryState
from core.domain.effective_dated import Ms
from core.domain.goodwill_credit import CreditDay, CreditReason, CreditRequest
from core.domain.meter import MeterCapabilities, Model, Pan
from core.domain.money import Pence
from core.domain.registration_change import ChangeKind, RegistrationChange, VendRef
from core.domain.utrn import Counter
from core.domain.vend import Operation
from core.ports.registry import StoredRecord
from tests.support.head_ends import HEAD_END
from tests.support.origins import RANDOM_PART
from tests.support.vends import (
    APPOINTMENTS,
    NOW,
    ORIGINATOR,
    PSP,
    PSP_ID,
    SUPPLIER,
    SUPPLIER_ID,
    always,
    card,
    meter,
    new_id,
    new_meter_id,
    vend,
)

OF_VENDS = [one for one in Operation if one is not Operation.DELIVER]


@given(st.integers(1, 2**32 - 1), st.sampled_from(OF_VENDS), st.integers(1, 8191), st.integers(0, 10**9))
def test_a_vend_comes_back_as_it_was(counter: int, operation: Operation, pence: int, micros: int) -> None:
    one = vend(counter, new_meter_id(), operation=operation, pence=pence)
    later = NOW + timedelta(microseconds=micros)
    if operation is not Operation.ISSUE:
        sent = one.delivery.send(later, 7, head_end=HEAD_END, random_part=RANDOM_PART)
        one = one.with_delivery(sent.close(DeliveryState.APPLIED, DeliveryReason.CREDITED, later, 9))
    assert vend_of(vend_value(one)) == one


def test_registry_records_come_back_as_they_were() -> None:
    one = meter(new_meter_id())
    change = RegistrationChange(
        meter_id=one.meter_id, at=Ms(5), carried_out_at=Ms(6), kinds=(ChangeKind.SUPPLIER,), responsible=SUPPLIER_ID,
        supplier_after=None, originator_id=ORIGINATOR, last_issued=7, highest_applied=3,
        in_flight=(VendRef(participant_id=PSP_ID, transaction_id=new_id(), counter=Counter(7)),),
    )  # fmt: skip
    credit = CreditRequest(
        supplier_id=SUPPLIER_ID, transaction_id=new_id(), pan=Pan("1" * 19), amount=Pence(500),
        reason=CreditReason.EMERGENCY, note="cold", asked_by="spiffe://a", asked_at=Ms(9),
    )  # fmt: skip
    records: list[StoredRecord] = [
        SUPPLIER, PSP, one, card(Pan("1" * 19), one.meter_id, blocked=True), APPOINTMENTS,
        Model(make="A", model="B", abilities=always(MeterCapabilities(schemes=frozenset({"gbcs"})))), change, credit,
        CreditDay(supplier_id=SUPPLIER_ID, day="2026-11-24", count=2, total_pence=900),
    ]  # fmt: skip
    for record in records:
        kind, _ = name_of(record)
        assert record_of(kind, value_of(record)) == record


def test_a_newer_schema_is_refused_loudly() -> None:
    record = pb.VendRecord.FromString(vend_value(vend(1, new_meter_id())))
    record.schema = 9
    with pytest.raises(NewerSchema, match="schema 9"):
        vend_of(record.SerializeToString())
