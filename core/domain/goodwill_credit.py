"""CreditRequest: credit without payment, asked for by one person of a supplier and approved by another."""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum

from core.domain.effective_dated import Ms, instant_of, ms_of
from core.domain.errors import AmountOutOfLimits, BadField, DailyLimit, TwoPeopleNeeded
from core.domain.meter import Pan
from core.domain.money import Pence
from core.domain.participant import CreditRule, ParticipantId
from core.domain.transaction_id import TransactionId

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


class CreditReason(IntEnum):
    """Why credit is given. Stored by number, and the same numbers as in utrn.v1."""

    GOODWILL = 1
    EMERGENCY = 2
    ADDITIONAL_SUPPORT = 3


class CreditState(IntEnum):
    """Where a request stands. Stored by number, and the same numbers as in utrn.v1."""

    WAITING = 1
    APPROVED = 2
    REJECTED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditRequest:
    """A request. `day` is the UTC day, as 2026-11-24, whose limit it was counted against when it was approved."""

    supplier_id: ParticipantId
    transaction_id: TransactionId
    pan: Pan
    amount: Pence
    reason: CreditReason
    note: str
    asked_by: str
    asked_at: Ms
    state: CreditState = CreditState.WAITING
    decided_by: str = ""
    decided_at: Ms | None = None
    day: str = ""

    def concerns(self, day: str | None) -> bool:
        """Return whether it was asked for or approved on a UTC day; None: whether it waits."""
        if day is None:
            return self.state is CreditState.WAITING
        return day in (self.day, day_of(self.asked_at))


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditDay:
    """The goodwill credit of one supplier on one UTC day: how many credits, and their pence."""

    supplier_id: ParticipantId
    day: str
    count: int = 0
    total_pence: int = 0


def day_of(at: Ms) -> str:
    """Return the UTC day of an instant, as 2026-11-24."""
    return instant_of(at).date().isoformat()


def day_start(day: str) -> int:
    """Return the first millisecond of a UTC day; raise BadField if it is none."""
    wrong = BadField("day: a day as 2026-11-24 is needed", field="day")
    if not _DAY.fullmatch(day):
        raise wrong
    try:
        return ms_of(datetime.fromisoformat(f"{day}T00:00:00+00:00"))
    except ValueError as error:
        raise wrong from error


def check_asked(rule: CreditRule, amount: Pence) -> None:
    """Return if a supplier may give so much at once; raise AmountOutOfLimits if not."""
    if amount > rule.each_max_pence:
        raise AmountOutOfLimits(
            f"the supplier's rule allows at most {rule.each_max_pence} pence of credit without payment at once",
            min_pence=1,
            max_pence=rule.each_max_pence,
            limit_of="credit rule",
        )


def check_approver(rule: CreditRule, asked_by: str, approver: str) -> None:
    """Return if `approver` may approve what `asked_by` asked for; raise TwoPeopleNeeded if not."""
    if approver == asked_by:
        raise TwoPeopleNeeded("whoever asked cannot approve; a colleague with another certificate must")
    if rule.approvers and approver not in rule.approvers:
        raise TwoPeopleNeeded("this certificate is not among the supplier's approvers")


def count_in(rule: CreditRule, day: CreditDay, amount: Pence) -> CreditDay:
    """Return the day with `amount` counted in; raise DailyLimit if it does not fit."""
    left = rule.day_max_pence - day.total_pence
    if amount > left:
        raise DailyLimit(
            "the supplier's limit of credit without payment is reached for this day",
            left_pence=max(0, left),
            day_max_pence=rule.day_max_pence,
        )
    return CreditDay(
        supplier_id=day.supplier_id, day=day.day, count=day.count + 1, total_pence=day.total_pence + amount
    )
