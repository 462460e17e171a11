"""Every command of the market, as one story that runs each of them with a table and with --json."""

import ast
import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from utrn.v1 import (
    appointment_service_pb2,
    credit_service_pb2,
    meter_model_service_pb2,
    meter_service_pb2,
    pan_service_pb2,
    participant_service_pb2,
    registry_service_pb2,
    top_up_service_pb2,
)

from app.cli.meter_transfers import read_codes
from app.cli.remedies import ADVICE
from app.devstack.ca import participant_uri
from app.devstack.files import AUDITOR, HELPDESK, OPERATOR, OUTSIDER, PSP, SECOND_OPERATOR, SUPPLIERS
from app.devstack.stack import DevStack
from tests.support.lines import meter_line, pan_line
from tests.support.selling import new_id
from tests.support.teller import (
    CLOCK,
    WEST_SECOND,
    Teller,
    commands,
    in_,
    meter_id_of,
    never_run,
    one_object,
    pan_of,
    teller_of,
)
from tests.support.vends import POINT, utrn

pytestmark = [pytest.mark.real]
ROOT = Path(__file__).parents[2]
NORTH, SOUTH = SUPPLIERS
WEST, CHAIN = "supplier-west", "psp-chain"
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


@pytest.fixture
def teller(module_stack: DevStack, monkeypatch: pytest.MonkeyPatch) -> Teller:
    return teller_of(module_stack, monkeypatch)


def test_the_story_runs_every_command_in_both_forms(teller: Teller, tmp_path: Path) -> None:
    on_board(teller)
    profiles(teller)
    models(teller)
    appointments(teller)
    loaded(teller, tmp_path)
    meters(teller)
    pans(teller)
    sold(teller)
    credit(teller)
    counters(teller, tmp_path)
    hands(teller)
    reconciled(teller, tmp_path)
    who_could_sell_and_what_changed(teller)
    offboarded(teller)
    assert never_run(teller.runs) == set()


def test_a_command_that_the_story_leaves_out_is_noticed() -> None:
    assert {name for name, _ in never_run(set())} == commands()
    assert never_run({("pan show", True)}) >= {("pan show", False)}
    assert len(commands()) > 50


def test_every_call_of_the_contract_has_a_command() -> None:
    files = (
        participant_service_pb2,
        meter_model_service_pb2,
        meter_service_pb2,
        pan_service_pb2,
        registry_service_pb2,
        appointment_service_pb2,
        credit_service_pb2,
        top_up_service_pb2,
    )
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    named: set[str] = set()
    for file in (ROOT / "app" / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant):
                named.add(str(node.value))
            if isinstance(node, ast.Attribute):
                named.add(node.attr)
    # A command finds the method by its request.
    assert {method.input_type.name for service in services for method in service.methods} <= named


