"""masked: no card and no code stays in a text, however it is written; ids stay what they are."""

import pytest

from core.domain.mask import masked

CARD, CODE = "9826000000000001234", "58312001487301774421"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (CARD, "..1234"),
        (f"pan={CARD};", "pan=..1234;"),
        (f"x{CARD}y", "x..1234y"),
        (CODE, "[20 digits]"),
        (CARD + CODE, "[39 digits]"),
        ("5831 2001 4873 0177 4421", "[20 digits]"),
        ("5831-2001-4873-0177-4421", "[20 digits]"),
        ("9826 0000 0000 0001 234", "..1234"),
        ("\uff19\uff18\uff12\uff16" + "\uff10" * 15, "..\uff10\uff10\uff10\uff10"),
    ],
)
def test_cards_and_codes_are_masked(text: str, kept: str) -> None:
    assert masked(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "",
        "01890a5d-ac96-774b-bcce-b302099a8057",
        "01890155-1096-7741-8123-130209918057",
        "01234567890123456789012345678901",
        "0012345678901234",
        "spiffe://utrn/participant/psp-corner",
        "2026-11-24T12:00:00.001000+00:00",
        "1234 5678 9012",
        "819100",
    ],
)
def test_ids_and_numbers_of_ours_are_left_as_they_are(text: str) -> None:
    assert masked(text) == text
