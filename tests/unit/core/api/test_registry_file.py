"""A line of a registry file says a record or is refused by its field: whatever it is, and never anything else."""

import json
from base64 import b64encode
from datetime import timedelta
from typing import Any, get_args

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf import timestamp_pb2
from hypothesis import given
from hypothesis import strategies as st
from utrn.v1.appointment_service_pb2 import LEVEL_ISSUE, AppointmentTerms

from core.api.registry_file import LINE_CHARACTERS_MAX
from core.api.status import status_of
from core.domain.errors import BadField, Refused
from core.domain.meter import Meter
from core.domain.participant import Profile
from core.registry.bulk_load import Loadable
from core.registry.participants import NewParticipant
from tests.support.lines import JSON_VALUES, MODEL_LINE, PSP_LINE, SUPPLIER_LINE, meter_line, pan_line, read
from tests.support.vends import NOW, POINT

LIMIT = {"channel": 3, "min_pence": 100, "max_pence": 4900}
FULL_PROFILE = {
    "option": "psp_issues", "limits": [LIMIT], "credit_each_max_pence": 1000, "credit_day_max_pence": 5000,
    "credit_approvers": ["spiffe://north/anne"],
}  # fmt: skip
FULL_METER = meter_line(
    1, generation="SMETS2", make="Acme", model="E1", firmware="1.0", cohort="", zone="z", payment_mode="credit",
    enrolled=False, max_credit_pence=100, max_balance_pence=100, since="2026-11-01T00:00:00Z",
)  # fmt: skip


