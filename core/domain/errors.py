"""Every expected failure, one class per reason, grouped by what the caller does next.

`Refused`: never repeat as it is. `Retryable`: nothing was done, repeat the same transaction id after `retry_after_ms`.
`Unknown`: it may have been done, repeat the same transaction id and the ledger will say. The classes know no gRPC;
`core/api/status.py` maps each one to a status once.
"""

from collections.abc import Mapping
from typing import ClassVar, Final

FENCED: Final = "fenced"
IF_FIRST: Final = "if-first"


class UtrnError(Exception):
    """Base of every expected failure."""

    reason: ClassVar[str] = ""

    def __init__(self, message: str, **facts: str | int) -> None:
        """Keep `message`, for people, and `facts`, for programs; neither ever holds a UTRN or a secret."""
        super().__init__(message)
        self.message = message
        self.facts: Mapping[str, str] = {name: str(value) for name, value in facts.items()}

    def __reduce__(self) -> tuple[object, ...]:
        """Cross a process boundary whole (an HSM worker raises these too); a fence does not: it is the ledger's."""
        return _rebuild, (type(self), self.message, dict(self.facts))


def _rebuild(kind: type[UtrnError], message: str, facts: dict[str, str]) -> UtrnError:
    return kind(message, **facts)


class Refused(UtrnError):
    """Never repeat as it is.

    `final` says what it proves about the sale: FENCED, that the ledger holds it under the transaction id, and nothing
    will ever be sold under that; IF_FIRST, that nothing is sold if this was the first attempt: of an earlier one a
    commit may still be under way at another node; "", nothing.
    """

    final: str = ""


class Retryable(UtrnError):
    """Nothing was done; repeat the same transaction id after `retry_after_ms`."""

    retry_after_ms: ClassVar[int] = 200


class Unknown(UtrnError):
    """The request may have been carried out; repeat the same transaction id after `retry_after_ms`."""

    retry_after_ms: ClassVar[int] = 200


class BadField(Refused):
    """A field is missing, malformed or out of bounds. Facts: field, and what is wrong with it."""

    reason = "BAD_FIELD"

    def __init__(self, message: str, *, field: str, **facts: str | int) -> None:
        """Name the field as the caller wrote it."""
        super().__init__(message, field=field, **facts)
        self.others: tuple[BadField, ...] = ()

    @property
    def field(self) -> str:
        """The name of the offending field."""
        return self.facts["field"]

    @property
    def violations(self) -> tuple["BadField", ...]:
        """This violation and the others found in the same request."""
        return (self, *self.others)


class AmountNotEncodable(BadField):
    """No single code can carry the amount. Facts: nearest_below_pence and nearest_above_pence, where they exist."""

    reason = "AMOUNT_NOT_ENCODABLE"


class UnknownCaller(Refused):
    """The caller's certificate names no participant."""

    reason = "UNKNOWN_CALLER"


class CertificateRefused(Refused):
    """The certificate is odd, weak, expired, revoked, or its authority may not name whom it names. Facts: because."""

    reason = "CERTIFICATE_REFUSED"


class CallerSuspended(Refused):
    """The participant exists and is suspended."""

    reason = "CALLER_SUSPENDED"


class NotAppointed(Refused):
    """The meter's supplier has not appointed this caller, or the meter belongs to another supplier."""

    reason = "NOT_APPOINTED"


class PanNotFound(Refused):
    """The PAN is not registered."""

    reason = "PAN_UNKNOWN"


class PanBlocked(Refused):
    """The PAN is registered and blocked."""

    reason = "PAN_BLOCKED"


class MeterNotFound(Refused):
    """The PAN stands for a meter that is not registered."""

    reason = "METER_UNKNOWN"


class VendNotFound(Refused):
    """No vend of this participant has this transaction id."""

    reason = "VEND_UNKNOWN"


class TransactionIdReused(Refused):
    """The transaction id belongs to a vend with other content. Facts: field, the first that differs."""

    reason = "TRANSACTION_ID_REUSED"


class TransactionIdTooOld(Refused):
    """The transaction id was made longer ago than the hot window."""

    reason = "TRANSACTION_ID_TOO_OLD"


class TransactionIdFromFuture(Refused):
    """The transaction id claims to be made in the future."""

    reason = "TRANSACTION_ID_FROM_FUTURE"


