"""A book and an amount mean the same in every language: shared vectors, and a bounded fuzz of one against the other."""

import json
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from utrn_client.amounts import BadAmount, parse_pence, parse_pounds
from utrn_client.ids import FileSaleBook, Sale

from app.cli.requests import pence_of
from tests.support.node_answers import ROOT, node_answers

VECTORS = ROOT / "tests" / "vectors"
CASES: list[dict[str, Any]] = json.loads((VECTORS / "sale-book.json").read_text())["cases"]
AMOUNTS: dict[str, Any] = json.loads((VECTORS / "amounts.json").read_text())
FUZZED_BOOKS, FUZZED_AMOUNTS = 400, 4000


def _bytes(case: dict[str, Any]) -> bytes:
    lines = [one.encode() if isinstance(one, str) else bytes.fromhex(one["hex"]) for one in case["file"]]
    return b"\n".join(lines) + (b"" if case.get("torn") or not lines else b"\n")


def _said(book: FileSaleBook) -> dict[str, Any]:
    """Return what a book holds, as the vectors have it."""

    def flat(sale: Sale) -> dict[str, Any]:
        known = asdict(sale)
        return {**known.pop("more"), **known}

    return {
        "open": [flat(one) for one in book.open_sales()],
        "untold": [
            {"transaction_id": refusal.sale.transaction_id, "reason": refusal.reason, "message": refusal.message}
            for refusal in book.untold_refusals()
        ],
        "set_aside": [one.line for one in book.damaged],
    }


def _read(file: Path) -> dict[str, Any]:
    with closing(FileSaleBook(file)) as book:
        return _said(book)


def _expected(case: dict[str, Any]) -> dict[str, Any]:
    return {name: case[name] for name in ("open", "untold", "set_aside")}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_book_holds_what_the_vectors_say_and_goes_on(case: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "book"
    file.write_bytes(_bytes(case))
    assert _read(file) == _expected(case)
    new = Sale(transaction_id="id-new", pan="9" * 19, amount_pence=5, channel=1, more={"till": 7})
    with closing(FileSaleBook(file)) as book:
        assert all(one.why for one in book.damaged)
        book.begin(new)
    # What was set aside stays in the file, and a sale is begun after it with all that it has.
    assert file.read_bytes().startswith(_bytes(case))
    said = _read(file)
    begun = {"transaction_id": "id-new", "pan": "9" * 19, "amount_pence": 5, "channel": 1, "deliver": True, "till": 7}
    assert said["open"][-1] == begun
    assert (said["open"][:-1], said["set_aside"]) == (case["open"], case["set_aside"])


def test_in_node_it_holds_the_same(tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(len(CASES))]
    for file, case in zip(files, CASES, strict=True):
        file.write_bytes(_bytes(case))
    answers = node_answers([{"book": str(file)} for file in files])
    wrong = {case["name"]: said for case, said in zip(CASES, answers, strict=True) if said != _expected(case)}
    assert wrong == {}


def _mangled(chance: random.Random) -> Iterator[bytes]:
    """Yield books made of the vectors' lines, with bytes changed, cut out, doubled and put in."""
    lines = [line for case in CASES for line in _bytes(case).split(b"\n") if len(line) < 1000]
    odd = [
        b"\xef\xbb\xbf",
        b"\0",
        b"\xff",
        b"\xc3\xa9",
        b"\r",
        b"\t",
        b" ",
        b'"',
        b"{",
        b"}",
        b"1e999",
        b"-0",
        b"\\u0000",
    ]
    for _ in range(FUZZED_BOOKS):
        book = bytearray(b"\n".join(chance.choice(lines) for _ in range(chance.randrange(1, 8))))
        for _ in range(chance.randrange(4)):
            at = chance.randrange(len(book) + 1)
            cut = chance.choice((0, 0, 1, 3))
            book[at : at + cut] = chance.choice([*odd, bytes([chance.randrange(256)]), chance.choice(lines)])
        yield bytes(book)


def test_whatever_a_book_holds_both_languages_read_the_same(tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(FUZZED_BOOKS)]
    for file, book in zip(files, _mangled(random.Random(11)), strict=True):
        file.write_bytes(book)
    answers = node_answers([{"book": str(file)} for file in files])
    differ = [file.read_bytes() for file, said in zip(files, answers, strict=True) if _read(file) != said]
    assert differ == []
    assert sum(bool(answer["open"]) for answer in answers) > FUZZED_BOOKS // 4, "otherwise this looked at nothing"


def _pence(text: str) -> int | None:
    try:
        return parse_pence(text)
    except BadAmount:
        return None


def _pounds(text: str) -> int | None:
    try:
        return parse_pounds(text)
    except BadAmount:
        return None


def _command_line(text: str) -> int | None:
    try:
        return pence_of(text) or None
    except typer.Exit:
        return None


def _vectors(kind: str) -> list[tuple[str, int | None]]:
    return [*AMOUNTS[kind]["taken"].items(), *((text, None) for text in AMOUNTS[kind]["refused"])]


def test_an_amount_is_taken_by_all_or_by_none() -> None:
    pence, pounds = _vectors("pence"), _vectors("pounds")
    assert [(text, _pence(text)) for text, _ in pence] == pence
    assert [(text, _pounds(text)) for text, _ in pounds] == pounds
    # What one code carries at most, the node says to a command.
    typed = [pound for pound in pounds if pound[0] not in ("8191.01", "99999999999999999999")]
    assert [(text, _command_line(text)) for text, _ in typed] == typed
    answers = node_answers([{"pence": text} for text, _ in pence])
    assert [(text, said) for (text, _), said in zip(pence, answers, strict=True)] == pence


def test_amounts_made_at_random_are_taken_by_both_languages_or_by_neither() -> None:
    chance = random.Random(12)
    alphabet = "0123456789" * 4 + "+-.,eE_x \n\t\u00a0\u0660\uff11\u00b2\u200b"
    texts = ["".join(chance.choice(alphabet) for _ in range(chance.randrange(1, 8))) for _ in range(FUZZED_AMOUNTS)]
    answers = node_answers([{"pence": text} for text in texts])
    assert [text for text, said in zip(texts, answers, strict=True) if said != _pence(text)] == []
    assert sum(said is not None for said in answers) > 50, "otherwise this looked at nothing"


@given(st.text(max_size=12))
def test_only_digits_of_ascii_and_a_point_are_ever_taken(text: str) -> None:
    for taken, allowed in ((_pence(text), "0123456789"), (_pounds(text), "0123456789.")):
        assert taken is None or set(text) <= set(allowed)
