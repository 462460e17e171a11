"""Vends to test with, made from a few words."""

import itertools
import random
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from core.domain.appointment import Appointment, Appointments, AppointmentState, Evidence, Terms
from core.domain.authorization import Permit
from core.domain.delivery import NOT_REQUESTED
from core.domain.effective_dated import FAR_FUTURE, EffectiveDated, Ms, begin, ms_of
from core.domain.meter import (
    Meter,
    MeterId,
    MeterKind,
    OriginatorId,
    Pan,
    PanAssignment,
    PanRecord,
    PanStatus,
    Registration,
    Settings,
)
from core.domain.money import Pence
from core.domain.participant import (
    Participant,
    ParticipantId,
    ParticipantIdentity,
    ParticipantStatus,
    Profile,
    PspPermission,
    Role,
    SellingModel,
    SupplierKey,
)
from core.domain.transaction_id import TransactionId, make_transaction_id
from core.domain.utrn import PPTD_OFFSET, Counter, Utrn, check_digit
from core.domain.vend import Authorization, Channel, Operation, Sale, Vend
from tests.support.head_ends import HEAD_END as HEAD_END
from tests.support.market import MemoryRegistry

T = TypeVar("T")

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
ORIGINATOR = OriginatorId("90b3d51f30010001")
SUPPLIER_ID, PSP_ID = ParticipantId("supplier-north"), ParticipantId("psp-corner")
POINT = bytes.fromhex(
    "04be4028b9d4844f9dc60c97b6c7a8c649a52fcd96b398c11996fc64e0e8c6f50be3c1a1c0fde6fc02aa73a82821047730ef3c37285b234eaa"
    "52815a6ed1643a04"
)
KEY = SupplierKey(originator_id=ORIGINATOR, key_id="01", public_point=POINT)
LONG_AGO = ms_of(datetime(2026, 1, 1, tzinfo=UTC))


def always(value: T, since: Ms = LONG_AGO) -> EffectiveDated[T]:
    """A value that holds since long ago, or since or from `since` on; recorded then, but no later than now."""
    return begin(value, since=since, now=min(since, ms_of(NOW)), by="test")


def identity_history(name: str, *ids: str) -> EffectiveDated[ParticipantIdentity]:
    """The name and the certificates of a participant, since long ago."""
    return always(ParticipantIdentity(name=name, identities=tuple(f"spiffe://utrn/participant/{id_}" for id_ in ids)))


SUPPLIER = Participant(
    participant_id=SUPPLIER_ID, role=Role.SUPPLIER, identity_history=identity_history("North", "supplier-north"),
    statuses=always(ParticipantStatus.ACTIVE), supplier_key=KEY,
    profiles=always(Profile(selling_model=SellingModel.PSP_ISSUES_AND_DELIVERS)),
)  # fmt: skip
PSP = Participant(
    participant_id=PSP_ID, role=Role.PSP, identity_history=identity_history("Corner", "psp-corner"),
    statuses=always(ParticipantStatus.ACTIVE),
)  # fmt: skip
TERMS = Terms(
    appointment_id="corner", supplier_id=SUPPLIER_ID, psp_id=PSP_ID, level=PspPermission.ISSUE_AND_DELIVER,
    channels=frozenset(), min_pence=1, max_pence=819_100, since=LONG_AGO, until=None,
)  # fmt: skip
APPOINTMENT = Appointment(
    terms=TERMS,
    evidence=Evidence(terms=b"", signature=b"", certificate=b""),
    states=always(AppointmentState.ACCEPTED),
)
APPOINTMENTS = Appointments(supplier_id=SUPPLIER_ID, psp_id=PSP_ID, all=(APPOINTMENT,))

_chance = random.Random(7)
_meters = itertools.count(1)


def new_id(at: datetime = NOW) -> TransactionId:
    return make_transaction_id(int(at.timestamp() * 1000), _chance.getrandbits(74))


def new_meter_id() -> MeterId:
    return MeterId(f"00db12{next(_meters):010x}")


def meter(meter_id: MeterId, kind: MeterKind = MeterKind.ESME, settings: Settings | None = None) -> Meter:
    return Meter(
        meter_id=meter_id,
        kind=kind,
        scheme="gbcs",
        public_point=POINT,
        registrations=always(Registration(supplier_id=SUPPLIER_ID)),
        settings=always(settings or Settings(head_end=HEAD_END)),
        effective_through=LONG_AGO,
    )


def card(pan: Pan, meter_id: MeterId, *, blocked: bool = False) -> PanRecord:
    status = PanStatus.BLOCKED if blocked else PanStatus.ACTIVE
    return PanRecord(pan=pan, uses=always(PanAssignment(meter_id=meter_id, supplier_id=SUPPLIER_ID, status=status)))


def market(*meters: Meter, pans: dict[Pan, MeterId]) -> MemoryRegistry:
    """A registry with the supplier, its appointed PSP, and these meters and PANs."""
    return MemoryRegistry(
        participants={one.participant_id: one for one in (SUPPLIER, PSP)},
        cards={pan: card(pan, meter_id) for pan, meter_id in pans.items()},
        meters={one.meter_id: one for one in meters},
        appointed={(SUPPLIER_ID, PSP_ID): APPOINTMENTS},
    )


def permit_of(meter: Meter) -> Permit:
    """What allows a sale to a PAN of a meter, by records that are nowhere."""
    kept = Authorization(
        meter_id=meter.meter_id, meter_kind=meter.kind, head_end=HEAD_END, supplier_id=SUPPLIER_ID,
        originator_id=OriginatorId(KEY.originator_id), rule="test",
    )  # fmt: skip
    return Permit(
        authorization=kept, scheme=meter.scheme, public_point=meter.public_point, key=KEY, since=LONG_AGO,
        until=FAR_FUTURE,
    )  # fmt: skip


def with_authorization(vend: Vend, **changed: Any) -> Vend:
    """Return a vend with another authorization in these respects."""
    return replace(vend, authorization=vend.authorization._replace(**changed))


def utrn(counter: int, pence: int = 1000, mac: int = 0) -> Utrn:
    """A code whose digits are in order, though no meter would take its MAC."""
    digits = str(PPTD_OFFSET + (((counter % 1024) << 15 | pence) << 32 | mac))
    return Utrn(digits + check_digit(digits))


def vend(
    counter: int,
    meter_id: MeterId,
    *,
    transaction_id: TransactionId | None = None,
    operation: Operation = Operation.TOP_UP,
    pence: int = 1000,
    mac: int = 0,
) -> Vend:
    code = utrn(counter, pence, mac)
    sale = Sale(
        participant_id=PSP_ID,
        transaction_id=transaction_id or new_id(),
        operation=operation,
        pan=Pan("9826000000000000000"),
        amount=Pence(pence),
        channel=Channel.ONLINE,
        code=(code, Counter(counter)) if operation is Operation.EXTERNALLY_ISSUED else None,
    )
    return Vend(
        sale=sale,
        authorization=Authorization(
            meter_id=meter_id,
            meter_kind=MeterKind.ESME,
            head_end=HEAD_END,
            supplier_id=SUPPLIER_ID,
            originator_id=ORIGINATOR,
        ),
        utrn=code,
        counter=Counter(counter),
        issued_at=NOW,
        delivery=NOT_REQUESTED if operation is Operation.ISSUE else NOT_REQUESTED.queue(NOW),
    )
