"""What the commands of the market refuse, and what they say then: one line, what is needed, what to do."""

from pathlib import Path

import pytest

from app.cli.remedies import ADVICE
from app.devstack.ca import participant_uri
from app.devstack.files import OPERATOR, PSP, SUPPLIERS
from app.devstack.stack import DevStack
from tests.integration.test_command_line import as_json, utrn
from tests.support.teller import Teller, meter_id_of, pan_of, teller_of
from tests.support.vends import POINT

pytestmark = [pytest.mark.real]
NORTH, SOUTH = SUPPLIERS
NEW = ("--supplier", NORTH, "--head-end", "sandbox", "--point", POINT.hex())


@pytest.fixture
def teller(module_stack: DevStack, monkeypatch: pytest.MonkeyPatch) -> Teller:
    return teller_of(module_stack, monkeypatch)


METER = meter_id_of(900)
ENROL = ("meter", "transfer-counters", METER, "--from", "smso", "--to", "central")
USAGE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("meter", "end", METER, "--at", "tomorrow"), "tomorrow: an instant with its offset is needed"),
    (("meter", "end", METER, "--at", "2026-11-24T12:00:00"), "with its offset is needed"),
    (("meter", "sellers", "--meter", METER, "--at", "9999-12-31T23:59:59-14:00"), "an instant with its offset"),
    (("meter", "sellers"), "--meter or --pan: one of the two is needed"),
    (
        ("pan", "eligible", pan_of(1), "--channel", "pigeon"),
        "one of counter_cash, counter_card, online, app, phone, aut",
    ),
    (("pan", "eligible", pan_of(1), "--amount", "1e999999999999"), "no amount of pounds, such as 10 or 12.34"),
    (
        ("pan", "assign", pan_of(1), "--meter", METER, "--form", "stone"),
        "--form stone: one of plastic, virtual, app is",
    ),
    (("supplier", "profile", NORTH, "--option", "all"), "one of supplier_only, psp_issues, psp_issues_and_delivers,"),
    (("supplier", "profile", NORTH, "--option", "psp_issues", "--limit", "not_paid:1:2"), "one of counter_cash,"),
    (("supplier", "profile", NORTH, "--option", "psp_issues", "--limit", "app:5"), "as counter_cash:200:4900:whole"),
    (("supplier", "profile", NORTH, "--option", "psp_issues", "--limit", f"app:1:{2**70}"), "CHANNEL:closed is needed"),
    (
        ("participant", "add", "x", "--name", "X", "--identity", "spiffe://x", "--role", "supplier"),
        "use utrn supplier add",
    ),
    (("meter", "set", METER), "say what: one or more of --mode, --head-end"),
    (("meter", "add", METER, *NEW, "--point", "zz"), "--point: hex is needed"),
    (("meter", "add", METER, *NEW, "--kind", "oil"), "--kind oil: one of esme, gsme is needed"),
    (("meter", "add", METER, *NEW, "--max-credit", "-1"), "--max-credit"),
    (
        ("meter", "transfer-counters", METER, "--from", "smso", "--to", "central", "--last-issued", "-1"),
        "--last-issued",
    ),
    (ENROL, "--last-issued must be said"),
    (
        ("meter", "transfer-counters", METER, "--from", "smso", "--to", "me"),
        "--to me: one of central, supplier, smso is needed",
    ),
    (
        (
            "meter",
            "transfer-counters",
            METER,
            "--from",
            "smso",
            "--to",
            "central",
            "--last-issued",
            "0",
            "--codes",
            "/no/file",
        ),
        "cannot be read",
    ),
    (("meter", "transfer-counters", METER, "--from", "central", "--to", "smso", "--zone", "z"), "go with --from smso"),
    (
        ("meter", "transfer-counters", METER, "--from", "central", "--to", "smso", "--last-issued", "3"),
        "go with --to central",
    ),
    (("appoint", "propose", NORTH, PSP, "x", "--level", "none"), "--level none: one of issue, issue_and_deliver is"),
    (("credit", "request", pan_of(1), "ten"), "no amount of pounds"),
    (("registry", "load", "/no/file"), "/no/file: cannot be read"),
    (("appoint", "list", "--target", "nowhere"), "host:port is needed"),
    (("appoint", "list", "--cert", "/no/cert"), "--cert /no/cert: No such file or directory; name a PEM file"),
    (("appoint", "list", "--cert", "README.md"), "--cert README.md: no certificate; name a PEM file with one"),
)


