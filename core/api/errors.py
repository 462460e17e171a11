"""Domain error -> google.rpc.Status, once for every error; and the net that lets no bug's text reach a caller."""

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar

import grpc
from google.protobuf import any_pb2, duration_pb2, empty_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from utrn.v1 import errors_pb2, outcome_pb2

from core.domain import errors as domain
from core.domain.invariant import InvariantBroken
from core.ports.notes import NOTES, Notes

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

# Longer than it takes to hand a status to gRPC, and no longer than a broken node may wait.
_TELL_WITHIN_S = 1.0
_Request = TypeVar("_Request", bound=Message)
_Reply = TypeVar("_Reply", bound=Message)
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
                        field=one.field, description=one.message, reason=one.reason
                    )
                    for one in error.violations
                ]
            )
        )
    if isinstance(error, domain.Busy | domain.Unknown):
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


class Guard:
    """The net around every method: errors answered as they should be, calls counted, refusals counted by reason."""

    def __init__(
        self,
        stop: Callable[[InvariantBroken], None],
        note: Callable[[Context, str, Message, str, Notes], None] = lambda *_: None,
    ) -> None:
        """Take what ends the process when a promise of this program does not hold, and what notes a decision.

        `note` gets the call, the method's name, the request, "allowed" or the reason of the refusal, and what it was
        decided by.
        """
        self._stop = stop
        self._note = note
        self.calls = 0
        self.answered: Counter[tuple[str, str]] = Counter()

    def noted(
        self, method: Callable[[_Request, Context], Awaitable[_Reply]]
    ) -> Callable[[_Request, Context], Awaitable[_Reply]]:
        """Return `method` with every decision it comes to noted."""

        async def answer(request: _Request, context: Context) -> _Reply:
            notes = Notes()
            NOTES.set(notes)
            try:
                reply = await method(request, context)
            except domain.UtrnError as error:
                self._note(context, method.__name__, request, error.reason, notes)
                raise
            self._note(context, method.__name__, request, "allowed", notes)
            return reply

        answer.__name__ = method.__name__
        return answer

    def noted_if_refused(
        self, method: Callable[[_Request, Context], Awaitable[_Reply]]
    ) -> Callable[[_Request, Context], Awaitable[_Reply]]:
        """Return `method`, which notes its own decisions, with what is refused before it comes to one noted."""

        async def answer(request: _Request, context: Context) -> _Reply:
            notes = Notes()
            NOTES.set(notes)
            try:
                return await method(request, context)
            except domain.Refused as error:
                if not notes.decided:
                    self._note(context, method.__name__, request, error.reason, notes)
                raise

        answer.__name__ = method.__name__
        return answer

    def unary(
        self, method: Callable[[_Request, Context], Awaitable[_Reply]]
    ) -> Callable[[_Request, Context], Awaitable[_Reply]]:
        """Return `method` answering every error as it should be answered."""

        async def answer(request: _Request, context: Context) -> _Reply:
            self.calls += 1
            try:
                reply = await method(request, context)
            except grpc.aio.AbortError:
                raise
            except (Exception, InvariantBroken) as error:  # the net: no bug's text may reach a caller
                await self._answer(method.__name__, error, context)
                raise InvariantBroken("abort never returns") from error
            else:
                self.answered[(method.__name__, "OK")] += 1
                return reply
            finally:
                self.calls -= 1

        return answer

    def stream(
        self, method: Callable[[_Request, Context], AsyncIterator[_Reply]]
    ) -> Callable[[_Request, Context], AsyncIterator[_Reply]]:
        """Return `method`, which streams its replies, answering every error as it should be answered."""

        async def answer(request: _Request, context: Context) -> AsyncIterator[_Reply]:
            try:
                async for reply in method(request, context):
                    yield reply
            except grpc.aio.AbortError:
                raise
            except (Exception, InvariantBroken) as error:  # noqa: BLE001  # the net
                asked: object = request
                if isinstance(error, domain.Refused) and not isinstance(asked, Message):
                    # A stream of requests, none of which is what it is about.
                    self._note(context, method.__name__, empty_pb2.Empty(), error.reason, Notes())
                await self._answer(method.__name__, error, context)

        return answer

    async def _answer(self, method: str, error: Exception | InvariantBroken, context: Context) -> None:
        if isinstance(error, domain.UtrnError):
            self.answered[(method, error.reason)] += 1
            await _abort(context, status_of(error))
        self.answered[(method, "INTERNAL")] += 1
        try:
            async with asyncio.timeout(_TELL_WITHIN_S):
                await _abort(context, _internal(method, error))
        finally:
            if isinstance(error, InvariantBroken):
                # The caller has been told; whatever became of that, a node known to be wrong sells nothing more.
                self._stop(error)


async def _abort(context: Context, status: status_pb2.Status) -> None:
    await context.abort_with_status(rpc_status.to_status(status))


def _internal(method: str, error: BaseException) -> status_pb2.Status:
    trace_id = uuid.uuid4().hex
    log.error("unexpected error", exc_info=error, extra={"method": method, "trace_id": trace_id})
    return status_pb2.Status(code=code_pb2.INTERNAL, message=f"internal error; quote {trace_id} to the operator")


def _packed(detail: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed
