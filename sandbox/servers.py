"""Runs the fleet or the head end as a process behind mTLS, until SIGTERM."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from headend.v1 import head_end_service_pb2 as head_end_pb
from utrn.sandbox.v1 import sandbox_pb2 as pb
from utrn.sandbox.v1 import sandbox_pb2_grpc as rpc

from sandbox.fleet import Fleet
from sandbox.head_end import HeadEnd
from sandbox.knobs import Chance
from sandbox.meter import Rules

# A connection whose packets vanish is given up, from both ends, and no proxy of the environment is used.
CHANNEL_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)
SERVER_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """PEM files: this process's certificate and key, and the authority of its peers."""

    cert: Path
    key: Path
    ca: Path

    def server(self) -> grpc.ServerCredentials:
        """Return credentials that demand a client certificate."""
        pair = (self.key.read_bytes(), self.cert.read_bytes())
        return grpc.ssl_server_credentials([pair], root_certificates=self.ca.read_bytes(), require_client_auth=True)

    def channel(self, target: str) -> grpc.aio.Channel:
        """Return a channel to `target`."""
        credentials = grpc.ssl_channel_credentials(self.ca.read_bytes(), self.key.read_bytes(), self.cert.read_bytes())
        named = (("grpc.ssl_target_name_override", "localhost"), *CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(target, credentials, options=named)


def run_fleet(folder: Path, listen: str, tls: Tls, rules: Rules) -> None:
    """Run the fleet of `folder` until SIGTERM."""

    async def run() -> None:
        fleet = Fleet(folder / "fleet.sqlite", rules)
        server = grpc.aio.server(options=SERVER_OPTIONS)
        rpc.add_FleetServiceServicer_to_server(fleet, server)
        await _serve(server, listen, tls, fleet.run)
        fleet.close()

    asyncio.run(run())


def run_head_end(folder: Path, listen: str, fleet: str, tls: Tls, knobs: pb.Knobs, seed: int) -> None:
    """Run a head end with its state in `folder`, in front of the fleet at `fleet`, until SIGTERM."""
    folder.mkdir(parents=True, exist_ok=True)

    async def run() -> None:
        channel = tls.channel(fleet)
        head_end = HeadEnd(folder / "head-end.sqlite", channel, Chance(knobs, seed))
        server = grpc.aio.server(options=SERVER_OPTIONS)
        _add_head_end(server, head_end)
        rpc.add_HeadEndControlServiceServicer_to_server(head_end, server)
        await _serve(server, listen, tls, head_end.run)
        await channel.close()
        head_end.close()

    asyncio.run(run())


def _add_head_end(server: grpc.aio.Server, head_end: HeadEnd) -> None:
    """Register the head end's service as the generated code does; but a reply that is bytes leaves as it is."""

    def leave(reply: Message | bytes) -> bytes:
        return reply if isinstance(reply, bytes) else reply.SerializeToString()

    def unary(method: Any, request: type[Message]) -> Any:
        return grpc.unary_unary_rpc_method_handler(method, request.FromString, leave)

    handlers = {
        "SendAddCredit": unary(head_end.SendAddCredit, head_end_pb.SendAddCreditRequest),
        "GetMessageStatus": unary(head_end.GetMessageStatus, head_end_pb.GetMessageStatusRequest),
        "GetCapabilities": unary(head_end.GetCapabilities, head_end_pb.GetCapabilitiesRequest),
        "StreamEvents": grpc.unary_stream_rpc_method_handler(
            head_end.StreamEvents, head_end_pb.StreamEventsRequest.FromString, leave
        ),
    }
    service = head_end_pb.DESCRIPTOR.services_by_name["HeadEndService"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


async def _serve(server: grpc.aio.Server, listen: str, tls: Tls, run: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server.add_secure_port(listen, tls.server())
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(run())
        # What was in flight before is taken up again before anybody can ask.
        await asyncio.sleep(0)
        await server.start()
        await stop.wait()
        with contextlib.suppress(asyncio.CancelledError):
            await server.stop(grace=0.2)
        running.cancel()