@pytest.mark.parametrize(("arguments", "says"), USAGE, ids=lambda one: " ".join(one) if isinstance(one, tuple) else "")
def test_a_wrong_option_is_named_with_what_is_needed(teller: Teller, arguments: tuple[str, ...], says: str) -> None:
    # What is typed last holds.
    group, command, *rest = arguments
    teller.run(group, command, *teller.options(OPERATOR), *rest, code=2)
    # A message of ours is one line; those of typer are in a frame.
    assert says in " ".join(teller.errors.split())
    if "╭" not in teller.errors:
        assert len(teller.errors.splitlines()) == 1


def test_a_key_that_is_anothers_and_a_file_of_codes_are_named(teller: Teller, tmp_path: Path) -> None:
    key = str(teller.stack.certs(PSP).key)
    teller.run("meter", "list", *teller.options(OPERATOR), "--key", key, code=2)
    assert "not the key of" in teller.errors
    codes = tmp_path / "codes.jsonl"
    codes.write_text('{"pan": "1"}\n\n{"pan": "2", "price": 3}\n')
    arguments = [
        "meter",
        "transfer-counters",
        METER,
        "--from",
        "smso",
        "--to",
        "central",
        "--last-issued",
        "0",
        "--codes",
    ]
    arguments.append(str(codes))
    teller.table(OPERATOR, *arguments, code=2)
    assert f"--codes {codes}, line 3: " in teller.errors
    assert (
        "participant_id, transaction_id, pan, utrn, utrn_counter, issued_at, deliver, channel, reference is needed"
        in teller.errors
    )


def test_what_a_node_refuses_is_one_line_that_says_what_to_do(teller: Teller) -> None:
    norths = teller.json(NORTH, "meter", "list", "--limit", "1")["meters"][0]["meter_id"]
    assert teller.refused(SOUTH, "meter", "set", norths, "--zone", "z") == (
        f"NOT_YOURS: this belongs to another supplier; {ADVICE['NOT_YOURS']}"
    )
    past = ["--losing", NORTH, "--gaining", SOUTH, "--since", "2020-01-01T00:00:00Z"]
    line = teller.refused(OPERATOR, "meter", "change-supplier", norths, *past)
    assert line.startswith("DATE_IN_PAST: ")
    assert "(asked 2020-01-01T00:00:00.000Z, now 20" in line
    assert line.endswith(ADVICE["DATE_IN_PAST"])
    assert teller.refused(PSP, "meter", "list").startswith("ROLE_NOT_ALLOWED: ")
    assert teller.refused(OPERATOR, "pan", "show", pan_of(999)).startswith("RECORD_UNKNOWN: ")
    two = teller.refused(PSP, "vend", "issue", "--deliver", "123", "0")
    assert two.startswith("BAD_FIELD: ")
    assert "pan: " in two
    assert "amount_pence: " in two, "every field that is wrong, in one line"
    teller.run("meter", "list", *teller.options(OPERATOR), "--target", "127.0.0.1:1", code=1)
    assert teller.errors.startswith("UNAVAILABLE: ")
    assert ADVICE["UNAVAILABLE"] in teller.errors


def test_a_name_is_printed_as_it_is(teller: Teller) -> None:
    """Not as mark-up, not as an emoji."""
    name = "[red]Odd :x: Ltd"
    teller.json(OPERATOR, "participant", "add", "psp-odd", "--name", name, "--identity", participant_uri("psp-odd"))
    assert name in teller.table(OPERATOR, "participant", "show", "psp-odd")
    assert name in teller.table(OPERATOR, "participant", "list")


def test_the_same_as_processes_of_their_own(teller: Teller) -> None:
    operator = teller.options(OPERATOR)
    assert NORTH in utrn("supplier", "list", *operator)
    told = utrn("meter", "list", *operator, "--page", "9", "--json")
    assert len(as_json(told)["meters"]) >= 40
    assert "ROLE_NOT_ALLOWED" in utrn("meter-model", "list", *teller.options(PSP), code=1)
    assert "needed" in utrn("meter", "sellers", *operator, code=2)
    assert "no text in UTF-8" in utrn("pan", "show", "\udcff", *operator, code=2)
