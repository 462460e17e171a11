"""Who may do what: every role, profile, act and state, against a table written by hand from the requirements.

The table knows nothing of the code: it is rules of the market in words (REQUIREMENTS B1-B19, E15, E26-E28, F12), most
important first. Whatever no rule refuses must be allowed. The whole product is asked: no combination is left out.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import pytest
from etcdpb import rpc_pb2 as pb

from cluster.codec.registry import name_of, value_of
from cluster.etcd.keys import Keys
from cluster.registry.snapshot import RegistrySnapshot
from core.domain.appointment import Appointment, Appointments, AppointmentState
from core.domain.authorization import AuthorizationDecision, Permit, Question, Records, authorize
from core.domain.effective_dated import Ms, ms_of
from core.domain.meter import (
    Custody,
    Meter,
    MeterCapabilities,
    MeterId,
    Model,
    Pan,
    PanAssignment,
    PanRecord,
    PanStatus,
    PaymentMode,
    Registration,
    Settings,
)
from core.domain.participant import (
    Limit,
    Participant,
    ParticipantId,
    ParticipantStatus,
    Profile,
    PspPermission,
    Role,
    SellingModel,
    SupplierKey,
)
from core.domain.record import Kind
from core.domain.vend import Operation
from core.ports.registry import RegistryRecord
from tests.support.market import MemoryRegistry
from tests.support.vends import (
    APPOINTMENT,
    APPOINTMENTS,
    HEAD_END,
    NOW,
    POINT,
    PSP,
    PSP_ID,
    SUPPLIER,
    SUPPLIER_ID,
    TERMS,
    always,
    card,
    identity_history,
    market,
    meter,
    new_meter_id,
)  # fmt: skip

PAN = Pan("9" * 19)
METER_ID = MeterId("00db12ffffffffff")
AT = ms_of(NOW)
OTHER = ParticipantId("supplier-other")
CALLERS = {
    "own supplier": SUPPLIER,
    "other supplier": replace(
        SUPPLIER, participant_id=OTHER, identity_history=identity_history("Other", "other"),
        supplier_key=SupplierKey(originator_id="90b3d51f30010002", key_id="02", public_point=POINT),
    ),
    "psp": PSP,
    "operator": replace(
        PSP, participant_id=ParticipantId("op"), role=Role.OPERATOR, identity_history=identity_history("Ops", "op")
    ),
    "helpdesk": replace(
        PSP, participant_id=ParticipantId("help"), role=Role.HELPDESK, identity_history=identity_history("Help", "help")
    ),
    "auditor": replace(
        PSP, participant_id=ParticipantId("audit"), role=Role.AUDITOR,
        identity_history=identity_history("Audit", "audit")
    ),
}  # fmt: skip
APPOINTED = ("none", "proposed", "issue", "issue and deliver", "suspended", "ended", "not yet", "over")
METERS = (
    "fine", "credit mode", "not enrolled", "ended", "not registered", "custody supplier", "custody smso", "at another",
    "model unknown", "model without air", "model made elsewhere",
)  # fmt: skip
# Who gave a card is a fact of the card alone; whether it is an earlier supplier's, the meter tells.
PANS = ("fine", "unknown", "blocked", "replaced", "earlier tenant", "given by the other supplier", "not yet")


class Case(NamedTuple):
    """One row: who asks for what, and how everything stands. `psp` is the status of the PSP, which may be asking."""

    caller: str
    selling_model: SellingModel
    act: Operation
    appointed: str
    meter: str
    pan: str
    supplier: ParticipantStatus
    psp: ParticipantStatus


# The status of a PSP matters where it asks; whoever else asks finds it active.
PARTS = [
    (caller, selling_model, psp)
    for caller in CALLERS
    for selling_model in SellingModel
    for psp in (ParticipantStatus if caller == "psp" else [ParticipantStatus.ACTIVE])
]
ROWS_OF_A_PART = len(Operation) * len(APPOINTED) * len(METERS) * len(PANS) * len(ParticipantStatus)


def cases(caller: str, selling_model: SellingModel, psp: ParticipantStatus) -> Iterator[Case]:
    """Every act, with every appointment, and every state of meter, PAN and supplier."""
    for act, appointed, meter_state, pan, supplier in itertools.product(
        Operation, APPOINTED, METERS, PANS, ParticipantStatus
    ):
        yield Case(caller, selling_model, act, appointed, meter_state, pan, supplier, psp)


# The table.

_IS_PSP = "psp"
_MAKES_A_CODE = {Operation.ISSUE, Operation.TOP_UP, Operation.CREDIT}
_PSP_MAY = {
    SellingModel.SUPPLIER_ONLY: set[Operation](),
    SellingModel.PSP_ISSUES: {Operation.ISSUE},
    SellingModel.PSP_ISSUES_AND_DELIVERS: {Operation.ISSUE, Operation.TOP_UP, Operation.DELIVER},
    SellingModel.SUPPLIER_GENERATES: set[Operation](),
}
# Only these two are in force; a PSP whose appointment is in any other state has none.
_APPOINTED_FOR = {
    "issue": {Operation.ISSUE},
    "issue and deliver": {Operation.ISSUE, Operation.TOP_UP, Operation.DELIVER},
}


def _is_the_others(case: Case) -> bool:
    return case.meter == "at another"


def _suspended_psp(case: Case) -> bool:
    """A PSP that the meter's supplier has appointed hears why it may not, before it hears what for it was appointed."""
    appointed = case.appointed in _APPOINTED_FOR and not _is_the_others(case)
    return case.caller == _IS_PSP and appointed and case.psp is not ParticipantStatus.ACTIVE


