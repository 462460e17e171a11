"""Connections: one gRPC channel per etcd member, the one that calls go to now, and how each channel is opened."""

import asyncio
import logging

import grpc

from cluster.config import EtcdConfig
from core.net.channels import Remote, channel_options

log = logging.getLogger(__name__)


class Connections:
    """The channels to the configured endpoints, in their order; opened by the first call, not before."""

    def __init__(self, config: EtcdConfig) -> None:
        self._config = config
        self._timeout_s = config.call_timeout_ms / 1000
        self._channels: list[grpc.aio.Channel] = []
        self._current = 0

    async def live(self) -> grpc.aio.Channel | None:
        """Return a channel with a live connection, the current one if it has; None if none has within a call's time.

        A call is sent only where a connection stands, so that "could not connect" never has to be told from "was sent
        and lost".
        """
        self._open_all()
        channel = self._channels[self._current]
        if channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
            return channel
        loop = asyncio.get_running_loop()
        until = loop.time() + self._timeout_s
        while loop.time() < until:
            for index, other in enumerate(self._channels):
                if other.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
                    self._current = index
                    return other
            await asyncio.sleep(0.01)
        return None

    def by_endpoint(self) -> dict[str, grpc.aio.Channel]:
        """Return the channel to each endpoint."""
        self._open_all()
        return dict(zip(self._config.endpoints, self._channels, strict=True))

    def rotate(self) -> None:
        """Let the next call go to the next member."""
        self._current = (self._current + 1) % max(1, len(self._channels))

    async def renew(self) -> None:
        """Open every connection anew, with the certificates that are there now.

        Calls under way end by their own deadlines, watches are resumed on a new connection. Where a file is being
        replaced again, the connections stay: its next change brings this call once more.
        """
        if not self._channels:
            return
        try:
            opened = [self._open(endpoint) for endpoint in self._config.endpoints]
        except OSError as error:
            log.warning("connections to etcd stay as they are", extra={"error": str(error)})
            return
        left, self._channels, self._current = self._channels, opened, 0
        async with asyncio.TaskGroup() as tasks:
            for channel in left:
                tasks.create_task(channel.close(2 * self._timeout_s))

    async def close(self) -> None:
        """Close every channel."""
        for channel in self._channels:
            await channel.close()

    def _open_all(self) -> None:
        if not self._channels:
            self._channels = [self._open(endpoint) for endpoint in self._config.endpoints]

    def _open(self, endpoint: str) -> grpc.aio.Channel:
        config = self._config
        named = "" if config.ca is None else config.server_name
        options = (
            *channel_options(Remote.ETCD, server_name=named),
            ("grpc.max_receive_message_length", 64 * 1024 * 1024),
        )
        if config.ca is None or config.cert is None or config.key is None:
            return grpc.aio.insecure_channel(endpoint, options=options)
        credentials = grpc.ssl_channel_credentials(
            config.ca.read_bytes(), config.key.read_bytes(), config.cert.read_bytes()
        )
        return grpc.aio.secure_channel(endpoint, credentials, options=options)
