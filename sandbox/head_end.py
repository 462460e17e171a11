"""The head end: headend.v1 towards the service, a bad WAN towards the fleet; what it accepted is on disk first."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import grpc
from google.protobuf import timestamp_pb2
from headend.v1 import head_end_service_pb2 as pb
from utrn.sandbox.v1 import sandbox_pb2 as sandbox_pb
from utrn.sandbox.v1 import sandbox_pb2_grpc as sandbox_rpc

from sandbox.fence import Fence
from sandbox.knobs import Chance
from sandbox.lies import Liar
from sandbox.store import Store

SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    message_id TEXT PRIMARY KEY, meter_id TEXT NOT NULL, originator_id TEXT NOT NULL, counter INTEGER NOT NULL,
    utrn TEXT NOT NULL, state INTEGER NOT NULL, answer BLOB);
CREATE TABLE IF NOT EXISTS events (sequence INTEGER PRIMARY KEY, event BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS progress (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS fences (meter_id TEXT PRIMARY KEY, epoch INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS limits (message_id TEXT PRIMARY KEY, not_after_ms INTEGER NOT NULL);
"""

_DLMS = {0: pb.ADD_CREDIT_OUTCOME_APPLIED, 2: pb.ADD_CREDIT_OUTCOME_TEMPORARY_FAILURE}
_DLMS_TEMPORARY = 2
_ZIGBEE = {
    0x00: pb.ADD_CREDIT_OUTCOME_APPLIED,
    0x01: pb.ADD_CREDIT_OUTCOME_INVALID,
    0x02: pb.ADD_CREDIT_OUTCOME_DUPLICATE,
    0x03: pb.ADD_CREDIT_OUTCOME_TEMPORARY_FAILURE,
    0x04: pb.ADD_CREDIT_OUTCOME_MAX_BALANCE,
    0x06: pb.ADD_CREDIT_OUTCOME_MAX_CREDIT,
    0x10: pb.ADD_CREDIT_OUTCOME_APPLIED,
    0x11: pb.ADD_CREDIT_OUTCOME_APPLIED,
    0x12: pb.ADD_CREDIT_OUTCOME_APPLIED,
}
_SIGN_OF_LIFE_S = 0.5
_FLEET_RETRY_S = 0.2

Context = grpc.aio.ServicerContext[Any, Any]


