"""Every request message of utrn.v1, with anything in any field: answered, or refused by a reason of the contract."""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
from google.protobuf import message_factory, timestamp_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToJson, SerializeToJsonError
from google.protobuf.message import Message
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st
from utrn.v1 import meter_service_pb2 as meter_pb
from utrn.v1 import participant_service_pb2 as participant_pb
from utrn.v1.appointment_service_pb2 import AppointmentTerms
from utrn.v1.registry_service_pb2 import RegistryRecord

from core.api.paging import page_token
from core.api.registry_file import ANSWERS_ONLY, LINE_CHARACTERS_MAX, read_line
from core.api.status import status_of
from core.domain.effective_dated import ms_of
from core.domain.errors import BadField, KeyMissing, Refused
from tests.support.market_node import GAINING, OPERATOR
from tests.support.requests import ANSWERED, IDS, METHODS, SERVICES, WORLD, Call, drive
from tests.support.vends import NOW, POINT, PSP, SUPPLIER, utrn

_SECONDS = int(NOW.timestamp())
REGISTRY = ("participants", "meter_models", "meters", "pans", "registry")


NAMES = ["supplier-north", "supplier-gaining", "psp-corner", "operator", "nobody"]
# What a field may well hold, by the end of its name.
LIKELY_TEXTS: dict[str, list[str]] = {
    "meter_id": [*WORLD.meters, "00db99ffffffffff"],
    "pan": [*WORLD.pans, "9826099999999999999"],
    "pans": WORLD.pans,
    "transaction_id": [*IDS, "ffffffff-ffff-7fff-bfff-ffffffffffff", "00000000-0000-7000-8000-000000000000"],
    "participant_id": NAMES,
    "supplier_id": NAMES,
    "psp_id": NAMES,
    "appointment_id": ["corner", "web"],
    "identities": ["spiffe://a", "spiffe://utrn/participant/supplier-north"],
    "credit_approvers": ["spiffe://a", "spiffe://b"],
    "scheme": ["gbcs"],
    "schemes": ["gbcs"],
    "originator_id": ["90b3d51f30010001", "90b3d51f30010007"],
    "key_id": ["01"],
    "head_end": ["sandbox"],
    "utrn": [utrn(number) for number in (1, 2, 1025)],
    "day": ["", "2026-11-24", "0001-01-01", "9999-12-31"],
    "page_token": ["", *map(page_token, (*NAMES, *WORLD.meters, *IDS)), *NAMES],
    "lines": ["", "{}", '{"set_meter_model": {"model": {"make": "A", "model": "B", "schemes": ["gbcs"]}}}'],
}  # fmt: skip
LIKELY_NUMBERS = {"pence": st.integers(1, 5000), "channel": st.integers(1, 6), "counter": st.sampled_from([1, 2, 1025])}
ANY_TEXT = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
    | st.sampled_from([one for some in LIKELY_TEXTS.values() for one in some])
    | st.sampled_from(["x" * 50_000, "9" * 19, "a" * 200, "/", "-", "0" * 20, "\0"])
)
_EDGES = [0, -1, 253_402_300_799, 253_402_300_800, -62_135_596_801, _SECONDS + 10**9, 2**63 - 1, -(2**63)]
ANY_INSTANT = st.builds(
    timestamp_pb2.Timestamp,
    seconds=st.sampled_from(_EDGES) | st.integers(-(2**63), 2**63 - 1),
    nanos=st.sampled_from([0, -1, 10**9, 2**31 - 1, -(2**31)]) | st.integers(0, 999_999_999),
)
LIKELY_INSTANT = st.builds(timestamp_pb2.Timestamp, seconds=st.integers(_SECONDS - 3600, _SECONDS + 3600))
NUMBERS: dict[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}


