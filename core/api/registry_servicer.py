"""RegistryService: records in bulk."""
# ruff: noqa: N802

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

from utrn.v1 import registry_service_pb2 as pb
from utrn.v1 import registry_service_pb2_grpc as rpc

from core.api.authenticate import Authenticate
from core.api.limits import in_slices
from core.api.registry_file import read_line
from core.api.status import Context
from core.domain.effective_dated import Ms, ms_of
from core.domain.errors import BadField, Refused
from core.domain.meter import PanRule
from core.domain.participant import Principal
from core.ports.clock import Clock
from core.registry.bulk_load import Loadable, LoadRecords

_LINES_MAX = 1000
_LINE_NUMBER_MAX = 10**12


@dataclass(frozen=True, kw_only=True)
class RegistryServicer(rpc.RegistryServiceServicer):
    """What each method promises is written in registry_service.proto."""

    authenticate: Authenticate
    load: LoadRecords
    clock: Clock
    pan_rule: PanRule

    async def LoadRecords(
        self, requests: AsyncIterator[pb.LoadRecordsRequest], context: Context
    ) -> AsyncIterator[pb.LoadRecordsResponse]:
        """Load a file part by part."""
        async for request in requests:
            # Anew for each part: a stream may stay open for long, and a suspension takes effect at once.
            principal = self.authenticate(context)
            if not 1 <= len(request.lines) <= _LINES_MAX or not 1 <= request.first_line <= _LINE_NUMBER_MAX:
                raise BadField(f"lines: 1 to {_LINES_MAX} lines from line 1 on are needed", field="lines")
            numbered = ((number, line) for number, line in enumerate(request.lines, request.first_line) if line.strip())
            lines = await in_slices(numbered, partial(self._line, principal))
            loaded = await self.load(principal, lines)
            yield pb.LoadRecordsResponse(
                last_line=request.first_line + len(request.lines) - 1,
                loaded=loaded.loaded,
                unchanged=loaded.unchanged,
                problems=[
                    pb.LineProblem(line=number, reason=one.reason, message=one.message)
                    for number, one in sorted(loaded.problems.items())
                ],
            )

    def _line(self, principal: Principal, numbered: tuple[int, str]) -> tuple[int, Loadable | Refused]:
        number, line = numbered
        try:
            return number, read_line(line, pan_rule=self.pan_rule, now=self._now(), by=principal.participant_id)
        except Refused as error:
            return number, error

    def _now(self) -> Ms:
        return ms_of(self.clock.now())
