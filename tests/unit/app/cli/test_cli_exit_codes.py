"""Exit code 1 of what sells says "refused for good": nothing that goes wrong by accident may end with it."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer
from utrn.v1 import top_up_service_pb2 as pb
from utrn_client.book_file import BookFile, BookNotWritten
from utrn_client.ids import FileSaleBook, Sale, make_transaction_id
from utrn_client.verdict import judge_sale

from app.cli import sales
from app.terminal.output import EXIT_NO_ANSWER, EXIT_USAGE

ROOT = Path(__file__).parents[4]
NO_FILE = Path("none")


def _raises(error: BaseException) -> Callable[..., Any]:
    def act(*_: Any, **__: Any) -> Any:
        raise error

    return act


ACCIDENTS = [
    BrokenPipeError(), OSError(5, "no screen"), RuntimeError("a mistake"), SystemExit(1), KeyboardInterrupt(),
]  # fmt: skip


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sales, "check_target", lambda _: None)
    monkeypatch.setattr(sales, "check_certificates", lambda *_: None)
    monkeypatch.setattr(sales, "_caller", lambda _: "spiffe://psp")
    monkeypatch.setattr(sales, "_cluster", lambda _: "one")
    monkeypatch.setattr(sales, "request_of", lambda *_: pb.TopUpResponse())
    return tmp_path / "book"


def _sell(book: Path, tell: Callable[[Any], None] = lambda _: None, *, new_id: bool = False) -> int:
    """Sell as `utrn vend issue --deliver` does; return its exit code."""
    asked = sales.Asked(command="vend issue --deliver", method="TopUp", content={}, judge=judge_sale)
    try:
        sales.carry_out(
            asked, lambda transaction_id, repeat: pb.TopUpRequest(transaction_id=transaction_id, repeat=repeat), tell,
            given="", new_id=new_id, sales=book, target="", tls=(NO_FILE, NO_FILE, NO_FILE),
        )  # fmt: skip
    except typer.Exit as end:
        return end.exit_code
    return 0


def _open(book: Path) -> int:
    with closing(sales.CommandBook(book)) as found:
        return len(found.open())


@pytest.mark.parametrize("accident", ACCIDENTS, ids=lambda one: type(one).__name__)
def test_a_command_that_breaks_when_it_tells_the_code_says_that_nobody_knows(
    book: Path, accident: BaseException
) -> None:
    assert (_sell(book, _raises(accident)), _open(book)) == (EXIT_NO_ANSWER, 1)
    assert (_sell(book), _open(book)) == (0, 0)


def test_a_command_that_breaks_when_it_asks_says_that_nobody_knows(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sales, "request_of", _raises(AttributeError("a mistake")))
    assert (_sell(book), _open(book)) == (EXIT_NO_ANSWER, 1)


def test_a_sale_whose_end_cannot_be_written_is_no_refusal(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any) -> None:
        monkeypatch.setattr(BookFile, "append", _raises(BookNotWritten("the disk is full")))

    assert _sell(book, full) == EXIT_NO_ANSWER


@pytest.mark.parametrize("part", ["_caller", "new_transaction_id", "CommandBook"])
def test_a_command_that_breaks_before_it_asks_does_not_end_as_refused(
    book: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    """What is open in the book may be this very sale, asked for before."""
    with monkeypatch.context() as broken:
        broken.setattr(sales, part, _raises(RuntimeError("no home directory")))
        assert _sell(book) == EXIT_NO_ANSWER
    assert (_sell(book), _open(book)) == (0, 0)


def test_the_same_under_a_renewed_authority_is_not_sold_a_second_time_unasked(
    book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ask(request: pb.TopUpRequest, *_: object) -> None:
        asked.append(request.transaction_id)
        raise RuntimeError("no answer")

    monkeypatch.setattr(sales, "request_of", ask)
    assert (_sell(book), _open(book)) == (EXIT_NO_ANSWER, 1)
    monkeypatch.setattr(sales, "_caller", lambda _: "spiffe://psp-new, spiffe://psp")
    assert (_sell(book), _open(book), len(set(asked))) == (EXIT_NO_ANSWER, 1, 1)
    monkeypatch.setattr(sales, "_cluster", lambda _: "another")
    assert (_sell(book), _open(book), len(asked)) == (EXIT_USAGE, 1, 2)
    assert (_sell(book, new_id=True), _open(book), len(set(asked))) == (EXIT_NO_ANSWER, 2, 2)


def test_sigterm_ends_a_command_with_its_own_code(book: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        _sell(book, _raises(SystemExit(143)))
    assert ended.value.code == 143


def test_the_example_that_cannot_read_its_certificate_does_not_end_as_refused(tmp_path: Path) -> None:
    """There is an open sale in its book: whoever took 1 for its answer would give the money back."""
    book = tmp_path / "book"
    with closing(FileSaleBook(book)) as one:
        one.begin(Sale(transaction_id=make_transaction_id(), pan="9" * 19, amount_pence=1000, channel=3))
    files = ["--cert", "none", "--key", "none", "--ca", "none", "--target", "127.0.0.1:1", "--sales", str(book)]
    ended = subprocess.run(
        [sys.executable, ROOT / "docs/integration/sell.py", *files],
        capture_output=True,
        check=False,
    )
    assert ended.returncode == EXIT_NO_ANSWER, ended.stderr
    with closing(FileSaleBook(book)) as one:
        assert len(one.open_sales()) == 1