def _any_value(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Return everything that the wire can bring in a field."""
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return ANY_TEXT if field.type == FieldDescriptor.TYPE_STRING else st.binary(max_size=80)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    least, most = NUMBERS[field.cpp_type]
    edges = [one for one in (least, most, -1, 0, 1, 99, 2**31 - 1, 10**10 + 1) if least <= one <= most]
    return st.sampled_from(edges) | st.integers(least, most)


def _likely_value(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Return what a caller may well have put into a field."""
    name = next((text for text in LIKELY_TEXTS if field.name.endswith(text)), "")
    if field.type == FieldDescriptor.TYPE_STRING:
        return st.sampled_from(LIKELY_TEXTS[name]) if name else st.sampled_from(["", "Corner", "E1"])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.sampled_from([POINT, b""])
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    return next((some for name, some in LIKELY_NUMBERS.items() if name in field.name), st.integers(0, 3))


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, wild_in_10: int) -> Message:
    """Return a message; of ten fields so many hold anything at all, and the others what a caller may well have said."""
    message: Any = message_factory.GetMessageClass(descriptor)()
    for field in descriptor.fields:
        wild = draw(st.integers(1, 10)) <= wild_in_10
        if not wild or draw(st.booleans()):
            _put(draw, message, field, wild=wild, wild_in_10=wild_in_10)
    return cast("Message", message)


def _put(draw: st.DrawFn, message: Any, field: FieldDescriptor, *, wild: bool, wild_in_10: int) -> None:
    count = draw(st.integers(0, 3)) if field.is_repeated else 1
    values = [draw(_value(field, wild, wild_in_10)) for _ in range(count)]
    if field.is_repeated:
        getattr(message, field.name).extend(values)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(values[0])
    else:
        setattr(message, field.name, values[0])


def _value(field: FieldDescriptor, wild: bool, wild_in_10: int) -> st.SearchStrategy[Any]:
    if field.message_type is None:
        return _any_value(field) if wild else _likely_value(field)
    if field.message_type.full_name == "google.protobuf.Timestamp":
        return ANY_INSTANT if wild else LIKELY_INSTANT
    return messages(field.message_type, wild_in_10)


@st.composite
def spoilt(draw: st.DrawFn, good: Message) -> Message:
    """Return a message with anything at all in some of its fields, inside the messages in it too."""
    message: Any = type(good)()
    message.CopyFrom(good)
    for _ in range(draw(st.integers(0, 3))):
        inside = message
        field = draw(st.sampled_from(list(inside.DESCRIPTOR.fields)))
        while field.message_type is not None and "utrn" in field.message_type.full_name and draw(st.integers(0, 4)):
            among = getattr(inside, field.name)
            if field.is_repeated and not among:
                break
            inside = draw(st.sampled_from(list(among))) if field.is_repeated else among
            field = draw(st.sampled_from(list(inside.DESCRIPTOR.fields)))
        inside.ClearField(field.name)
        _put(draw, inside, field, wild=True, wild_in_10=5)
    return cast("Message", message)


@st.composite
def calls(draw: st.DrawFn, room: str, method: str) -> Call:
    """Return a call with a request that was answered before it was spoilt, or that is drawn field by field."""
    if method in ANSWERED and draw(st.integers(0, 2)):
        who, good = draw(st.sampled_from(ANSWERED[method]))
        return Call(who, room, method, draw(spoilt(good)))
    descriptor = SERVICES[room].methods_by_name[method].input_type
    request = draw(messages(descriptor, draw(st.sampled_from([0, 1, 1, 3, 10]))))
    callers = (
        [SUPPLIER, OPERATOR, GAINING]
        if room in ("participants", "meter_models", "meters", "pans", "registry")
        else [SUPPLIER, PSP, GAINING, OPERATOR]
    )
    return Call(draw(st.sampled_from(callers)), room, method, request)


@pytest.mark.parametrize("method", ANSWERED)
def test_what_is_spoilt_was_answered_before(method: str) -> None:
    for who, request in ANSWERED[method]:
        assert asyncio.run(drive([Call(who, _room(method), method, request)])) == [None]


