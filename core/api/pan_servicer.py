"""PanService: which PANs there are, and what they stand for."""
# ruff: noqa: N802

from collections.abc import AsyncIterator
from dataclasses import dataclass

from utrn.v1 import pan_service_pb2 as pb
from utrn.v1 import pan_service_pb2_grpc as rpc

from core.api import validation
from core.api.authenticate import Authenticate
from core.api.change_messages import result_message, since_of
from core.api.pan_messages import form_of, new_pan, pan_message
from core.api.status import Context
from core.domain.effective_dated import Ms, ms_of
from core.domain.errors import BadField
from core.domain.meter import MeterId, Pan, PanRule, parse_pan
from core.domain.participant import ParticipantId, Role, parse_participant_id
from core.ports.clock import Clock
from core.registry.pans import PanAdmin
from core.registry.queries import RegistryQueries
from core.registry.reconcile import Claim, ReconcilePans

_LINES_MAX = 1000


@dataclass(frozen=True, kw_only=True)
class PanServicer(rpc.PanServiceServicer):
    """What each method promises is written in pan_service.proto."""

    authenticate: Authenticate
    pans: PanAdmin
    reconcile: ReconcilePans
    view: RegistryQueries
    clock: Clock
    pan_rule: PanRule

    async def AssignPan(self, request: pb.AssignPanRequest, context: Context) -> pb.AssignPanResponse:
        """Give a PAN."""
        principal, new = self.authenticate(context), new_pan(request, self.pan_rule, now=self._now())
        done = await self.pans.give(principal, new.pan, new.form, new.meter_id, new.since)
        return pb.AssignPanResponse(result=result_message(done))

    async def ReplacePan(self, request: pb.ReplacePanRequest, context: Context) -> pb.ReplacePanResponse:
        """Replace a lost PAN."""
        if request.new_pan == request.lost_pan:
            raise BadField("new_pan: another one than the lost one is needed", field="new_pan")
        done = await self.pans.replace_lost(
            self.authenticate(context),
            self._pan(request.lost_pan, "lost_pan"),
            self._pan(request.new_pan, "new_pan"),
            form_of(request.form),
        )
        return pb.ReplacePanResponse(result=result_message(done))

    async def SetPanBlocked(self, request: pb.SetPanBlockedRequest, context: Context) -> pb.SetPanBlockedResponse:
        """Block or unblock a PAN."""
        pan = self._pan(request.pan, "pan")
        done = await self.pans.block(self.authenticate(context), pan, blocked=request.blocked)
        return pb.SetPanBlockedResponse(result=result_message(done))

    async def RepointPan(self, request: pb.RepointPanRequest, context: Context) -> pb.RepointPanResponse:
        """Point a PAN elsewhere."""
        done = await self.pans.repoint(
            self.authenticate(context),
            self._pan(request.pan, "pan"),
            _meter_id(request.from_meter_id, "from_meter_id"),
            _meter_id(request.to_meter_id, "to_meter_id"),
            since_of(request, now=self._now()),
        )
        return pb.RepointPanResponse(result=result_message(done))

    async def CancelPan(self, request: pb.CancelPanRequest, context: Context) -> pb.CancelPanResponse:
        """Cancel what a PAN was going to stand for."""
        done = await self.pans.cancel(self.authenticate(context), self._pan(request.pan, "pan"))
        return pb.CancelPanResponse(result=result_message(done))

    async def GetPan(self, request: pb.GetPanRequest, context: Context) -> pb.GetPanResponse:
        """Look a PAN up."""
        found = await self.view.pan(self.authenticate(context), self._pan(request.pan, "pan"))
        return pb.GetPanResponse(pan=pan_message(found))

    async def ListPans(self, request: pb.ListPansRequest, context: Context) -> pb.ListPansResponse:
        """List the PANs of a meter."""
        found = await self.view.pans_of(self.authenticate(context), _meter_id(request.meter_id))
        return pb.ListPansResponse(pans=[pan_message(card) for card in found])

    async def ReconcilePans(
        self, requests: AsyncIterator[pb.ReconcilePansRequest], context: Context
    ) -> AsyncIterator[pb.ReconcilePansResponse]:
        """Reconcile PANs, meters and suppliers."""
        principal = self.authenticate(context)
        first = await anext(requests, pb.ReconcilePansRequest())
        whose = _participant_id(first.supplier_id) if first.supplier_id else None
        if whose is None and principal.role is Role.SUPPLIER:
            whose = principal.participant_id
        async for part in self.reconcile(principal, whose, self._claims(first, requests)):
            yield pb.ReconcilePansResponse(
                findings=[
                    pb.PanFinding(
                        kind=pb.PanFindingKind.ValueType(one.kind), pan=one.pan or "", meter_id=one.meter_id or ""
                    )
                    for one in part.found
                ],
                pans=part.pans,
                meters=part.meters,
            )

    async def _claims(
        self, first: pb.ReconcilePansRequest, others: AsyncIterator[pb.ReconcilePansRequest]
    ) -> AsyncIterator[list[Claim]]:
        yield self._claims_of(first)
        async for request in others:
            yield self._claims_of(request)

    def _claims_of(self, request: pb.ReconcilePansRequest) -> list[Claim]:
        if len(request.claims) > _LINES_MAX:
            raise BadField(f"claims: at most {_LINES_MAX} in a request", field="claims")
        return [
            Claim(pan=self._pan(claim.pan, "claims.pan"), meter_id=_meter_id(claim.meter_id, "claims.meter_id"))
            for claim in request.claims
        ]

    def _pan(self, text: str, field: str) -> Pan:
        return parse_pan(text, self.pan_rule, field=field)

    def _now(self) -> Ms:
        return ms_of(self.clock.now())


def _meter_id(text: str, field: str = "meter_id") -> MeterId:
    return validation.parse_meter_id(text, field)


def _participant_id(text: str) -> ParticipantId:
    return parse_participant_id(text, field="participant_id")