def on_board(teller: Teller) -> None:
    key = teller.stack.make_keys()[SOUTH]
    told = ["--name", "West Energy", "--identity", participant_uri(WEST)]
    keys = ["--originator", "90b3d51f30010003", "--key-id", key.key_id, "--point", key.public_point]
    teller.both(OPERATOR, "supplier", "add", WEST, *told, *keys)
    teller.both(OPERATOR, "participant", "add", CHAIN, "--name", "Chain", "--identity", participant_uri(CHAIN))
    teller.both(OPERATOR, "participant", "ceiling", CHAIN, "--pence", "50000000")
    teller.both(OPERATOR, "supplier", "ceiling", WEST, "--pence", "50000000")
    teller.json(
        OPERATOR, "participant", "add", "desk-second", "--role", "helpdesk", "--name", "D", "--identity", "spiffe://d"
    )
    both = ["--identity", participant_uri(WEST), "--identity", participant_uri(WEST_SECOND)]
    teller.both(OPERATOR, "supplier", "certificates", WEST, "--name", "West Energy plc", *both)
    teller.both(
        OPERATOR, "participant", "certificates", CHAIN, "--name", "Chain Ltd", "--identity", participant_uri(CHAIN)
    )
    for group, name in (("supplier", WEST), ("participant", CHAIN)):
        teller.both(OPERATOR, group, "revoke", name, "--fingerprint", ":".join(["AB"] * 32))
        teller.json(OPERATOR, group, "revoke", name, "--issued-before", "2020-01-01T00:00:00Z")
        assert f"revoked: {'ab' * 32}" in teller.table(OPERATOR, group, "show", name)
        teller.both(OPERATOR, group, "suspend", name)
        teller.both(OPERATOR, group, "resume", name)
    # As itself, once the node knows the certificates: without a name.
    teller.until(lambda: teller.works(CHAIN, "participant", "show"))
    assert teller.json(CHAIN, "participant", "show")["participant_id"] == CHAIN
    assert "Chain Ltd" in teller.table(OPERATOR, "participant", "show", CHAIN)
    shown = teller.json(WEST_SECOND, "supplier", "show")
    # The last two are revocations.
    assert [one["name"] for one in shown["identity_history"]] == ["West Energy", *["West Energy plc"] * 3]
    assert [one["status"] for one in shown["statuses"]] == [
        "PARTICIPANT_STATUS_ACTIVE", "PARTICIPANT_STATUS_SUSPENDED", "PARTICIPANT_STATUS_ACTIVE",
    ]  # fmt: skip
    seen = teller.table(OPERATOR, "supplier", "show", WEST)
    assert participant_uri(WEST_SECOND) in seen
    assert "supplier_only" in seen
    for group in ("supplier", "participant"):
        assert WEST in teller.table(OPERATOR, group, "list")
        paged = teller.json(OPERATOR, group, "list", "--page", "3")["participants"]
        assert "participants so far" in teller.errors
        ids = [one["participant_id"] for one in paged]
        assert ids == sorted({*ids, WEST, CHAIN, PSP, OUTSIDER, OPERATOR, HELPDESK, AUDITOR, NORTH, SOUTH})


def profiles(teller: Teller) -> None:
    limits = ["--limit", "counter_cash:200:4900:whole", "--limit", "app:closed", "--limit", "all:100:20000"]
    given = ["--credit-each", "2000", "--credit-day", "5000", "--approver", participant_uri(WEST_SECOND)]
    chosen = ["--option", "psp_issues_and_delivers", *limits, *given]
    teller.both(WEST, "supplier", "profile", WEST, *chosen)
    for run in (teller.json, teller.table):
        teller.json(WEST, "supplier", "profile", WEST, "--option", "supplier_generates", "--since", in_(hours=1))
        assert run(WEST, "supplier", "cancel-profile", WEST)
    assert teller.refused(WEST, "supplier", "cancel-profile", WEST).startswith("NOTHING_TO_END: ")
    (*_, holds) = teller.json(WEST, "supplier", "show", WEST)["profiles"]
    assert "until" not in holds["period"]
    profile = holds["profile"]
    assert profile["selling_model"] == "SELLING_MODEL_PSP_ISSUES_AND_DELIVERS"
    assert profile["limits"] == [
        {"channel": 1, "min_pence": 200, "max_pence": 4900, "whole_pounds": True, "closed": False},
        {"channel": 4, "min_pence": 1, "max_pence": 819100, "whole_pounds": False, "closed": True},
        {"channel": 0, "min_pence": 100, "max_pence": 20000, "whole_pounds": False, "closed": False},
    ]
    seen = teller.table(WEST, "supplier", "show", WEST)
    assert all(text in seen for text in ("counter_cash 200 to 4900, whole pounds", "app closed", "2000, 5000"))


def models(teller: Teller) -> None:
    teller.both(OPERATOR, "meter-model", "set", "Acme", "E470")
    teller.json(OPERATOR, "meter-model", "set", "Acme", "E470", "--no-over-the-air", "--since", in_(hours=1))
    (row,) = teller.json(HELPDESK, "meter-model", "list")["models"]
    assert (row["make"], row["over_the_air"]) == ("Acme", False)
    assert [one["over_the_air"] for one in row["history"]] == [True, False]
    assert row["history"][0]["period"]["until"] == row["history"][1]["period"]["since"]
    assert teller.table(HELPDESK, "meter-model", "list").count("E470") == 2


