"""Hand-over: a meter's counters go from one generator to another, with everything that goes with them, in one write."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from core.access.roles import KEEPERS, OPERATORS, require_role
from core.domain.appointment import Appointments
from core.domain.balance import BalanceTold
from core.domain.delivery import NOT_REQUESTED
from core.domain.effective_dated import Ms, instant_of
from core.domain.errors import BadField, ParticipantNotFound, RecordChanged, RecordExists
from core.domain.invariant import InvariantBroken
from core.domain.meter import Custody, Meter, MeterId, OriginatorId, PanRecord, Registration, Settings
from core.domain.participant import ParticipantId, Principal
from core.domain.utrn import COUNTER_MAX
from core.domain.vend import Authorization, Sale, Vend
from core.ports.clock import Clock
from core.ports.ledger import Ledger, StoredVend
from core.ports.registry import CounterPut, RegistryStore, RegistryWrite
from core.registry.meters import Changed, MeterAdmin
from core.transaction import Reads

_SOLD_AT_MOST_AGO = timedelta(days=366)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternallyIssued:
    """A code sold elsewhere and not known to be used; `deliver` if it is still to be sent to the meter."""

    sale: Sale
    issued_at: datetime
    deliver: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """The next custodian of a meter's counters, and the state that the earlier custodian declares.

    `codes` are codes sold by the one before; `settings` and `public_point` are what becomes of the meter's, None for
    as they are.
    """

    meter_id: MeterId
    custody_before: Custody
    custody: Custody
    last_issued: int = 0
    highest_applied: int = 0
    codes: tuple[ExternallyIssued, ...] = ()
    settings: Callable[[Settings], Settings] | None = None
    public_point: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOver:
    """A hand-over is done. To an SMSO, `open_codes` are the codes that are its to send now."""

    changed: Changed
    open_codes: tuple[Vend, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferCounters:
    """Hands meters over."""

    meters: MeterAdmin
    store: RegistryStore
    ledger: Ledger
    clock: Clock

    async def __call__(self, principal: Principal, hand_over: HandOver) -> HandedOver:
        """Hand a meter's counters to another generator; what it answers is what the next one must know.

        Raises:
            RecordChanged: the counters are not with whom the request says.
            RecordExists: a transaction_id of a code that is handed over is here already.
            BadField: the counters told cannot be, or are behind what this service has spent.
        """
        require_role(principal, KEEPERS)
        if Custody.SMSO in (hand_over.custody, hand_over.custody_before):
            require_role(principal, OPERATORS)
        _check(hand_over)

        def changed(meter: Meter, now: Ms) -> Meter:
            by, holds = principal.participant_id, meter.registrations.at(now)
            if holds is None:
                raise RecordChanged("nobody supplies this meter now", kind="meter")
            if holds.value.custody is hand_over.custody:
                return meter
            if holds.value.custody is not hand_over.custody_before:
                raise RecordChanged("the counters are in other hands", kind="meter", custody=holds.value.custody.name)
            move = _moved(hand_over, holds.value.supplier_id)
            meter = replace(meter, registrations=meter.registrations.adjust(move, now=now, by=by))
            if hand_over.settings is not None:
                meter = replace(meter, settings=meter.settings.adjust(hand_over.settings, now=now, by=by))
            return meter if hand_over.public_point is None else replace(meter, public_point=hand_over.public_point)

        async def extend(reads: Reads, write: RegistryWrite, meter: Meter) -> RegistryWrite:
            if hand_over.custody is not Custody.CENTRAL:
                return write
            counter = await self._counter(reads, hand_over, meter)
            for code in hand_over.codes:
                await self._check_code(principal, code, meter, counter)
            vends = [_vend_of(code, meter, counter) for code in hand_over.codes]
            more = sum(code.sale.amount for code in hand_over.codes)
            counter = replace(counter, sold_since_pence=counter.sold_since_pence + more)
            # The sequence that is handed over is compared with what was seen of it, and then set.
            unmoved = [other for other in write.unmoved if other[:2] != (counter.originator_id, counter.meter_id)]
            return replace(write, unmoved=unmoved, counter=counter, vends=vends)

        done = await self.meters.update(principal, hand_over.meter_id, changed, extend=extend)
        if hand_over.custody is not Custody.SMSO or done.note is None:
            return HandedOver(changed=done)
        found = [await self.ledger.find(vend.participant_id, vend.transaction_id) for vend in done.note.in_flight]
        return HandedOver(
            changed=done, open_codes=tuple(stored.vend for stored in found if isinstance(stored, StoredVend))
        )

    async def _check_code(
        self, principal: Principal, sold: ExternallyIssued, meter: Meter, counter: CounterPut
    ) -> None:
        """Return if a code can have been sold as it is told: by whom, to which PAN, when, and not by this service.

        Raises:
            BadField: names what cannot be.
        """
        supplier_id = _supplier_at(meter)
        seller = sold.sale.participant_id
        # Not compared: neither an appointment nor what a PAN stood for is ever taken away. Thirty codes of as many
        # sellers and PANs would come to 125 of the 128 compares that etcd takes in a transaction.
        if seller != supplier_id and await self.store.read(Appointments, supplier_id, seller) is None:
            raise BadField(
                "codes.participant_id: the supplier, or a PSP it has appointed", field="codes.participant_id"
            )
        card = await self.store.read(PanRecord, sold.sale.pan)
        if card is None or all(period.value.meter_id != meter.meter_id for period in card.record.uses.periods):
            raise BadField("codes.pan: one that stands or stood for this meter is needed", field="codes.pan")
        if sold.sale.code is not None and sold.sale.code[1] <= counter.seen.last_issued_here:
            raise BadField(
                f"codes.utrn_counter: this service has spent counters up to {counter.seen.last_issued_here}",
                field="codes.utrn_counter",
            )
        if await self.ledger.find(seller, sold.sale.transaction_id) is not None:
            raise RecordExists("a transaction_id of a code that is handed over is here already", kind="vend")
        if not timedelta() <= self.clock.now() - sold.issued_at <= _SOLD_AT_MOST_AGO:
            raise BadField("codes.issued_at: within the last year is needed", field="codes.issued_at")

    async def _counter(self, reads: Reads, hand_over: HandOver, meter: Meter) -> CounterPut:
        """Return the sequence of the meter's present supplier as it is taken over."""
        supplier_id = _supplier_at(meter)
        key = (await self.meters.supplier(reads, supplier_id)).supplier_key
        if key is None:
            raise ParticipantNotFound("the supplier has no key here", participant_id=supplier_id)
        originator_id = OriginatorId(key.originator_id)
        seen = await self.store.sequence(originator_id, meter.meter_id)
        if hand_over.last_issued < seen.last_issued:
            told = f"last_issued: this service has spent counters up to {seen.last_issued}"
            raise BadField(told, field="last_issued")
        return CounterPut(
            originator_id=originator_id,
            meter_id=meter.meter_id,
            seen=seen,
            last_issued=hand_over.last_issued,
            highest_applied=max(hand_over.highest_applied, seen.highest_applied),
            balance_at=meter.balance_at,
            sold_since_pence=seen.outstanding(_told(meter, originator_id)),
        )


