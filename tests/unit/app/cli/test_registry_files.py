"""Files of any bytes: every line is counted or refused with its number, and no line touches another."""

import csv
import io
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.cli.registry_files import Line, Total, UnreadableFile, check_lines, parts, read_lines
from core.api.config import ApiConfig
from core.api.registry_file import LINE_CHARACTERS_MAX
from core.domain.errors import BadField
from core.domain.meter import PanRule
from tests.support.lines import MODEL_LINE, POINT_TEXT, PSP_LINE, RULE, SUPPLIER_LINE, meter_line, pan_line

GOOD = [json.dumps(one).encode() for one in (SUPPLIER_LINE, PSP_LINE, MODEL_LINE, meter_line(1), pan_line(1))]
METER = "add_meter.meter"
HEADER = (
    f"{METER}.meter_id,{METER}.kind,add_meter.supplier_id,{METER}.scheme,{METER}.public_point,"
    "add_meter.settings.head_end,add_meter.settings.max_credit_pence,add_meter.not_enrolled,add_meter.since"
)
ROW = f"00db160000000001,METER_KIND_ESME,north,gbcs,{POINT_TEXT},sandbox,5000,true,2026-11-01T00:00:00Z"


def check(content: bytes, name: str = "file.jsonl", *, after: int = 0) -> Total:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        return check_lines(read_lines(path, after=after), RULE)


def wrong(total: Total) -> list[int]:
    return [line for line, _, _ in total.problems]


def lines_of(content: bytes) -> list[int]:
    """Return the numbers of the lines that are not blank, as an editor counts them."""
    pieces = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [number for number, one in enumerate(pieces, start=1) if one.decode("utf-8", "replace").strip()]


@given(st.binary(max_size=200) | st.lists(st.binary(max_size=9) | st.sampled_from(GOOD)).map(b"\n".join))
def test_a_file_of_any_bytes_is_checked_line_by_line(content: bytes) -> None:
    total = check(content)
    pieces = content.split(b"\n")
    good = [number for number in lines_of(content) if pieces[number - 1].removeprefix(b"\xef\xbb\xbf") in GOOD]
    assert total.loaded == len(good)
    assert wrong(total) == [number for number in lines_of(content) if number not in good]
    assert all(reason == "BAD_FIELD" for _, reason, _ in total.problems)


@given(st.lists(st.binary(max_size=12) | st.sampled_from([ROW.encode(), b'"', ROW.encode() + b","]), max_size=8))
def test_a_csv_of_any_bytes_is_checked_row_by_row(rows: list[bytes]) -> None:
    content = b"\n".join([HEADER.encode(), *rows])
    total = check(content, "file.csv")
    pieces = content.split(b"\n")
    good = [number for number in lines_of(content) if pieces[number - 1] == ROW.encode()]
    assert total.loaded == len(good)
    assert wrong(total) == [number for number in lines_of(content) if number not in [1, *good]]


@given(st.binary(max_size=60))
def test_a_csv_of_nothing_but_noise_is_refused_as_a_file_or_line_by_line(content: bytes) -> None:
    try:
        total = check(content, "file.csv")
    except UnreadableFile:
        return
    assert (total.loaded, total.problem_count) == (0, len(lines_of(content)[1:]))


