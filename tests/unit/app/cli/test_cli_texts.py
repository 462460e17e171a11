"""What commands print can be copied: an id is never folded in a pipe, and what is open is told in people's words."""

import json
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.__main__ import app
from app.cli.sales import CommandBook, Open
from app.terminal.output import print_table

ID = "0199a1b2-0000-7000-8000-000000000001"
OPEN = Open(
    transaction_id=ID,
    command="vend issue --deliver",
    caller="spiffe://utrn/participant/psp-corner",
    cluster="d360b8650eaac880",
    content={"pan": "9826358976077017133", "amount_pence": 1099, "channel": 5},
    at="2026-11-26T02:55:58+00:00",
)


def test_a_row_is_one_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("Open cases", ("transaction id", "why", "seller"), [(ID, "a reason that is long " * 5, "psp" * 20)])
    (row,) = (line for line in capsys.readouterr().out.splitlines() if "│" in line)
    assert ID in row
    assert "psp" * 20 in row


def test_what_is_open_is_told_with_its_whole_id_in_pounds_and_by_channel(tmp_path: Path) -> None:
    book = tmp_path / "sales.jsonl"
    with closing(CommandBook(book)) as opened:
        opened.begin(OPEN)
    told = CliRunner().invoke(app, ["sales", "list", "--sales", str(book)], env={"COLUMNS": "80"})
    assert told.exit_code == 0
    assert f"{ID}  vend issue --deliver" in told.output
    assert "10.99 pounds, phone" in told.output
    assert "no money back before" in told.output
    plain = CliRunner().invoke(app, ["sales", "list", "--json", "--sales", str(book)])
    assert json.loads(plain.output)["open"][0]["content"]["amount_pence"] == 1099


def test_that_nothing_is_open_is_said(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["sales", "list", "--sales", str(tmp_path / "sales.jsonl")])
    assert (told.exit_code, told.output.strip()) == (0, "Nothing is open.")