def _psp_may(case: Case) -> bool:
    return case.act in _PSP_MAY[case.selling_model] and case.act in _APPOINTED_FOR.get(case.appointed, set())


def _has_say(case: Case) -> bool:
    if case.caller == "own supplier":
        return not _is_the_others(case)
    if case.caller == "other supplier":
        return _is_the_others(case)
    return case.caller == _IS_PSP and _psp_may(case) and not _is_the_others(case)


def _is_not_current(case: Case) -> bool:
    """A card is current if the meter's supplier gave it, to the meter's tenant."""
    given_by_the_other = case.pan == "given by the other supplier"
    return case.pan == "earlier tenant" or given_by_the_other != _is_the_others(case)


RULES: list[tuple[str, Callable[[Case], bool]]] = [
    ("PAN_UNKNOWN", lambda case: case.pan in ("unknown", "not yet")),
    ("METER_UNKNOWN", lambda case: case.meter in ("ended", "not registered")),
    ("CALLER_SUSPENDED", _suspended_psp),
    ("NOT_APPOINTED", lambda case: not _has_say(case)),
    ("SUPPLIER_INACTIVE", lambda case: case.supplier is not ParticipantStatus.ACTIVE and not _is_the_others(case)),
    ("PAN_BLOCKED", lambda case: case.pan in ("blocked", "replaced") and case.act is not Operation.DELIVER),
    ("PAN_NOT_CURRENT", _is_not_current),
    ("METER_NOT_ENROLLED", lambda case: case.meter in ("not enrolled", "custody smso")),
    ("METER_IN_CREDIT_MODE", lambda case: case.meter == "credit mode"),
    ("NOT_SUPPORTED_BY_METER", lambda case: case.meter == "model unknown"),
    ("NOT_SUPPORTED_BY_METER", lambda case: case.meter == "model without air" and case.act is not Operation.ISSUE),
    ("NOT_SUPPORTED_BY_METER", lambda case: case.meter == "model made elsewhere" and case.act in _MAKES_A_CODE),
    (
        "CENTRAL_ISSUE_OFF",
        lambda case: case.selling_model is SellingModel.SUPPLIER_GENERATES and case.act in _MAKES_A_CODE,
    ),
    (
        "COUNTER_ELSEWHERE",
        lambda case: case.meter in ("custody supplier", "custody smso") and case.act in _MAKES_A_CODE,
    ),
    ("COUNTER_HERE", lambda case: case.act is Operation.EXTERNALLY_ISSUED and case.meter != "custody supplier"),
]
# Whoever hears one of these hears nothing else: it has no say over the meter, or nobody has.
_ALONE = {"PAN_UNKNOWN", "METER_UNKNOWN", "CALLER_SUSPENDED", "NOT_APPOINTED", "SUPPLIER_INACTIVE"}


