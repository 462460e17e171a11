"""HeadEnd over our own headend.v1 contract, as an SMSO, a CSP, a DCC adapter or the sandbox implements it."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc
from headend.v1 import head_end_service_pb2 as pb
from headend.v1 import head_end_service_pb2_grpc as rpc

from core.domain.errors import HeadEndRefused, HeadEndUnavailable
from core.domain.meter import MeterId, MeterKind, OriginatorId
from core.domain.token import Counter
from core.gateways.config import HeadEndConfig
from core.ports.headend import (
    AddCredit,
    Alert,
    Answer,
    AnswerKind,
    Capabilities,
    GivenUp,
    HeadEnd,
    HeadEndEvent,
    MessageState,
    StreamRestored,
)

log = logging.getLogger(__name__)

_RECONNECT_S = 0.2
# Statuses by which a head end says that it will never carry the message as it is.
_REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.ALREADY_EXISTS,
    }
)
_KINDS = {MeterKind.ESME: pb.METER_KIND_ESME, MeterKind.GSME: pb.METER_KIND_GSME}
_ANSWERS = {
    pb.ADD_CREDIT_OUTCOME_APPLIED: AnswerKind.APPLIED,
    pb.ADD_CREDIT_OUTCOME_DUPLICATE: AnswerKind.DUPLICATE,
    pb.ADD_CREDIT_OUTCOME_MAX_CREDIT: AnswerKind.MAX_CREDIT,
    pb.ADD_CREDIT_OUTCOME_MAX_BALANCE: AnswerKind.MAX_BALANCE,
    pb.ADD_CREDIT_OUTCOME_INVALID: AnswerKind.NOT_AUTHENTIC,
    pb.ADD_CREDIT_OUTCOME_REFUSED_UNEXPLAINED: AnswerKind.UNEXPLAINED,
    pb.ADD_CREDIT_OUTCOME_TEMPORARY_FAILURE: AnswerKind.TEMPORARY_FAILURE,
}


class GrpcHeadEnd:
    """One head end behind one mTLS channel."""

    def __init__(self, config: HeadEndConfig) -> None:
        self._config = config
        self._timeout_s = config.call_timeout_ms / 1000
        self._channel: grpc.aio.Channel | None = None
        self._capabilities: Capabilities | None = None
        self._available = False
        self._sequence: int | None = None

    @property
    def available(self) -> bool:
        """True while the event stream works."""
        return self._available

    async def capabilities(self) -> Capabilities:
        """Return what it can do, as asked when the event stream was opened."""
        if self._capabilities is None:
            raise HeadEndUnavailable(f"head end {self._config.name} has not been reached yet")
        return self._capabilities

    async def send(self, message: AddCredit) -> None:
        """Hand over `message`; return once the head end has stored it."""
        request = pb.SendAddCreditRequest(
            message_id=message.message_id,
            meter_id=message.meter_id,
            meter_kind=_KINDS[message.meter_kind],
            originator_id=message.originator_id,
            utrn_counter=message.counter,
            utrn=message.utrn,
        )
        try:
            await self._stub().SendAddCredit(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() in _REFUSALS:
                raise HeadEndRefused(f"{self._config.name}: {error.code().name}") from error
            raise HeadEndUnavailable(f"{self._config.name}: {error.code().name}") from error

    async def status(self, message_id: str) -> Answer | GivenUp | MessageState:
        """Return where a message stands."""
        try:
            reply = await self._stub().GetMessageStatus(
                pb.GetMessageStatusRequest(message_id=message_id), timeout=self._timeout_s
            )
        except grpc.aio.AioRpcError as error:
            raise HeadEndUnavailable(f"{self._config.name}: {error.code().name}") from error
        match reply.state:
            case pb.MESSAGE_STATE_ANSWERED:
                return _answer(reply.answer) or MessageState.NOT_KNOWN
            case pb.MESSAGE_STATE_NOT_DELIVERED | pb.MESSAGE_STATE_NO_ANSWER:
                return GivenUp(message_id=message_id, maybe_applied=reply.state == pb.MESSAGE_STATE_NO_ANSWER)
            case pb.MESSAGE_STATE_IN_FLIGHT:
                return MessageState.IN_FLIGHT
            case _:
                return MessageState.NOT_KNOWN

    async def events(self) -> AsyncIterator[HeadEndEvent]:
        """Return answers and alerts as they come, for ever; a lost connection is resumed where it broke."""
        while True:
            try:
                async for event in self._stream():
                    yield event
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.OUT_OF_RANGE:
                    self._sequence = None
                if self._available:
                    log.warning("head end lost", extra={"head_end": self._config.name, "error": type(error).__name__})
            finally:
                self._available = False
            await asyncio.sleep(_RECONNECT_S)

    async def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            await self._channel.close()

    async def _stream(self) -> AsyncIterator[HeadEndEvent]:
        stub = self._stub()
        self._capabilities = _capabilities(
            await stub.GetCapabilities(pb.GetCapabilitiesRequest(), timeout=self._timeout_s)
        )
        # At first only what happens from now on: what is outstanding is asked for by message id.
        request = pb.StreamEventsRequest(after_sequence=self._sequence or 0, only_new=self._sequence is None)
        call = stub.StreamEvents(request)
        try:
            while True:
                async with asyncio.timeout(self._config.silence_max_ms / 1000):
                    reply = await call.read()
                if not isinstance(reply, pb.StreamEventsResponse):
                    return
                self._sequence = max(self._sequence or 0, reply.sequence)
                if not self._available:
                    self._available = True
                    yield StreamRestored()
                event = _event(reply)
                if event is not None:
                    yield event
        finally:
            call.cancel()

    def _stub(self) -> "rpc.HeadEndServiceAsyncStub":
        if self._channel is None:
            config = self._config
            credentials = grpc.ssl_channel_credentials(
                config.ca.read_bytes(), config.key.read_bytes(), config.cert.read_bytes()
            )
            options: list[tuple[str, str | int]] = [
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ]
            if config.server_name:
                options.append(("grpc.ssl_target_name_override", config.server_name))
            self._channel = grpc.aio.secure_channel(config.target, credentials, options=options)
        return rpc.HeadEndServiceStub(self._channel)


def _event(reply: pb.StreamEventsResponse) -> HeadEndEvent | None:
    """Return the event of a reply; None for a sign of life and for what this version does not know."""
    match reply.WhichOneof("event"):
        case "answer":
            return _answer(reply.answer)
        case "alert":
            alert = reply.alert
            return Alert(
                meter_id=MeterId(alert.meter_id),
                alert_code=alert.alert_code,
                originator_id=OriginatorId(alert.originator_id) if alert.originator_id else None,
                counter=Counter(alert.utrn_counter) if alert.utrn_counter else None,
            )
        case "given_up":
            maybe = reply.given_up.state == pb.MESSAGE_STATE_NO_ANSWER
            return GivenUp(message_id=reply.given_up.message_id, maybe_applied=maybe)
        case _:
            return None


def _answer(answer: pb.Answer) -> Answer | None:
    """Return a meter's answer; None for an outcome that this version does not know: silence proves nothing either."""
    kind = _ANSWERS.get(answer.outcome)
    return None if kind is None else Answer(message_id=answer.message_id, kind=kind)


def _capabilities(reply: pb.GetCapabilitiesResponse) -> Capabilities:
    return Capabilities(
        name=reply.name,
        dedupes_by_message_id=reply.dedupes_by_message_id,
        status_by_message_id=reply.status_by_message_id,
        alerts_name_counter=reply.alerts_name_counter,
        in_flight_max=reply.in_flight_max,
    )


if TYPE_CHECKING:
    _: type[HeadEnd] = GrpcHeadEnd
