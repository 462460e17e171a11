"""Lines of registry files to test with: good ones, and values that JSON can hold."""

import json
from typing import Any

from hypothesis import strategies as st

from app.devstack.ca import participant_uri
from core.api.registry_file import read_line
from core.domain.effective_dated import Ms, ms_of
from core.domain.errors import Refused
from core.domain.meter import PanRule
from core.registry.bulk_load import Loadable
from tests.support.vends import NOW, POINT, PSP_ID, SUPPLIER_ID

RULE = PanRule(luhn=False)
SUPPLIER_LINE: dict[str, Any] = {
    "type": "participant", "participant_id": SUPPLIER_ID, "role": "supplier", "name": "North",
    "identities": [participant_uri(SUPPLIER_ID)], "originator_id": "90b3d51f30010001", "key_id": "01",
    "prepayment_public_point": POINT.hex(), "profile": {"option": "psp_issues"},
}  # fmt: skip
PSP_LINE: dict[str, Any] = {
    "type": "participant", "participant_id": PSP_ID, "role": "psp", "name": "Corner",
    "identities": [participant_uri(PSP_ID)],
}  # fmt: skip
MODEL_LINE: dict[str, Any] = {"type": "model", "make": "Acme", "model": "E1", "schemes": ["gbcs"]}

# Every JSON value, with what no file should hold: halves of surrogate pairs, NaN, numbers without end.
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**4000)
    | st.floats()
    | st.text()
    | st.text(st.characters(categories=["Cs", "Cc", "Lo"]), max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


def meter_line(number: int, **changes: Any) -> dict[str, Any]:
    """A meter."""
    return {
        "type": "meter", "meter_id": f"00db14{number:010x}", "kind": "ESME", "supplier_id": SUPPLIER_ID,
        "scheme": "gbcs", "public_point": POINT.hex(), "head_end": "sandbox", **changes,
    }  # fmt: skip


def pan_line(number: int, **changes: Any) -> dict[str, Any]:
    """The PAN of a meter."""
    return {"type": "pan", "pan": f"98262{number:014d}", "meter_id": f"00db14{number:010x}", **changes}


def read(line: dict[str, Any] | str, now: Ms | None = None) -> Loadable | Refused:
    """Read a line as a node does."""
    text = line if isinstance(line, str) else json.dumps(line)
    try:
        return read_line(text, pan_rule=RULE, now=ms_of(NOW) if now is None else now, by="test")
    except Refused as refusal:
        return refusal