def appointments(teller: Teller) -> None:
    name = (WEST, CHAIN, "web-2026")
    limits = ["--level", "issue_and_deliver", "--channel", "online", "--channel", "counter_cash", "--max-pence", "9000"]
    dates = ["--since", in_(minutes=-1), "--until", in_(days=30)]
    teller.both(WEST, "appoint", "propose", *name, *limits, *dates)
    teller.both(CHAIN, "appoint", "accept", *name)
    teller.both(WEST, "appoint", "suspend", *name)
    teller.both(WEST, "appoint", "suspend", *name, "--resume")
    (shown,) = teller.json(CHAIN, "appoint", "show", WEST, CHAIN)["appointments"]
    assert [one["state"].removeprefix("APPOINTMENT_STATE_") for one in shown["states"]] == [
        "PROPOSED", "ACCEPTED", "SUSPENDED", "ACCEPTED",
    ]  # fmt: skip
    assert (shown["terms"]["max_pence"], shown["terms"]["level"]) == (9000, "LEVEL_ISSUE_AND_DELIVER")
    assert "online, counter_cash" in teller.table(WEST, "appoint", "show", WEST, CHAIN)
    authority = ("--callers-ca", str(teller.stack.pki.callers.ca_file))
    assert teller.json(WEST, "appoint", "verify", WEST, CHAIN, *authority) == {
        "ok": True, "appointments": {"web-2026": f"signed by {participant_uri(WEST)}"},
    }  # fmt: skip
    assert "signed by" in teller.table(CHAIN, "appoint", "verify", WEST, CHAIN, *authority)
    # Another one, ended before it began.
    teller.json(WEST, "appoint", "propose", WEST, PSP, "never", "--since", in_(days=1))
    teller.both(PSP, "appoint", "end", WEST, PSP, "never")
    listed = teller.json(OPERATOR, "appoint", "list", "--supplier", WEST)
    assert {one["terms"]["psp_id"] for one in listed["appointments"]} == {CHAIN, PSP}
    assert listed["next_page_token"] == ""
    assert teller.table(CHAIN, "appoint", "list").count("web-2026") == 1


def loaded(teller: Teller, tmp_path: Path) -> None:
    """Loads a file with signed terms, a meter and its PAN; one line is wrong, and the load goes on after a line."""
    certs = teller.stack.certs(WEST)
    files = ["--cert", str(certs.cert), "--key", str(certs.key)]
    signed = teller.run("appoint", "sign", WEST, OUTSIDER, "outlets", *files, "--channel", "counter_cash")
    meter = meter_line(1, meter_id=meter_id_of(1), supplier_id=WEST)
    pan = pan_line(1, pan=pan_of(1), meter_id=meter_id_of(1))
    lines = [signed.strip(), json.dumps(meter), json.dumps(pan_line(1, pan=pan_of(1), meter_id="no"))]
    file = tmp_path / "west.jsonl"
    file.write_text("\n".join([*lines, json.dumps(pan)]))
    assert one_object(teller.run("registry", "check", str(file), "--json", code=1))["wrong"] == 1
    assert "3 lines well-formed" in teller.run("registry", "check", str(file), code=1)
    done = teller.json(OPERATOR, "registry", "load", str(file), code=1)
    assert (done["loaded"], done["last_line"], [one["line"] for one in done["problems"]]) == (3, 4, [3])
    assert done["problems"][0]["reason"] == "BAD_FIELD"
    file.write_text(file.read_text().replace('"meter_id": "no"', f'"meter_id": "{meter_id_of(1)}"'))
    assert "0 lines loaded, 2 unchanged" in teller.table(OPERATOR, "registry", "load", str(file), "--after-line", "2")
    states = teller.json(OUTSIDER, "appoint", "show", WEST, OUTSIDER)["appointments"][0]["states"]
    assert [state["state"] for state in states] == ["APPOINTMENT_STATE_ACCEPTED"]


NEW = ["--supplier", WEST, "--head-end", "sandbox", "--point", POINT.hex()]
SETTINGS = [
    "--mode", "prepayment", "--zone", "zone-7", "--firmware", "F1", "--cohort", "C1", "--max-credit", "5000",
    "--max-balance", "90000",
]  # fmt: skip
KIND = ["--kind", "gsme", "--generation", "smets1", "--make", "Acme", "--model", "E470"]


