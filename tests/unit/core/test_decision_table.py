"""Who may do what: every role, profile, act and state, against a table written by hand from the requirements.

The table knows nothing of the code: it is rules of the market in words (REQUIREMENTS B1-B19, E15, E26-E28, F12), most
important first. Whatever no rule refuses must be allowed.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from core.domain.appointment import Appointment, Appointments, AppointmentState
from core.domain.eligibility import Act, Question, judge
from core.domain.meter import Abilities, Custody, Model, Pan, PanStatus, PanUse, PaymentMode, Registration, Settings
from core.domain.party import Level, Limit, Option, Participant, ParticipantId, Profile, Role, Standing
from core.domain.timeline import Ms, ms_of
from tests.support.market import MemoryRegistry
from tests.support.vends import (
    APPOINTMENT,
    APPOINTMENTS,
    HEAD_END,
    NOW,
    PSP,
    PSP_ID,
    SUPPLIER,
    SUPPLIER_ID,
    TERMS,
    always,
    card,
    known_as,
    market,
    meter,
    new_meter_id,
)  # fmt: skip

PAN = Pan("9" * 19)
AT = ms_of(NOW)
OTHER = ParticipantId("supplier-other")
CALLERS = {
    "own supplier": SUPPLIER,
    "other supplier": replace(SUPPLIER, participant_id=OTHER, known_as=known_as("Other", "other")),
    "psp": PSP,
    "operator": replace(PSP, participant_id=ParticipantId("op"), role=Role.OPERATOR),
    "helpdesk": replace(PSP, participant_id=ParticipantId("help"), role=Role.HELPDESK),
    "auditor": replace(PSP, participant_id=ParticipantId("audit"), role=Role.AUDITOR),
}
APPOINTED = ("none", "proposed", "issue", "issue and deliver", "suspended", "ended", "not yet", "over")
METERS = (
    "fine", "credit mode", "not enrolled", "ended", "not registered", "custody supplier", "custody smso", "at another",
    "model unknown", "model without air", "model made elsewhere",
)  # fmt: skip
PANS = ("fine", "unknown", "blocked", "replaced", "earlier tenant", "earlier supplier", "not yet")


@dataclass(frozen=True)
class Case:
    """One row: who asks for what, and how everything stands."""

    caller: str
    option: Option
    act: Act
    appointed: str
    meter: str
    pan: str
    supplier: Standing


def cases() -> Iterator[Case]:
    """Every caller, option and act; with every appointment; with every state of meter, PAN and supplier."""
    for caller, option, act, appointed in itertools.product(CALLERS, Option, Act, APPOINTED):
        states = [("fine", "fine", Standing.ACTIVE)]
        if appointed in ("none", "issue and deliver"):
            states = [
                *((one, "fine", Standing.ACTIVE) for one in METERS),
                *(("fine", one, Standing.ACTIVE) for one in PANS[1:]),
                ("fine", "fine", Standing.SUSPENDED),
                ("fine", "fine", Standing.LEFT),
                ("credit mode", "blocked", Standing.SUSPENDED),
                ("custody supplier", "earlier tenant", Standing.ACTIVE),
            ]
        for meter_state, pan_state, standing in states:
            yield Case(caller, option, act, appointed, meter_state, pan_state, standing)


# The table.

_IS_PSP = "psp"
_MAKES_A_CODE = {Act.ISSUE, Act.TOP_UP, Act.CREDIT}
_PSP_MAY = {
    Option.SUPPLIER_ONLY: set[Act](),
    Option.PSP_ISSUES: {Act.ISSUE},
    Option.PSP_ISSUES_AND_DELIVERS: {Act.ISSUE, Act.TOP_UP, Act.DELIVER},
    Option.SUPPLIER_GENERATES: set[Act](),
}
_APPOINTED_FOR = {"issue": {Act.ISSUE}, "issue and deliver": {Act.ISSUE, Act.TOP_UP, Act.DELIVER}}


def _psp_may(case: Case) -> bool:
    return case.act in _PSP_MAY[case.option] and case.act in _APPOINTED_FOR.get(case.appointed, set())


def _has_say(case: Case) -> bool:
    if case.caller == "own supplier":
        return case.meter != "at another"
    if case.caller == "other supplier":
        return case.meter == "at another"
    return case.caller == _IS_PSP and _psp_may(case) and case.meter != "at another"


RULES: list[tuple[str, Callable[[Case], bool]]] = [
    ("PAN_UNKNOWN", lambda case: case.pan in ("unknown", "not yet")),
    ("METER_UNKNOWN", lambda case: case.meter in ("ended", "not registered")),
    ("NOT_APPOINTED", lambda case: not _has_say(case)),
    ("SUPPLIER_INACTIVE", lambda case: case.supplier is not Standing.ACTIVE and case.meter != "at another"),
    ("PAN_BLOCKED", lambda case: case.pan in ("blocked", "replaced") and case.act is not Act.DELIVER),
    ("PAN_NOT_CURRENT", lambda case: case.pan in ("earlier tenant", "earlier supplier") or case.meter == "at another"),
    ("METER_NOT_ENROLLED", lambda case: case.meter in ("not enrolled", "custody smso")),
    ("METER_IN_CREDIT_MODE", lambda case: case.meter == "credit mode"),
    ("NOT_SUPPORTED_BY_METER", lambda case: case.meter == "model unknown"),
    ("NOT_SUPPORTED_BY_METER", lambda case: case.meter == "model without air" and case.act is not Act.ISSUE),
    ("NOT_SUPPORTED_BY_METER", lambda case: case.meter == "model made elsewhere" and case.act in _MAKES_A_CODE),
    ("CENTRAL_ISSUE_OFF", lambda case: case.option is Option.SUPPLIER_GENERATES and case.act in _MAKES_A_CODE),
    ("COUNTER_ELSEWHERE", lambda case: case.meter == "custody supplier" and case.act in _MAKES_A_CODE),
    ("COUNTER_HERE", lambda case: case.act is Act.DELIVER_MADE_ELSEWHERE and case.meter != "custody supplier"),
]


def expected(case: Case) -> str:
    """What the table says."""
    return next((reason for reason, refuses in RULES if refuses(case)), "allowed")


# The world of a case.


def _appointments(state: str) -> Appointments | None:
    if state == "none":
        return None
    level = Level.ISSUE if state == "issue" else Level.ISSUE_AND_DELIVER
    since, until = TERMS.since, None
    if state == "not yet":
        since = Ms(AT + 1)
    if state == "over":
        until = AT
    by_state = {
        "proposed": AppointmentState.PROPOSED,
        "suspended": AppointmentState.SUSPENDED,
        "ended": AppointmentState.ENDED,
    }
    one = Appointment(
        terms=replace(TERMS, level=level, since=since, until=until),
        evidence=APPOINTMENT.evidence,
        states=always(by_state.get(state, AppointmentState.ACCEPTED)),
    )
    return replace(APPOINTMENTS, all=(one,))


def _world(case: Case) -> MemoryRegistry:
    registry = market(pans={})
    supplier: Participant = replace(
        SUPPLIER, standings=always(case.supplier), profiles=always(Profile(option=case.option))
    )
    registry.participants |= {one.participant_id: one for one in CALLERS.values()}
    registry.participants[SUPPLIER_ID] = supplier
    registry.participants[OTHER] = replace(CALLERS["other supplier"], profiles=always(Profile(option=case.option)))
    registry.appointed.clear()
    found = _appointments(case.appointed)
    if found is not None:
        registry.appointed[(SUPPLIER_ID, PSP_ID)] = found
    _add_meter(registry, case)
    return registry


def _add_meter(registry: MemoryRegistry, case: Case) -> None:
    settings = Settings(
        head_end=HEAD_END,
        payment_mode=PaymentMode.CREDIT if case.meter == "credit mode" else PaymentMode.PREPAYMENT,
        enrolled=case.meter not in ("not enrolled", "custody smso"),
        tenancy=2 if case.pan == "earlier tenant" else 1,
    )
    custody = {"custody supplier": Custody.SUPPLIER, "custody smso": Custody.SMSO}.get(case.meter, Custody.CENTRAL)
    whose = OTHER if case.meter == "at another" else SUPPLIER_ID
    one = replace(
        meter(new_meter_id(), settings=settings),
        registrations=always(Registration(supplier_id=whose, custody=custody)),
    )
    if case.meter == "ended":
        one = replace(one, registrations=one.registrations.end(at=Ms(AT - 5), now=Ms(AT - 10)), turned_at=Ms(AT - 5))
    if case.meter.startswith("model"):
        one = replace(one, make="Acme", model="X1")
    if case.meter != "not registered":
        registry.meters[one.meter_id] = one
    if case.meter in ("model without air", "model made elsewhere"):
        registry.models[("Acme", "X1")] = Model(
            make="Acme", model="X1", abilities=always(Abilities(
                schemes=frozenset({"gbcs"}), over_the_air=case.meter != "model without air",
                central_issue=case.meter != "model made elsewhere",
            )),
        )  # fmt: skip
    if case.pan == "unknown":
        return
    status = {"blocked": PanStatus.BLOCKED, "replaced": PanStatus.REPLACED}.get(case.pan, PanStatus.ACTIVE)
    use = PanUse(
        meter_id=one.meter_id, supplier_id=OTHER if case.pan == "earlier supplier" else SUPPLIER_ID, status=status
    )
    since = Ms(AT + 1) if case.pan == "not yet" else Ms(AT - 1000)
    registry.cards[PAN] = replace(card(PAN, one.meter_id), uses=always(use, since))


def _ruling(case: Case) -> str:
    question = Question(caller=CALLERS[case.caller], act=case.act, pan=PAN, amount=1000, channel=3)
    if case.caller == "own supplier":
        question = replace(question, caller=_world(case).participants[SUPPLIER_ID])
    ruling = judge(_world(case), question, AT)
    assert (ruling.resolved is None) == bool(ruling.refusals)
    return ruling.refusals[0].reason if ruling.refusals else "allowed"


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("option", Option)
def test_every_row_of_the_decision_table(caller: str, option: Option) -> None:
    wrong = []
    rows = [case for case in cases() if case.caller == caller and case.option is option]
    for case in rows:
        ruled = _ruling(case)
        if ruled != expected(case):
            wrong.append(f"{case}: ruled {ruled}, the table says {expected(case)}")
    assert not wrong, "\n".join(wrong[:5])
    assert len(rows) > 100


def test_the_table_is_not_one_sided() -> None:
    seen = {expected(case) for case in cases()}
    assert seen == {reason for reason, _ in RULES} | {"allowed"}
    assert {case.caller for case in cases() if expected(case) == "allowed"} == {"own supplier", "psp"}


LIMITS = [
    (Limit(channel=0, min_pence=500, max_pence=900), 499, "AMOUNT_OUT_OF_LIMITS"),
    (Limit(channel=0, min_pence=500, max_pence=900), 500, "allowed"),
    (Limit(channel=0, min_pence=500, max_pence=900), 901, "AMOUNT_OUT_OF_LIMITS"),
    (Limit(channel=1, min_pence=500, max_pence=900), 901, "allowed"),
    (Limit(channel=3, min_pence=1, max_pence=900, closed=True), 500, "CHANNEL_NOT_ALLOWED"),
    (Limit(channel=3, min_pence=1, max_pence=900, whole_pounds=True), 550, "AMOUNT_OUT_OF_LIMITS"),
]


@pytest.mark.parametrize(("limit", "pence", "wanted"), LIMITS)
def test_limits_of_the_supplier(limit: Limit, pence: int, wanted: str) -> None:
    registry = _world(Case("psp", Option.PSP_ISSUES, Act.ISSUE, "issue", "fine", "fine", Standing.ACTIVE))
    profile = Profile(option=Option.PSP_ISSUES, limits=(limit,))
    registry.participants[SUPPLIER_ID] = replace(SUPPLIER, profiles=always(profile))
    ruling = judge(registry, Question(caller=PSP, act=Act.ISSUE, pan=PAN, amount=pence, channel=3), AT)
    assert (ruling.refusals[0].reason if ruling.refusals else "allowed") == wanted


@pytest.mark.parametrize(
    ("change", "pence", "wanted"),
    [
        ({"max_credit_pence": 900}, 901, ["ABOVE_MAX_CREDIT"]),
        ({"max_credit_pence": 900}, 900, []),
        ({"max_balance_pence": 5000}, 4001, ["ABOVE_MAX_BALANCE"]),
        ({"max_balance_pence": 5000}, 4000, []),
        ({"max_credit_pence": 900, "max_balance_pence": 5000}, 4001, ["ABOVE_MAX_CREDIT", "ABOVE_MAX_BALANCE"]),
    ],
)
def test_thresholds_of_the_meter(change: dict[str, int], pence: int, wanted: list[str]) -> None:
    registry = market(pans={})
    settings = replace(Settings(head_end=HEAD_END), **change)  # type: ignore[arg-type]
    one = replace(meter(new_meter_id(), settings=settings), balance_pence=1000, balance_at=Ms(AT - 60_000))
    registry.meters[one.meter_id] = one
    registry.cards[PAN] = card(PAN, one.meter_id)
    question = Question(caller=SUPPLIER, act=Act.TOP_UP, pan=PAN, amount=pence, channel=3)
    ruling = judge(registry, question, AT, every=True)
    assert [one.reason for one in ruling.refusals] == wanted


def test_at_the_instant_of_a_change_the_old_say_ends_and_the_new_one_begins() -> None:
    """To the millisecond: one before, the old supplier; at it, a turn is due; after the turn, only the new one."""
    instant = Ms(AT + 1000)
    registry = _world(
        Case("psp", Option.PSP_ISSUES_AND_DELIVERS, Act.TOP_UP, "issue and deliver", "fine", "fine", Standing.ACTIVE)
    )
    ((meter_id, one),) = registry.meters.items()
    gaining = Registration(supplier_id=OTHER)
    one = replace(one, registrations=one.registrations.change(gaining, since=instant, now=AT, by="op"))
    registry.meters[meter_id] = one
    question = Question(caller=PSP, act=Act.TOP_UP, pan=PAN, amount=1000, channel=3)
    before = judge(registry, question, Ms(instant - 1))
    assert before.resolved is not None
    assert before.resolved.until == instant, "the sale must be dated before the change, or be authorised again"
    assert judge(registry, question, instant).turn == meter_id
    registry.meters[meter_id] = replace(one, turned_at=instant)
    assert judge(registry, question, instant).refusals[0].reason == "NOT_APPOINTED"
    slow = judge(registry, question, Ms(instant - 500))
    assert slow.refusals[0].reason == "NOT_APPOINTED", "a slow clock does not bring the old supplier back"
