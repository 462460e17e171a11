"""What commands print: nothing that a stranger chose is obeyed by a terminal."""

import pytest

from app.terminal.output import console, errors, print_json, print_table, visible

NASTY = "\x1b]0;owned\x07\x9b31m\u202egnp\u2028\r\t\ud800end"


def test_what_a_terminal_would_obey_or_not_show_is_escaped() -> None:
    seen = visible(NASTY + "\n")
    assert seen == "\\x1b]0;owned\\x07\\x9b31m\\u202egnp\\u2028\\r\\t\\ud800end\n"
    assert visible("£5 für Zoë, 電気") == "£5 für Zoë, 電気"


@pytest.mark.parametrize(
    "tell",
    [
        lambda: print_table(NASTY, [NASTY], [[NASTY + "\n"]]),
        lambda: console.print(NASTY, NASTY),
        lambda: errors.print(NASTY),
        lambda: print_json({NASTY: NASTY}),
    ],
    ids=["table", "sentence", "error", "json"],
)
def test_no_way_of_printing_lets_it_through(tell: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(tell)
    tell()
    out, err = capsys.readouterr()
    assert "owned" in out + err
    assert not [one for one in out + err if not one.isprintable() and one != "\n"]