def expected(case: Case) -> str:
    """What the table says."""
    for reason, refuses in RULES:
        if refuses(case):
            return reason
    return "allowed"


def expected_of_all(case: Case) -> list[str]:
    """Every objection, for whoever asks before money is taken; that no code is made here is said once."""
    told = [reason for reason, refuses in RULES if refuses(case)]
    if told and told[0] in _ALONE:
        return told[:1]
    return [one for one in told if one != "COUNTER_ELSEWHERE" or "CENTRAL_ISSUE_OFF" not in told]


# The world of a case, put together from parts that are made once.


@cache
def _participants(
    selling_model: SellingModel, supplier: ParticipantStatus, psp: ParticipantStatus
) -> dict[str, Participant]:
    profiles = always(Profile(selling_model=selling_model))
    own = replace(SUPPLIER, statuses=always(supplier), profiles=profiles)
    other = replace(CALLERS["other supplier"], profiles=profiles)
    seller = replace(PSP, statuses=always(psp))
    return {one.participant_id: one for one in (*CALLERS.values(), own, other, seller)}


@cache
def _appointed(state: str) -> dict[tuple[str, str], Appointments]:
    if state == "none":
        return {}
    level = PspPermission.ISSUE if state == "issue" else PspPermission.ISSUE_AND_DELIVER
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
    return {(SUPPLIER_ID, PSP_ID): replace(APPOINTMENTS, all=(one,))}


@cache
def _meters(state: str, tenancy: int) -> dict[str, Meter]:
    if state == "not registered":
        return {}
    settings = Settings(
        head_end=HEAD_END,
        payment_mode=PaymentMode.CREDIT if state == "credit mode" else PaymentMode.PREPAYMENT,
        enrolled=state not in ("not enrolled", "custody smso"),
        tenancy=tenancy,
    )
    custody = {"custody supplier": Custody.SUPPLIER, "custody smso": Custody.SMSO}.get(state, Custody.CENTRAL)
    whose = OTHER if state == "at another" else SUPPLIER_ID
    one = replace(
        meter(METER_ID, settings=settings), registrations=always(Registration(supplier_id=whose, custody=custody))
    )
    if state == "ended":
        one = replace(
            one, registrations=one.registrations.end(at=Ms(AT - 5), now=Ms(AT - 10)), effective_through=Ms(AT - 5)
        )
    if state.startswith("model"):
        one = replace(one, make="Acme", model="X1")
    return {METER_ID: one}


@cache
def _models(state: str) -> dict[tuple[str, str], Model]:
    if state not in ("model without air", "model made elsewhere"):
        return {}
    can = MeterCapabilities(
        schemes=frozenset({"gbcs"}), over_the_air=state != "model without air",
        central_issue=state != "model made elsewhere",
    )  # fmt: skip
    return {("Acme", "X1"): Model(make="Acme", model="X1", abilities=always(can))}


@cache
def _cards(state: str) -> dict[str, PanRecord]:
    if state == "unknown":
        return {}
    status = {"blocked": PanStatus.BLOCKED, "replaced": PanStatus.REPLACED}.get(state, PanStatus.ACTIVE)
    whose = OTHER if state == "given by the other supplier" else SUPPLIER_ID
    since = Ms(AT + 1) if state == "not yet" else Ms(AT - 1000)
    use = PanAssignment(meter_id=METER_ID, supplier_id=whose, status=status)
    return {PAN: replace(card(PAN, METER_ID), uses=always(use, since))}


def _world(case: Case) -> MemoryRegistry:
    return MemoryRegistry(
        participants=dict(_participants(case.selling_model, case.supplier, case.psp)),
        appointed=dict(_appointed(case.appointed)),
        meters=dict(_meters(case.meter, 2 if case.pan == "earlier tenant" else 1)),
        models=dict(_models(case.meter)),
        cards=dict(_cards(case.pan)),
    )