class TooManyUnapplied(Refused):
    """One more unapplied code might lie outside the window in which the meter can rebuild its counter."""

    reason = "TOO_MANY_UNAPPLIED"


class CodeTooFarBehind(Refused):
    """So many newer codes may be credited that a meter's answer to this one could prove nothing.

    Facts: utrn_counter, last_issued.
    """

    reason = "CODE_TOO_FAR_BEHIND"


class CounterOutOfRange(Refused):
    """A code made elsewhere has a counter that the meter cannot be at. Facts: counter_min, counter_max."""

    reason = "COUNTER_OUT_OF_RANGE"


class CounterTaken(Refused):
    """A code made elsewhere uses a counter that is taken by another code."""

    reason = "COUNTER_TAKEN"


class NotSupportedByMeter(Refused):
    """The meter's model cannot do what was asked. Facts: scheme."""

    reason = "NOT_SUPPORTED_BY_METER"


class ParticipantNotFound(Refused):
    """No participant of this name, or not of the role that is needed. Facts: participant_id."""

    reason = "PARTICIPANT_UNKNOWN"


class SupplierInactive(Refused):
    """The meter's supplier is suspended or has left."""

    reason = "SUPPLIER_INACTIVE"


class MeterInCreditMode(Refused):
    """The meter is in credit mode: it takes no top-ups."""

    reason = "METER_IN_CREDIT_MODE"


class MeterNotEnrolled(Refused):
    """The meter is not enrolled with this service; its SMSO serves it."""

    reason = "METER_NOT_ENROLLED"


class AmountOutOfLimits(Refused):
    """The amount is outside the supplier's or the appointment's limits. Facts: min_pence, max_pence, limit_of."""

    reason = "AMOUNT_OUT_OF_LIMITS"


class ChannelNotAllowed(Refused):
    """The supplier or the appointment does not allow sales through this channel. Facts: channel."""

    reason = "CHANNEL_NOT_ALLOWED"


class AboveMaxCredit(Refused):
    """The amount is above the meter's Maximum Credit Threshold. Facts: max_credit_pence."""

    reason = "ABOVE_MAX_CREDIT"


class AboveMaxBalance(Refused):
    """The credit would lift the balance above the Maximum Meter Balance Threshold. Facts: room_pence."""

    reason = "ABOVE_MAX_BALANCE"


class PanNotCurrent(Refused):
    """The PAN was given to an earlier tenant, or by an earlier supplier of the meter. Facts: because."""

    reason = "PAN_NOT_CURRENT"


class CentralIssueOff(Refused):
    """The meter's supplier makes its codes itself; this service only delivers them."""

    reason = "CENTRAL_ISSUE_OFF"


class CounterElsewhere(Refused):
    """The counter sequence of this meter is in other hands. Facts: custody."""

    reason = "COUNTER_ELSEWHERE"


class CounterHere(Refused):
    """The counter sequence of this meter is this service's: no other generator may use it."""

    reason = "COUNTER_HERE"


class NotYours(Refused):
    """The record belongs to another participant."""

    reason = "NOT_YOURS"


class RoleNotAllowed(Refused):
    """A participant of this role may not do this. Facts: role."""

    reason = "ROLE_NOT_ALLOWED"


class RecordExists(Refused):
    """A record of this name is there, with other content. Facts: kind."""

    reason = "RECORD_EXISTS"


class RecordNotFound(Refused):
    """No such record. Facts: kind."""

    reason = "RECORD_UNKNOWN"


class RecordChanged(Refused):
    """The record is not what the request says it is any more: another change came first. Facts: kind."""

    reason = "RECORD_CHANGED"


class DateInPast(Refused):
    """A change was asked for an instant that has passed. Facts: asked_ms, now_ms."""

    reason = "DATE_IN_PAST"


class DatesReversed(Refused):
    """An end that is not after its beginning. Facts: since_ms, until_ms."""

    reason = "DATES_REVERSED"


class ChangePending(Refused):
    """A later change is recorded already. Facts: pending_ms."""

    reason = "CHANGE_PENDING"


class NothingToEnd(Refused):
    """The thing to end has ended or never began, or no change is waiting."""

    reason = "NOTHING_TO_END"


class HistoryFull(Refused):
    """So many changes of this record are kept that no more are taken. Facts: periods_max."""

    reason = "HISTORY_FULL"