def meters(teller: Teller) -> None:
    teller.both(WEST, "meter", "add", meter_id_of(2), *NEW, *KIND, *SETTINGS, "--since", in_(days=-400))
    teller.both(WEST, "meter", "set", meter_id_of(2), "--firmware", "F2", "--zone", "zone-8", "--max-credit", "6000")
    teller.both(WEST, "meter", "balance", meter_id_of(2), "--pence", "-250", "--at", in_(minutes=-1))
    shown = teller.json(WEST, "meter", "show", meter_id_of(2))
    assert [shown[name] for name in ("kind", "generation", "make", "model")] == [
        "METER_KIND_GSME", "METER_GENERATION_SMETS1", "Acme", "E470",
    ]  # fmt: skip
    was, holds = (one["settings"] for one in shown["settings"])
    assert (was["firmware"], was["max_credit_pence"], was["cohort"]) == ("F1", 5000, "C1")
    assert holds == {**was, "firmware": "F2", "zone": "zone-8", "max_credit_pence": 6000}
    assert INSTANT.fullmatch(shown["carried_out_to"])
    assert "zone zone-8, firmware F2, cohort C1" in teller.table(WEST, "meter", "show", meter_id_of(2))
    # The new one has other settings; the card goes with it.
    teller.json(WEST, "meter", "add", meter_id_of(3), *NEW)
    teller.json(WEST, "pan", "assign", pan_of(3), "--meter", meter_id_of(3))
    exchanged = [meter_id_of(3), "--new", meter_id_of(4), "--pan", pan_of(3)]
    teller.both(WEST, "meter", "exchange", *exchanged, *NEW, *KIND, *SETTINGS)
    assert teller.json(WEST, "pan", "show", pan_of(3))["uses"][-1]["meter_id"] == meter_id_of(4)
    teller.both(WEST, "meter", "end", meter_id_of(4))
    listed = teller.json(WEST, "meter", "list")
    assert [one["meter_id"] for one in listed["meters"]] == [meter_id_of(number) for number in (1, 2, 3, 4)]
    part = teller.json(WEST, "meter", "list", "--limit", "3")
    assert part["meters"] == listed["meters"][:3]
    rest = teller.json(WEST, "meter", "list", "--page-token", part["next_page_token"])
    assert rest["meters"] == listed["meters"][3:]
    # Every page of it.
    assert len(teller.json(OPERATOR, "meter", "list", "--page", "9")["meters"]) == 40 + 4
    assert "9 meters so far" in teller.errors
    first = teller.json(OPERATOR, "meter", "list", "--limit", "15", "--page", "9")
    assert len(first["meters"]) == 15
    rest = teller.json(OPERATOR, "meter", "list", "--page-token", first["next_page_token"])
    assert (len(rest["meters"]), rest["next_page_token"]) == (29, "")
    assert f"more: --page-token {first['next_page_token']}" in teller.table(OPERATOR, "meter", "list", "--limit", "15")


def pans(teller: Teller) -> None:
    meter_id = meter_id_of(2)
    teller.both(WEST, "pan", "assign", pan_of(2), "--meter", meter_id, "--form", "app")
    teller.both(WEST, "pan", "block", pan_of(2))
    teller.both(WEST, "pan", "unblock", pan_of(2))
    teller.both(WEST, "pan", "replace", pan_of(2), pan_of(5), "--form", "virtual")
    lost = teller.json(WEST, "pan", "show", pan_of(2))
    assert (lost["form"], lost["uses"][-1]["status"]) == ("PAN_FORM_APP", "PAN_STATUS_REPLACED")
    assert f"replaced by {pan_of(5)}" in teller.table(HELPDESK, "pan", "show", pan_of(2))
    teller.json(WEST, "pan", "assign", pan_of(6), "--meter", meter_id)
    for run in (teller.json, teller.table):
        moved = ["--from", meter_id, "--to", meter_id_of(1), "--since", in_(hours=1)]
        teller.both(WEST, "pan", "repoint", pan_of(6), *moved)
        assert run(WEST, "pan", "cancel", pan_of(6))
    teller.json(WEST, "pan", "repoint", pan_of(6), "--from", meter_id, "--to", meter_id_of(1))
    teller.until(lambda: len(teller.json(WEST, "pan", "list", "--meter", meter_id)["pans"]) == 3)
    assert pan_of(5) in teller.table(WEST, "pan", "list", "--meter", meter_id)


