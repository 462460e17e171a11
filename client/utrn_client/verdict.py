"""What an error of a call says about the payment behind it: the one rule, over the table of outcomes.

Money is given back for a final refusal alone. A refusal is final if the service has closed the id in its ledger
(`final` = "fenced"), or if its reason is in the closed list and it answers the first attempt of the id: an answer to a
later attempt says nothing of the ones before it, which may still be under way.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, cast

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from utrn_client.outcomes import OUTCOMES, Outcome, Says

_DOMAIN: Final = "utrn.v1"
_FINAL: Final = "final"
_FENCED: Final = "fenced"


class Verdict(Enum):
    """What the caller does about a payment: NOT_SOLD is final; after any other the sale stays open under its id."""

    NOT_SOLD = "not sold"
    ASK_AGAIN = "ask again"
    ASK_OPERATOR = "ask the operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Failure holds what an error of a call said.

    Attributes:
        reason: ErrorInfo's where there is one, else the name of the status.
        message: Its sentence.
        facts: ErrorInfo's, of this service's domain only.
        outcome: What the table has of the reason; None for a reason, a status or a domain that is not in it.
        retry_delay_s: Seconds the service asks to wait, if it says.
    """

    reason: str
    message: str
    facts: Mapping[str, str]
    outcome: Outcome | None
    retry_delay_s: float | None

    @property
    def next(self) -> str:
        """Return what to do next, as part of a sentence."""
        return self.outcome.next if self.outcome else "repeat the same id; then ask the operator"

    @property
    def may_be_repeated(self) -> bool:
        """Return whether a call that only reads, or that is keyed by its id, is worth repeating as it is."""
        return self.outcome is None or self.outcome.says is Says.ASK_AGAIN

    @property
    def fenced(self) -> bool:
        """Return whether the service has closed the id in its ledger: refused for ever, at every node."""
        return self.facts.get(_FINAL) == _FENCED


def failure_of(error: grpc.RpcError) -> Failure:
    """Return what an error said. A reason counts as this service's only with its domain."""
    call = cast("grpc.Call", error)
    info, retry, wait_s = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), None
    for detail in details_of(error):
        unpacked(detail, info)
        if unpacked(detail, retry):
            delay = duration_pb2.Duration()
            delay.CopyFrom(retry.retry_delay)
            wait_s = delay.ToMilliseconds() / 1000
    ours = info.domain == _DOMAIN
    code: grpc.StatusCode = call.code()
    return Failure(
        reason=str(info.reason) or code.name,
        message=str(call.details() or ""),
        facts=dict(info.metadata) if ours else {},
        outcome=OUTCOMES.get(info.reason) if ours else None,
        retry_delay_s=wait_s,
    )


def unpacked(detail: Any, into: Message) -> bool:
    """Return whether a detail is of a kind, and has been read into it; one that is garbled says nothing."""
    try:
        return bool(detail.Unpack(into))
    except DecodeError:
        into.Clear()
        return False


def judge_sale(failure: Failure, *, repeat: bool) -> Verdict:
    """Return what a failed call says about the sale it asked for.

    Args:
        failure: How it failed.
        repeat: True if it was not the first attempt of its id that ever left this book.
    """
    return _judge(failure, frozenset({Says.NOT_SOLD}), repeat=repeat)


def judge_request(failure: Failure, *, repeat: bool) -> Verdict:
    """Return what a failed call says about a request with an id but no payment of its own: NOT_SOLD is "not done"."""
    return _judge(failure, frozenset({Says.NOT_SOLD, Says.NOT_A_SALE}), repeat=repeat)


def _judge(failure: Failure, refusals: frozenset[Says], *, repeat: bool) -> Verdict:
    if failure.fenced:
        return Verdict.NOT_SOLD
    if failure.outcome is None or failure.outcome.says is Says.ASK_AGAIN:
        return Verdict.ASK_AGAIN
    if failure.outcome.says not in refusals:
        return Verdict.ASK_OPERATOR
    return Verdict.ASK_AGAIN if repeat else Verdict.NOT_SOLD


def details_of(error: grpc.RpcError) -> Sequence[Any]:
    """Return the details of an error, packed; none where they cannot be read."""
    try:
        # gRPC's errors have what this function needs, and not the type it asks for.
        status = rpc_status.from_call(cast("grpc.Call", error))
    except (ValueError, DecodeError):
        # A proxy changed the status and left the details, or garbled them: they say nothing any more.
        return ()
    return status.details if status is not None else ()
