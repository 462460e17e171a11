"""Interceptor: what every call passes, health and reflection included, whatever it is and whoever makes it.

In this order: who calls, how much of its own is under way, one request as bytes, the role and the size that its row of
ACCESS allows, the message, the method, the status of its error, the count, the line in the audit
log. docs/decisions/0034.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import grpc
from google.protobuf import empty_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2

from core.api.access import ACCESS, Access, Noted
from core.api.authenticate import Authenticate
from core.api.limits import CallerLimits
from core.api.status import Context, internal_error, status_of, tell
from core.domain.errors import IF_FIRST, BadField, NotReady, Overloaded, Refused, UtrnError
from core.domain.invariant import InvariantBroken
from core.domain.participant import Principal, Role
from core.ports.audit_context import NOTES, Notes

log = logging.getLogger(__name__)

Note = Callable[[Context, str, Message, str, Notes], None]
# Longer than it takes to hand a status to gRPC, and no longer than a broken node may wait.
_TELL_WITHIN_S = 1.0
# For the one request of a call to arrive, once its caller is known.
_ARRIVES_WITHIN_S = 10.0
# Where no configuration says it.
_CALLS_MAX: Final = 1000
_UNKNOWN_METHOD: Final = "unknown method"
# Under which calls are counted whose caller is no participant.
_NOBODY: Final = ""
_NO_SUCH_METHOD: Final = "no method of this name is here; see the contract, utrn.v1"
# Of what is refused by its role, so much is parsed for the audit log, which tells what it was about.
_PARSED_IF_REFUSED_MAX: Final = 4096
# Who learns that a method is not there: whoever may call anything.
_UNKNOWN_ACCESS: Final = Access(roles=frozenset(Role))
# What ends a task from outside, or an iteration: none of the net's business.
_PASSES: Final = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit, grpc.aio.AbortError)


@dataclass(frozen=True, slots=True)
class _Method:
    """A method as it is served: its name, its row, and its generated handler."""

    name: str
    access: Access
    handler: Any  # grpc.RpcMethodHandler, which the stubs type without its fields

    def parse(self, body: bytes) -> Message:
        """Return the request that `body` is.

        Raises:
            BadField: it is larger than the row allows, or no such message.
        """
        if len(body) > self.access.bytes_max:
            raise self._wrong(f"request: has {len(body)} bytes, and at most {self.access.bytes_max} are taken")
        try:
            request: Message = self.handler.request_deserializer(body)
        except Exception as error:  # a parser's own text is no answer
            raise self._wrong("request: its bytes are no message of this method; see the contract") from error
        return request

    def as_asked(self, body: bytes) -> Message:
        """Return a request that was refused before it was parsed, for the audit log; an empty one if it is none."""
        if len(body) <= _PARSED_IF_REFUSED_MAX:
            with suppress(BadField):
                return self.parse(body)
        return empty_pb2.Empty()

    async def arrive(self, requests: AsyncIterator[bytes], within: AbstractAsyncContextManager[object]) -> bytes:
        """Return the one request of a call; it arrives `within` what bounds that.

        Raises:
            BadField: there is none, or it does not come.
            Overloaded: neither it nor others of this caller come soon.
        """
        try:
            async with within:
                body = await anext(requests, None)
        except TimeoutError as error:
            raise self._wrong(f"request: did not arrive within {_ARRIVES_WITHIN_S:.0f} s") from error
        if body is None:
            raise self._wrong("request: is missing")
        return body

    def _wrong(self, message: str) -> BadField:
        error = BadField(message, field="request")
        error.final = IF_FIRST if self.access.sells else ""
        return error


class Interceptor(grpc.aio.ServerInterceptor):
    """The net around every method, and the door before it.

    `calls`: calls with one reply that are under way. `answered`: calls by method and reason; "OK" if not refused.
    """

    def __init__(
        self,
        authenticate: Authenticate,
        stop: Callable[[InvariantBroken], None],
        note: Note = lambda *_: None,
        limits: CallerLimits | None = None,
    ) -> None:
        """Set what names callers, what ends the process when a promise of this program fails, and the audit log.

        `note` gets the call, the method's name, the request, "allowed" or the reason of the refusal, and what it was
        decided by.
        """
        self._authenticate = authenticate
        self._stop = stop
        self._note = note
        self._limits = limits or CallerLimits(calls_max=_CALLS_MAX, watches_max=_CALLS_MAX, refusals_per_s=0)
        self._served: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self.calls = 0
        self.answered: Counter[tuple[str, str]] = Counter()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """Return the method of a call behind everything above; bytes come in, bytes go out."""
        served = self._served.get(details.method)
        if served is None:
            handler, access = await continuation(details), ACCESS.get(details.method)
            if handler is None or access is None:
                return grpc.stream_unary_rpc_method_handler(self._unknown)
            method = _Method(details.method.rpartition("/")[2], access, handler)
            served = (
                grpc.stream_stream_rpc_method_handler(partial(self._stream, method))
                if handler.response_streaming
                else grpc.stream_unary_rpc_method_handler(partial(self._unary, method))
            )
            self._served[details.method] = served
        return served

    async def _unary(self, method: _Method, requests: AsyncIterator[bytes], context: Context) -> bytes:
        self.calls += 1
        try:
            body = await self._reply(method, requests, context)
        except _PASSES:
            raise
        except BaseException as error:  # the net: no bug's text may reach a caller
            await self._refuse(method.name, error, context)
            raise InvariantBroken("abort never returns") from error
        else:
            self.answered[(method.name, "OK")] += 1
            return body
        finally:
            self.calls -= 1

    async def _reply(self, method: _Method, requests: AsyncIterator[bytes], context: Context) -> bytes:
        """Carry a call out; return its reply."""
        notes, access = Notes(), method.access
        NOTES.set(notes)
        asked: Message = empty_pb2.Empty()
        try:
            principal = self._caller(access, context)
            name = self._name_of(principal, context)
            with self._counted(name, method):
                body = await method.arrive(requests, self._limits.arriving(name, _ARRIVES_WITHIN_S))
                try:
                    if principal is not None:
                        access.check_role(principal)
                except Refused:
                    asked = method.as_asked(body)
                    raise
                asked = method.parse(body)
                reply: bytes = method.handler.response_serializer(await method.handler.unary_unary(asked, context))
        except Overloaded:
            # Nothing was read or decided; a line for each would let a caller above its limit fill the disk.
            raise
        except UtrnError as error:
            every = access.noted is Noted.EVERY
            if every or (access.noted is Noted.REFUSALS and isinstance(error, Refused) and not notes.decided):
                self._note(context, method.name, asked, error.reason, notes)
            raise
        if access.noted is Noted.EVERY:
            self._note(context, method.name, asked, "allowed", notes)
        elif access.noted is Noted.REFUSALS and not notes.decided:
            # Nothing was decided anew: what was sold before was shown, with its digits.
            self._note(context, method.name, asked, "repeated" if access.sells else "allowed", notes)
        return reply

    async def _stream(
        self, method: _Method, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncGenerator[bytes, None]:
        try:
            async with aclosing(self._replies(method, requests, context)) as replies:
                async for body in replies:
                    yield body
        except _PASSES:
            raise
        except BaseException as error:  # noqa: BLE001  # the net
            if isinstance(error, Refused) and method.access.noted is not Noted.NONE:
                # A stream of requests, none of which is what it is about.
                self._note(context, method.name, empty_pb2.Empty(), error.reason, Notes())
            await self._refuse(method.name, error, context)
        else:
            self.answered[(method.name, "OK")] += 1

    async def _replies(
        self, method: _Method, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncGenerator[bytes, None]:
        """Carry a call out whose replies are a stream.

        Its caller is looked at again with each message: a stream may last for days, and a suspension takes effect at
        once.
        """
        admit, handler = partial(self._admit, method.access, context), method.handler
        name = self._name_of(admit(), context)
        with self._counted(name, method):
            if method.access.noted is not Noted.NONE:
                # Before the first reply: a caller that breaks off half-way has read half of the answer.
                self._note(context, method.name, empty_pb2.Empty(), "allowed", Notes())
            if handler.request_streaming:
                replies = handler.stream_stream(_Requests(method, requests, admit), context)
            else:
                body = await method.arrive(requests, self._limits.arriving(name, _ARRIVES_WITHIN_S))
                replies = handler.unary_stream(method.parse(body), context)
            async with aclosing(replies):
                async for reply in replies:
                    if not handler.request_streaming:
                        admit()
                    yield handler.response_serializer(reply)

    def _admit(self, access: Access, context: Context) -> Principal | None:
        principal = self._caller(access, context)
        if principal is not None:
            access.check_role(principal)
        return principal

    @contextmanager
    def _counted(self, caller: str, method: _Method) -> Iterator[None]:
        """Hold a caller to its limits while its call is under way."""
        with self._limits.under_way(caller, method.name, method.access):
            try:
                yield
            except Refused:
                self._limits.refused(caller)
                raise

    def _name_of(self, principal: Principal | None, context: Context) -> str:
        """Return under which name a caller is counted: by its certificate, where it is no participant that is known."""
        if principal is not None:
            return principal.participant_id
        return self._authenticate.certificate_of(context).fingerprint

    def _caller(self, access: Access, context: Context) -> Principal | None:
        """Return who calls; None for a node, where nodes may, and while nobody can say who is a participant.

        Raises:
            CertificateRefused, UnknownCaller, CallerSuspended: it may not call this.
            Overloaded: so many were refused lately for who they are.
            NotReady: repeat at another node.
        """
        if access.nodes and self._authenticate.is_node(context):
            return None
        try:
            principal, barred = self._authenticate.even_barred(context)
        except NotReady:
            if access.starting:
                return None
            raise
        except Refused:
            # Whoever is nobody here is counted with everybody who is nobody: certificates cost a stranger nothing.
            self._limits.turned_away(_NOBODY)
            raise
        if barred is not None and not access.barred:
            self._limits.turned_away(principal.participant_id)
            raise barred
        return principal

    async def _unknown(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        """Answer a call of a method that is not there; only to callers who are."""
        del requests
        try:
            self._caller(_UNKNOWN_ACCESS, context)
        except BaseException as error:  # noqa: BLE001  # the net
            await self._refuse(_UNKNOWN_METHOD, error, context)
        self.answered[(_UNKNOWN_METHOD, "UNIMPLEMENTED")] += 1
        await tell(context, status_pb2.Status(code=code_pb2.UNIMPLEMENTED, message=_NO_SUCH_METHOD))
        raise InvariantBroken("abort never returns")

    async def _refuse(self, method: str, error: BaseException, context: Context) -> None:
        """Tell a caller of an error; never return."""
        if isinstance(error, UtrnError):
            self.answered[(method, error.reason)] += 1
            await tell(context, status_of(error))
        self.answered[(method, "INTERNAL")] += 1
        try:
            async with asyncio.timeout(_TELL_WITHIN_S):
                await tell(context, internal_error(method, error))
        finally:
            broken = _broken(error)
            if broken is not None:
                # The caller has been told; whatever became of that, a node known to be wrong sells nothing more.
                self._stop(broken)


class _Requests:
    """The requests of a stream; with each, its caller is looked at again."""

    def __init__(self, method: _Method, requests: AsyncIterator[bytes], admit: Callable[[], object]) -> None:
        self._method = method
        self._requests = requests
        self._admit = admit

    def __aiter__(self) -> "_Requests":
        return self

    async def __anext__(self) -> Message:
        body = await anext(self._requests)
        self._admit()
        return self._method.parse(body)


def _broken(error: BaseException) -> InvariantBroken | None:
    """Return the broken promise that an error is, or that is in it: a group of tasks wraps what its tasks raise."""
    if isinstance(error, InvariantBroken):
        return error
    inside = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return next((broken for exception in inside if (broken := _broken(exception)) is not None), None)
