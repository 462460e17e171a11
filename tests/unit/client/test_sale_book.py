"""The kit's ids and book: an id is on disk before it is used, and a sale is open until somebody has its answer."""

import errno
import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from utrn_client import book_file
from utrn_client.book_file import BookInUse, BookNotWritten
from utrn_client.channel import service_config
from utrn_client.ids import FileSaleBook, Sale, make_transaction_id

from core.domain.transaction_id import parse_transaction_id

pytestmark = [pytest.mark.slow]

ROOT = Path(__file__).parents[3]


def _sale(number: int) -> Sale:
    return Sale(transaction_id=make_transaction_id(), pan="9" * 19, amount_pence=number, channel=1)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "book.jsonl"


def _written(file: Path, *sales: Sale) -> bytes:
    with closing(FileSaleBook(file)) as book:
        for sale in sales:
            book.begin(sale)
    return file.read_bytes()


def test_ids_are_uuids_of_version_7_of_their_moment() -> None:
    now_ms = 1_790_000_000_123
    ids = {make_transaction_id(now_ms) for _ in range(1000)}
    assert len(ids) == 1000
    for id_ in ids:
        assert parse_transaction_id(id_) == id_
        assert (uuid.UUID(id_).version, uuid.UUID(id_).int >> 80) == (7, now_ms)


def test_open_sales_survive_and_ended_ones_do_not_come_back(file: Path) -> None:
    first, second, third = (_sale(number) for number in (1, 2, 3))
    _written(file, first, second, third)
    with closing(FileSaleBook(file)) as book:
        book.end(second.transaction_id, "issued")
    with closing(FileSaleBook(file)) as again:
        assert again.open_sales() == [first, third]


def test_only_the_first_begin_of_an_id_is_a_first_attempt(file: Path) -> None:
    sale = _sale(1)
    with closing(FileSaleBook(file)) as book:
        assert [book.begin(sale), book.begin(sale)] == [True, False]
    with closing(FileSaleBook(file)) as book:
        assert book.begin(sale) is False
        book.end(sale.transaction_id, "issued")
    with closing(FileSaleBook(file)) as book:
        assert book.begin(sale) is False, "it was asked for before, whatever became of it"
        other = Sale(transaction_id=sale.transaction_id, pan=sale.pan, amount_pence=2, channel=1)
        with pytest.raises(ValueError, match="other content"):
            book.begin(other)


def test_a_refusal_is_kept_until_it_is_told_and_is_not_asked_for_again(file: Path) -> None:
    sale = _sale(1)
    with closing(FileSaleBook(file)) as book:
        book.begin(sale)
        book.refuse(sale, "PAN_BLOCKED", "the card is blocked")
    with closing(FileSaleBook(file)) as book:
        assert book.open_sales() == []
        (refusal,) = book.untold_refusals()
        assert (refusal.sale, refusal.reason, refusal.message) == (sale, "PAN_BLOCKED", "the card is blocked")
        book.end(sale.transaction_id, "PAN_BLOCKED")
    with closing(FileSaleBook(file)) as book:
        assert (book.open_sales(), book.untold_refusals()) == ([], [])


def _broken_lines(good: Sale) -> Iterator[tuple[bytes, str]]:
    begin = {
        "transaction_id": make_transaction_id(), "pan": "9" * 19, "amount_pence": 5, "channel": 1, "deliver": True,
    }  # fmt: skip
    wrong: list[tuple[dict[str, Any], str]] = [
        ({**begin, "amount_pence": "5"}, "amount_pence"),
        ({**begin, "amount_pence": 5.5}, "amount_pence"),
        ({**begin, "amount_pence": True}, "amount_pence"),
        ({**begin, "amount_pence": 10**40}, "amount_pence"),
        ({**begin, "channel": None}, "channel"),
        ({**begin, "pan": 9}, "pan"),
        ({**begin, "pan": "\ud800"}, "pan"),
        ({**begin, "deliver": "no"}, "deliver"),
        ({**begin, "transaction_id": ["x"]}, "transaction_id"),
        ({name: value for name, value in begin.items() if name != "pan"}, "pan"),
        ({**begin, "transaction_id": good.transaction_id}, "other content"),
    ]
    for entry, why in wrong:
        yield json.dumps({"begin": entry}).encode(), why
    yield b'{"begin": {"transac', "no JSON"
    yield b'{"begin": null}', "no sale"
    yield b'{"end": 7}', "end"
    yield b'{"what": 1}', "neither"
    yield b"7", "no JSON object"
    yield b"\xff\xfe{}", "UTF-8"
    yield b"\0" * 64, "NUL"
    yield b"[" * 200_000, "no JSON"


