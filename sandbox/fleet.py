"""The fleet: thousands of meters in one process, behind utrn.sandbox.v1.FleetService; their state is on disk."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

import grpc
from utrn.sandbox.v1 import sandbox_pb2 as pb
from utrn.sandbox.v1 import sandbox_pb2_grpc as rpc

from sandbox.meter import Credit, Handled, Meter, Result, Rules
from sandbox.store import Store

SCHEMA = """
CREATE TABLE IF NOT EXISTS meters (
    meter_id TEXT PRIMARY KEY, gas INTEGER NOT NULL, scalar TEXT NOT NULL, originators TEXT NOT NULL,
    max_credit INTEGER NOT NULL, max_balance INTEGER NOT NULL, balance INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS credits (
    sequence INTEGER PRIMARY KEY, meter_id TEXT NOT NULL, originator_id TEXT NOT NULL, counter INTEGER NOT NULL,
    utrn TEXT NOT NULL, pence INTEGER NOT NULL, keypad INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS alerts (
    sequence INTEGER PRIMARY KEY, meter_id TEXT NOT NULL, code INTEGER NOT NULL, counter INTEGER NOT NULL,
    originator_id TEXT NOT NULL);
"""

# DLMS action results and ZigBee result types (DOMAIN: an ESME never says why, a GSME does).
_DLMS_SUCCESS, _DLMS_OTHER_REASON = 0, 250
_ZIGBEE = {
    Result.APPLIED: 0,
    Result.MALFORMED: 1,
    Result.NOT_AUTHENTIC: 1,
    Result.DUPLICATE: 2,
    Result.LOCKED: 5,
    Result.MAX_CREDIT: 6,
    Result.MAX_BALANCE: 4,
}
_DISPLAYS = {
    Result.DUPLICATE: "DUPLICATE",
    Result.MALFORMED: "INCORRECT",
    Result.NOT_AUTHENTIC: "INVALID",
    Result.MAX_CREDIT: "ABOVE MAX CREDIT",
    Result.MAX_BALANCE: "ACCOUNT HIGH",
    Result.LOCKED: "KEY LOCKED",
}

Context = grpc.aio.ServicerContext[Any, Any]


class Fleet(rpc.FleetServiceServicer):
    """All meters. A meter decides in memory; its answer leaves when what it decided is on disk."""

    def __init__(self, path: Path, rules: Rules) -> None:
        self._store = Store(path, SCHEMA)
        self._meters: dict[str, Meter] = {}
        self._counts: Counter[str] = Counter()
        for meter_id, gas, scalar, originators, max_credit, max_balance, balance in self._store.read(
            "SELECT meter_id, gas, scalar, originators, max_credit, max_balance, balance FROM meters"
        ):
            points = {eui: bytes.fromhex(point) for eui, point in json.loads(originators).items()}
            self._meters[meter_id] = Meter(
                meter_id, bool(gas), int(scalar, 16), points, max_credit, max_balance, rules=rules
            )
            self._meters[meter_id].balance_pence = balance
        self._recall()
        self._alerts: list[pb.WatchAlertsResponse] = [
            pb.WatchAlertsResponse(
                sequence=sequence, meter_id=meter_id, alert_code=code, utrn_counter=counter, originator_id=originator
            )
            for sequence, meter_id, code, counter, originator in self._store.read(
                "SELECT sequence, meter_id, code, counter, originator_id FROM alerts ORDER BY sequence"
            )
        ]
        self._last_alert = len(self._alerts)
        self._raised = asyncio.Event()

    def _recall(self) -> None:
        for meter_id, originator_id, counter, utrn, pence, keypad in self._store.read(
            "SELECT meter_id, originator_id, counter, utrn, pence, keypad FROM credits ORDER BY sequence"
        ):
            meter = self._meters[meter_id]
            balance = meter.balance_pence
            meter.remember(Credit(originator_id, counter, utrn, pence, bool(keypad)))
            # The stored balance has these credits in it already, and what was consumed since.
            meter.balance_pence = balance

    async def run(self) -> NoReturn:
        """Write to disk for ever."""
        await self._store.run()

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    async def CarryCommand(  # noqa: N802
        self, request: pb.CarryCommandRequest, context: Context
    ) -> pb.CarryCommandResponse:
        """Carry an Add Credit to a meter."""
        meter = await self._meter(request.meter_id, context)
        handled = meter.over_the_air(request.utrn, request.originator_id, request.originator_counter)
        await self._keep(meter, handled)
        if meter.gas:
            return pb.CarryCommandResponse(gas=True, result=_ZIGBEE[handled.result])
        ok = handled.result is Result.APPLIED
        return pb.CarryCommandResponse(result=_DLMS_SUCCESS if ok else _DLMS_OTHER_REASON)

    async def EnterAtKeypad(  # noqa: N802
        self, request: pb.EnterAtKeypadRequest, context: Context
    ) -> pb.EnterAtKeypadResponse:
        """Enter digits at a meter's keypad."""
        meter = await self._meter(request.meter_id, context)
        handled = meter.keypad(request.digits)
        await self._keep(meter, handled)
        if handled.credit is None:
            return pb.EnterAtKeypadResponse(display=_DISPLAYS[handled.result])
        return pb.EnterAtKeypadResponse(display=f"ACCEPTED {handled.credit.pence / 100:.2f}", credited=True)

    async def ReadMeter(self, request: pb.ReadMeterRequest, context: Context) -> pb.ReadMeterResponse:  # noqa: N802
        """Read a meter."""
        meter = await self._meter(request.meter_id, context)
        return pb.ReadMeterResponse(
            meter_id=meter.meter_id,
            gas=meter.gas,
            balance_pence=meter.balance_pence,
            credits=meter.credits,
            highest_counter=max((meter.highest(originator) for originator in meter.originators), default=0),
        )

    async def Consume(self, request: pb.ConsumeRequest, context: Context) -> pb.ConsumeResponse:  # noqa: N802
        """Lower a balance."""
        meter = await self._meter(request.meter_id, context)
        meter.balance_pence -= max(0, request.pence)
        self._store.queue("UPDATE meters SET balance = ? WHERE meter_id = ?", meter.balance_pence, meter.meter_id)
        await self._store.flushed()
        return pb.ConsumeResponse(balance_pence=meter.balance_pence)

    async def ListCredits(  # noqa: N802
        self, request: pb.ListCreditsRequest, context: Context
    ) -> AsyncIterator[pb.ListCreditsResponse]:
        """List every credit."""
        await self._store.flushed()
        for meter_id, originator_id, counter, utrn, pence, keypad in self._store.read(
            "SELECT meter_id, originator_id, counter, utrn, pence, keypad FROM credits ORDER BY sequence"
        ):
            yield pb.ListCreditsResponse(
                meter_id=meter_id,
                originator_id=originator_id,
                utrn_counter=counter,
                utrn=utrn,
                amount_pence=pence,
                keypad=bool(keypad),
            )

    async def CountResults(  # noqa: N802
        self, request: pb.CountResultsRequest, context: Context
    ) -> pb.CountResultsResponse:
        """Count results."""
        return pb.CountResultsResponse(counts=dict(self._counts))

    async def WatchAlerts(  # noqa: N802
        self, request: pb.WatchAlertsRequest, context: Context
    ) -> AsyncIterator[pb.WatchAlertsResponse]:
        """Stream alerts."""
        sent = request.after_sequence
        while True:
            raised = self._raised
            for alert in self._alerts[sent:]:
                sent = alert.sequence
                yield alert
            await raised.wait()

    async def _meter(self, meter_id: str, context: Context) -> Meter:
        meter = self._meters.get(meter_id)
        if meter is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such meter in this fleet")
            raise AssertionError
        return meter

    async def _keep(self, meter: Meter, handled: Handled) -> None:
        """Have what `handled` changed on disk. Even a refusal waits: it may speak of a credit not yet on disk."""
        self._counts[handled.result.value] += 1
        credit = handled.credit
        if credit is not None:
            self._store.queue(
                "INSERT INTO credits (meter_id, originator_id, counter, utrn, pence, keypad) VALUES (?, ?, ?, ?, ?, ?)",
                meter.meter_id, credit.originator_id, credit.counter, credit.utrn, credit.pence, credit.keypad,
            )  # fmt: skip
            self._store.queue("UPDATE meters SET balance = ? WHERE meter_id = ?", meter.balance_pence, meter.meter_id)
        alert = self._queue_alert(meter, handled)
        await self._store.flushed()
        if alert is not None:
            # Told only now: an alert of a credit that a crash undoes would be a lie. Flushes end in order.
            self._alerts.append(alert)
            self._raised.set()
            self._raised = asyncio.Event()

    def _queue_alert(self, meter: Meter, handled: Handled) -> pb.WatchAlertsResponse | None:
        if handled.alert is None:
            return None
        self._last_alert += 1
        alert = pb.WatchAlertsResponse(
            sequence=self._last_alert,
            meter_id=meter.meter_id,
            alert_code=handled.alert.value,
            utrn_counter=handled.counter,
            originator_id=handled.originator_id,
        )
        self._store.queue(
            "INSERT INTO alerts VALUES (?, ?, ?, ?, ?)",
            alert.sequence, alert.meter_id, alert.alert_code, alert.utrn_counter, alert.originator_id,
        )  # fmt: skip
        return alert
