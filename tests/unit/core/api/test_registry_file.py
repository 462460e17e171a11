"""A line of a registry file says a record or is refused by its field: whatever it is, and never anything else."""

import json
import re
from base64 import b64encode
from copy import deepcopy
from datetime import timedelta
from pathlib import Path
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

from core.api.registry_file import ANSWERS_ONLY, LINE_CHARACTERS_MAX
from core.api.status import status_of
from core.domain.errors import Refused
from core.domain.meter import Meter
from core.domain.participant import Profile
from core.registry.bulk_load import Loadable
from core.registry.participants import NewParticipant
from tests.support.lines import (
    JSON_VALUES,
    MODEL_LINE,
    PSP_LINE,
    SUPPLIER_LINE,
    changed,
    flat,
    meter_line,
    pan_line,
    read,
)
from tests.support.vends import NOW, POINT

LIMIT = {"channel": 3, "min_pence": 100, "max_pence": 4900}
FULL_PROFILE = {
    "selling_model": "SELLING_MODEL_PSP_ISSUES", "limits": [LIMIT], "credit_each_max_pence": 1000,
    "credit_day_max_pence": 5000, "credit_approvers": ["spiffe://north/anne"],
}  # fmt: skip
FULL_METER = meter_line(
    1, generation="METER_GENERATION_SMETS2", make="Acme", model="E1", firmware="1.0", cohort="", zone="z",
    payment_mode="PAYMENT_MODE_CREDIT", not_enrolled=True, max_credit_pence=100, max_balance_pence=100,
    since="2026-11-01T00:00:00Z",
)  # fmt: skip