def _told(meter: Meter, originator_id: OriginatorId) -> BalanceTold:
    same = meter.balance_originator_id == originator_id
    return BalanceTold(meter.balance_at, meter.balance_outstanding_pence if same else 0)


def _supplier_at(meter: Meter) -> ParticipantId:
    """Return who supplies a meter that is being handed over."""
    holds = meter.registrations.at(meter.effective_through)
    if holds is None:
        raise InvariantBroken("a meter that is handed over has a supplier")
    return holds.value.supplier_id


def _check(hand_over: HandOver) -> None:
    """Return if what is told of counters and codes can be; raise BadField if not."""
    if not 0 <= hand_over.highest_applied <= hand_over.last_issued <= COUNTER_MAX:
        raise BadField("highest_applied: 0 to last_issued is needed", field="highest_applied")
    if not hand_over.codes:
        return
    if hand_over.custody is not Custody.CENTRAL:
        raise BadField("codes: they are handed over only to this service", field="codes")
    counters = [code.sale.code[1] for code in hand_over.codes if code.sale.code is not None]
    if not all(hand_over.highest_applied < counter <= hand_over.last_issued for counter in counters):
        raise BadField(
            "codes.utrn_counter: above highest_applied, up to last_issued is needed", field="codes.utrn_counter"
        )
    ids = {(code.sale.participant_id, code.sale.transaction_id) for code in hand_over.codes}
    if len(set(counters)) < len(counters) or len(ids) < len(counters):
        raise BadField("codes: each counter and each transaction_id is told once", field="codes")


def _moved(hand_over: HandOver, supplier_id: ParticipantId) -> Callable[[Registration], Registration]:
    """Return what a hand-over does to the registration that holds, and to a change of supplier that waits.

    Leaving or joining an SMSO takes the meter as a whole; between a supplier and this service it is that supplier's.
    """
    whole = Custody.SMSO in (hand_over.custody, hand_over.custody_before)

    def moved(registration: Registration) -> Registration:
        return (
            replace(registration, custody=hand_over.custody)
            if whole or registration.supplier_id == supplier_id
            else registration
        )

    return moved


def _vend_of(sold: ExternallyIssued, meter: Meter, counter: CounterPut) -> Vend:
    """Return the vend of a code that is taken over with its meter."""
    code, at = sold.sale.code, meter.effective_through
    registration, settings = meter.registrations.at(at), meter.settings.at(at)
    if code is None or registration is None or settings is None:
        raise InvariantBroken("a code taken over has its digits, and its meter a supplier")
    return Vend(
        sale=sold.sale,
        authorization=Authorization(
            meter_id=meter.meter_id,
            meter_kind=meter.kind,
            head_end=settings.value.head_end,
            supplier_id=registration.value.supplier_id,
            originator_id=counter.originator_id,
            tenancy=settings.value.tenancy,
            rule="handed over",
        ),
        utrn=code[0],
        counter=code[1],
        issued_at=sold.issued_at,
        delivery=NOT_REQUESTED.queue(instant_of(at)) if sold.deliver else NOT_REQUESTED,
    )
