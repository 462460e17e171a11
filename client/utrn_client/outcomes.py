"""What each reason says about the payment, and what to do. Generated from errors.proto; do not edit."""

from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple


class Says(Enum):
    """What a refusal says about the payment behind the call; see OutcomeClass in outcome.proto."""

    NOT_SOLD = "NOT_SOLD"
    ASK_AGAIN = "ASK_AGAIN"
    ASK_OPERATOR = "ASK_OPERATOR"
    NOT_A_SALE = "NOT_A_SALE"


class Outcome(NamedTuple):
    """What a reason says about the payment, the name of its gRPC status, and what the caller does next."""

    says: Says
    status: str
    next: str


# By ErrorInfo.reason. A reason that is not here says nothing about the payment.
OUTCOMES: Final[Mapping[str, Outcome]] = {
    "BAD_FIELD": Outcome(
        Says.NOT_SOLD,
        "INVALID_ARGUMENT",
        "mend the fields named in BadRequest; all wrong ones are named at once",
    ),
    "AMOUNT_NOT_ENCODABLE": Outcome(
        Says.NOT_SOLD,
        "INVALID_ARGUMENT",
        "offer the nearest amounts in the facts, or sell two vends",
    ),
    "UNKNOWN_CALLER": Outcome(
        Says.ASK_OPERATOR,
        "UNAUTHENTICATED",
        "keep the sale open; ask the operator, who registers certificates and can look the sale up",
    ),
    "CALLER_SUSPENDED": Outcome(
        Says.ASK_OPERATOR,
        "PERMISSION_DENIED",
        "keep the sale open; repeat with repeat = true, which answers its code or is fenced; ask the operator",
    ),
    "NOT_APPOINTED": Outcome(
        Says.NOT_SOLD,
        "PERMISSION_DENIED",
        "ask the supplier",
    ),
    "PAN_UNKNOWN": Outcome(
        Says.NOT_SOLD,
        "NOT_FOUND",
        "check the number with the consumer; send them to their supplier",
    ),
    "PAN_BLOCKED": Outcome(
        Says.NOT_SOLD,
        "FAILED_PRECONDITION",
        "send the consumer to their supplier",
    ),
    "METER_UNKNOWN": Outcome(
        Says.NOT_SOLD,
        "NOT_FOUND",
        "tell the supplier: its registry contradicts itself",
    ),
    "VEND_UNKNOWN": Outcome(
        Says.ASK_OPERATOR,
        "NOT_FOUND",
        "no proof that nothing was sold: repeat the sale under its id; check whose id it is",
    ),
    "TRANSACTION_ID_REUSED": Outcome(
        Says.ASK_OPERATOR,
        "ALREADY_EXISTS",
        "a bug at the caller: one payment, one id; ask the operator which sale the id has",
    ),
    "TRANSACTION_ID_TOO_OLD": Outcome(
        Says.ASK_OPERATOR,
        "FAILED_PRECONDITION",
        "keep the sale open; the operator looks it up in the archive; never make a new id for it",
    ),
    "TRANSACTION_ID_FROM_FUTURE": Outcome(
        Says.NOT_SOLD,
        "FAILED_PRECONDITION",
        "set the clock of the machine that makes ids",
    ),
    "TOO_MANY_UNAPPLIED": Outcome(
        Says.NOT_SOLD,
        "FAILED_PRECONDITION",
        "the consumer enters the codes they hold, oldest first",
    ),
    "COUNTER_TAKEN": Outcome(
        Says.ASK_OPERATOR,
        "ALREADY_EXISTS",
        "only one generator may serve a meter: ask the supplier; a code that was handed out is paid for",
    ),
    "NOT_SUPPORTED_BY_METER": Outcome(
        Says.NOT_SOLD,
        "FAILED_PRECONDITION",
        "tell the supplier",
    ),
    "OVERLOADED": Outcome(
        Says.ASK_AGAIN,
        "RESOURCE_EXHAUSTED",
        "repeat the same id after the delay",
    ),
    "DEADLINE_TOO_SHORT": Outcome(
        Says.ASK_AGAIN,
        "DEADLINE_EXCEEDED",
        "repeat the same id with a longer deadline",
    ),
    "HSM_UNAVAILABLE": Outcome(
        Says.ASK_AGAIN,
        "UNAVAILABLE",
        "repeat the same id after the delay, at any node",
    ),
    "KEY_MISSING": Outcome(
        Says.ASK_AGAIN,
        "UNAVAILABLE",
        "repeat the same id at another node; the operator compares utrn hsm list with the registry",
    ),
    "LEDGER_UNAVAILABLE": Outcome(
        Says.ASK_AGAIN,
        "UNAVAILABLE",
        "repeat the same id after the delay, at any node",
    ),
    "OUTCOME_UNKNOWN": Outcome(
        Says.ASK_AGAIN,
        "UNAVAILABLE",
        "repeat the same id: the ledger will tell",
    ),
    "SHUTTING_DOWN": Outcome(
        Says.ASK_AGAIN,
        "UNAVAILABLE",
        "repeat the same id at another node",
    ),
    "NOT_READY": Outcome(
        Says.ASK_AGAIN,
        "UNAVAILABLE",
        "repeat the same id at another node",
    ),
    "OPERATOR_ONLY": Outcome(
        Says.NOT_A_SALE,
        "PERMISSION_DENIED",
        "use an operator's certificate",
    ),
    "NODE_UNKNOWN": Outcome(
        Says.NOT_A_SALE,
        "NOT_FOUND",
        "look at utrn cluster status",
    ),
    "LAST_NODE": Outcome(
        Says.NOT_A_SALE,
        "FAILED_PRECONDITION",
        "bring another node into service first",
    ),
    "PARTICIPANT_UNKNOWN": Outcome(
        Says.NOT_A_SALE,
        "NOT_FOUND",
        "check the name; the operator brings participants on board",
    ),
    "SUPPLIER_INACTIVE": Outcome(
        Says.NOT_SOLD,
        "FAILED_PRECONDITION",
        "take no money; the consumer asks their supplier",
    ),
    "METER_IN_CREDIT_MODE": Outcome(
        Says.NOT_SOLD,
        "FAILED_PRECONDITION",
        "take no money; the supplier can change the mode",
    ),
    "METER_NOT_ENROLLED": Outcome(
        Says.NOT_SOLD,
        "FAILED_PRECONDITION",
        "sell through the SMSO until the meter is handed over",
    ),
    "AMOUNT_OUT_OF_LIMITS": Outcome(
        Says.NOT_SOLD,
        "FAILED_PRECONDITION",
        "offer an amount between them",
    ),
    "CHANNEL_NOT_ALLOWED": Outcome(
        Says.NOT_SOLD,
        "FAILED_PRECONDITION",
        "sell through another one",
    ),
    "ABOVE_MAX_CREDIT": Outcome(
        Says.NOT_SOLD,
        "FAILED_PRECONDITION",
        "sell less",
    ),
    "ABOVE_MAX_BALANCE": Outcome(
        Says.NOT_SOLD,
        "FAILED_PRECONDITION",
        "sell less, or later",
    ),
    "PAN_NOT_CURRENT": Outcome(
        Says.NOT_SOLD,
        "FAILED_PRECONDITION",
        "take no money; the consumer needs a card from their present supplier",
    ),
    "CENTRAL_ISSUE_OFF": Outcome(
        Says.NOT_SOLD,
        "FAILED_PRECONDITION",
        "ask the supplier for the code",
    ),
    "COUNTER_ELSEWHERE": Outcome(
        Says.NOT_SOLD,
        "FAILED_PRECONDITION",
        "ask whoever has them, or have them handed over",
    ),
    "COUNTER_HERE": Outcome(
        Says.NOT_A_SALE,
        "FAILED_PRECONDITION",
        "issue here, or have them handed over first",
    ),
    "NOT_YOURS": Outcome(
        Says.NOT_A_SALE,
        "PERMISSION_DENIED",
        "ask its owner",
    ),
    "ROLE_NOT_ALLOWED": Outcome(
        Says.NOT_A_SALE,
        "PERMISSION_DENIED",
        "ask one who may; the sentence names the roles",
    ),
    "RECORD_EXISTS": Outcome(
        Says.NOT_A_SALE,
        "ALREADY_EXISTS",
        "look at it; change it if it is yours",
    ),
    "RECORD_UNKNOWN": Outcome(
        Says.NOT_A_SALE,
        "NOT_FOUND",
        "check the id",
    ),
    "RECORD_CHANGED": Outcome(
        Says.NOT_A_SALE,
        "ABORTED",
        "look again, and repeat if it is still right",
    ),
    "DATE_IN_PAST": Outcome(
        Says.NOT_A_SALE,
        "FAILED_PRECONDITION",
        "leave the date out for at once; check the clock that made it",
    ),
    "DATES_REVERSED": Outcome(
        Says.NOT_A_SALE,
        "INVALID_ARGUMENT",
        "mend the dates",
    ),
    "CHANGE_PENDING": Outcome(
        Says.NOT_A_SALE,
        "FAILED_PRECONDITION",
        "cancel it first, or wait for it",
    ),
    "NOTHING_TO_END": Outcome(
        Says.NOT_A_SALE,
        "FAILED_PRECONDITION",
        "nothing to do",
    ),
    "SIGNATURE_WRONG": Outcome(
        Says.NOT_A_SALE,
        "INVALID_ARGUMENT",
        "sign the very bytes that are sent, with a certificate registered for the supplier",
    ),
    "TWO_PEOPLE_NEEDED": Outcome(
        Says.NOT_A_SALE,
        "PERMISSION_DENIED",
        "have a colleague approve",
    ),
    "DAILY_LIMIT": Outcome(
        Says.NOT_A_SALE,
        "FAILED_PRECONDITION",
        "wait for tomorrow (UTC), or change the profile",
    ),
    "REGISTRY_MOVED": Outcome(
        Says.ASK_AGAIN,
        "UNAVAILABLE",
        "repeat the same transaction_id after the delay",
    ),
    "HISTORY_FULL": Outcome(
        Says.NOT_A_SALE,
        "FAILED_PRECONDITION",
        "tell the operator: no record changes so often in earnest",
    ),
    "NODE_ALIVE": Outcome(
        Says.NOT_A_SALE,
        "FAILED_PRECONDITION",
        "stop it first",
    ),
    "HEAD_END_UNKNOWN": Outcome(
        Says.NOT_SOLD,
        "FAILED_PRECONDITION",
        "tell the supplier, whose record of the meter names a head end that is not there; issue without delivery",
    ),
    "CODE_TOO_FAR_BEHIND": Outcome(
        Says.NOT_A_SALE,
        "FAILED_PRECONDITION",
        "the consumer enters the code at the meter; if that says duplicate, the supplier reads its credit log",
    ),
    "COUNTER_OUT_OF_RANGE": Outcome(
        Says.ASK_OPERATOR,
        "FAILED_PRECONDITION",
        "check the counter; if right, hand the counters over and back, telling where they are (enrol-from-smso.md)",
    ),
    "CLOCKS_DISAGREE": Outcome(
        Says.NOT_A_SALE,
        "FAILED_PRECONDITION",
        "mend the clocks first",
    ),
    "LEDGER_FULL": Outcome(
        Says.ASK_AGAIN,
        "RESOURCE_EXHAUSTED",
        "repeat the same id after the delay; take no new money while it lasts",
    ),
    "CEILING_REACHED": Outcome(
        Says.NOT_SOLD,
        "RESOURCE_EXHAUSTED",
        "give the money back; sell again from the next hour, or ask the operator for a higher ceiling",
    ),
    "NEEDS_APPROVAL": Outcome(
        Says.NOT_A_SALE,
        "FAILED_PRECONDITION",
        "have another operator approve it (AdminService.ApproveOperation), then repeat the same request",
    ),
    "SECOND_OPERATOR_NEEDED": Outcome(
        Says.NOT_A_SALE,
        "FAILED_PRECONDITION",
        "bring a second operator on board, or into service again",
    ),
    "LAST_OPERATOR": Outcome(
        Says.NOT_A_SALE,
        "FAILED_PRECONDITION",
        "bring another operator on board first",
    ),
    "CERTIFICATE_REFUSED": Outcome(
        Says.ASK_OPERATOR,
        "UNAUTHENTICATED",
        "keep the sale open; call with another certificate, and repeat the same transaction_id with repeat = true",
    ),
}
