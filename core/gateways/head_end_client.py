"""HeadEnd over our own headend.v1 contract, as an SMSO, a CSP, a DCC adapter or the sandbox implements it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf import timestamp_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from headend.v1 import head_end_service_pb2 as pb

from core.domain.errors import HeadEndRefused, HeadEndStale, HeadEndUnavailable
from core.domain.meter import MeterKind
from core.gateways.config import HeadEndConfig
from core.gateways.head_end_replies import OutOfBounds, Reply, capabilities_of, event_of, reader, status_of
from core.metrics import SetAside
from core.net.channels import Remote, channel_options
from core.ports.head_end import (
    AddCredit,
    Alert,
    Answer,
    Capabilities,
    GivenUp,
    HeadEnd,
    HeadEndEvent,
    MessageState,
    Numbered,
    StreamRestored,
)

log = logging.getLogger(__name__)

_RECONNECT_S = 0.2
_SERVICE = "/headend.v1.HeadEndService/"
_STATUS_DETAILS = "grpc-status-details-bin"
# Statuses by which a head end says that it will never carry the message as it is.
_REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.ALREADY_EXISTS,
    }
)
# A stream that breaks so often at one place has an event there that cannot be taken: gRPC refuses what is above 4 MB.
_STUCK_AFTER = 10
_STALE = {"EARLIER_OWNER": "stale: earlier owner", "TOO_LATE": "stale: too late"}
_KINDS = {MeterKind.ESME: pb.METER_KIND_ESME, MeterKind.GSME: pb.METER_KIND_GSME}


@dataclass(frozen=True, slots=True)
class _Methods:
    """The contract's methods on one channel, whose replies are read without ever raising."""

    send: Any
    status: Any
    capabilities: Any
    events: Any

    @classmethod
    def on(cls, channel: grpc.aio.Channel) -> "_Methods":
        def unary(name: str, request: type[Message], reply: type[Message]) -> Any:
            return channel.unary_unary(
                _SERVICE + name, request_serializer=request.SerializeToString, response_deserializer=reader(reply)
            )

        return cls(
            send=unary("SendAddCredit", pb.SendAddCreditRequest, pb.SendAddCreditResponse),
            status=unary("GetMessageStatus", pb.GetMessageStatusRequest, pb.GetMessageStatusResponse),
            capabilities=unary("GetCapabilities", pb.GetCapabilitiesRequest, pb.GetCapabilitiesResponse),
            events=channel.unary_stream(
                _SERVICE + "StreamEvents",
                request_serializer=pb.StreamEventsRequest.SerializeToString,
                response_deserializer=reader(pb.StreamEventsResponse),
            ),
        )