@pytest.mark.slow
@pytest.mark.parametrize(("room", "method"), METHODS, ids=lambda one: one)
@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example])
@given(data=st.data())
def test_any_request_is_answered_or_refused_by_a_reason(room: str, method: str, data: st.DataObject) -> None:
    before = data.draw(st.lists(st.sampled_from(METHODS), max_size=2))
    some = [data.draw(calls(*one)) for one in [*before, (room, method)]]
    for error in asyncio.run(drive(some)):
        # Nothing is broken here: whoever is told to try again would try for ever. But an operator may name a key that
        # no token holds.
        key_gone = isinstance(error, KeyMissing) and any(call.method == "SetSupplierKey" for call in some)
        assert error is None or key_gone or isinstance(error, Refused), repr(error)
        assert error is None or status_of(error).SerializeToString(), "what a caller is told fits into an answer"


# A line of a registry file is a request too.

RECORDS = {
    field.name: field.message_type.name.removesuffix("Request")
    for field in RegistryRecord.DESCRIPTOR.oneofs_by_name["request"].fields
    if field.message_type is not None
}
# What a flow asks about the record as a whole, of a call and of a file alike, after every field has been read.
ASKED_LATER = {"supplier_key", "ceiling_pence", "settings.head_end"}


def _without_answers(message: Any) -> None:
    """Clear what a call passes over and a file refuses, in the messages inside too."""
    for field, value in message.ListFields():
        if field in ANSWERS_ONLY:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for inside in value if field.is_repeated else [value]:
                _without_answers(inside)


@pytest.mark.parametrize("record", RECORDS)
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example])
@given(data=st.data())
def test_a_file_refuses_a_record_with_the_words_of_the_call_that_it_is(record: str, data: st.DataObject) -> None:
    """One validation: whatever is wrong in a field, a line and a call are refused by the same reason and sentence."""
    call = data.draw(calls(_room(RECORDS[record]), RECORDS[record]))
    _without_answers(call.request)
    try:
        line = MessageToJson(RegistryRecord(**{record: call.request}), indent=None, ensure_ascii=False)
    except SerializeToJsonError:
        # An instant that JSON cannot spell.
        reject()
    assume(len(line) <= LINE_CHARACTERS_MAX)
    rule = WORLD.node().issuing.config.pan
    told: object = None
    try:
        read_line(line, pan_rule=rule, now=ms_of(NOW), by=call.who.participant_id)
    except Refused as refusal:
        told = refusal
    (answer,) = asyncio.run(drive([call]))
    if isinstance(told, Refused):
        assert isinstance(answer, type(told))
        assert (answer.reason, answer.message, answer.facts) == (told.reason, told.message, told.facts)
    else:
        assert not isinstance(answer, BadField) or answer.field in ASKED_LATER


# Bounds, one by one.

FAR, PAST_ALL = _SECONDS + 11 * 366 * 86_400, 253_402_300_800


def _at(message: Any, name: str, seconds: int, nanos: int = 0) -> None:
    getattr(message, name).CopyFrom(timestamp_pb2.Timestamp(seconds=seconds, nanos=nanos))


def _terms_from(request: Any, seconds: int) -> None:
    terms = AppointmentTerms.FromString(request.signed_terms.terms)
    _at(terms, "since", seconds)
    request.signed_terms.terms = terms.SerializeToString()


