"""What to do on each reason for which a node refuses: the second half of every line that ends a command.

docs/errors.md says the same for callers of the service; here it is said for whoever types commands. What a reason says
about a payment, and so whether it may be repeated, is in the generated table alone (utrn_client.outcomes). A command
that makes an id says instead that its sale is open, and that the same command takes it up (app/cli/sales.py).
"""

from collections.abc import Mapping
from typing import Final

_LATER: Final = "repeat the command in a moment; what was done already changes nothing"
_SALE_LATER: Final = "repeat the same command in a moment"

# By ErrorInfo.reason; and by status, where the answer came from no node of this service.
ADVICE: Final[Mapping[str, str]] = {
    "BAD_FIELD": "mend what is named, and repeat",
    "AMOUNT_NOT_ENCODABLE": "choose an amount that one code carries",
    "UNKNOWN_CALLER": "have an operator register this certificate: utrn supplier|participant certificates",
    "CERTIFICATE_REFUSED": "call with a certificate that holds: docs/guides/onboard-psp.md says what one needs",
    "CALLER_SUSPENDED": "ask an operator, who can lift it: utrn supplier|participant resume",
    "NOT_APPOINTED": "ask the meter's supplier: utrn appoint list shows what is agreed",
    "PAN_UNKNOWN": "check the number with the consumer, or with their supplier",
    "PAN_BLOCKED": "the consumer asks their supplier, who can lift it: utrn pan unblock",
    "METER_UNKNOWN": "tell the supplier, who can register it: utrn meter add",
    "VEND_UNKNOWN": "check the id, and who made the vend: --participant",
    "TRANSACTION_ID_REUSED": "one payment, one id: leave --transaction-id out for a new payment",
    "TRANSACTION_ID_TOO_OLD": "look the sale up first: a new id is a new payment",
    "TRANSACTION_ID_FROM_FUTURE": "set the clock of the machine that made the id",
    "TOO_MANY_UNAPPLIED": "the consumer enters the codes they hold, oldest first",
    "COUNTER_TAKEN": "ask the supplier which generator serves this meter: utrn meter show",
    "NOT_SUPPORTED_BY_METER": "see what its model can do: utrn meter-model list",
    "OVERLOADED": _SALE_LATER,
    "DEADLINE_TOO_SHORT": _SALE_LATER,
    "HSM_UNAVAILABLE": _SALE_LATER,
    "KEY_MISSING": "repeat at another node: --target; the operator compares utrn hsm list with utrn supplier show",
    "LEDGER_UNAVAILABLE": _LATER,
    "LEDGER_FULL": "the operator makes room in etcd: docs/runbooks/etcd-space.md; then repeat",
    "OUTCOME_UNKNOWN": "repeat the same command: the ledger will tell",
    "SHUTTING_DOWN": "repeat at another node: --target",
    "NOT_READY": "repeat at another node: --target, or in a moment",
    "OPERATOR_ONLY": "use an operator's certificate: --cert and --key",
    "NODE_UNKNOWN": "see which nodes there are: utrn cluster status",
    "LAST_NODE": "bring another node into service first",
    "CLOCKS_DISAGREE": "docs/runbooks/clock.md",
    "NODE_ALIVE": "do that first: docs/runbooks/node-lost.md, head-end.md",
    "PARTICIPANT_UNKNOWN": "check the name: utrn supplier list",
    "SUPPLIER_INACTIVE": "take no money; the supplier asks an operator: utrn supplier resume",
    "METER_IN_CREDIT_MODE": "take no money; the supplier can change it: utrn meter set --mode prepayment",
    "METER_NOT_ENROLLED": "sell through its SMSO until it is handed over: utrn meter transfer-counters",
    "HEAD_END_UNKNOWN": "`utrn cluster status` has the head ends there are; correct it with utrn meter set --head-end",
    "AMOUNT_OUT_OF_LIMITS": "choose an amount within the limits: utrn supplier show, utrn appoint list",
    "CHANNEL_NOT_ALLOWED": "sell through another channel: utrn supplier show, utrn appoint list",
    "ABOVE_MAX_CREDIT": "sell less",
    "ABOVE_MAX_BALANCE": "sell less, or later",
    "PAN_NOT_CURRENT": "take no money; the present supplier gives a card, or adopts this one: utrn pan repoint",
    "CENTRAL_ISSUE_OFF": "ask the supplier for the code",
    "COUNTER_ELSEWHERE": "ask whoever has the counters, or have them handed over: utrn meter transfer-counters",
    "COUNTER_HERE": "issue here, or have the counters handed over first: utrn meter transfer-counters",
    "NOT_YOURS": "ask its owner",
    "ROLE_NOT_ALLOWED": "use the certificate of one who may: --cert and --key",
    "RECORD_EXISTS": "look at it with the command show; change it if it is yours",
    "RECORD_UNKNOWN": "check the id, with the command list",
    "RECORD_CHANGED": "look again, and repeat if it is still right",
    "DATE_IN_PAST": "check the clock of this machine if it should not have",
    "DATES_REVERSED": "mend the dates",
    "CHANGE_PENDING": "utrn meter cancel, pan cancel or supplier cancel-profile",
    "NOTHING_TO_END": "nothing is left to do",
    "SIGNATURE_WRONG": "sign with a certificate that is registered for the supplier: utrn supplier show",
    "TWO_PEOPLE_NEEDED": "have a colleague decide, with another certificate",
    "DAILY_LIMIT": "wait for tomorrow (UTC), or change the profile: utrn supplier profile",
    "CEILING_REACHED": "sell in the next hour, or have an operator raise it: utrn supplier|participant ceiling",
    "NEEDS_APPROVAL": "another operator runs utrn approval approve; then repeat: docs/runbooks/two-people.md",
    "SECOND_OPERATOR_NEEDED": "bring a second operator on board: utrn participant add --role operator",
    "LAST_OPERATOR": "bring another operator on board first: utrn participant add --role operator",
    "REGISTRY_MOVED": _SALE_LATER,
    "HISTORY_FULL": "tell the operator: this record is changed far too often",
    "COUNTER_OUT_OF_RANGE": "check the counter with the generator that made the code: utrn meter show",
    "CODE_TOO_FAR_BEHIND": "the consumer enters the code at the meter: utrn vend show",
    "UNAVAILABLE": "check --target, that the node runs, that --ca is its authority, and --server-name: a name it has",
    "DEADLINE_EXCEEDED": _LATER,
    "UNIMPLEMENTED": "the node is of another version: ask its operator",
    "INTERNAL": "tell the operator",
}