def _ruling(world: Records, case: Case, *, collect_all: bool = False) -> AuthorizationDecision:
    return authorize(world, _question(case.caller, case.act), AT, collect_all=collect_all)


@cache
def _question(caller: str, act: Operation) -> Question:
    return Question(caller=CALLERS[caller], operation=act, pan=PAN, amount=1000, channel=3)


@pytest.mark.slow
@pytest.mark.parametrize(("caller", "selling_model", "psp"), PARTS)
def test_every_row_of_the_decision_table(caller: str, selling_model: SellingModel, psp: ParticipantStatus) -> None:
    wrong, rows = [], 0
    for case in cases(caller, selling_model, psp):
        rows += 1
        decision = _ruling(_world(case), case)
        ruled = decision.refusals[0].reason if decision.refusals else "allowed"
        if ruled != expected(case) or (decision.permit is None) != bool(decision.refusals):
            wrong.append(f"{case}: ruled {ruled}, the table says {expected(case)}")
        elif decision.permit is not None:
            assert (decision.permit.authorization.supplier_id, decision.permit.authorization.rule) == _allowed_by(
                case
            ), case
    assert not wrong, "\n".join([f"{len(wrong)} wrong", *wrong[:5]])
    assert rows == ROWS_OF_A_PART


def _allowed_by(case: Case) -> tuple[ParticipantId, str]:
    """Whose meter it is, and by what right the caller was allowed."""
    whose = OTHER if _is_the_others(case) else SUPPLIER_ID
    return whose, "appointment corner" if case.caller == _IS_PSP else "own meter"


def test_the_table_is_whole_and_not_one_sided() -> None:
    assert len(PARTS) * ROWS_OF_A_PART == 221_760 + 2 * len(SellingModel) * ROWS_OF_A_PART
    seen = {(expected(case), case.caller) for part in PARTS for case in cases(*part)}
    assert {reason for reason, _ in seen} == {reason for reason, _ in RULES} | {"allowed"}
    assert {caller for reason, caller in seen if reason == "allowed"} == {"own supplier", "other supplier", "psp"}


# The mirror: the same decisions from records as they are stored.


class Mirror:
    """A node's copy that hears, case after case, of the records that are other ones, and of those that are gone."""

    def __init__(self) -> None:
        self._keys = Keys("utrn/")
        self.copy = RegistrySnapshot(self._keys)
        self._has: dict[tuple[Kind, str], RegistryRecord] = {}
        self.revisions: dict[tuple[Kind, str], int] = {}
        self._revision = 1

    def hear(self, world: MemoryRegistry) -> None:
        records: list[RegistryRecord] = [
            *world.participants.values(), *world.appointed.values(), *world.models.values(), *world.meters.values(),
            *world.cards.values(),
        ]  # fmt: skip
        wanted = {name_of(record): record for record in records}
        for name in self._has.keys() - wanted.keys():
            self._apply(name, None)
        for name, one in wanted.items():
            if self._has.get(name) is not one:
                self._apply(name, one)
        self._has = wanted

    def _apply(self, name: tuple[Kind, str], record: RegistryRecord | None) -> None:
        self._revision += 1
        value = b"" if record is None else value_of(record)
        kv = pb.KeyValue(key=self._keys.record(*name), value=value, mod_revision=self._revision)
        self.copy.apply(kv, gone=record is None)
        self.revisions[name] = self._revision