_TWENTY = [f"spiffe://{number}" for number in range(20)]
SPOILT: list[tuple[str, str, Callable[[Any], Any]]] = [
    ("AddParticipant", "participant.role", lambda one: setattr(one.participant, "role", 99)),
    ("AddParticipant", "profile", lambda one: setattr(one.participant, "role", participant_pb.ROLE_PSP)),
    ("AddParticipant", "participant.identities", lambda one: one.participant.identities.append("spiffe://new")),
    ("AddParticipant", "participant.identities", lambda one: one.participant.identities.append("spiffe://é")),
    ("SetIdentities", "identities", lambda one: one.identities.append("spiffe://c")),
    ("SetIdentities", "identities", lambda one: one.ClearField("identities")),
    ("SetParticipantStatus", "status", lambda one: setattr(one, "status", -1)),
    ("SetProfile", "profile.selling_model", lambda one: setattr(one.profile, "selling_model", 5)),
    ("SetProfile", "profile.limits.channel", lambda one: setattr(one.profile.limits[0], "channel", 77)),
    ("SetProfile", "profile.limits", lambda one: setattr(one.profile.limits[0], "min_pence", 901)),
    ("SetProfile", "profile.limits", lambda one: one.profile.limits.append(one.profile.limits[0])),
    ("SetProfile", "profile.credit_approvers", lambda one: one.profile.credit_approvers.append("anne")),
    ("SetProfile", "profile.credit_approvers", lambda one: one.profile.credit_approvers.extend(_TWENTY)),
    ("SetProfile", "profile.credit_day_max_pence", lambda one: setattr(one.profile, "credit_day_max_pence", 2**62)),
    ("SetProfile", "since", lambda one: _at(one, "since", FAR)),
    ("SetProfile", "since", lambda one: _at(one, "since", PAST_ALL)),
    ("SetProfile", "since", lambda one: _at(one, "since", -1)),
    ("SetProfile", "since", lambda one: _at(one, "since", _SECONDS, -1)),
    ("SetProfile", "since", lambda one: _at(one, "since", 2**63 - 1, 2**31 - 1)),
    ("AddMeter", "meter.generation", lambda one: setattr(one.meter, "generation", 3)),
    ("AddMeter", "meter.kind", lambda one: setattr(one.meter, "kind", 3)),
    ("AddMeter", "settings.payment_mode", lambda one: setattr(one.settings, "payment_mode", 3)),
    ("AddMeter", "since", lambda one: _at(one, "since", FAR)),
    ("ChangeMeter", "since", lambda one: _at(one, "since", FAR)),
    ("ChangeSupplier", "since", lambda one: _at(one, "since", FAR)),
    ("ChangeTenant", "since", lambda one: _at(one, "since", FAR)),
    ("ExchangeMeter", "pans", lambda one: one.pans.append(one.pans[0])),
    ("ExchangeMeter", "new_meter.meter_id", lambda one: setattr(one.new_meter, "meter_id", one.old_meter_id)),
    ("ReplacePan", "form", lambda one: setattr(one, "form", 4)),
    ("ReplacePan", "new_pan", lambda one: setattr(one, "new_pan", one.lost_pan)),
    ("TransferCounters", "custody", lambda one: setattr(one, "custody", 4)),
    ("TransferCounters", "custody_before", lambda one: setattr(one, "custody_before", -4)),
    ("TransferCounters", "highest_applied", lambda one: setattr(one, "highest_applied", 2**32 - 1)),
    ("TransferCounters", "codes.participant_id", lambda one: setattr(one.codes[0], "participant_id", "A")),
    ("TransferCounters", "codes.transaction_id", lambda one: setattr(one.codes[0], "transaction_id", "A")),
    ("TransferCounters", "codes.pan", lambda one: setattr(one.codes[0], "pan", "A")),
    ("TransferCounters", "codes.utrn", lambda one: setattr(one.codes[0], "utrn", utrn(1025)[:-1] + "x")),
    ("TransferCounters", "codes.utrn", lambda one: setattr(one.codes[0], "utrn", utrn(1025, pence=0))),
    ("TransferCounters", "codes.utrn_counter", lambda one: setattr(one.codes[0], "utrn_counter", 0)),
    ("TransferCounters", "codes.utrn_counter", lambda one: setattr(one.codes[0], "utrn_counter", 1026)),
    ("TransferCounters", "codes.issued_at", lambda one: one.codes[0].ClearField("issued_at")),
    ("TransferCounters", "codes.issued_at", lambda one: _at(one.codes[0], "issued_at", _SECONDS + 1)),
    ("TransferCounters", "codes.issued_at", lambda one: _at(one.codes[0], "issued_at", -1)),
    ("TransferCounters", "codes.issued_at", lambda one: _at(one.codes[0], "issued_at", PAST_ALL)),
    ("Appoint", "signed_terms.terms.since", lambda one: _terms_from(one, PAST_ALL)),
    ("RequestCredit", "credit.reason", lambda one: setattr(one.credit, "reason", 9)),
    ("RequestCredit", "credit.note", lambda one: setattr(one.credit, "note", "\x07")),
    ("RecordBalance", "balance_pence", lambda one: setattr(one, "balance_pence", 10**9 + 1)),
    ("RecordBalance", "balance_pence", lambda one: setattr(one, "balance_pence", -(10**9) - 1)),
    ("RecordBalance", "at", lambda one: _at(one, "at", _SECONDS + 1)),
    ("RecordBalance", "at", lambda one: _at(one, "at", -1)),
    ("RecordBalance", "at", lambda one: one.ClearField("at")),
    ("EndMeter", "at", lambda one: _at(one, "at", FAR)),
    ("AssignPan", "form", lambda one: setattr(one, "form", 4)),
    ("AssignPan", "since", lambda one: _at(one, "since", FAR)),
    ("RepointPan", "since", lambda one: _at(one, "since", FAR)),
    ("ListSellers", "at", lambda one: _at(one, "at", PAST_ALL)),
    ("ListRegistrationChanges", "since", lambda one: _at(one, "since", -1)),
    ("LoadRecords", "lines", lambda one: setattr(one, "first_line", 0)),
    ("LoadRecords", "lines", lambda one: setattr(one, "first_line", 2**63 - 1)),
    ("LoadRecords", "lines", lambda one: one.lines.extend([""] * 1000)),
]  # fmt: skip


