"""grpc.health.v1 from the state of the parts: SERVING only if a vend asked for now could be issued now."""
# ruff: noqa: N802

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Final, NoReturn

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc as rpc

from core.api.status import Context

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.1
_SERVING: Final = pb.HealthCheckResponse.SERVING
_NOT_SERVING: Final = pb.HealthCheckResponse.NOT_SERVING


class HealthServicer(rpc.HealthServicer):
    """One status for all services, told to whoever watches. No watcher waits for another: each holds nothing."""

    def __init__(self, services: tuple[str, ...]) -> None:
        """Set the names of the services that have the status; "" is the whole server."""
        self._services = services
        self._status: int = _NOT_SERVING
        self._changed = asyncio.Event()

    def set(self, status: int) -> None:
        """Set the status, a number of grpc.health.v1, and wake who watches."""
        if status != self._status:
            self._status = status
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()

    async def Check(self, request: pb.HealthCheckRequest, context: Context) -> pb.HealthCheckResponse:
        """Tell the status."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no service of this name is here")
        return pb.HealthCheckResponse(status=self._status)

    async def List(self, request: Any, context: Context) -> Any:
        """Tell the status of every service. The stubs do not know this method."""
        return pb.HealthListResponse(  # type: ignore[attr-defined]
            statuses={name: pb.HealthCheckResponse(status=self._status) for name in self._services}
        )

    async def Watch(
        self, request: pb.HealthCheckRequest, context: Context
    ) -> AsyncGenerator[pb.HealthCheckResponse, None]:
        """Tell the status, and again after each change; only the last one to a caller that reads slowly."""
        told: Any = None
        while True:
            changed = self._changed
            known = request.service in self._services
            status = self._status if known else pb.HealthCheckResponse.SERVICE_UNKNOWN
            if status != told:
                yield pb.HealthCheckResponse(status=status)
                told = status
            else:
                await changed.wait()


class Health:
    """Watches named conditions and tells callers whether all of them hold."""

    def __init__(self, conditions: Mapping[str, Callable[[], bool]], services: tuple[str, ...]) -> None:
        """Set the `conditions`, by name for the log, and the `services` whose status they decide, "" always."""
        self.servicer = HealthServicer(("", *services))
        self._conditions = conditions
        self._failing: frozenset[str] | None = None
        self._leaving = False

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
                if not self._leaving:
                    self.servicer.set(_NOT_SERVING if failing else _SERVING)
            await asyncio.sleep(_LOOK_EVERY_S)

    def leave(self) -> None:
        """Tell callers to go elsewhere, for good."""
        self._leaving = True
        self.servicer.set(_NOT_SERVING)