@pytest.mark.parametrize(("caller", "selling_model", "psp"), PARTS)
def test_the_mirror_decides_as_the_table_says_every_fiftieth_row(
    caller: str, selling_model: SellingModel, psp: ParticipantStatus
) -> None:
    """Of encoded records, heard of one by one; and every objection there is, not only the first."""
    mirror, remembered = Mirror(), 0
    rows = list(itertools.islice(cases(caller, selling_model, psp), 0, None, 50))
    # Those of the same parties one after another: what was found of them is found once, and asked for again.
    for case in sorted(rows, key=lambda one: (one.supplier, one.appointed, one.act, one.meter, one.pan)):
        world = _world(case)
        mirror.hear(world)
        remembered += bool(mirror.copy.grants)
        ruled, in_memory = _ruling(mirror.copy, case, collect_all=True), _ruling(world, case, collect_all=True)
        assert [refusal.reason for refusal in ruled.refusals] == expected_of_all(case), case
        assert ruled.refusals[:1] == [] or ruled.refusals[0].reason == expected(case)
        for ref, revision in ruled.read_set:
            assert revision == mirror.revisions[(ref.kind, ref.id)], "the commit compares what was read"
        assert _bare(ruled.permit) == _bare(in_memory.permit), case
        assert {ref for ref, _ in ruled.read_set} == {ref for ref, _ in in_memory.read_set}, case
    assert len(rows) == ROWS_OF_A_PART // 50 + 1
    assert (
        remembered > 0
        or CALLERS[caller].role not in (Role.SUPPLIER, Role.PSP)
        or not _may_ever(caller, selling_model, psp)
    )


def _may_ever(caller: str, selling_model: SellingModel, psp: ParticipantStatus) -> bool:
    return caller != _IS_PSP or (psp is ParticipantStatus.ACTIVE and bool(_PSP_MAY[selling_model]))


# Amounts, and the instant itself.


def _fine(selling_model: SellingModel, act: Operation, appointed: str) -> Case:
    return Case(
        "psp", selling_model, act, appointed, "fine", "fine", ParticipantStatus.ACTIVE, ParticipantStatus.ACTIVE
    )


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
    registry = _world(_fine(SellingModel.PSP_ISSUES, Operation.ISSUE, "issue"))
    profile = Profile(selling_model=SellingModel.PSP_ISSUES, limits=(limit,))
    registry.participants[SUPPLIER_ID] = replace(SUPPLIER, profiles=always(profile))
    decision = authorize(
        registry, Question(caller=PSP, operation=Operation.ISSUE, pan=PAN, amount=pence, channel=3), AT
    )
    assert (decision.refusals[0].reason if decision.refusals else "allowed") == wanted


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
    settings = replace(Settings(head_end=HEAD_END), **change)  # type: ignore[arg-type]  # thresholds only
    one = replace(meter(new_meter_id(), settings=settings), balance_pence=1000, balance_at=Ms(AT - 60_000))
    registry.meters[one.meter_id] = one
    registry.cards[PAN] = card(PAN, one.meter_id)
    question = Question(caller=SUPPLIER, operation=Operation.TOP_UP, pan=PAN, amount=pence, channel=3)
    decision = authorize(registry, question, AT, collect_all=True)
    assert [refusal.reason for refusal in decision.refusals] == wanted


def test_at_the_instant_of_a_change_the_old_say_ends_and_the_new_one_begins() -> None:
    """To the millisecond: one before, the old supplier; at it, a turn is due; after the turn, only the new one."""
    instant = Ms(AT + 1000)
    registry = _world(_fine(SellingModel.PSP_ISSUES_AND_DELIVERS, Operation.TOP_UP, "issue and deliver"))
    ((meter_id, one),) = registry.meters.items()
    gaining = Registration(supplier_id=OTHER)
    one = replace(one, registrations=one.registrations.change(gaining, since=instant, now=AT, by="op"))
    registry.meters[meter_id] = one
    question = Question(caller=PSP, operation=Operation.TOP_UP, pan=PAN, amount=1000, channel=3)
    before = authorize(registry, question, Ms(instant - 1))
    assert before.permit is not None
    assert before.permit.until == instant, "the sale must be dated before the change, or be authorized again"
    assert authorize(registry, question, instant).due_change_of == meter_id
    registry.meters[meter_id] = replace(one, effective_through=instant)
    assert authorize(registry, question, instant).refusals[0].reason == "NOT_APPOINTED"
    slow = authorize(registry, question, Ms(instant - 500))
    assert slow.refusals[0].reason == "NOT_APPOINTED", "a slow clock does not bring the old supplier back"


def _bare(permit: Permit | None) -> Permit | None:
    """Return a permit without the revisions of what it was based on."""
    return None if permit is None else permit._replace(authorization=permit.authorization._replace(read_set=()))