def sold(teller: Teller) -> None:
    """Asks whether a sale would be allowed, and sells: the PSP issues, the supplier sends."""
    pan = pan_of(5)
    asked = ["pan", "eligible", pan, "--amount", "20", "--channel", "online", "--deliver"]
    teller.until(lambda: bool(teller.json(WEST, "pan", "eligible", pan)["eligible"]))
    assert teller.json(CHAIN, *asked) == {"eligible": True, "objections": [], "supplier_id": WEST}
    assert f"eligible; the meter's supplier is {WEST}" in teller.table(CHAIN, *asked)
    teller.json(WEST, "pan", "block", pan)
    teller.json(WEST, "meter", "set", meter_id_of(2), "--mode", "credit")
    asked = ["pan", "eligible", pan, "--amount", "70", "--channel", "counter_cash"]
    teller.until(lambda: "credit mode" in teller.run(*asked, *teller.options(CHAIN), code=1))
    told = teller.json(CHAIN, *asked, code=1)
    reasons = [one["reason"].removeprefix("ERROR_REASON_") for one in told["objections"]]
    assert (told["eligible"], reasons[:2]) == (False, ["PAN_BLOCKED", "METER_IN_CREDIT_MODE"])
    assert {"AMOUNT_OUT_OF_LIMITS", "ABOVE_MAX_CREDIT"} <= set(reasons)
    seen = teller.table(CHAIN, *asked, code=1)
    assert all(f"│ {reason} " in seen and ADVICE[reason] in seen for reason in reasons)
    teller.json(WEST, "pan", "unblock", pan)
    teller.json(WEST, "meter", "set", meter_id_of(2), "--mode", "prepayment")
    teller.until(lambda: teller.works(CHAIN, *asked[:3]))

    code = one_object(teller.run("vend", "issue", pan, "20", "--channel", "online", *teller.options(CHAIN), "--json"))
    assert (code["amount_pence"], len(code["utrn"])) == (2000, 20)
    which = ["vend", "deliver", code["transaction_id"], "--participant", CHAIN]
    assert not teller.json(WEST, *which)["replayed"]
    assert "asked for before" in teller.table(WEST, *which)
    vend = ["vend", "show", code["transaction_id"]]
    assert teller.json(CHAIN, *vend)["channel"] == "CHANNEL_ONLINE"
    # Nothing is open here; tests/integration/test_open_cases.py settles what is.
    assert teller.json(WEST, "vend", "cases") == {"vends": [], "next_page_token": ""}
    assert "Open cases" in teller.table(WEST, "vend", "cases")
    settle = ["vend", "settle", code["transaction_id"], "--participant", CHAIN, "--not-credited"]
    teller.run(*settle, *teller.options(WEST), "--json", code=1)
    assert teller.refused(WEST, *settle).startswith("RECORD_CHANGED: ")
    assert "appointment web-2026" in teller.table(WEST, *vend, "--participant", CHAIN)
    assert teller.refused(CHAIN, "vend", "issue", "--deliver", pan, "20", "--channel", "app").startswith(
        "CHANNEL_NOT_ALLOWED: "
    )


