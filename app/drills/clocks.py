"""The fault of the drill `clock`: wall clocks step, slew and differ, a process stops, changes fall due in between."""

import asyncio
import signal
import time
import urllib.request
from dataclasses import dataclass, field

from google.protobuf import timestamp_pb2
from utrn.v1 import meter_service_pb2 as pb
from utrn.v1 import meter_service_pb2_grpc as rpc
from utrn_client.channel import Tls, open_channel

from app.devstack.files import NODES, OPERATOR, SUPPLIERS
from app.devstack.stack import etcd_config
from app.drills.environment import World
from app.drills.faults import Fault, send_signal
from cluster.audit.ledger_scan import time_and_due
from cluster.config import EtcdConfig
from cluster.etcd.client import EtcdClient, EtcdUnreachable
from core.domain.delivery import DeliveryState
from core.gateways.system_clock import SystemClock

_GIVEN_UP = (DeliveryState.ENTER_BY_HAND, DeliveryState.REFUSED)
_HOUR = 3600
_STEPS = (_HOUR, -_HOUR, 48 * _HOUR, -48 * _HOUR)
_WHO = (NODES[:1], NODES[:2], NODES)
_HOLD_S = 2.5
_BETWEEN_S = 1.5
_LOOK_EVERY_S = 0.1
_FAR = 8
_SOON = 12
_SLEW_S = 0.02
_EVERY_S = 5.0


@dataclass(slots=True)
class _Seen:
    """What is looked at throughout, in the true time of this process: changes by their instants, and cluster time."""

    far: set[int] = field(default_factory=set)
    soon: set[int] = field(default_factory=set)
    early: int = 0
    late_s: float = 0.0
    off_s: float = 0.0
    unknown: set[str] = field(default_factory=set)
    away: set[str] = field(default_factory=set)


async def clock_table(world: World) -> Fault:
    """Step one, two and all wall clocks by an hour and two days, both ways; slew them; stop a node; boot one wrong."""
    config, seen = etcd_config(world.stack), _Seen()
    # The node that stands still is taken over by right; no other is.
    fault = Fault(at=time.monotonic(), hit=set(NODES[:1]))
    await _record_changes(world, seen)
    looking = asyncio.create_task(_look(world, config, seen))  # noqa: TID251  # ends with this function
    try:
        for nodes in _WHO:
            for seconds in _STEPS:
                await _hold(world, dict.fromkeys(nodes, float(seconds)))
        await _hold(world, {NODES[0]: 120.0, NODES[1]: -120.0})
        for tick in range(40):
            _set(world, dict.fromkeys(NODES, tick * _SLEW_S))
            await asyncio.sleep(_LOOK_EVERY_S)
        await _stop(world, NODES[0], seen)
        await _boot_wrong(world, NODES[1], seen)
        await _until_due(seen)
    finally:
        looking.cancel()
        _set(world, dict.fromkeys(NODES, 0.0))
    fault.healed_at = time.monotonic()
    fault.facts |= {
        "changes_early": seen.early,
        "changes_missed": len(seen.soon),
        "change_late_ms": round(seen.late_s * 1000),
        "time_off_ms": round(seen.off_s * 1000),
        "time_unknown": len(seen.unknown),
        "given_up": sum(vend.delivery.state in _GIVEN_UP for vend in world.watch.vends.values()),
    }
    return fault


def _set(world: World, offs: dict[str, float]) -> None:
    for node, seconds in offs.items():
        world.stack.set_clock(node, seconds)


async def _hold(world: World, offs: dict[str, float]) -> None:
    """Have clocks wrong for a while, and right again for a while."""
    _set(world, offs)
    await asyncio.sleep(_HOLD_S)
    _set(world, dict.fromkeys(offs, 0.0))
    await asyncio.sleep(_BETWEEN_S)


