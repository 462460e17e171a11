"""grpc.health.v1 from the state of the parts: SERVING only if a vend asked for now could be issued now."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import NoReturn

from grpc_health.v1 import health, health_pb2

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.1
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """Watches named conditions and tells callers whether all of them hold."""

    def __init__(self, conditions: Mapping[str, Callable[[], bool]], services: tuple[str, ...]) -> None:
        """Take `conditions`, by name for the log, and the `services` they decide ("" is added: the whole server)."""
        self.servicer = health.aio.HealthServicer()
        self._conditions = conditions
        self._services = ("", *services)
        self._failing: frozenset[str] | None = None

    @property
    def serving(self) -> bool:
        """True if the last look found every condition to hold."""
        return self._failing is not None and not self._failing

    @property
    def failing(self) -> list[str]:
        """The conditions that did not hold at the last look, by name, sorted."""
        return sorted(self._failing or ())

    async def run(self) -> NoReturn:
        """Look for ever."""
        while True:
            failing = frozenset(name for name, holds in self._conditions.items() if not holds())
            if failing != self._failing:
                self._failing = failing
                log.info("health", extra={"serving": not failing, "failing": sorted(failing)})
                state = (
                    health_pb2.HealthCheckResponse.NOT_SERVING if failing else health_pb2.HealthCheckResponse.SERVING
                )
                for service in self._services:
                    await self.servicer.set(service, state)
            await asyncio.sleep(_LOOK_EVERY_S)

    async def leave(self) -> None:
        """Tell callers to go elsewhere, for good."""
        await self.servicer.enter_graceful_shutdown()
