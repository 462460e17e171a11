"""RegistrationChange: a meter changed supplier, tenant, mode or custody, and what was under way then, for whom."""

from dataclasses import dataclass, replace
from enum import IntEnum

from core.domain.effective_dated import Ms
from core.domain.meter import Meter, MeterId, OriginatorId, Registration, Settings
from core.domain.participant import ParticipantId
from core.domain.transaction_id import TransactionId
from core.domain.utrn import Counter


class ChangeKind(IntEnum):
    """ChangeKind says what changed. Stored by number, and the same numbers as in utrn.v1."""

    SUPPLIER = 1
    TENANCY = 2
    METER_REMOVED = 3
    PAYMENT_MODE = 4
    CUSTODY = 5
    ENROLMENT = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class VendRef:
    """A vend whose delivery was owed, or whose code was not known to be credited."""

    participant_id: ParticipantId
    transaction_id: TransactionId
    counter: Counter


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrationChange:
    """One change of one meter at one instant.

    `responsible` is the supplier under whom the codes were sold: theirs are the vends `in_flight`, and those whose code
    is not known to be credited, in flight or not, below `highest_applied` or above: `uncredited`, lowest counter first,
    and so many more.
    """

    meter_id: MeterId
    at: Ms
    carried_out_at: Ms
    kinds: tuple[ChangeKind, ...]
    responsible: ParticipantId
    supplier_after: ParticipantId | None
    originator_id: OriginatorId | None
    last_issued: int
    highest_applied: int
    in_flight: tuple[VendRef, ...]
    uncredited: tuple[VendRef, ...] = ()
    uncredited_more: int = 0

    @property
    def unspent(self) -> int:
        """The count of codes that are not known to be used."""
        return self.last_issued - self.highest_applied


def kinds_between(meter: Meter, before: Ms, after: Ms) -> tuple[ChangeKind, ...]:
    """Return what is different of a meter at two instants."""
    was, now = meter.registrations.at(before), meter.registrations.at(after)
    old, new = meter.settings.at(before), meter.settings.at(after)
    kinds = _registration_kinds(None if was is None else was.value, None if now is None else now.value)
    if old is not None and new is not None:
        kinds += _settings_kinds(old.value, new.value)
    return tuple(kinds)


def _registration_kinds(was: Registration | None, now: Registration | None) -> list[ChangeKind]:
    if was is None:
        return []
    if now is None:
        return [ChangeKind.METER_REMOVED]
    kinds = [ChangeKind.SUPPLIER] if was.supplier_id != now.supplier_id else []
    return [*kinds, ChangeKind.CUSTODY] if was.custody is not now.custody else kinds


def _settings_kinds(old: Settings, new: Settings) -> list[ChangeKind]:
    kinds = []
    if old.tenancy != new.tenancy:
        kinds.append(ChangeKind.TENANCY)
    if old.payment_mode is not new.payment_mode:
        kinds.append(ChangeKind.PAYMENT_MODE)
    if old.enrolled != new.enrolled:
        kinds.append(ChangeKind.ENROLMENT)
    return kinds


def turned(meter: Meter, at: Ms) -> Meter:
    """Return the meter with everything up to `at` carried out."""
    return replace(meter, effective_through=max(meter.effective_through, at))