class SignatureWrong(Refused):
    """The signature, or the certificate it was made with, does not stand for the supplier. Facts: because."""

    reason = "SIGNATURE_WRONG"


class TwoPeopleNeeded(Refused):
    """The request needs a second person, with another certificate."""

    reason = "TWO_PEOPLE_NEEDED"


class DailyLimit(Refused):
    """The supplier's limit of credit without payment is reached for this day. Facts: left_pence."""

    reason = "DAILY_LIMIT"


class CeilingReached(Refused):
    """The seller has sold what its ceiling allows in this hour. Facts: ceiling_pence, left_pence, hour_ends_ms."""

    reason = "CEILING_REACHED"


class NeedsApproval(Refused):
    """The change cannot be undone: another operator must approve the change, and time must pass.

    Facts: approval_id, state, not_before_ms, expires_at_ms, asked_by.
    """

    reason = "NEEDS_APPROVAL"


class SecondOperatorNeeded(Refused):
    """The change needs two operators, and only one is active."""

    reason = "SECOND_OPERATOR_NEEDED"


class LastOperator(Refused):
    """The participant is the last active operator, without whom nobody could act. Facts: participant_id."""

    reason = "LAST_OPERATOR"


class OperatorOnly(Refused):
    """Only an operator may do this."""

    reason = "OPERATOR_ONLY"


class NodeNotFound(Refused):
    """No node of this name is alive, drained or on the roster. Facts: node_id."""

    reason = "NODE_UNKNOWN"


class LastNode(Refused):
    """The node is the last one that serves; a drain would stop the service. Facts: node_id."""

    reason = "LAST_NODE"


class ClocksDisagree(Refused):
    """No majority of the nodes' wall clocks agrees, or cluster time is not known here: nothing to set it to."""

    reason = "CLOCKS_DISAGREE"


class NodeAlive(Refused):
    """The node is alive: only one that is gone for good is taken off the roster. Facts: node_id."""

    reason = "NODE_ALIVE"


class Overloaded(Retryable):
    """The service has as much work as it can finish in time."""

    reason = "OVERLOADED"


class DeadlineTooShort(Retryable):
    """The request's deadline leaves no time to finish."""

    reason = "DEADLINE_TOO_SHORT"


class HsmUnavailable(Retryable):
    """No HSM can sign now."""

    reason = "HSM_UNAVAILABLE"
    retry_after_ms = 500


class KeyMissing(Retryable):
    """The supplier's prepayment key is not in this node's HSM, or the key there is another one. Facts: key_id.

    One node's trouble: another node may have the key, and may have the vend's commit under way.
    """

    reason = "KEY_MISSING"
    retry_after_ms = 500


class LedgerUnavailable(Retryable):
    """The ledger cannot be reached, and nothing was written."""

    reason = "LEDGER_UNAVAILABLE"
    retry_after_ms = 500


class LedgerFull(Retryable):
    """The ledger's store is nearly full: nothing new is issued or registered until an operator has made room."""

    reason = "LEDGER_FULL"
    retry_after_ms = 5000


class ShuttingDown(Retryable):
    """The node is leaving service; another node will answer."""

    reason = "SHUTTING_DOWN"
    retry_after_ms = 50


class NotReady(Retryable):
    """The node has not finished reading the registry, or does not know cluster time; another node will answer."""

    reason = "NOT_READY"


class RegistryMoved(Retryable):
    """The registry changed under the request, more often than it was tried again."""

    reason = "REGISTRY_MOVED"


class OutcomeUnknown(Unknown):
    """The ledger did not say whether the write happened."""

    reason = "OUTCOME_UNKNOWN"


class Deposed(Exception):
    """A delivery write came from an owner whose epoch has ended. Never reaches a caller; the owner stops that shard."""


class DeliveryChanged(Exception):
    """A delivery write was based on an older state of its vend. Never reaches a caller; read again."""


class HeadEndUnknown(Refused):
    """The meter names a head end that no node is configured with. Facts: head_end, known."""

    reason = "HEAD_END_UNKNOWN"


class HeadEndUnavailable(Exception):
    """The head end did not say whether it took the message. Never reaches a caller; the same message is sent again."""


class HeadEndRefused(Exception):
    """The head end will never carry this message. Never reaches a caller; the delivery ends with this reason."""


class HeadEndStale(Exception):
    """The head end did not take this message: too late, or from an owner that was replaced. Never reaches a caller."""