class HeadEnd(sandbox_rpc.HeadEndControlServiceServicer):
    """A head end with knobs. Where it lies, a reply may be bytes that nobody can read (sandbox/servers.py)."""

    def __init__(self, path: Path, fleet: grpc.aio.Channel, chance: Chance) -> None:
        self._store = Store(path, SCHEMA)
        self._fleet: sandbox_rpc.FleetServiceAsyncStub = sandbox_rpc.FleetServiceStub(fleet)
        self._chance = chance
        self.counts: Counter[str] = Counter()
        self._messages: dict[str, tuple[pb.SendAddCreditRequest, int, pb.Answer | None]] = {}
        for message_id, meter_id, originator_id, counter, utrn, state, answer in self._store.read(
            "SELECT message_id, meter_id, originator_id, counter, utrn, state, answer FROM messages"
        ):
            message = pb.SendAddCreditRequest(
                message_id=message_id,
                meter_id=meter_id,
                originator_id=originator_id,
                utrn_counter=counter,
                utrn=utrn,
            )
            known = None if answer is None else pb.Answer.FromString(answer)
            self._messages[message_id] = (message, state, known)
        # One that nobody can read stands there as it leaves.
        self._events: list[pb.StreamEventsResponse | bytes] = [
            pb.StreamEventsResponse.FromString(event)
            for (event,) in self._store.read("SELECT event FROM events ORDER BY sequence")
        ]
        self._fence = Fence(self._store)
        self._liar = Liar(chance)
        self._sequence = len(self._events)
        self._happened = asyncio.Event()
        alerts = self._store.read("SELECT value FROM progress WHERE name = 'alerts'")
        self._alerts_seen = int(alerts[0][0]) if alerts else 0
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> NoReturn:
        """Go on with what was in flight, listen to the meters, write to disk; for ever."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            tasks.create_task(self._store.run())
            tasks.create_task(self._hear_alerts())
            for message, state, _ in list(self._messages.values()):
                if state == pb.MESSAGE_STATE_IN_FLIGHT:
                    tasks.create_task(self._carry(message))
        raise AssertionError

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    async def SendAddCredit(  # noqa: N802
        self, request: pb.SendAddCreditRequest, context: Context
    ) -> pb.SendAddCreditResponse:
        """Take a message in."""
        await self._outage(context)
        known = self._messages.get(request.message_id)
        if known is not None and (known[0].utrn, known[0].meter_id) != (request.utrn, request.meter_id):
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, "another code was sent under this message_id")
        if self._chance.happens(self._chance.knobs.refuse):
            self.counts["refused"] += 1
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "not authorized for this meter now")
        if self._chance.knobs.fence:
            stale = self._fence.stale(request)
            if stale is not None:
                self.counts[f"stale: {stale.reason.lower()}"] += 1
                await context.abort_with_status(stale.status())
            self._fence.accept(request)
        self.counts["accepted"] += 1
        state, answer = (0, None) if known is None else known[1:]
        unexplained = answer is not None and answer.outcome == pb.ADD_CREDIT_OUTCOME_REFUSED_UNEXPLAINED
        final = answer is not None and not (unexplained and self._chance.knobs.repeat_unexplained)
        if self._chance.knobs.dedupe and state == pb.MESSAGE_STATE_ANSWERED and final:
            # Repeats the answer it has: the asker lost it.
            await self._publish(pb.StreamEventsResponse(answer=answer))
        elif not (self._chance.knobs.dedupe and state == pb.MESSAGE_STATE_IN_FLIGHT):
            # The caller may be gone at the next await; what was noted as in flight must be carried all the same.
            self._note(request, pb.MESSAGE_STATE_IN_FLIGHT, None)
            self._start(request)
            await self._store.flushed()
        return pb.SendAddCreditResponse(already_known=known is not None)

    async def GetMessageStatus(  # noqa: N802
        self, request: pb.GetMessageStatusRequest, context: Context
    ) -> pb.GetMessageStatusResponse | bytes:
        """Tell where a message stands."""
        await self._outage(context)
        if not self._chance.knobs.status:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this head end cannot be asked")
        if self._chance.happens(self._chance.knobs.lies):
            self.counts["lies: status"] += 1
            return self._liar.status()
        known = self._messages.get(request.message_id)
        if known is None:
            return pb.GetMessageStatusResponse(state=pb.MESSAGE_STATE_NOT_KNOWN)
        await self._store.flushed()
        return pb.GetMessageStatusResponse(state=pb.MessageState.ValueType(known[1]), answer=known[2])

    async def StreamEvents(  # noqa: N802
        self, request: pb.StreamEventsRequest, context: Context
    ) -> AsyncIterator[pb.StreamEventsResponse | bytes]:
        """Stream answers and alerts."""
        await self._outage(context)
        if not request.only_new and request.after_sequence > len(self._events):
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "so many events were never told here")
        sent = len(self._events) if request.only_new else request.after_sequence
        yield pb.StreamEventsResponse(sequence=sent)
        while not self._chance.knobs.outage:
            happened = self._happened
            while sent < len(self._events):
                event = self._events[sent]
                sent += 1
                yield event
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SIGN_OF_LIFE_S):
                    await happened.wait()
                    continue
            yield pb.StreamEventsResponse(sequence=sent)
        await self._outage(context)

    async def GetCapabilities(  # noqa: N802
        self, request: pb.GetCapabilitiesRequest, context: Context
    ) -> pb.GetCapabilitiesResponse | bytes:
        """Tell what this head end can do."""
        await self._outage(context)
        knobs = self._chance.knobs
        if self._chance.happens(knobs.lies):
            self.counts["lies: capabilities"] += 1
            return self._liar.unreadable()
        return pb.GetCapabilitiesResponse(
            name="utrn sandbox",
            dedupes_by_message_id=knobs.dedupe,
            status_by_message_id=knobs.status,
            status_kept_s=0xFFFFFFFF,
            alerts_name_counter=knobs.alerts_name_counter,
            fences_by_epoch=knobs.fence,
            honours_not_after=knobs.fence,
        )

    async def SetKnobs(  # noqa: N802
        self, request: sandbox_pb.SetKnobsRequest, context: Context
    ) -> sandbox_pb.SetKnobsResponse:
        """Change knobs."""
        self._chance.knobs.MergeFrom(request.knobs)
        return sandbox_pb.SetKnobsResponse(knobs=self._chance.knobs)

    async def GetKnobs(  # noqa: N802
        self, request: sandbox_pb.GetKnobsRequest, context: Context
    ) -> sandbox_pb.GetKnobsResponse:
        """Tell knobs and counts."""
        return sandbox_pb.GetKnobsResponse(knobs=self._chance.knobs, counts=dict(self.counts))

    async def _outage(self, context: Context) -> None:
        if self._chance.knobs.outage:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "head end outage")

    def _start(self, message: pb.SendAddCreditRequest) -> None:
        if self._tasks is None:
            raise RuntimeError("the head end is not running")
        self._tasks.create_task(self._carry(message))
        if self._chance.happens(self._chance.knobs.duplicate_commands):
            self.counts["commands duplicated"] += 1
            self._tasks.create_task(self._carry(message))

    async def _carry(self, message: pb.SendAddCreditRequest) -> None:
        """Carry one message over the WAN, and report what comes back, if anything does."""
        knobs, chance = self._chance.knobs, self._chance
        await self._store.flushed()
        if knobs.fence and self._fence.too_late(message):
            self.counts["given up: too late"] += 1
            return await self._give_up(message, pb.MESSAGE_STATE_NO_ANSWER)
        await asyncio.sleep(chance.latency_s())
        if chance.unreachable(message.meter_id) or chance.happens(knobs.loss_before):
            self.counts["lost before the meter"] += 1
            return await self._give_up(message, pb.MESSAGE_STATE_NOT_DELIVERED)
        if chance.happens(knobs.temporary_failure):
            self.counts["temporary failures"] += 1
            return await self._answer(message, gas=False, result=_DLMS_TEMPORARY)
        try:
            reply = await self._fleet.CarryCommand(
                sandbox_pb.CarryCommandRequest(
                    meter_id=message.meter_id,
                    originator_id=message.originator_id,
                    originator_counter=message.utrn_counter << 32,
                    utrn=message.utrn,
                ),
                timeout=5.0,
            )
        except grpc.aio.AioRpcError:
            self.counts["fleet not answering"] += 1
            return await self._give_up(message, pb.MESSAGE_STATE_NO_ANSWER)
        if chance.happens(knobs.loss_after):
            self.counts["answers lost"] += 1
            return await self._give_up(message, pb.MESSAGE_STATE_NO_ANSWER)
        await asyncio.sleep(chance.latency_s())
        if chance.happens(knobs.reorder_answers):
            self.counts["answers held back"] += 1
            await asyncio.sleep(chance.latency_s() * 5)
        return await self._answer(message, gas=reply.gas, result=reply.result)

    async def _give_up(self, message: pb.SendAddCreditRequest, state: pb.MessageState.ValueType) -> None:
        await asyncio.sleep(self._chance.knobs.give_up_after_ms / 1000)
        if self._messages[message.message_id][1] != pb.MESSAGE_STATE_IN_FLIGHT:
            return
        self.counts["given up"] += 1
        self._note(message, state, None)
        await self._publish(pb.StreamEventsResponse(given_up=pb.GivenUp(message_id=message.message_id, state=state)))

    async def _answer(self, message: pb.SendAddCreditRequest, *, gas: bool, result: int) -> None:
        unexplained = pb.ADD_CREDIT_OUTCOME_REFUSED_UNEXPLAINED
        outcome = (_ZIGBEE if gas else _DLMS).get(result, unexplained)
        answer = pb.Answer(message_id=message.message_id, outcome=outcome, native_result=result, answered_at=_now())
        self.counts[pb.AddCreditOutcome.Name(outcome).removeprefix("ADD_CREDIT_OUTCOME_").lower()] += 1
        if self._messages[message.message_id][1] == pb.MESSAGE_STATE_IN_FLIGHT:
            await self._lie(message)
        if outcome == pb.ADD_CREDIT_OUTCOME_TEMPORARY_FAILURE:
            # Nothing was applied: the next send of this id must reach the meter.
            self._note(message, pb.MESSAGE_STATE_NOT_DELIVERED, None)
        else:
            self._note(message, pb.MESSAGE_STATE_ANSWERED, answer)
        await self._publish(pb.StreamEventsResponse(answer=answer))
        if self._chance.happens(self._chance.knobs.duplicate_answers):
            self.counts["answers duplicated"] += 1
            await self._publish(pb.StreamEventsResponse(answer=answer))

    def _note(self, message: pb.SendAddCreditRequest, state: int, answer: pb.Answer | None) -> None:
        self._messages[message.message_id] = (message, state, answer)
        self._store.queue(
            "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (message_id) DO UPDATE SET state = "
            "excluded.state, answer = excluded.answer",
            message.message_id, message.meter_id, message.originator_id, message.utrn_counter, message.utrn, state,
            None if answer is None else answer.SerializeToString(),
        )  # fmt: skip

    async def _lie(self, message: pb.SendAddCreditRequest) -> None:
        """Tell something false just before the answer to `message`, in the share of cases that the knob says."""
        if not self._chance.happens(self._chance.knobs.lies):
            return
        kind, lie = self._liar.event(message, self._messages)
        self.counts[f"lies: {kind}"] += 1
        await self._publish(lie)

    async def _publish(self, event: pb.StreamEventsResponse | bytes) -> None:
        """Put an event on disk, then into the stream. One that is false about its own sequence stays so."""
        self._sequence += 1
        kept = pb.StreamEventsResponse(sequence=self._sequence)
        if not isinstance(event, bytes):
            kept.MergeFrom(event)
        self._store.queue("INSERT INTO events VALUES (?, ?)", self._sequence, kept.SerializeToString())
        await self._store.flushed()
        self._events.append(event if isinstance(event, bytes) else kept)
        self._happened.set()
        self._happened = asyncio.Event()

    async def _hear_alerts(self) -> NoReturn:
        while True:
            try:
                call = self._fleet.WatchAlerts(sandbox_pb.WatchAlertsRequest(after_sequence=self._alerts_seen))
                async for alert in call:
                    await self._pass_on(alert)
            except grpc.aio.AioRpcError:
                pass
            await asyncio.sleep(_FLEET_RETRY_S)

    async def _pass_on(self, alert: sandbox_pb.WatchAlertsResponse) -> None:
        self._alerts_seen = alert.sequence
        self._store.queue("INSERT OR REPLACE INTO progress VALUES ('alerts', ?)", alert.sequence)
        if self._chance.unreachable(alert.meter_id) or self._chance.happens(self._chance.knobs.loss_after):
            self.counts["alerts lost"] += 1
            return
        named = self._chance.knobs.alerts_name_counter
        await self._publish(
            pb.StreamEventsResponse(
                alert=pb.Alert(
                    meter_id=alert.meter_id,
                    alert_code=alert.alert_code,
                    utrn_counter=alert.utrn_counter if named else 0,
                    originator_id=alert.originator_id if named else "",
                    raised_at=_now(),
                )
            )
        )


def _now() -> timestamp_pb2.Timestamp:
    now = timestamp_pb2.Timestamp()
    now.FromDatetime(datetime.now(tz=UTC))  # noqa: TID251  # the sandbox shares no clock with the service
    return now