class GrpcHeadEnd:
    """One head end behind one mTLS channel. Whatever it replies is bounded, and never ends more than the call."""

    def __init__(self, config: HeadEndConfig, set_aside: SetAside | None = None) -> None:
        self._config = config
        self._set_aside = SetAside() if set_aside is None else set_aside
        self._timeout_s = config.call_timeout_ms / 1000
        self._channel: grpc.aio.Channel | None = None
        self._left: list[grpc.aio.Channel] = []
        self._capabilities: Capabilities | None = None
        self._available = False
        self._sequence: int | None = None
        self._broke_at: tuple[int | None, int] = (None, 0)
        self._rate = _Rate(config.events_per_s_max)

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
        not_after = timestamp_pb2.Timestamp()
        not_after.FromDatetime(message.not_after)
        request = pb.SendAddCreditRequest(
            message_id=message.message_id,
            meter_id=message.meter_id,
            meter_kind=_KINDS[message.meter_kind],
            originator_id=message.originator_id,
            utrn_counter=message.counter,
            utrn=message.utrn,
            owner_epoch=message.owner_epoch,
            not_after=not_after,
        )
        try:
            await self._methods().send(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() in _REFUSALS:
                raise HeadEndRefused(f"{self._config.name}: {error.code().name}") from error
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                why = _STALE.get(_reason_of(error), "stale: not said why")
                self._set_aside.record(self._config.name, why)
                raise HeadEndStale(f"{self._config.name}: {why}") from error
            raise HeadEndUnavailable(f"{self._config.name}: {error.code().name}") from error

    async def status(self, message_id: str) -> Answer | GivenUp | MessageState:
        """Return where a message stands; as not known, if what is told of it cannot be."""
        request = pb.GetMessageStatusRequest(message_id=message_id)
        try:
            reply: Reply[pb.GetMessageStatusResponse] = await self._methods().status(request, timeout=self._timeout_s)
            return status_of(reply.read(), message_id)
        except grpc.aio.AioRpcError as error:
            raise HeadEndUnavailable(f"{self._config.name}: {error.code().name}") from error
        except OutOfBounds as odd:
            self._set_aside.record(self._config.name, f"status: {odd.why}")
            return MessageState.NOT_KNOWN

    async def events(self) -> AsyncIterator[HeadEndEvent]:
        """Return answers and alerts as they come, for ever; a lost connection is resumed where it broke."""
        while True:
            try:
                async for event in self._stream():
                    yield event
            except (grpc.aio.AioRpcError, TimeoutError, HeadEndUnavailable) as error:
                self._broke(error)
                if self._available:
                    log.warning("head end lost", extra={"head_end": self._config.name, "error": type(error).__name__})
            finally:
                self._available = False
            await self._close_left()
            await asyncio.sleep(_RECONNECT_S)

    def _broke(self, error: Exception) -> None:
        """Decide where the stream goes on: where it broke, or from now on only; what is open is then asked about."""
        if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.OUT_OF_RANGE:
            self._sequence = None
        elif self._available:
            times = self._broke_at[1] + 1 if self._broke_at[0] == self._sequence else 1
            self._broke_at = (self._sequence, times)
            if times >= _STUCK_AFTER:
                self._set_aside.record(self._config.name, "event: stream stuck")
                self._sequence, self._broke_at = None, (None, 0)

    async def said(self, after: int) -> AsyncIterator[Numbered]:
        """Return every event that is kept after number `after`, in order, then each as it comes."""
        began, at, rate = after, after, _Rate(self._config.events_per_s_max)
        try:
            async for reply in self._replies(pb.StreamEventsRequest(after_sequence=after)):
                await rate.slow_down()
                read = reply.message
                if read is None:
                    self._set_aside.record(self._config.name, f"event: {reply.why}")
                    continue
                if read.sequence < began:
                    break
                at = read.sequence
                yield Numbered(at, _said(read))
            else:
                raise HeadEndUnavailable(f"{self._config.name}: the event stream ended")
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            forgotten = isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.OUT_OF_RANGE
            if not (forgotten and after):
                raise HeadEndUnavailable(f"{self._config.name}: {type(error).__name__}") from error
        # It counts anew (another one, or one that has lost what it had), or no longer keeps what came next.
        log.error("a head end does not go on where it was", extra={"head_end": self._config.name, "after": at})
        yield Numbered(0)
        async for numbered in self.said(0):
            yield numbered

    async def close(self) -> None:
        """Close the channel, and those that were left."""
        channels = [*self._left, *([] if self._channel is None else [self._channel])]
        self._left = []
        for channel in channels:
            await channel.close()

    async def _stream(self) -> AsyncIterator[HeadEndEvent]:
        await self._ask_capabilities()
        # At first only what happens from now on: what is outstanding is asked for by message id.
        request = pb.StreamEventsRequest(after_sequence=self._sequence or 0, only_new=self._sequence is None)
        async for reply in self._replies(request):
            if not self._available:
                if reply.message is not None and reply.message.sequence < request.after_sequence:
                    # It counts anew, and would tell nothing until it has come as far as before: read from the start.
                    self._set_aside.record(self._config.name, "event: counts anew")
                    self._sequence = 0
                    return
                self._available = True
                if reply.message is not None:
                    # Where the head end is, even if that is before where it was: it may have been set back.
                    self._sequence = reply.message.sequence
                yield StreamRestored()
            event = self._event(reply)
            if event is not None:
                yield event
            await self._rate.slow_down()

    async def _replies(self, request: pb.StreamEventsRequest) -> AsyncIterator[Reply[pb.StreamEventsResponse]]:
        """Return what the event stream brings, signs of life too; end when it does.

        Raises:
            grpc.aio.AioRpcError, TimeoutError: the head end is lost.
        """
        channel = self._open()
        call = _Methods.on(channel).events(request)
        try:
            while True:
                async with asyncio.timeout(self._config.silence_max_ms / 1000):
                    reply = await call.read()
                if not isinstance(reply, Reply):
                    return
                yield reply
        except TimeoutError:
            self._leave(channel)
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled this task: the channel was closed for a new one.
            return
        finally:
            call.cancel()

    async def _ask_capabilities(self) -> None:
        """Ask what the head end can do; if its reply cannot be read, what it said before stands, or nothing."""
        channel, reply = self._open(), None
        try:
            reply = await _Methods.on(channel).capabilities(pb.GetCapabilitiesRequest(), timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._leave(channel)
            raise
        try:
            told = capabilities_of(reply.read())
            if told != self._capabilities:
                can = {key: value for key, value in asdict(told).items() if key != "name"}
                log.info("what a head end can do", extra={"head_end": self._config.name, "adapter": told.name, **can})
            self._capabilities = told
        except OutOfBounds as odd:
            self._set_aside.record(self._config.name, f"capabilities: {odd.why}")
            self._capabilities = self._capabilities or capabilities_of(pb.GetCapabilitiesResponse())

    def _event(self, reply: Reply[pb.StreamEventsResponse]) -> HeadEndEvent | None:
        """Return what a reply tells, and remember how far the stream is; None for what is set aside."""
        try:
            read = reply.read()
            if read.sequence < (self._sequence or 0):
                self._set_aside.record(self._config.name, "event: sequence fell")
            self._sequence = max(self._sequence or 0, read.sequence)
            return event_of(read)
        except OutOfBounds as odd:
            self._set_aside.record(self._config.name, f"event: {odd.why}")
            return None

    def _methods(self) -> _Methods:
        return _Methods.on(self._open())

    def _open(self) -> grpc.aio.Channel:
        """Return the channel, a new one if there is none or the last one was left.

        Raises:
            HeadEndUnavailable: the certificate cannot be read: it is being replaced, or there is no descriptor left.
        """
        if self._channel is None:
            try:
                self._channel = dial(self._config)
            except OSError as error:
                raise HeadEndUnavailable(f"{self._config.name}: cannot be dialled: {error}") from error
        return self._channel

    async def renew(self) -> None:
        """Open the connection anew, with the certificates that are there now; calls under way end by themselves."""
        if self._channel is not None:
            self._left.append(self._channel)
            self._channel = None
        left, self._left = self._left, []
        for channel in left:
            await channel.close(self._timeout_s)

    def _leave(self, channel: grpc.aio.Channel) -> None:
        """Use a channel no more that is silent: its packets may vanish, and gRPC would call on it again and again.

        Calls under way on it end by their deadlines. Whoever comes second finds a new channel, and leaves that alone.
        """
        if self._channel is channel:
            log.warning("a head end is silent; dialled anew", extra={"head_end": self._config.name})
            self._channel = None
            self._left.append(channel)

    async def _close_left(self) -> None:
        """Close what was left before; the last one may still carry calls, to their deadlines."""
        while len(self._left) > 1:
            await self._left.pop(0).close(self._timeout_s)


def dial(config: HeadEndConfig) -> grpc.aio.Channel:
    """Return a new channel to a head end, which resolves its name and takes its certificate anew.

    Raises:
        OSError: a certificate file cannot be read.
    """
    credentials = grpc.ssl_channel_credentials(
        config.ca.read_bytes(), config.key.read_bytes(), config.cert.read_bytes()
    )
    options = channel_options(Remote.HEAD_END, server_name=config.server_name)
    return grpc.aio.secure_channel(config.target, credentials, options=options)


class _Rate:
    """Lets so many events pass in a second, and makes the rest wait: gRPC's flow control then holds the sender back."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._second = 0
        self._passed = 0

    async def slow_down(self) -> None:
        """Count one event, and return when the next may be read."""
        now = time.monotonic()
        if int(now) != self._second:
            self._second, self._passed = int(now), 0
        self._passed += 1
        if self._passed >= self._per_s:
            await asyncio.sleep(self._second + 1 - now)


def _said(read: pb.StreamEventsResponse) -> Answer | Alert | None:
    """Return what a meter said; None for what is set aside: whoever hears the events as they come counts it."""
    try:
        event = event_of(read)
    except OutOfBounds:
        return None
    return event if isinstance(event, Answer | Alert) else None


def _reason_of(error: grpc.aio.AioRpcError) -> str:
    """Return the reason of a refusal's ErrorInfo; empty if there is none that can be read."""
    for name, value in error.trailing_metadata() or ():
        if name != _STATUS_DETAILS or not isinstance(value, bytes):
            continue
        try:
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return str(info.reason)
        except DecodeError:
            return ""
    return ""


if TYPE_CHECKING:
    _: type[HeadEnd] = GrpcHeadEnd