def credit(teller: Teller) -> None:
    first, second = new_id(), new_id()
    note = ["--reason", "emergency", "--note", "cold snap"]
    asked = teller.json(WEST, "credit", "request", pan_of(5), "5", *note, "--transaction-id", first)
    assert (asked["state"], asked["amount_pence"], asked["reason"]) == (
        "CREDIT_STATE_WAITING", 500, "CREDIT_REASON_EMERGENCY",
    )  # fmt: skip
    assert second in teller.table(WEST, "credit", "request", pan_of(5), "7", "--transaction-id", second)
    waiting = teller.json(WEST, "credit", "report", "--waiting")
    assert [one["transaction_id"] for one in waiting["credits"]] == sorted([first, second])
    assert teller.refused(WEST, "credit", "decide", first, "--approve").startswith("TWO_PEOPLE_NEEDED: ")
    decided = teller.json(WEST_SECOND, "credit", "decide", first, "--approve")
    assert decided["credit"]["decided_by"] == participant_uri(WEST_SECOND)
    assert f"approved: {decided['code']['utrn_printed']}" in teller.table(
        WEST_SECOND, "credit", "decide", first, "--approve"
    )
    assert "rejected" in teller.table(WEST_SECOND, "credit", "decide", second, "--reject")
    told = teller.json(AUDITOR, "credit", "report", "--supplier", WEST)
    assert (told["approved"], told["approved_pence"], len(told["credits"])) == (1, 500, 2)
    day = CLOCK.now().date().isoformat()
    seen = teller.table(WEST, "credit", "report", "--day", day)
    assert f"1 approved on {day}, 500 pence" in seen
    assert "cold snap" in seen


def counters(teller: Teller, tmp_path: Path) -> None:
    """Enrols a meter from its SMSO and backs it out; hands another one to the supplier's generator and back."""
    meter_id, pan = meter_id_of(6), pan_of(7)
    teller.json(WEST, "meter", "add", meter_id, *NEW, "--not-enrolled")
    teller.json(WEST, "pan", "assign", pan, "--meter", meter_id)
    codes = tmp_path / "codes.jsonl"
    unspent: list[dict[str, Any]] = [
        {
            "participant_id": seller, "transaction_id": new_id(shift_s=-3600), "pan": pan,
            "utrn": utrn(counter, 1000), "utrn_counter": counter, "issued_at": in_(hours=-1), "deliver": deliver,
            "channel": "CHANNEL_COUNTER_CASH", "reference": {"outlet_id": "17", "receipt_id": f"R{counter}"},
        }
        for seller, counter, deliver in ((WEST, 40, True), (CHAIN, 41, False))
    ]  # fmt: skip
    codes.write_text("\n".join(map(json.dumps, unspent)))
    other_point = teller.stack.make_keys()[NORTH].public_point
    enrol = [
        "meter", "transfer-counters", meter_id, "--from", "smso", "--to", "central", "--last-issued", "41",
        "--highest-applied", "39", "--codes", str(codes), "--point", other_point, *SETTINGS,
    ]  # fmt: skip
    done = teller.json(OPERATOR, *enrol)
    assert done["result"]["changed"]
    assert done["change"]["kinds"] == ["REGISTRATION_CHANGE_KIND_CUSTODY", "REGISTRATION_CHANGE_KIND_ENROLMENT"]
    assert "nothing to do" in teller.table(OPERATOR, *enrol)
    shown = teller.json(WEST, "meter", "show", meter_id)
    assert (shown["registrations"][-1]["custody"], shown["settings"][-1]["settings"]["cohort"]) == (
        "CUSTODY_CENTRAL", "C1",
    )  # fmt: skip
    teller.until(lambda: teller.works(CHAIN, "pan", "eligible", pan))
    code = one_object(teller.run("vend", "issue", pan, "10", "--channel", "online", *teller.options(CHAIN), "--json"))
    assert teller.json(CHAIN, "vend", "show", code["transaction_id"])["utrn_counter"] == 42
    taken = teller.json(WEST, "vend", "show", unspent[0]["transaction_id"])
    assert taken["utrn_counter"] == 40
    assert (taken["channel"], taken["reference"]["receipt_id"]) == ("CHANNEL_COUNTER_CASH", "R40"), "as it was sold"
    saved = codes.with_name("saved.jsonl")
    out = ["meter", "transfer-counters", meter_id, "--from", "central", "--to", "smso", "--save-codes", str(saved)]
    told = teller.json(OPERATOR, *out)["change"]
    assert (told["last_issued"], told["highest_applied"], told["originator_id"]) == (42, 39, "90b3d51f30010003")
    assert INSTANT.fullmatch(told["at"])
    assert "counters spent up to 42, credited up to 39" in teller.table(OPERATOR, *out)
    assert (saved.stat().st_mode & 0o777, [one.deliver for one in read_codes(saved)]) in (
        (0o600, []), (0o600, [True]),
    )  # fmt: skip

    meter_id = meter_id_of(2)
    spent = teller.json(WEST, "meter", "transfer-counters", meter_id, "--from", "central", "--to", "supplier")["change"]
    assert spent["last_issued"] == 2
    made = ["vend", "deliver-external", pan_of(5), utrn(3), "--counter", "3", "--transaction-id"]

    def sent() -> bool:
        # An id that was typed is asked for as a repeat: a refusal closes it, so the next try has one of its own.
        made[-1] = new_id()
        return teller.works(WEST, *made)

    made.append("")
    teller.until(sent)
    assert teller.json(WEST, *made)["replayed"]
    assert "owed since" in teller.table(WEST, *made)
    back = ["meter", "transfer-counters", meter_id, "--from", "supplier", "--to", "central", "--last-issued"]
    assert "spent counters up to" in teller.refused(WEST, *back, "1")
    assert teller.json(WEST, *back, "3", "--highest-applied", "1")["result"]["changed"]


