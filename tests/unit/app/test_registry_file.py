"""The registry file: what is right is read, what is wrong is named by line and field, and nothing is half-read."""

import json
from pathlib import Path
from typing import Any

import pytest

from app.registry_file import BadRegistryFile, read_registry_file
from core.domain.meter import Card, Meter, PanRule, luhn_digit
from core.domain.party import Participant
from tests.support.vends import POINT

PAN = "982600000000000000" + luhn_digit("982600000000000000")
SUPPLIER: dict[str, Any] = {
    "type": "participant", "participant_id": "north", "role": "supplier", "name": "North", "identities": ["spiffe://u/n"],
    "originator_id": "90b3d51f30010001", "key_id": "01", "prepayment_public_point": POINT.hex(),
    "appointed_psps": ["psp"],
}  # fmt: skip
PSP: dict[str, Any] = {
    "type": "participant", "participant_id": "psp", "role": "psp", "name": "P", "identities": ["spiffe://u/p"],
}  # fmt: skip
METER: dict[str, Any] = {
    "type": "meter", "meter_id": "00db120000000001", "kind": "GSME", "supplier_id": "north", "scheme": "gbcs",
    "public_point": POINT.hex(), "head_end": "sandbox",
}  # fmt: skip
CARD: dict[str, Any] = {"type": "pan", "pan": PAN, "meter_id": "00db120000000001"}
GOOD = [SUPPLIER, PSP, METER, CARD]


def read(tmp_path: Path, lines: list[Any]) -> list[object]:
    file = tmp_path / "registry.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return list(read_registry_file(file, pan_rule=PanRule()))


def test_a_right_file_is_read(tmp_path: Path) -> None:
    assert [type(one) for one in read(tmp_path, GOOD)] == [Participant, Participant, Meter, Card]


WRONG: list[tuple[int, dict[str, Any] | str, str]] = [
    (1, "{", "not JSON at column 2"),
    (1, "[]", "a JSON object"),
    (1, "x" * 30_000, "longer than"),
    (1, {**SUPPLIER, "type": "house"}, "type"),
    (1, {**SUPPLIER, "colour": "red"}, "colour"),
    (1, {**SUPPLIER, "prepayment_public_point": "04" + "00" * 64}, "prepayment_public_point"),
    (1, {**SUPPLIER, "originator_id": "90B3D51F30010001"}, "originator_id"),
    (1, {**SUPPLIER, "key_id": "xyz"}, "key_id"),
    (1, {**SUPPLIER, "appointed_psps": ["nobody"]}, "appointed_psps"),
    (1, {**SUPPLIER, "suspended": "no"}, "suspended"),
    (1, {key: value for key, value in SUPPLIER.items() if key != "key_id"}, "key_id: is missing"),
    (2, {**PSP, "identities": []}, "identities"),
    (2, {**PSP, "identities": ["spiffe://u/n"]}, "identities: spiffe://u/n is used by north"),
    (2, {**PSP, "key_id": "01"}, "key_id"),
    (2, {**PSP, "participant_id": "Not OK"}, "participant_id"),
    (3, {**METER, "kind": "WATER"}, "kind"),
    (3, {**METER, "supplier_id": "psp"}, "supplier_id"),
    (3, {**METER, "scheme": "sts"}, "scheme"),
    (3, {**METER, "meter_id": 7}, "meter_id"),
    (4, {**CARD, "pan": PAN[:-1] + str((int(PAN[-1]) + 1) % 10)}, "pan"),
    (4, {**CARD, "meter_id": "00db120000000002"}, "meter_id"),
]


@pytest.mark.parametrize(("line", "wrong", "names"), WRONG, ids=[f"{line}-{names}" for line, _, names in WRONG])
def test_a_wrong_line_is_named_with_its_field(
    tmp_path: Path, line: int, wrong: dict[str, Any] | str, names: str
) -> None:
    with pytest.raises(BadRegistryFile) as refused:
        read(tmp_path, [*GOOD[: line - 1], wrong, *GOOD[line:]])
    assert any(one.startswith(f"line {line}: ") and names in one for one in refused.value.problems)


def test_the_same_record_twice_is_named_without_its_number(tmp_path: Path) -> None:
    with pytest.raises(BadRegistryFile) as refused:
        read(tmp_path, [*GOOD, CARD])
    assert refused.value.problems == ["line 5: pan: the same as on line 4"]


def test_all_errors_are_told_up_to_a_bound(tmp_path: Path) -> None:
    with pytest.raises(BadRegistryFile) as refused:
        read(tmp_path, ["{"] * 500)
    assert len(refused.value.problems) == 50


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(BadRegistryFile, match="cannot be read"):
        read_registry_file(tmp_path / "none", pan_rule=PanRule())
