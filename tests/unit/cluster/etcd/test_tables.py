"""What comments and pages say of keys, schema and compares is what the code has."""

import inspect
import re
from pathlib import Path

from cluster.codec.vend import SCHEMA
from cluster.etcd import keys, preconditions
from cluster.etcd.keys import Keys

ROOT = Path(__file__).parents[4]
RECORDS = (ROOT / "proto" / "utrn" / "store" / "v1" / "records.proto").read_text()
README = (ROOT / "cluster" / "README.md").read_text()


def test_the_stored_forms_say_which_schema_is_understood() -> None:
    said = re.findall(r"highest schema that this reader understands: (\d+)", RECORDS)
    assert len(said) >= 20
    assert set(said) == {str(SCHEMA)}


def _roots(text: str) -> set[str]:
    """Return the first words of keys, as "vend" of vend/<participant>/<transaction id>."""
    return {re.split(r"[/<{]", key)[0] for key in re.findall(r"[a-z-]+/[^|,` ]*", text)}


def test_the_table_of_keys_has_every_key_that_is_spelled_and_no_other() -> None:
    table = "".join(line.split("|")[1] for line in (keys.__doc__ or "").splitlines() if line.startswith("| "))
    spelled = _roots(" ".join(re.findall(r'\{self\.prefix\}([a-z-]+/[^"]*)"', inspect.getsource(Keys))))
    spelled |= {room.split("/")[0] for room in keys._ROOMS.values()} - {"due"}
    assert _roots(table) >= spelled
    assert _roots(table) - spelled <= {"registry"}


def test_each_file_of_the_page_on_transactions_is_there() -> None:
    rows = [line for line in README.splitlines() if line.startswith("| ") and ".py`" in line]
    assert len(rows) > 12
    named = {name for row in rows for name in re.findall(r"`([\w/]+\.py)`", row)}
    assert all((ROOT / "cluster" / name).exists() for name in named), named


def test_every_compare_has_a_sentence() -> None:
    compares = [
        one for name, one in vars(preconditions).items() if inspect.isfunction(one) and not name.startswith("_")
    ]
    assert len(compares) > 10
    assert all(compare.__doc__ for compare in compares if compare.__module__ == preconditions.__name__)
