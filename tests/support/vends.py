"""Vends to test with, made from a few words."""

import itertools
import random
from datetime import UTC, datetime

from core.domain.delivery import NOT_REQUESTED
from core.domain.meter import Card, Meter, MeterId, MeterKind, OriginatorId, Pan
from core.domain.money import Pence
from core.domain.party import Participant, ParticipantId, Role, SupplierKey
from core.domain.token import PPTD_OFFSET, Counter, Utrn, check_digit
from core.domain.transaction_id import TransactionId, make_transaction_id
from core.domain.vend import Channel, Operation, Sale, Vend

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
ORIGINATOR = OriginatorId("90b3d51f30010001")
SUPPLIER_ID, PSP_ID = ParticipantId("supplier-north"), ParticipantId("psp-corner")
HEAD_END = "sandbox"
POINT = bytes.fromhex(
    "04be4028b9d4844f9dc60c97b6c7a8c649a52fcd96b398c11996fc64e0e8c6f50be3c1a1c0fde6fc02aa73a82821047730ef3c37285b234eaa"
    "52815a6ed1643a04"
)
KEY = SupplierKey(originator_id=ORIGINATOR, key_id="01", public_point=POINT)
SUPPLIER = Participant(
    participant_id=SUPPLIER_ID, role=Role.SUPPLIER, name="North", identities=("spiffe://utrn/participant/supplier-north",),
    suspended=False, supplier_key=KEY, appointed_psps=frozenset({PSP_ID}),
)  # fmt: skip
PSP = Participant(
    participant_id=PSP_ID, role=Role.PSP, name="Corner", identities=("spiffe://utrn/participant/psp-corner",),
    suspended=False, supplier_key=None, appointed_psps=frozenset(),
)  # fmt: skip

_chance = random.Random(7)
_meters = itertools.count(1)


def new_id(at: datetime = NOW) -> TransactionId:
    return make_transaction_id(int(at.timestamp() * 1000), _chance.getrandbits(74))


def new_meter_id() -> MeterId:
    return MeterId(f"00db12{next(_meters):010x}")


def meter(meter_id: MeterId, kind: MeterKind = MeterKind.ESME) -> Meter:
    return Meter(
        meter_id=meter_id, kind=kind, supplier_id=SUPPLIER_ID, scheme="gbcs", public_point=POINT, head_end=HEAD_END
    )


def card(pan: Pan, meter_id: MeterId, *, blocked: bool = False) -> Card:
    return Card(pan=pan, meter_id=meter_id, blocked=blocked)


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
        code=(code, Counter(counter)) if operation is Operation.MADE_ELSEWHERE else None,
    )
    return Vend(
        sale=sale,
        meter_id=meter_id,
        meter_kind=MeterKind.ESME,
        head_end=HEAD_END,
        supplier_id=SUPPLIER_ID,
        originator_id=ORIGINATOR,
        utrn=code,
        counter=Counter(counter),
        issued_at=NOW,
        delivery=NOT_REQUESTED if operation is Operation.ISSUE else NOT_REQUESTED.queue(NOW),
    )