def _certificate() -> bytes:
    """Return a certificate of anybody; who issued it is not asked here."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW + timedelta(days=1))
    return made.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


CERTIFICATE = _certificate()
VERSION_35 = b64encode(CERTIFICATE.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x22")).decode()
TERMS = AppointmentTerms(
    appointment_id="a", supplier_id="n", psp_id="p", level=LEVEL_ISSUE, min_pence=1, max_pence=2,
    since=timestamp_pb2.Timestamp(seconds=1),
)  # fmt: skip
SIGNED = {
    "terms": b64encode(TERMS.SerializeToString()).decode(), "signature": "AA==",
    "certificate": b64encode(CERTIFICATE).decode(),
}  # fmt: skip
APPOINTMENT_LINE: dict[str, Any] = {"appoint": {"signed_terms": SIGNED}}
GOOD: list[dict[str, Any]] = [
    SUPPLIER_LINE, changed(SUPPLIER_LINE, profile=FULL_PROFILE), PSP_LINE, MODEL_LINE, APPOINTMENT_LINE, FULL_METER,
    pan_line(1, form="PAN_FORM_APP", blocked=True, since="2026-11-01T00:00:00+01:00"),
]  # fmt: skip


def _told(read_as: Loadable | Refused) -> str:
    """Return the field that is refused, "" for none; the refusal must fit into an answer."""
    if isinstance(read_as, Refused):
        assert status_of(read_as).SerializeToString()
        assert len(read_as.message) < 300
        return read_as.facts.get("field", read_as.reason)
    assert isinstance(read_as, get_args(Loadable))
    return ""


@pytest.mark.parametrize("line", GOOD, ids=lambda one: str(next(iter(one))))
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
    line = deepcopy(data.draw(st.sampled_from(GOOD)))
    places = [(inside, path.rpartition(".")[2]) for path, (inside, _) in flat(line).items()]
    places += [(line, name) for name in line]
    inside, name = data.draw(st.sampled_from(places))
    inside[data.draw(st.sampled_from([name, name + "x"]))] = data.draw(JSON_VALUES)
    told = read(line)
    _told(told)
    if isinstance(told, Refused):
        assert "982620000" not in told.message, "no problem quotes a PAN"


@given(st.sampled_from(GOOD), st.data())
def test_a_line_cut_or_scratched_anywhere_is_read_or_refused(line: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps(line)
    at = data.draw(st.integers(0, len(text) - 1))
    assert _told(read(text[:at])) == "line", "half an object is none"
    _told(read(text[:at] + data.draw(st.text(st.characters(), max_size=3)) + text[at + 1 :]))


def meter(**changes: Any) -> dict[str, Any]:
    return changed(meter_line(1), **changes)


def supplier(**changes: Any) -> dict[str, Any]:
    return changed(SUPPLIER_LINE, **{f"participant.{name}": value for name, value in changes.items()})


def signed(**changes: Any) -> dict[str, Any]:
    return {"appoint": {"signed_terms": {**SIGNED, **changes}}}


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ({"add_meter": 7}, "add_meter"),
        ({"add_meter": None}, "line"),
        ({"add_meteor": {}}, "add_meteor"),
        ({}, "line"),
        ([], "line"),
        ({**MODEL_LINE, **PSP_LINE}, "line"),
        ({**MODEL_LINE, "blocked": True}, "blocked"),
        ({"blocked": True}, "line"),
        (meter(**{"meter.kind": []}), "meter.kind"),
        (meter(**{"meter.kind": "ESME"}), "meter.kind"),
        (meter(**{"meter.kind": True}), "meter.kind"),
        (meter(**{"meter.kind": 1.5}), "meter.kind"),
        (meter(**{"meter.kind": 77}), "meter.kind"),
        (meter(**{"meter.kind": "\ud800"}), "meter.kind"),
        (meter(**{"settings.payment_mode": {"credit": 1}}), "settings.payment_mode"),
        ('{"add_meter": ' + "1" * 5000 + "}", "line"),
        (f'{{"add_meter": {{"settings": {{"max_credit_pence": {"9" * 4000}}}}}}}', "settings.max_credit_pence"),
        (meter(**{"settings.max_credit_pence": 10**4000}), "settings.max_credit_pence"),
        (meter(**{"settings.max_credit_pence": 81_910_001}), "settings.max_credit_pence"),
        (meter(**{"settings.max_credit_pence": -1}), "settings.max_credit_pence"),
        (meter(**{"settings.max_credit_pence": True}), "settings.max_credit_pence"),
        (meter(**{"settings.max_credit_pence": 1.0}), "settings.max_credit_pence"),
        (meter(**{"settings.max_credit_pence": "1_000"}), "settings.max_credit_pence"),
        (meter(**{"settings.max_credit_pence": "1e3"}), "settings.max_credit_pence"),
        (meter(**{"settings.max_credit_pence": float("nan")}), "settings.max_credit_pence"),
        (meter(**{"settings.max_credit_pence": float("inf")}), "settings.max_credit_pence"),
        (meter(**{"settings.zone": "a/b"}), "settings.zone"),
        (meter(**{"settings.zone": "\x00"}), "settings.zone"),
        (meter(**{"settings.zone": "\ud800"}), "settings.zone"),
        (meter(**{"settings.zone": ["\udfff"]}), "settings.zone"),
        (meter(**{"settings.enrolled": False}), "settings.enrolled"),
        (meter(**{"meter.settings": []}), "meter.settings"),
        (meter(**{"meter.carriedOutTo": None}), "meter.carriedOutTo"),
        (meter(**{"meter.public_point": "é"}), "meter.public_point"),
        (meter(**{"meter.public_point": POINT.hex()}), "meter.public_point"),
        (meter(since="0001-01-01T00:00:00+23:59"), "since"),
        (meter(since="1969-12-31T23:59:59.999Z"), "since"),
        (meter(since="2037-01-01T00:00:00Z"), "since"),
        (meter(since="9999-12-31T23:59:59-23:59"), "since"),
        (meter(since="2026-11-24T12:00:00"), "since"),
        (meter(since=""), "since"),
        (meter(not_enrolled="true"), "not_enrolled"),
        (pan_line(1, since=7), "since"),
        (pan_line(1, pan=["1"]), "pan"),
        (pan_line(1, form=4), "form"),
        (signed(terms="é"), "signed_terms.terms"),
        (signed(terms=[]), "signed_terms.terms"),
        (signed(signature=""), "signed_terms.signature"),
        (signed(certificate=b64encode(bytes(10_001)).decode()), "signed_terms.certificate"),
        (signed(certificate="AA=="), "signed_terms.certificate"),
        (signed(certificate=VERSION_35), "signed_terms.certificate"),
        (signed(terms=b64encode(b"\xff").decode()), "signed_terms.terms"),
        (changed(SUPPLIER_LINE, **{"participant.name": ""}), "participant.name"),
        (changed(SUPPLIER_LINE, **{"participant.name": "\udc80"}), "participant.name"),
        (supplier(identities=[]), "participant.identities"),
        (supplier(identities=["spiffe://\ud800"]), "participant.identities"),
        (supplier(identities=["spiffe://nörd"]), "participant.identities"),
        (supplier(identities=["spiffe://a\x00"]), "participant.identities"),
        (supplier(identities=["spiffe://a", None]), "participant.identities"),
        (supplier(identities=["spiffe://a", "spiffe://a"]), "participant.identities"),
        (supplier(identities=[f"spiffe://{n}" for n in range(21)]), "participant.identities"),
        (supplier(statuses=[]), "participant.statuses"),
        (changed(SUPPLIER_LINE, **{"participant.supplier_key.key_id": "1"}), "participant.supplier_key.key_id"),
        (changed(PSP_LINE, profile=FULL_PROFILE), "profile"),
        (changed(MODEL_LINE, **{"model.schemes": ["gbcs", "sts"]}), "model.schemes"),
        (changed(MODEL_LINE, **{"model.schemes": [["gbcs"]]}), "model.schemes"),
        (changed(MODEL_LINE, **{"model.make": ""}), "model.make"),
        (changed(MODEL_LINE, **{"model.history": []}), "model.history"),
        (changed(MODEL_LINE, colour="red"), "colour"),
        ({**MODEL_LINE, "9826200000000000001": 1}, "line"),
        ({**MODEL_LINE, "\ud800": 1}, "line"),
        (changed(MODEL_LINE, **{"\ud800": 1}), "line"),
        ({**MODEL_LINE, "[a.b]": 1}, "line"),
        ({**MODEL_LINE, "x" * 41: 1}, "line"),
        ('{"set_meter_model": {"model": {"make": "A", "make": "B"}}}', "model.make"),
        ('{"add_participant": {"profile": {"selling_model": 1, "sellingModel": 2}}}', "profile.selling_model"),
        ('{"blocked": false, "blocked": true}', "blocked"),
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
        ({"limits": [{**LIMIT, "min_pence": -1}]}, "profile.limits"),
        ({"limits": [{**LIMIT, "min_pence": 1.5}]}, "profile.limits.min_pence"),
        ({"limits": [{**LIMIT, "colour": 1}]}, "profile.limits.colour"),
        ({"limits": [LIMIT, LIMIT]}, "profile.limits"),
        ({"limits": [[]]}, "profile.limits"),
        ({"selling_model": "all"}, "profile.selling_model"),
        ({"selling_model": 0}, "profile.selling_model"),
        ({"credit_each_max_pence": 10**10 + 1}, "profile.credit_each_max_pence"),
        ({"credit_day_max_pence": -1}, "profile.credit_day_max_pence"),
        ({"credit_approvers": ["anne"]}, "profile.credit_approvers"),
        ({"credit_approvers": [f"spiffe://{n}" for n in range(21)]}, "profile.credit_approvers"),
        ({"credit_approvers": "spiffe://anne"}, "profile.credit_approvers"),
        ({"type": "profile"}, "profile.type"),
    ],
)
def test_a_profile_in_a_file_is_checked_as_one_in_a_request(profile: dict[str, Any], field: str) -> None:
    line = changed(SUPPLIER_LINE, profile={"selling_model": "SELLING_MODEL_PSP_ISSUES", **profile})
    assert _told(read(line)) == field


def test_a_profile_is_read_as_it_is_said() -> None:
    one = read(changed(SUPPLIER_LINE, profile=FULL_PROFILE))
    assert isinstance(one, NewParticipant)
    assert isinstance(one.profile, Profile)
    assert (one.profile.limits[0].channel, one.profile.credit.approvers) == (3, frozenset({"spiffe://north/anne"}))
    none = read(changed(SUPPLIER_LINE, profile={"selling_model": 1, "credit_approvers": []}))
    assert isinstance(none, NewParticipant)
    assert none.profile is not None
    assert none.profile.credit.approvers == frozenset()


def test_dates_a_file_may_tell() -> None:
    for since in ("1970-01-01T00:00:00Z", "2026-11-24T12:00:00.001+01:00", "2036-11-20T00:00:00Z"):
        assert isinstance(read(meter_line(1, since=since)), Meter)


def test_null_is_a_field_left_out_and_both_names_of_a_field_are_known() -> None:
    line = {"addMeter": {**meter_line(1)["add_meter"], "notEnrolled": True, "since": None}}
    one = read(line)
    assert isinstance(one, Meter)
    assert not one.settings.periods[0].value.enrolled


@pytest.mark.parametrize("deep", range(100, 1000, 7))
def test_a_line_nested_as_deep_as_the_interpreter_goes_is_refused(deep: int) -> None:
    for inside, field in ("[" * deep + "]" * deep, "pan"), ('{"a":' * deep + "1" + "}" * deep, "pan"):
        assert _told(read(f'{{"assign_pan": {{"pan": {inside}}}}}')) in (field, "line")


def test_every_field_that_the_contract_says_is_of_answers_only_is_refused() -> None:
    proto = Path(__file__).parents[4] / "proto" / "utrn" / "v1"
    told: set[str] = set()
    for message in ("Participant", "Meter", "MeterSettings", "MeterModel"):
        (text,) = (
            match[1]
            for file in proto.glob("*.proto")
            if (match := re.search(rf"^message {message} {{\n(.*?)^}}", file.read_text(), re.MULTILINE | re.DOTALL))
        )
        told |= {f"utrn.v1.{message}.{name}" for name in re.findall(r"Answers only.*\n\s*[\w. ]+ (\w+) = ", text)}
    assert {field.full_name for field in ANSWERS_ONLY} == told