async def _stop(world: World, node: str, seen: _Seen) -> None:
    """Let a machine stand still, its clock an hour ahead when it goes on: a VM that was paused."""
    seen.away.add(node)
    send_signal(world.stack.pid(node), signal.SIGSTOP)
    world.stack.set_clock(node, _HOUR)
    await asyncio.sleep(4.0)
    send_signal(world.stack.pid(node), signal.SIGCONT)
    await asyncio.sleep(_HOLD_S)
    seen.away.discard(node)
    world.stack.set_clock(node, 0)


async def _boot_wrong(world: World, node: str, seen: _Seen) -> None:
    """Start a node whose clock is a day ahead, while the others carry the time."""
    seen.away.add(node)
    await asyncio.to_thread(world.stack.kill, node, signal.SIGTERM)
    world.stack.set_clock(node, 24 * _HOUR)
    await asyncio.to_thread(world.stack.start_node, node)
    seen.away.discard(node)
    await asyncio.sleep(_HOLD_S)
    world.stack.set_clock(node, 0)


async def _record_changes(world: World, seen: _Seen) -> None:
    """Record changes of supplier for in twelve hours, and settings for one instant after the other from now on."""
    certs = world.stack.certs(OPERATOR)
    tls = Tls(cert=certs.cert, key=certs.key, ca=certs.ca)
    async with open_channel([world.stack.node_target(node) for node in NODES], tls) as channel:
        stub: rpc.MeterServiceAsyncStub = rpc.MeterServiceStub(channel)
        losing, gaining = SUPPLIERS
        page = await stub.ListMeters(pb.ListMetersRequest(page_size=1000), timeout=10.0)
        meters = [meter for meter in page.meters if meter.registrations[-1].supplier_id == losing]
        for number, one in enumerate(meters[:_FAR]):
            at = _stamp(_now() + 12 * _HOUR + number)
            change = pb.ChangeSupplierRequest(
                meter_id=one.meter_id, losing_supplier_id=losing, gaining_supplier_id=gaining, since=at
            )
            await stub.ChangeSupplier(change, timeout=10.0)
            seen.far.add(at.ToMilliseconds())
        for number, one in enumerate(meters[_FAR : _FAR + _SOON], start=1):
            at, settings = _stamp(_now() + _EVERY_S * number), one.settings[-1].settings
            settings.firmware = "drill"
            await stub.ChangeMeter(
                pb.ChangeMeterRequest(meter_id=one.meter_id, settings=settings, since=at), timeout=10.0
            )
            seen.soon.add(at.ToMilliseconds())


def _now() -> float:
    """Return the true time: no clock of this process is faked."""
    return SystemClock().now().timestamp()


def _stamp(at: float) -> timestamp_pb2.Timestamp:
    stamp = timestamp_pb2.Timestamp()
    stamp.FromMilliseconds(round(at * 1000))
    return stamp


async def _look(world: World, config: EtcdConfig, seen: _Seen) -> None:
    client = EtcdClient(config)
    try:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                instant, there = await time_and_due(client, config)
            except EtcdUnreachable:
                continue
            now = _now()
            for node in set(NODES) - seen.away:
                if not await asyncio.to_thread(_knows_time, world, node) and node not in seen.away:
                    seen.unknown.add(node)
            for at in (seen.far | seen.soon) - there:
                # Cluster time may be drawn along by clocks that are slewed, a little.
                seen.early += at / 1000 > now + 1.5
                seen.late_s = max(seen.late_s, now - at / 1000)
            seen.far &= there
            seen.soon &= there
            off = instant / 1000 - now
            # Up to a second old by the way it is kept.
            seen.off_s = max(seen.off_s, off, -1.5 - off)
    finally:
        await client.close()


def _knows_time(world: World, node: str) -> bool:
    try:
        with urllib.request.urlopen(world.stack.metrics_url(node), timeout=5.0) as page:  # noqa: S310  # the stack's own
            return "utrn_time_known 1.0" in page.read().decode()
    except OSError:
        # It does not say: on a busy machine its page may take its time.
        return True


async def _until_due(seen: _Seen) -> None:
    while seen.soon and max(seen.soon) / 1000 > _now() - 5:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_EVERY_S)