def test_a_line_that_is_broken_costs_that_line_only(file: Path) -> None:
    first, last = _sale(1), _sale(2)
    good = _written(file, first)
    file.unlink()
    after = _written(file, last)
    for broken, why in _broken_lines(first):
        file.write_bytes(good + broken + b"\n" + after)
        with closing(FileSaleBook(file)) as book:
            assert book.open_sales() == [first, last], broken[:80]
            assert [one.line for one in book.damaged] == [2], broken[:80]
            assert why in book.damaged[0].why


def test_what_is_odd_and_no_harm_is_taken_as_it_is(file: Path) -> None:
    """An end without a begin, an end twice, a begin twice, a field of a newer version, NULs before a line."""
    first, second = _sale(1), _sale(2)
    good = _written(file, first)
    newer = json.loads(good)
    newer["begin"].update({"transaction_id": second.transaction_id, "amount_pence": 2, "till": 7})
    end = json.dumps({"end": make_transaction_id(), "outcome": "issued"}).encode() + b"\n"
    file.write_bytes(end + end + good + good + b"\0" * 512 + json.dumps(newer).encode() + b"\n")
    with closing(FileSaleBook(file)) as book:
        assert book.open_sales() == [first, second]
        assert book.damaged == []


def test_a_line_that_was_cut_off_takes_no_other_sale_with_it(file: Path) -> None:
    first, second = _sale(1), _sale(2)
    whole = _written(file, first)
    file.write_bytes(whole + whole[: len(whole) // 2])
    with closing(FileSaleBook(file)) as book:
        assert book.open_sales() == [first]
        book.begin(second)
    with closing(FileSaleBook(file)) as book:
        assert book.open_sales() == [first, second]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_sale_that_cannot_be_written_was_not_begun_and_leaves_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    first, second, third = (_sale(number) for number in (1, 2, 3))
    with closing(FileSaleBook(file)) as book:
        book.begin(first)
        with monkeypatch.context() as broken:

            def full(_file: int) -> None:
                raise OSError(code, os.strerror(code))

            # The line is in the file, and not on disk: it must not come back as a sale that began.
            broken.setattr(os, "fsync", full)
            with pytest.raises(BookNotWritten, match=second.transaction_id) as said:
                book.begin(second)
        assert ("the disk is full" in str(said.value)) is (code == errno.ENOSPC)
        assert "take no money" in str(said.value)
        assert book.open_sales() == [first]
        book.begin(third)
    with closing(FileSaleBook(file)) as book:
        assert (book.open_sales(), book.damaged) == ([first, third], [])


def test_a_real_full_disk_says_so() -> None:
    if not Path("/dev/full").exists():
        raise AssertionError("/dev/full is part of Linux")
    with pytest.raises(OSError, match="No space left"):
        book_file._write(os.open("/dev/full", os.O_WRONLY), b"x")


def test_one_process_at_a_time_has_the_book(file: Path) -> None:
    """Two tills on one book would each ask for what is open in it, and neither would know the other's attempts."""
    holder = (
        "import sys; from pathlib import Path; from utrn_client.ids import FileSaleBook\n"
        "book = FileSaleBook(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(BookInUse, match="in use by another process"):
            FileSaleBook(file, wait_s=0.0)
        other.kill()
        other.wait()
        with closing(FileSaleBook(file)) as book:
            assert book.open_sales() == []


def test_the_name_of_a_new_book_survives_too(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def noted(one: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{one}"))
        real(one)

    monkeypatch.setattr(os, "fsync", noted)
    with closing(FileSaleBook(file)) as book:
        assert synced == [str(file.parent)]
        book.begin(_sale(1))
        assert synced == [str(file.parent), str(file)]
    assert file.stat().st_mode & 0o077 == 0, "it has card numbers"


@settings(max_examples=200)
@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([b"{}", b"[]", b"null", b'{"begin": {}}', b"\0"]))))
def test_whatever_is_in_the_file_the_book_opens_and_keeps_what_is_good(parts: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "book"
        first, last = _sale(1), _sale(2)
        good = _written(file, first)
        junk = b"\n".join(part.replace(b"\n", b"") for part in parts)
        file.write_bytes(good + junk)
        with closing(FileSaleBook(file)) as book:
            book.begin(last)
        with closing(FileSaleBook(file)) as book:
            assert book.open_sales() == [first, last]


class TheBook(RuleBasedStateMachine):
    """A till that begins, ends, refuses, dies with a torn line, and starts again: what is open is what should be."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.file = Path(self.folder.name) / "book"
        self.book = FileSaleBook(self.file)
        self.open: dict[str, Sale] = {}
        self.untold: dict[str, Sale] = {}
        self.known: list[Sale] = []

    def teardown(self) -> None:
        self.book.close()
        self.folder.cleanup()

    @rule(pence=st.integers(1, 819_100), deliver=st.booleans())
    def begin(self, pence: int, deliver: bool) -> None:
        sale = Sale(transaction_id=make_transaction_id(), pan="9" * 19, amount_pence=pence, channel=1, deliver=deliver)
        assert self.book.begin(sale)
        self.open[sale.transaction_id] = sale
        self.known.append(sale)

    @precondition(lambda self: self.open)
    @rule(at=st.integers(0))
    def end(self, at: int) -> None:
        one = list(self.open)[at % len(self.open)]
        self.book.end(one, "issued")
        del self.open[one]

    @precondition(lambda self: self.open)
    @rule(at=st.integers(0))
    def refuse(self, at: int) -> None:
        one = list(self.open)[at % len(self.open)]
        self.untold[one] = self.open.pop(one)
        self.book.refuse(self.untold[one], "PAN_BLOCKED", "x")

    @precondition(lambda self: self.untold)
    @rule(at=st.integers(0))
    def tell(self, at: int) -> None:
        one = list(self.untold)[at % len(self.untold)]
        self.book.end(one, "PAN_BLOCKED")
        del self.untold[one]

    @rule(torn=st.binary(max_size=30))
    def die_and_start_again(self, torn: bytes) -> None:
        self.book.close()
        with self.file.open("ab") as file:
            file.write(torn.replace(b"\n", b"\0"))
        self.book = FileSaleBook(self.file)

    @precondition(lambda self: self.known)
    @rule(at=st.integers(0))
    def none_is_ever_a_first_attempt_twice(self, at: int) -> None:
        sale = self.known[at % len(self.known)]
        if sale.transaction_id not in self.untold:
            assert not self.book.begin(sale)
            self.open.setdefault(sale.transaction_id, sale)

    @invariant()
    def what_is_open_is_open(self) -> None:
        assert {sale.transaction_id: sale for sale in self.book.open_sales()} == self.open
        assert {refusal.sale.transaction_id: refusal.sale for refusal in self.book.untold_refusals()} == self.untold


TestTheBook = TheBook.TestCase
TestTheBook.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_the_kit_and_every_other_language_have_the_same_policy() -> None:
    assert service_config() == (ROOT / "proto" / "service_config.json").read_text()


def test_nothing_that_sells_is_repeated_where_the_till_cannot_see_it() -> None:
    """A repeat inside gRPC would look like a first attempt, and a refusal to it like a final one."""
    repeated = {
        name.get("method")
        for method in json.loads(service_config())["methodConfig"]
        if "retryPolicy" in method
        for name in method["name"]
    }
    assert repeated == {"GetVend", "CheckEligibility"}


def test_a_book_that_others_could_read_is_closed_to_them(file: Path) -> None:
    """Books of the versions before were made with whatever the umask left open."""
    sale = _sale(1)
    file.write_bytes(_written(file, sale))
    file.chmod(0o644)
    with closing(FileSaleBook(file)) as book:
        assert book.open_sales() == [sale]
        assert file.stat().st_mode & 0o777 == 0o600