@pytest.mark.parametrize(
    ("content", "refused"),
    [
        (b"\xff\n" + GOOD[0], {1: "line: not UTF-8 at byte 1"}),
        (GOOD[0] + b"\n" + GOOD[1][:20] + b"\xc3(" + GOOD[1][20:] + b"\n" + GOOD[2], {2: "line: not UTF-8 at byte 21"}),
        (b"\xef\xbb\xbf" + GOOD[0] + b"\r\n\r\n" + GOOD[1] + b"\r\n", {}),
        (GOOD[0] + b"\n\xef\xbb\xbf" + GOOD[1], {2: "line: not JSON at column 1"}),
        (GOOD[0] + b"\r" + GOOD[1], {1: "line: not JSON at column"}),
        (GOOD[0] + b"\n" + b"x" * 1_000_000 + b"\n" + GOOD[1], {2: "line: longer than 20000 characters"}),
        (GOOD[0] + b"\n" + b" " * (LINE_CHARACTERS_MAX + 1) + b"x\n", {2: "line: longer than 20000 characters"}),
        ("é".encode() * 50_000 + b"\n" + GOOD[1], {1: "line: longer than 20000 characters"}),
        (b"x" * 500_000, {1: "line: longer than 20000 characters"}),
        (GOOD[0] + b"\n\x00", {2: "line: not JSON at column 1"}),
    ],
)
def test_what_is_wrong_with_a_line_stays_with_it(content: bytes, refused: dict[int, str]) -> None:
    total = check(content)
    assert wrong(total) == list(refused)
    for line, _, message in total.problems:
        assert message.startswith(refused[line])
    assert total.loaded == len(lines_of(content)) - len(refused)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (ROW, ""),
        (ROW.replace("METER_KIND_ESME", '"METER_KIND_ESME"'), ""),
        (ROW.replace("5000", ""), ""),
        (ROW + ",more", "line: 10 cells under 9 names"),
        (ROW.rsplit(",", 1)[0], "line: 8 cells under 9 names"),
        ("00db,METER_KIND_ESME", "line: 2 cells under 9 names"),
        (ROW.replace("METER_KIND_ESME", '"METER_KIND_ESME'), "line: no row of a CSV"),
        (ROW.replace("METER_KIND_ESME", '"METER_KIND"_ESME'), "line: no row of a CSV"),
        (ROW.replace("METER_KIND_ESME", "METER_KIND\r_ESME"), "line: no row of a CSV"),
        (ROW.replace("sandbox", "\0"), "settings.head_end:"),
        (ROW.replace("5000", "5e3"), "add_meter.settings.max_credit_pence:"),
        (ROW.replace("5000", "-5"), "add_meter.settings.max_credit_pence:"),
        (ROW.replace("5000", "٣"), "add_meter.settings.max_credit_pence:"),
        (ROW.replace("5000", "9" * 5000), "add_meter.settings.max_credit_pence:"),
        (ROW.replace("true", "yes"), "not_enrolled:"),
        (ROW.replace("sandbox", "x" * 15_000), "settings.head_end:"),
        (ROW.replace("sandbox", '"' + '""' * 9_000 + '"'), "settings.head_end:"),
        (ROW.replace("sandbox", "x" * 140_000), "line: longer than 20000 characters"),
    ],
)
def test_a_row_is_refused_by_what_is_wrong_with_it(row: str, problem: str) -> None:
    total = check("\r\n".join([HEADER, ROW, row, ROW.replace("01,METER", "02,METER"), ""]).encode("utf-8-sig"), "a.CSV")
    assert (total.loaded, wrong(total)) == ((3, []) if not problem else (2, [3]))
    assert not problem or total.problems[0][2].startswith(problem)


@pytest.mark.parametrize(
    "first",
    [
        "meter,00db160000000001",
        "assign_pan.pan,assign_pan.pan",
        '"assign_pan.pan',
        "",
        "blocked\udcff",
        ",",
        "type,pan",
        "assign_pan",
        "add_meter.meter",
        "add_participant.profile.limits",
        "assign_pan.pan,assign_pan.pen",
        "add_meter.since.seconds",
        "add_participant.profile.limits.channel",
        ".",
        "blocked.",
        "9826200000000000001",
    ],
)
def test_a_csv_without_the_names_of_its_fields_is_no_registry_file(first: str) -> None:
    content = "\n".join([first, "pan,1,2"]).encode("utf-8", "surrogateescape")
    with pytest.raises(UnreadableFile, match=r"line [12]: the fields' paths are needed") as refused:
        check(content, "file.csv")
    assert "98262" not in str(refused.value)