def hands(teller: Teller) -> None:
    meter_id, to_south = meter_id_of(2), ["--losing", WEST, "--gaining", SOUTH]
    teller.both(WEST, "meter", "change-tenant", meter_id, "--tenancy", "1")
    assert teller.refused(WEST, "meter", "change-tenant", meter_id, "--tenancy", "7").startswith("RECORD_CHANGED: ")
    for run in (teller.json, teller.table):
        teller.both(OPERATOR, "meter", "change-supplier", meter_id, *to_south, "--since", in_(hours=1))
        assert run(OPERATOR, "meter", "cancel", meter_id, "--registration")
    teller.json(WEST, "meter", "set", meter_id, "--zone", "zone-9", "--since", in_(hours=1))
    teller.json(WEST, "meter", "cancel", meter_id)
    at = in_(seconds=0.5)
    teller.both(OPERATOR, "meter", "change-supplier", meter_id, *to_south, "--since", at)
    teller.until(lambda: SOUTH in {change["supplier_id_after"] for change in _changes(teller)})
    instant = teller.json(SOUTH, "meter", "show", meter_id)["registrations"][-1]["period"]["since"]
    assert instant == at.replace("+00:00", "Z")
    assert teller.refused(WEST, "meter", "end", meter_id).startswith("NOT_YOURS: ")
    # The gaining supplier adopts the old card.
    adopted = ["--from", meter_id, "--to", meter_id]
    assert teller.json(SOUTH, "pan", "repoint", pan_of(5), *adopted)["changed"]


def reconciled(teller: Teller, tmp_path: Path) -> None:
    """What the story has left: two cards of one tenant, a card of a meter that has ended; and a list that is wrong."""
    asked = ["pan", "reconcile", "--supplier", WEST]
    told = teller.json(OPERATOR, *asked, code=1)
    assert [(one["kind"].removeprefix("PAN_FINDING_KIND_"), one["pan"]) for one in told["findings"]] == [
        ("WITHOUT_METER", pan_of(3)), ("SEVERAL_CARDS", pan_of(6)),
    ]  # fmt: skip
    assert (told["pans"], told["meters"]) == (4, 2)
    own = tmp_path / "own.csv"
    own.write_text(
        f"assign_pan.pan,assign_pan.meter_id\n{pan_of(1)},{meter_id_of(1)}\n{pan_of(88)},{meter_id_of(88)}\n"
    )
    listed = [*asked, "--list", str(own)]
    found = teller.json(WEST, *listed, code=1)["findings"]
    assert found[0] == {
        "kind": "PAN_FINDING_KIND_NOT_REGISTERED", "pan": pan_of(88), "meter_id": meter_id_of(88),
    }  # fmt: skip
    seen = teller.table(WEST, *listed, code=1)
    assert f"{len(found)} found" in seen
    assert "not_told" in seen