def _certificate() -> bytes:
    """Return a certificate of anybody; who issued it is not asked here."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW + timedelta(days=1))
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


CERTIFICATE = _certificate()
VERSION_35 = b64encode(CERTIFICATE.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x22")).decode()
APPOINTMENT_LINE = {
    "type": "appointment", "signature": "AA==", "certificate": b64encode(CERTIFICATE).decode(),
    "terms": b64encode(
        AppointmentTerms(
            appointment_id="a", supplier_id="n", psp_id="p", level=LEVEL_ISSUE, min_pence=1, max_pence=2,
            since=timestamp_pb2.Timestamp(seconds=1),
        ).SerializeToString()
    ).decode(),
}  # fmt: skip
GOOD: list[dict[str, Any]] = [
    SUPPLIER_LINE, {**SUPPLIER_LINE, "profile": FULL_PROFILE}, PSP_LINE, MODEL_LINE, APPOINTMENT_LINE, FULL_METER,
    pan_line(1, form="app", blocked=True, since="2026-11-01T00:00:00+01:00"),
]  # fmt: skip


def _told(read_as: Loadable | Refused) -> str:
    """Return the field that is refused, "" for none; the refusal must fit into an answer."""
    if isinstance(read_as, Refused):
        assert status_of(read_as).SerializeToString()
        assert len(read_as.message) < 300
        return read_as.facts.get("field", read_as.reason)
    assert isinstance(read_as, get_args(Loadable))
    return ""


@pytest.mark.parametrize("line", GOOD, ids=lambda one: str(one["type"]))
def test_good_lines_are_read(line: dict[str, Any]) -> None:
    assert _told(read(line)) == ""


@given(JSON_VALUES)
def test_any_json_value_is_a_line(value: Any) -> None:
    assert _told(read(json.dumps(value)))


@given(st.text(st.characters()) | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape")))
def test_any_text_is_a_line(text: str) -> None:
    assert _told(read(text))


@given(st.data())
def test_a_line_with_any_value_in_any_place_is_read_or_refused(data: st.DataObject) -> None:
    line: dict[str, Any] = json.loads(json.dumps(data.draw(st.sampled_from(GOOD))))
    places = [(line, name) for name in line]
    if "profile" in line:
        places += [(line["profile"], name) for name in line["profile"]]
        places += [(one, name) for one in line["profile"].get("limits", ()) for name in one]
    inside, name = data.draw(st.sampled_from(places))
    inside[data.draw(st.sampled_from([name, name + "x"]))] = data.draw(JSON_VALUES)
    told = read(line)
    _told(told)
    if isinstance(told, BadField):
        assert "982620000" not in told.message, "no problem quotes a PAN"


@given(st.sampled_from(GOOD), st.data())
def test_a_line_cut_or_scratched_anywhere_is_read_or_refused(line: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps(line)
    at = data.draw(st.integers(0, len(text) - 1))
    assert _told(read(text[:at])) == "line", "half an object is none"
    _told(read(text[:at] + data.draw(st.text(st.characters(), max_size=3)) + text[at + 1 :]))


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ({"type": []}, "type"),
        ({"type": {}}, "type"),
        ({"type": None}, "type"),
        ({}, "type"),
        (meter_line(1, kind=[]), "kind"),
        (meter_line(1, payment_mode={"credit": 1}), "payment_mode"),
        ('{"type": ' + "1" * 5000 + "}", "line"),
        (f'{{"type": "meter", "max_credit_pence": {"9" * 4000}}}', "head_end"),
        (meter_line(1, max_credit_pence=10**4000), "max_credit_pence"),
        (meter_line(1, max_credit_pence=81_910_001), "max_credit_pence"),
        (meter_line(1, max_credit_pence=True), "max_credit_pence"),
        (meter_line(1, max_credit_pence=1.0), "max_credit_pence"),
        (meter_line(1, max_credit_pence=float("nan")), "max_credit_pence"),
        (meter_line(1, zone="a/b"), "zone"),
        (meter_line(1, zone="\x00"), "zone"),
        (meter_line(1, zone="\ud800"), "zone"),
        (meter_line(1, zone=["\udfff"]), "zone"),
        (meter_line(1, public_point="é"), "public_point"),
        (meter_line(1, public_point=POINT.hex()[:-2]), "public_point"),
        (meter_line(1, since="0001-01-01T00:00:00+23:59"), "since"),
        (meter_line(1, since="1969-12-31T23:59:59.999Z"), "since"),
        (meter_line(1, since="2037-01-01T00:00:00Z"), "since"),
        (meter_line(1, since="9999-12-31T23:59:59-23:59"), "since"),
        (meter_line(1, since="2026-11-24T12:00:00"), "since"),
        (pan_line(1, since=7), "since"),
        (pan_line(1, pan=["1"]), "pan"),
        ({**APPOINTMENT_LINE, "terms": "é"}, "terms"),
        ({**APPOINTMENT_LINE, "terms": "====="}, "terms"),
        ({**APPOINTMENT_LINE, "signature": ""}, "signature"),
        ({**APPOINTMENT_LINE, "certificate": b64encode(bytes(10_001)).decode()}, "certificate"),
        ({**APPOINTMENT_LINE, "certificate": "AA=="}, "certificate"),
        ({**APPOINTMENT_LINE, "certificate": VERSION_35}, "certificate"),
        ({**APPOINTMENT_LINE, "terms": b64encode(b"\xff").decode()}, "terms"),
        ({**SUPPLIER_LINE, "name": ""}, "name"),
        ({**SUPPLIER_LINE, "name": "\udc80"}, "name"),
        ({**SUPPLIER_LINE, "identities": []}, "identities"),
        ({**SUPPLIER_LINE, "identities": ["spiffe://\ud800"]}, "identities"),
        ({**SUPPLIER_LINE, "identities": ["spiffe://nörd"]}, "identities"),
        ({**SUPPLIER_LINE, "identities": ["spiffe://a\x00"]}, "identities"),
        ({**SUPPLIER_LINE, "identities": ["spiffe://a", "spiffe://a"]}, "identities"),
        ({**SUPPLIER_LINE, "identities": [f"spiffe://{n}" for n in range(21)]}, "identities"),
        ({**SUPPLIER_LINE, "key_id": "1"}, "key_id"),
        ({**PSP_LINE, "profile": {"option": "psp_issues"}}, "profile"),
        ({**MODEL_LINE, "schemes": ["gbcs", "sts"]}, "schemes"),
        ({**MODEL_LINE, "schemes": [["gbcs"]]}, "schemes"),
        ({**MODEL_LINE, "make": ""}, "make"),
        ({**MODEL_LINE, "colour": "red"}, "colour"),
        ({**MODEL_LINE, "9826200000000000001": 1}, "line"),
        ({**MODEL_LINE, "\ud800": 1}, "line"),
        ({**MODEL_LINE, "x" * 41: 1}, "line"),
        ('{"type": "model", "make": "A", "make": "B"}', "make"),
        ('{"type": "participant", "profile": {"option": 1, "option": 2}}', "option"),
        ("[" * 19_000, "line"),
        ('{"a":' * 3_000, "line"),
        (" " * (LINE_CHARACTERS_MAX + 1), "line"),
        ("\ufeff{}", "line"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(line: dict[str, Any] | str, field: str) -> None:
    assert _told(read(line)) == field


@pytest.mark.parametrize(
    ("profile", "field"),
    [
        ({"limits": [{**LIMIT, "channel": 77}]}, "profile.limits.channel"),
        ({"limits": [{**LIMIT, "channel": 7}]}, "profile.limits.channel"),
        ({"limits": [{**LIMIT, "min_pence": 5000}]}, "profile.limits"),
        ({"limits": [{**LIMIT, "min_pence": 0}]}, "profile.limits"),
        ({"limits": [{**LIMIT, "max_pence": 819_101}]}, "profile.limits"),
        ({"limits": [{**LIMIT, "min_pence": -1}]}, "profile.limits.min_pence"),
        ({"limits": [{**LIMIT, "colour": 1}]}, "profile.limits.colour"),
        ({"limits": [LIMIT, LIMIT]}, "profile.limits"),
        ({"limits": [[]]}, "profile.limits"),
        ({"option": "all"}, "profile.option"),
        ({"credit_each_max_pence": 10**10 + 1}, "profile.credit_each_max_pence"),
        ({"credit_day_max_pence": -1}, "profile.credit_day_max_pence"),
        ({"credit_approvers": ["anne"]}, "profile.credit_approvers"),
        ({"credit_approvers": [f"spiffe://{n}" for n in range(21)]}, "profile.credit_approvers"),
        ({"credit_approvers": "spiffe://anne"}, "profile.credit_approvers"),
        ({"type": "profile"}, "profile.type"),
    ],
)
def test_a_profile_in_a_file_is_checked_as_one_in_a_request(profile: dict[str, Any], field: str) -> None:
    assert _told(read({**SUPPLIER_LINE, "profile": profile})) == field


def test_a_profile_is_read_as_it_is_said() -> None:
    one = read({**SUPPLIER_LINE, "profile": FULL_PROFILE})
    assert isinstance(one, NewParticipant)
    assert isinstance(one.profile, Profile)
    assert (one.profile.limits[0].channel, one.profile.credit.approvers) == (3, frozenset({"spiffe://north/anne"}))
    none = read({**SUPPLIER_LINE, "profile": {"credit_approvers": []}})
    assert isinstance(none, NewParticipant)
    assert none.profile is not None
    assert none.profile.credit.approvers == frozenset()


def test_dates_a_file_may_tell() -> None:
    for since in ("1970-01-01T00:00:00Z", "2026-11-24T12:00:00.001+01:00", "2036-11-20T00:00:00Z"):
        assert isinstance(read(meter_line(1, since=since)), Meter)