def test_lists_and_nameless_columns_of_a_csv() -> None:
    text = io.StringIO()
    rows = csv.writer(text)
    rows.writerow([*(f"add_participant.participant.{name}" for name in ("participant_id", "role", "name")),
                   "add_participant.participant.identities", "", ""])  # fmt: skip
    rows.writerow(["psp-one", "ROLE_PSP", "One, Ltd", "spiffe://one;spiffe://two", "", ""])
    rows.writerow(["psp-two", "ROLE_PSP", "Two", "spiffe://three", "a remark", ""])
    total = check(text.getvalue().encode(), "file.csv")
    assert (total.loaded, wrong(total)) == (1, [3])


def test_a_csv_holds_records_of_several_kinds() -> None:
    head = f"{HEADER},assign_pan.pan,assign_pan.meter_id,assign_pan.form,blocked"
    pan = ",9826100000000000001,00db160000000001,PAN_FORM_APP,true"
    total = check("\n".join([head, ROW + ",,,,", ",,,,,,,," + pan, ROW + pan]).encode(), "file.csv")
    assert (total.loaded, wrong(total)) == (2, [4])
    assert total.problems[0][2].startswith("line: exactly one of")


@pytest.mark.parametrize("name", ["file.jsonl", "file.csv"])
def test_reading_goes_on_after_a_line(name: str) -> None:
    head = b"" if name == "file.jsonl" else HEADER.encode() + b"\n"
    content = b"\xef\xbb\xbf" + head + b"\n".join([GOOD[0] if not head else ROW.encode(), b"\xff"] * 10)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        whole = [(number, str(line)) for number, line in read_lines(path)]
        for after in range(23):
            rest = [(number, str(line)) for number, line in read_lines(path, after=after)]
            assert rest == [one for one in whole if one[0] > after]


def test_a_file_that_is_not_there_is_said_to_be() -> None:
    with pytest.raises(UnreadableFile, match="cannot be read"):
        next(read_lines(Path("nowhere.jsonl")))


# Parts.


def _numbered(sizes: list[int], gaps: dict[int, int]) -> Iterator[Line]:
    number = 0
    for index, size in enumerate(sizes):
        number += gaps.get(index, 1)
        yield number, "x" * size if size else BadField("line: wrong", field="line")


@given(
    st.lists(st.sampled_from([0, 1, 300, 20_000, 79_999]), max_size=60),
    st.dictionaries(st.integers(0, 59), st.integers(1, 1500), max_size=5),
)
def test_every_part_fits_into_one_message_of_a_node(sizes: list[int], gaps: dict[int, int]) -> None:
    lines = list(_numbered(sizes, gaps))
    some = list(parts(iter(lines)))
    assert [one for part in some for one in part] == lines
    for part in some:
        assert part[-1][0] - part[0][0] < 1000
        assert sum(len(line) for _, line in part if isinstance(line, str)) + 5 * 1000 < _node_takes()


def _node_takes() -> int:
    some: Any = {"listen": "a:1", "cert": Path(), "key": Path(), "client_ca": Path()}
    return ApiConfig(**some).message_bytes_max


@pytest.mark.parametrize(("fence", "name", "lines"), [("json", "page.jsonl", 4), ("csv", "page.csv", 1)])
def test_the_lines_that_the_page_shows_are_read(fence: str, name: str, lines: int) -> None:
    page = (Path(__file__).parents[4] / "docs" / "registry-file.md").read_text()
    (shown,) = re.findall(rf"```{fence}\n(.*?)```", page, re.DOTALL)
    total = check(shown.encode(), name)
    assert (total.loaded, total.problems) == (lines, [])


@pytest.mark.parametrize(("kind", "lines"), [("json", 4), ("csv", 1)])
def test_the_records_that_the_page_shows_are_read(kind: str, lines: int) -> None:
    page = (Path(__file__).parents[4] / "docs" / "registry-file.md").read_text()
    (shown,) = re.findall(rf"^```{kind}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"shown.{kind}"
        path.write_text(shown)
        total = check_lines(read_lines(path), PanRule())
    assert (total.loaded, total.problems) == (lines, [])
