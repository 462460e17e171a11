"""Domain error -> google.rpc.Status, once for every error; what is no domain error becomes one that tells nothing."""

import logging
import uuid
from collections.abc import Mapping
from typing import Any, Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from utrn.v1 import errors_pb2, outcome_pb2

from core.domain import errors as domain

log = logging.getLogger(__name__)

DOMAIN: Final = "utrn.v1"


def statuses() -> Mapping[type[domain.UtrnError], grpc.StatusCode]:
    """Return the status of every error with a reason, as the contract has it (errors.proto)."""
    found: dict[type[domain.UtrnError], grpc.StatusCode] = {}
    kinds: list[type[domain.UtrnError]] = [domain.UtrnError]
    while kinds:
        kind = kinds.pop()
        kinds += kind.__subclasses__()
        if kind.reason:
            found[kind] = grpc.StatusCode[_outcome(kind).status]
    return found


def _outcome(kind: type[domain.UtrnError]) -> outcome_pb2.Outcome:
    value = errors_pb2.ErrorReason.DESCRIPTOR.values_by_name[f"ERROR_REASON_{kind.reason}"]
    found: outcome_pb2.Outcome = value.GetOptions().Extensions[outcome_pb2.outcome]
    return found


STATUS: Final = statuses()

# grpc.aio's own type needs the request and reply types, which this room does not care about.
Context = grpc.aio.ServicerContext[Any, Any]


def status_of(error: domain.UtrnError) -> status_pb2.Status:
    """Return the status that tells a caller of `error`: code, sentence, ErrorInfo, and what fits the kind of error."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata={**error.facts, **_final(error)})
    ]
    if isinstance(error, domain.BadField):
        details.append(
            error_details_pb2.BadRequest(
                field_violations=[
                    error_details_pb2.BadRequest.FieldViolation(
                        field=violation.field, description=violation.message, reason=violation.reason
                    )
                    for violation in error.violations
                ]
            )
        )
    if isinstance(error, domain.Retryable | domain.Unknown):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(error.retry_after_ms)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if STATUS[type(error)] is grpc.StatusCode.FAILED_PRECONDITION:
        violation = error_details_pb2.PreconditionFailure.Violation(type=error.reason, description=error.message)
        details.append(error_details_pb2.PreconditionFailure(violations=[violation]))
    return status_pb2.Status(
        code=STATUS[type(error)].value[0], message=error.message, details=[_packed(detail) for detail in details]
    )


def _final(error: domain.UtrnError) -> Mapping[str, str]:
    """Return what `error` proves about the sale, as a fact; nothing, if it proves nothing."""
    if not isinstance(error, domain.Refused) or not error.final:
        return {}
    if error.final == domain.IF_FIRST and _outcome(type(error)).says != outcome_pb2.OUTCOME_CLASS_NOT_SOLD:
        return {}
    return {"final": error.final}


async def tell(context: Context, status: status_pb2.Status) -> None:
    """End a call with a status; never return."""
    await context.abort_with_status(rpc_status.to_status(status))


def internal_error(method: str, error: BaseException) -> status_pb2.Status:
    """Return the status that tells a caller of a bug: nothing but a number, under which the log has it."""
    trace_id = uuid.uuid4().hex
    log.error("unexpected error", exc_info=error, extra={"method": method, "trace_id": trace_id})
    return status_pb2.Status(code=code_pb2.INTERNAL, message=f"internal error; quote {trace_id} to the operator")


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