@pytest.mark.parametrize(("method", "field", "spoil"), SPOILT)
def test_what_is_out_of_bounds_is_a_bad_field(method: str, field: str, spoil: Callable[[Any], Any]) -> None:
    who, good = ANSWERED[method][0]
    request: Any = type(good)()
    request.CopyFrom(good)
    spoil(request)
    (told,) = asyncio.run(drive([Call(who, _room(method), method, request)]))
    assert isinstance(told, BadField)
    assert told.field == field


@pytest.mark.parametrize("pence", [-(10**9), 0, 10**9])
def test_a_meter_may_be_deep_in_debt(pence: int) -> None:
    who, good = ANSWERED["RecordBalance"][0]
    request = meter_pb.RecordBalanceRequest(balance_pence=pence)
    request.MergeFrom(cast("meter_pb.RecordBalanceRequest", good))
    assert asyncio.run(drive([Call(who, "meters", "RecordBalance", request)])) == [None]


def test_every_field_of_a_code_handed_over_is_named_at_once() -> None:
    who, good = ANSWERED["TransferCounters"][0]
    request = meter_pb.TransferCountersRequest()
    request.CopyFrom(cast("meter_pb.TransferCountersRequest", good))
    request.codes[0].CopyFrom(meter_pb.UnspentCode())
    (told,) = asyncio.run(drive([Call(who, "meters", "TransferCounters", request)]))
    assert isinstance(told, BadField)
    names = ["participant_id", "transaction_id", "pan", "utrn", "issued_at", "channel"]
    assert [violation.field for violation in told.violations] == [f"codes.{name}" for name in names]


@pytest.mark.parametrize("last_issued", [None, 0, 5])
def test_a_hand_over_that_does_not_say_how_far_the_counters_have_come_is_refused(last_issued: int | None) -> None:
    """Left out it would read as 0, and this service would make codes from counter 1 on. Who means 0 says 0."""
    who, good = ANSWERED["TransferCounters"][0]
    request = meter_pb.TransferCountersRequest()
    request.CopyFrom(cast("meter_pb.TransferCountersRequest", good))
    request.ClearField("codes")
    request.ClearField("last_issued")
    request.highest_applied = 0
    if last_issued is not None:
        request.last_issued = last_issued
    (told,) = asyncio.run(drive([Call(who, "meters", "TransferCounters", request)]))
    if last_issued is None:
        assert isinstance(told, BadField)
        assert told.field == "last_issued"
    else:
        assert told is None


def _room(method: str) -> str:
    return next(room for room, name in METHODS if name == method)
