"""HTTP/2 of a stranger's own, over TLS with a certificate: any window, any reset, half a message."""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes

from app.devstack.ca import CertPaths
from app.devstack.stack import DevStack
from core.net.address import parse_address

_READ_BYTES = 65_536


def framed(body: bytes, *, says: int | None = None) -> bytes:
    """Return a message as gRPC puts it into DATA; it `says` another length than it has, if asked to."""
    return struct.pack(">BI", 0, len(body) if says is None else says) + body


class Frames:
    """One connection. What the node sends is taken in by `drain`, which hands nothing back to its windows."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, window: int) -> None:
        self._reader = reader
        self._writer = writer
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._h2.initiate_connection()
        self._h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.ended: set[int] = set()
        self.replied: set[int] = set()
        self.over = False

    async def flush(self) -> None:
        """Send what was said."""
        self._writer.write(self._h2.data_to_send())
        try:
            await self._writer.drain()
        except (ConnectionError, ssl.SSLError):
            self.over = True

    def call(self, method: str, body: bytes | None, *, end: bool = True) -> int:
        """Open a stream for `/package.Service/Method`, with DATA of these bytes if any; return its number."""
        stream = self._h2.get_next_available_stream_id()
        headers = [
            (":method", "POST"), (":scheme", "https"), (":path", method), (":authority", "localhost"),
            ("te", "trailers"), ("content-type", "application/grpc"),
        ]  # fmt: skip
        self._h2.send_headers(stream, headers, end_stream=end and body is None)
        if body is not None:
            self._h2.send_data(stream, body, end_stream=end)
        return stream

    async def more(self, stream: int, body: bytes) -> int:
        """Send as many of the bytes as the node's windows take now; return how many that were."""
        try:
            room = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size, len(body))
            if room > 0:
                self._h2.send_data(stream, body[:room])
                await self.flush()
        except ProtocolError:
            return 0
        return max(room, 0)

    def reset(self, stream: int) -> None:
        """Take a call back."""
        self._h2.reset_stream(stream, ErrorCodes.CANCEL)

    async def drain(self, for_s: float) -> None:
        """Take in what comes, for so long or until the node has ended the connection."""
        try:
            async with asyncio.timeout(for_s):
                while data := await self._reader.read(_READ_BYTES):
                    for event in self._h2.receive_data(data):
                        if isinstance(event, StreamEnded | StreamReset):
                            self.ended.add(event.stream_id or 0)
                        elif isinstance(event, DataReceived):
                            self.replied.add(event.stream_id or 0)
                        elif isinstance(event, ConnectionTerminated):
                            self.over = True
                    await self.flush()
                self.over = True
        except TimeoutError:
            return
        except (ConnectionError, ssl.SSLError, ProtocolError):
            self.over = True


@asynccontextmanager
async def frames(
    stack: DevStack, who: str, *, window: int = 65_535, node: str = "node-a", certs: CertPaths | None = None
) -> AsyncIterator[Frames]:
    """A connection to one node as `who`, with the flow-control window that its streams begin with."""
    paths = certs or stack.certs(who)
    tls = ssl.create_default_context(cafile=str(stack.certs(who).ca))
    tls.load_cert_chain(paths.cert, paths.key)
    tls.set_alpn_protocols(["h2"])
    at = parse_address(stack.node_target(node))
    reader, writer = await asyncio.open_connection(at.host, at.port, ssl=tls, server_hostname="localhost")
    try:
        made = Frames(reader, writer, window)
        await made.flush()
        await made.drain(0.2)
        yield made
    finally:
        writer.transport.abort()
