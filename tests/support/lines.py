"""Lines of registry files to test with: good ones, and values that JSON can hold."""

import json
from base64 import b64encode
from copy import deepcopy
from typing import Any

from hypothesis import strategies as st
from utrn.v1.meter_service_pb2 import Meter, MeterSettings

from app.devstack.ca import participant_uri
from core.api.registry_file import read_line
from core.domain.effective_dated import Ms, ms_of
from core.domain.errors import Refused
from core.domain.meter import PanRule
from core.registry.bulk_load import Loadable
from tests.support.vends import NOW, POINT, PSP_ID, SUPPLIER_ID

RULE = PanRule(luhn=False)
POINT_TEXT = b64encode(POINT).decode()
SUPPLIER_RECORD: dict[str, Any] = {
    "participant_id": SUPPLIER_ID, "role": "ROLE_SUPPLIER", "name": "North",
    "identities": [participant_uri(SUPPLIER_ID)],
    "supplier_key": {"originator_id": "90b3d51f30010001", "key_id": "01", "public_point": POINT_TEXT},
}  # fmt: skip
PROFILE: dict[str, Any] = {"selling_model": "SELLING_MODEL_PSP_ISSUES"}
SUPPLIER_LINE: dict[str, Any] = {"add_participant": {"participant": SUPPLIER_RECORD, "profile": PROFILE}}
PSP_RECORD: dict[str, Any] = {
    "participant_id": PSP_ID, "role": "ROLE_PSP", "name": "Corner", "identities": [participant_uri(PSP_ID)]
}  # fmt: skip
PSP_LINE: dict[str, Any] = {"add_participant": {"participant": PSP_RECORD}}
MODEL_RECORD: dict[str, Any] = {
    "make": "Acme", "model": "E1", "schemes": ["gbcs"], "over_the_air": True, "central_issue": True
}  # fmt: skip
MODEL_LINE: dict[str, Any] = {"set_meter_model": {"model": MODEL_RECORD}}
_SETTINGS = frozenset(MeterSettings.DESCRIPTOR.fields_by_name)
_METER = frozenset(Meter.DESCRIPTOR.fields_by_name) - {"settings"}

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


def flat(line: dict[str, Any]) -> dict[str, tuple[dict[str, Any], Any]]:
    """Return every field of a line by its path in the request: the object that it is in, and its value."""
    found: dict[str, tuple[dict[str, Any], Any]] = {}

    def walk(inside: dict[str, Any], room: str) -> None:
        for name, value in inside.items():
            found[room + name] = (inside, value)
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, dict):
                    walk(part, f"{room}{name}.")

    for request in line.values():
        if isinstance(request, dict):
            walk(request, "")
    return found


def changed(line: dict[str, Any], /, **values: Any) -> dict[str, Any]:
    """Return a copy of a line in which fields of its request, by their paths, have other values."""
    copy: dict[str, Any] = deepcopy(line)
    for path, value in values.items():
        inside: dict[str, Any] = next(iter(copy.values()))
        *rooms, name = path.split(".")
        for room in rooms:
            inside = inside.setdefault(room, {})
        inside[name] = value
    return copy


def meter_line(number: int, **changes: Any) -> dict[str, Any]:
    """A meter; changes are fields of the meter, of its settings, or of the request."""
    meter = {
        "meter_id": f"00db14{number:010x}", "kind": "METER_KIND_ESME", "scheme": "gbcs", "public_point": POINT_TEXT,
        **{name: value for name, value in changes.items() if name in _METER},
    }  # fmt: skip
    settings = {"head_end": "sandbox", **{name: value for name, value in changes.items() if name in _SETTINGS}}
    rest = {name: value for name, value in changes.items() if name not in _METER | _SETTINGS}
    return {"add_meter": {"meter": meter, "supplier_id": SUPPLIER_ID, "settings": settings, **rest}}


def pan_line(number: int, *, blocked: bool = False, **changes: Any) -> dict[str, Any]:
    """The PAN of a meter."""
    request = {"pan": f"98262{number:014d}", "meter_id": f"00db14{number:010x}", **changes}
    return {"assign_pan": request, "blocked": True} if blocked else {"assign_pan": request}


def read(line: dict[str, Any] | str, now: Ms | None = None) -> Loadable | Refused:
    """Read a line as a node does."""
    text = line if isinstance(line, str) else json.dumps(line)
    try:
        return read_line(text, pan_rule=RULE, now=ms_of(NOW) if now is None else now, by="test")
    except Refused as refusal:
        return refusal
