"""Bulk load: lines stand alone, wrong ones are named, loading again changes nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import timestamp_pb2
from google.protobuf.json_format import MessageToJson
from utrn.v1 import appointment_service_pb2 as appointment_pb
from utrn.v1 import registry_service_pb2 as registry_pb
from utrn_client.appointing import BadEvidence, sign_terms, verify_terms

from app.devstack.ca import DevCa, participant_uri
from core.api.registry_file import read_line
from core.domain.effective_dated import ms_of
from core.domain.errors import Refused
from core.domain.meter import Meter, MeterId
from core.gateways.system_clock import SystemClock
from core.registry.bulk_load import Loadable, Loaded
from tests.fakes.clock import HandClock
from tests.support.etcd import Store
from tests.support.lines import PSP_LINE, RULE, SUPPLIER_LINE, SUPPLIER_RECORD, meter_line, pan_line, read
from tests.support.market_node import OPERATOR, MarketNode, as_
from tests.support.vends import PSP_ID, SUPPLIER, SUPPLIER_ID


async def load(node: MarketNode, lines: Sequence[dict[str, Any] | str], *, who: Any = OPERATOR) -> Loaded:
    """Load lines as a node does, numbered from 1."""
    now = ms_of(node.clock.now())
    return await node.load(b"")(as_(who), [(number, read(line, now)) for number, line in enumerate(lines, start=1)])


def problems(loaded: Loaded) -> dict[int, str]:
    return {number: one.reason for number, one in sorted(loaded.problems.items())}


@pytest.fixture
def node(store: Store) -> MarketNode:
    return MarketNode(store, HandClock())


async def test_a_file_is_loaded_once_however_often(node: MarketNode) -> None:
    lines = [
        SUPPLIER_LINE,
        PSP_LINE,
        *(line for number in range(150) for line in (meter_line(number), pan_line(number))),
    ]
    first, again = await load(node, lines), await load(node, lines)
    assert (first.loaded, first.unchanged, first.problems) == (302, 0, {})
    assert (again.loaded, again.unchanged, again.problems) == (0, 302, {})


async def test_half_a_file_corrupt_loads_the_other_half_and_names_the_lines(node: MarketNode) -> None:
    wrong: list[dict[str, Any] | str] = [
        "{", "[]", '{"add_meteor": {}}', '{"add_meter": {}}',
        meter_line(3, public_point="00"), meter_line(4, kind="OIL"), meter_line(5, supplier_id="nobody"),
        meter_line(6, colour="red"), pan_line(999), pan_line(1, pan="12"), meter_line(8, since="yesterday"),
        meter_line(1, head_end="another"),
    ]  # fmt: skip
    good = [
        SUPPLIER_LINE,
        *(meter_line(number) for number in (1, 2)),
        pan_line(1),
        pan_line(2),
        pan_line(2),
        meter_line(1),
    ]
    loaded = await load(node, [*good, *wrong])
    assert (loaded.loaded, loaded.unchanged) == (5, 2), "duplicates of a line change nothing"
    assert problems(loaded) == {
        8: "BAD_FIELD", 9: "BAD_FIELD", 10: "BAD_FIELD", 11: "BAD_FIELD", 12: "BAD_FIELD", 13: "BAD_FIELD",
        14: "PARTICIPANT_UNKNOWN", 15: "BAD_FIELD", 16: "RECORD_UNKNOWN", 17: "BAD_FIELD", 18: "BAD_FIELD",
        19: "BAD_FIELD",
    }  # fmt: skip
    assert "line 2" in loaded.problems[19].message, "which line it contradicts"
    later = await load(node, [meter_line(1, head_end="another"), pan_line(1, meter_id=f"00db14{2:010x}")])
    assert problems(later) == {1: "RECORD_EXISTS", 2: "RECORD_EXISTS"}
    known = await node.records.read(Meter, MeterId(f"00db14{1:010x}"))
    assert known is not None
    assert [period.value.head_end for period in known.record.settings.periods] == ["sandbox"], "nothing is half-applied"


async def test_no_problem_quotes_a_pan(node: MarketNode) -> None:
    loaded = await load(node, [pan_line(7), pan_line(7, blocked=True), pan_line(8, pan="9826212345678901x")])
    assert loaded.problems
    assert not any("98262" in problem.message for problem in loaded.problems.values())


async def test_a_supplier_loads_its_own_meters_and_no_one_elses(node: MarketNode) -> None:
    key = {**SUPPLIER_RECORD["supplier_key"], "originator_id": "90b3d51f30010002"}
    two = {"participant_id": "supplier-two", "identities": ["spiffe://two"], "supplier_key": key}
    other = {"add_participant": {"participant": {**SUPPLIER_RECORD, **two}}}
    await load(node, [SUPPLIER_LINE, other])
    lines = [meter_line(1), meter_line(2, supplier_id="supplier-two"), PSP_LINE]
    loaded = await load(node, lines, who=SUPPLIER)
    assert (loaded.loaded, problems(loaded)) == (1, {2: "NOT_YOURS", 3: "ROLE_NOT_ALLOWED"})


# Appointments carry the supplier's signature.


def _signed(ca: DevCa, signer: str, **changes: Any) -> appointment_pb.SignedTerms:
    since = timestamp_pb2.Timestamp(seconds=1_700_000_000)
    terms = appointment_pb.AppointmentTerms(
        **{
            "appointment_id": "a1", "supplier_id": SUPPLIER_ID, "psp_id": PSP_ID,
            "level": appointment_pb.LEVEL_ISSUE, "min_pence": 1, "max_pence": 5000, "since": since, **changes,
        }
    )  # fmt: skip
    certs = ca.issue(signer, uri=participant_uri(signer))
    return sign_terms(terms, cert=certs.cert, key=certs.key)


def _line(signed: appointment_pb.SignedTerms) -> str:
    record = registry_pb.RegistryRecord(appoint=appointment_pb.AppointRequest(signed_terms=signed))
    return MessageToJson(record)


async def test_only_the_suppliers_own_signature_over_these_very_terms_appoints(store: Store, tmp_path: Path) -> None:
    now = SystemClock().now()
    node = MarketNode(store, HandClock(now))
    ca, other_ca = DevCa.load_or_create(tmp_path / "ca", now=now), DevCa.load_or_create(tmp_path / "other", now=now)
    load_records = node.load((tmp_path / "ca" / "ca.pem").read_bytes())
    await load(node, [SUPPLIER_LINE, PSP_LINE])
    good, forged = _signed(ca, SUPPLIER_ID), _signed(ca, SUPPLIER_ID)
    raised = appointment_pb.AppointmentTerms.FromString(good.terms)
    raised.max_pence = 819_100
    forged.terms = raised.SerializeToString(deterministic=True)
    cases = {
        "good": good,
        "terms changed": forged,
        "by another participant": _signed(ca, PSP_ID),
        "under another root": _signed(other_ca, SUPPLIER_ID),
        "dates reversed": _signed(ca, SUPPLIER_ID, until=timestamp_pb2.Timestamp(seconds=1_600_000_000)),
    }
    came: dict[str, str] = {}
    for name, signed in cases.items():
        line: Loadable | Refused
        try:
            line = read_line(_line(signed), pan_rule=RULE, now=ms_of(now), by="test")
        except Refused as refusal:
            line = refusal
        done = await load_records(as_(OPERATOR), [(1, line)])
        came[name] = done.problems[1].reason if done.problems else "loaded"
    assert came == {
        "good": "loaded", "terms changed": "SIGNATURE_WRONG", "by another participant": "SIGNATURE_WRONG",
        "under another root": "SIGNATURE_WRONG", "dates reversed": "DATES_REVERSED",
    }  # fmt: skip
    roots = (tmp_path / "ca" / "ca.pem").read_bytes()
    assert verify_terms(good, roots=roots) == participant_uri(SUPPLIER_ID)
    with pytest.raises(BadEvidence):
        verify_terms(forged, roots=roots)
    again = await load_records(as_(OPERATOR), [(1, read_line(_line(good), pan_rule=RULE, now=ms_of(now), by="test"))])
    assert again.unchanged == 1
