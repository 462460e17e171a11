"""The client kit's ids and book: an id is on disk before it is used, and an open sale survives the till."""

import uuid
from contextlib import closing
from pathlib import Path

from utrn_client.channel import service_config
from utrn_client.ids import FileSaleBook, Sale, make_transaction_id

from core.domain.transaction_id import parse_transaction_id

ROOT = Path(__file__).parents[3]


def _sale(number: int) -> Sale:
    return Sale(transaction_id=make_transaction_id(), pan="9" * 19, amount_pence=number, channel=1)


def test_ids_are_uuids_of_version_7_of_their_moment() -> None:
    now_ms = 1_790_000_000_123
    ids = {make_transaction_id(now_ms) for _ in range(1000)}
    assert len(ids) == 1000
    for one in ids:
        assert parse_transaction_id(one) == one
        assert (uuid.UUID(one).version, uuid.UUID(one).int >> 80) == (7, now_ms)


def test_open_sales_survive_and_ended_ones_do_not_come_back(tmp_path: Path) -> None:
    file = tmp_path / "book.jsonl"
    book = FileSaleBook(file)
    first, second, third = (_sale(number) for number in (1, 2, 3))
    for sale in (first, second, third):
        book.begin(sale)
    book.end(second.transaction_id, "issued")
    # Not closed: the till dies here.
    with closing(FileSaleBook(file)) as again:
        assert again.open_sales() == [first, third]
    book.close()


def test_a_line_that_was_cut_off_by_a_crash_is_no_sale(tmp_path: Path) -> None:
    file = tmp_path / "book.jsonl"
    book = FileSaleBook(file)
    sale = _sale(1)
    book.begin(sale)
    whole = file.read_text()
    book.close()
    file.write_text(whole + whole[: len(whole) // 2])
    with closing(FileSaleBook(file)) as again:
        assert again.open_sales() == [sale]


def test_the_kit_and_every_other_language_have_the_same_policy() -> None:
    assert service_config() == (ROOT / "proto" / "service_config.json").read_text()
