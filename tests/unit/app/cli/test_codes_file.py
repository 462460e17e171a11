"""A file of codes with its fields shifted: what is wrong is named, and no digits of it are shown."""

from pathlib import Path

import pytest
import typer

from app.cli.meter_transfers import read_codes

CODE = "1234 5678 9012 3456 7890"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (f'{{"utrn_counter": "{CODE}"}}', "utrn_counter has no value of its type"),
        (f'{{"channel": "{CODE.replace(" ", "")}"}}', "channel has no value of its type"),
        (f'{{"{CODE}": 1}}', "this is none"),
        (f'["{CODE}"]', "this is none"),
    ],
)
def test_no_digits_of_a_code_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, named: str
) -> None:
    file = tmp_path / "codes.jsonl"
    file.write_text(line)
    with pytest.raises(typer.Exit):
        read_codes(file)
    told = " ".join(capsys.readouterr().err.split())
    assert named in told
    assert "1234" not in told
    assert "7890" not in told
