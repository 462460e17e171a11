"""Amounts on the command line: decimal pounds, or whole pence where the option says pence; a sentence for the rest."""

import pytest
import typer
from typer.testing import CliRunner

from app.__main__ import app
from app.cli.participants import limit_of
from app.cli.requests import pence_of

NODES = ["--target", "127.0.0.1:1", "--cert", "none.pem", "--key", "none.pem", "--ca", "none.pem"]
WRONG = ["10.99", "1e3", "1_000", " 7", "+7", "seven", "１０"]
IN_PENCE = {
    "--credit-each": ["supplier", "profile", "one", "--option", "psp_issues"],
    "--credit-day": ["supplier", "profile", "one", "--option", "psp_issues"],
    "--min-pence": ["appoint", "propose", "one", "two", "three", "--level", "issue"],
    "--max-pence": ["appoint", "propose", "one", "two", "three", "--level", "issue"],
    "--max-credit": ["meter", "set", "00db120000000001"],
    "--max-balance": ["meter", "set", "00db120000000001"],
}


@pytest.mark.parametrize("typed", WRONG)
@pytest.mark.parametrize("option", IN_PENCE)
def test_an_option_in_pence_takes_whole_pence_only(option: str, typed: str) -> None:
    ended = CliRunner().invoke(app, [*IN_PENCE[option], option, typed, *NODES])
    assert ended.exit_code == 2
    assert "whole pence" in " ".join(ended.output.replace("│", "").split())


@pytest.mark.parametrize("typed", ["12.345", "1e1", "-1", "+1", "ten", "1_0", "nan", "", "£5", "1,5"])
def test_an_amount_of_pounds_is_decimal(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        pence_of(typed)
    assert ended.value.exit_code == 2
    assert "no amount of pounds, such as 10 or 12.34" in capsys.readouterr().err


def test_amounts_are_exact() -> None:
    assert [pence_of(one) for one in ("10", "10.9", "10.99", "0.29", "0", "8191")] == [1000, 1090, 1099, 29, 0, 819_100]


@pytest.mark.parametrize("typed", ["all:1_0:20", "all:10.5:20", "all: 1:2", "all:1:2:3", "all:-1:5", "all:1"])
def test_a_limit_is_in_whole_pence(typed: str) -> None:
    with pytest.raises(typer.Exit):
        limit_of(typed)
    assert limit_of("online:100:20000:whole").max_pence == 20_000
