"""Every command of the market, run against a node."""

from pathlib import Path

import pytest

from app.devstack import DevStack
from app.stackfiles import OPERATOR, OUTSIDER, PSP, SUPPLIERS
from tests.integration.test_command_line import as_json, utrn
from tests.integration.test_market import _as, meters_of
from tests.support.vends import POINT

pytestmark = [pytest.mark.real, pytest.mark.timeout(180)]
NORTH, SOUTH = SUPPLIERS


def test_the_commands_of_the_market(module_stack: DevStack, tmp_path: Path) -> None:
    operator, north, psp = (_as(module_stack, who) for who in (OPERATOR, NORTH, PSP))
    _, meter_id = meters_of(module_stack, NORTH)[8]
    new_pan, third_pan = "9826000000000000116", "9826000000000000124"
    assert as_json(utrn("psp", "add", "psp-new", "--name", "New", "--identity", "spiffe://new", *operator, "--json"))[
        "changed"
    ]
    for command in ("suspend", "resume", "offboard"):
        utrn("psp", command, "psp-new", *operator)
    assert "STANDING_LEFT" in utrn("psp", "show", "psp-new", *operator, "--json")
    assert NORTH in utrn("supplier", "list", *operator)
    limits = ["--limit", "counter_cash:200:4900", "--limit", "all:100:20000"]
    chosen = ["--option", "psp_issues_and_delivers", "--credit-each", "5000", "--credit-day", "100000", *limits]
    assert as_json(utrn("supplier", "profile", NORTH, *chosen, *north, "--json"))["changed"]
    assert "psp_issues" in utrn("supplier", "show", NORTH, *north)
    utrn("appoint", "propose", NORTH, OUTSIDER, "web-2", "--level", "issue", "--channel", "online", *north)
    utrn("appoint", "accept", NORTH, OUTSIDER, "web-2", *_as(module_stack, OUTSIDER))
    utrn("appoint", "suspend", NORTH, OUTSIDER, "web-2", *north)
    utrn("appoint", "end", NORTH, OUTSIDER, "web-2", *north)
    assert "APPOINTMENT_STATE_ENDED" in utrn("appoint", "list", *north, "--json")
    assert as_json(utrn("appoint", "verify", NORTH, OUTSIDER, *north, "--json"))["ok"]
    assert "NOT_YOURS" in utrn("appoint", "end", NORTH, OUTSIDER, "web-2", *psp, code=1)
    utrn("pan", "give", new_pan, "--meter", meter_id, "--form", "app", *north)
    utrn("pan", "block", new_pan, *north)
    utrn("pan", "unblock", new_pan, *north)
    utrn("pan", "replace", new_pan, third_pan, *north)
    assert len(as_json(utrn("pan", "list", "--meter", meter_id, *north, "--json"))["pans"]) == 3
    shown = as_json(utrn("pan", "show", new_pan, *north, "--json"))["pans"][0]
    assert (shown["uses"][-1]["status"], shown["replaced_by"]) == ("PAN_STATUS_REPLACED", third_pan)
    utrn("meter", "set", meter_id, "--max-credit", "5000", *north)
    assert (
        as_json(utrn("meter", "show", meter_id, *north, "--json"))["settings"][-1]["settings"]["max_credit_pence"]
        == "5000"
    )
    sellers = as_json(utrn("registry", "sellers", "--meter", meter_id, *operator, "--json"))["sellers"]
    assert [one["participant_id"] for one in sellers] == [NORTH, PSP]
    utrn("meter", "change-tenant", meter_id, "--tenancy", "1", *north)
    assert "tenancy" in [one["what"] for one in as_json(utrn("registry", "changes", *north, "--json"))["changes"]]
    assert "DATE_IN_PAST" in utrn(
        "meter", "change-supplier", meter_id, "--losing", NORTH, "--gaining", SOUTH, "--since", "2020-01-01T00:00:00Z",
        *operator, code=1,
    )  # fmt: skip
    csv = tmp_path / "more.csv"
    csv.write_text(
        "type,meter_id,kind,supplier_id,scheme,public_point,head_end,max_credit_pence\n"
        f"meter,00db160000000001,ESME,{NORTH},gbcs,{POINT.hex()},sandbox,5000\n"
        f"meter,00db160000000002,OIL,{NORTH},gbcs,{POINT.hex()},sandbox,\n"
    )
    told = utrn("registry", "load", str(csv), *north, code=1)
    assert "1 lines loaded" in told
    assert "line 3: BAD_FIELD: kind" in told
