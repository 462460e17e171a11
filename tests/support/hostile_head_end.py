"""A head end with a certificate and no good will: it replies with bytes of its choice, and tells what it is told."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import Message
from headend.v1 import head_end_service_pb2 as pb

from app.devstack.ports import free_ports
from app.devstack.stack import DevStack
from sandbox.servers import Tls

NAME = "hostile"
_CAN = pb.GetCapabilitiesResponse(name="hostile", status_by_message_id=True, alerts_name_counter=True)


class HostileHeadEnd:
    """Its replies pass through `bend` before they leave; `tell` queues events for every stream that is open."""

    def __init__(self) -> None:
        self.bend: Callable[[bytes], bytes] = lambda raw: raw
        self.asked: set[str] = set()
        self.streams = 0
        self._told: list[bytes] = []
        self._more = asyncio.Event()

    def tell(self, *events: Message | bytes) -> None:
        """Tell every reader, those to come too."""
        self._told += [event if isinstance(event, bytes) else event.SerializeToString() for event in events]
        self._more.set()
        self._more = asyncio.Event()

    async def stream(self, _: bytes, __: Any) -> AsyncIterator[bytes]:
        """Tell all, then what comes."""
        self.asked.add("StreamEvents")
        self.streams += 1
        at = 0
        yield pb.StreamEventsResponse(sequence=0).SerializeToString()
        while True:
            more = self._more
            while at < len(self._told):
                at += 1
                yield self.bend(self._told[at - 1])
            try:
                async with asyncio.timeout(0.5):
                    await more.wait()
            except TimeoutError:
                yield self.bend(pb.StreamEventsResponse(sequence=at).SerializeToString())

    def unary(self, name: str, reply: Message) -> Any:
        """Return a method that always replies the same, bent."""

        async def method(_: bytes, __: Any) -> bytes:
            self.asked.add(name)
            return self.bend(reply.SerializeToString())

        return grpc.unary_unary_rpc_method_handler(method)

    @asynccontextmanager
    async def serving(self, stack: "BesideHostile") -> AsyncIterator["HostileHeadEnd"]:
        """Serve where the stack's nodes expect it."""
        applied = pb.Answer(message_id="0" * 103, outcome=pb.ADD_CREDIT_OUTCOME_APPLIED)
        status = pb.GetMessageStatusResponse(state=pb.MESSAGE_STATE_ANSWERED, answer=applied)
        handlers = {
            "SendAddCredit": self.unary("SendAddCredit", pb.SendAddCreditResponse(already_known=True)),
            "GetMessageStatus": self.unary("GetMessageStatus", status),
            "GetCapabilities": self.unary("GetCapabilities", _CAN),
            "StreamEvents": grpc.unary_stream_rpc_method_handler(self.stream),
        }
        certs = stack.pki.head_end(NAME)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("headend.v1.HeadEndService", handlers),))
        server.add_secure_port(
            f"127.0.0.1:{stack.hostile_port}", Tls(cert=certs.cert, key=certs.key, ca=certs.ca).server()
        )
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)


class BesideHostile(DevStack):
    """A stack whose nodes are configured with a second head end."""

    @property
    def hostile_port(self) -> int:
        """Where they expect it."""
        file = self.folder / "hostile-port"
        if not file.exists():
            file.write_text(str(free_ports(1)[0]))
        return int(file.read_text())

    def write_node_config(self, node: str) -> Any:
        """Add it to what every node has."""
        path = super().write_node_config(node)
        lines = path.read_text().splitlines()
        own = lines[lines.index("[[head_ends]]") :]
        second = [f'name = "{NAME}"' if line.startswith("name") else line for line in own]
        second = [f'target = "127.0.0.1:{self.hostile_port}"' if one.startswith("target") else one for one in second]
        path.write_text("\n".join([*lines, *second, ""]))
        return path


def mutated(chance: random.Random) -> Callable[[bytes], bytes]:
    """Return what changes, cuts, doubles or replaces bytes of a reply."""

    def bend(raw: bytes) -> bytes:
        bytes_ = bytearray(raw or b"\0")
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(bytes_))
            match chance.randrange(4):
                case 0:
                    bytes_[at] = chance.randrange(256)
                case 1:
                    bytes_ = bytes_[: at + 1]
                case 2:
                    bytes_ += bytes_[at:]
                case _:
                    bytes_[at:at] = chance.randbytes(chance.randint(1, 12))
        return bytes(bytes_)

    return bend