def _changes(teller: Teller, *options: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = teller.json(WEST, "meter", "changes", *options)["changes"]
    return found


def who_could_sell_and_what_changed(teller: Teller) -> None:
    meter_id = meter_id_of(2)
    changed = [change for change in _changes(teller) if change["meter_id"] == meter_id]
    kinds = [kind.removeprefix("REGISTRATION_CHANGE_KIND_") for one in changed for kind in one["kinds"]]
    assert kinds == ["PAYMENT_MODE", "PAYMENT_MODE", "CUSTODY", "CUSTODY", "TENANCY", "SUPPLIER"]
    lost = changed[-1]
    assert (lost["responsible_supplier_id"], lost["supplier_id_after"]) == (WEST, SOUTH)
    assert (lost["last_issued"], lost["highest_applied"]) == (3, 1)
    assert all(INSTANT.fullmatch(lost[name]) for name in ("at", "carried_out_at"))
    assert "supplier" in teller.table(AUDITOR, "meter", "changes", "--supplier", WEST)
    # Page by page, and a part of it: the same.
    paged = _changes(teller, "--page", "2")
    assert "changes so far" in teller.errors
    assert paged == _changes(teller)
    part = teller.json(WEST, "meter", "changes", "--limit", "3")
    assert part["changes"] + _changes(teller, "--page-token", part["next_page_token"]) == paged
    assert _changes(teller, "--since", lost["at"]) == [lost]
    before = (datetime.fromisoformat(lost["at"]) - timedelta(milliseconds=1)).isoformat()
    then = teller.json(HELPDESK, "meter", "sellers", "--meter", meter_id, "--at", before)
    assert then["supplier_id"] == WEST
    assert {"participant_id": CHAIN, "may_issue": True, "may_deliver": True, "allowed_by": "appointment web-2026"} in (
        then["sellers"]
    )
    now = teller.table(HELPDESK, "meter", "sellers", "--pan", pan_of(5))
    assert SOUTH in now
    assert WEST not in now


def approved(teller: Teller, *asked: str) -> None:
    """Ask as one operator for what needs two, and approve it as the other; withdraw it once between."""
    told = teller.refused(OPERATOR, *asked)
    assert told.startswith("NEEDS_APPROVAL: nothing was done")
    (one,) = teller.json(OPERATOR, "approval", "list")["approvals"]
    assert one["approval_id"] in told
    assert teller.refused(OPERATOR, "approval", "approve", one["approval_id"]).startswith("TWO_PEOPLE_NEEDED")
    assert "is withdrawn" in teller.table(OPERATOR, "approval", "withdraw", one["approval_id"])
    assert teller.json(OPERATOR, "approval", "list") == {"approvals": []}
    assert one["approval_id"] in teller.table(OPERATOR, "approval", "list", "--all")
    assert "NEEDS_APPROVAL" in teller.refused(OPERATOR, *asked)
    assert teller.json(SECOND_OPERATOR, "approval", "approve", one["approval_id"])["decided_by"] == SECOND_OPERATOR


def offboarded(teller: Teller) -> None:
    teller.both(WEST, "appoint", "end", WEST, CHAIN, "web-2026")
    teller.both(OPERATOR, "participant", "offboard", CHAIN)
    key = teller.stack.make_keys()[SOUTH]
    corrected = ["--originator", "90b3d51f30010003", "--key-id", "0c", "--point", key.public_point]
    approved(teller, "supplier", "key", WEST, *corrected)
    teller.both(OPERATOR, "supplier", "key", WEST, *corrected)
    assert teller.json(OPERATOR, "supplier", "show", WEST)["supplier_key"]["key_id"] == "0c"
    approved(teller, "supplier", "offboard", WEST)
    teller.both(OPERATOR, "supplier", "offboard", WEST)
    assert teller.json(OPERATOR, "supplier", "show", WEST)["identities"] == []
    assert teller.refused(OPERATOR, "participant", "resume", CHAIN).startswith(
        "RECORD_CHANGED: the participant has left"
    )
    # Its originator is what its meters know: a supplier comes back, by two operators.
    approved(teller, "supplier", "resume", WEST)
    teller.both(OPERATOR, "supplier", "resume", WEST)
    assert teller.json(OPERATOR, "supplier", "show", WEST)["identities"] != []
