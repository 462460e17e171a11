"""MeterModelService: the capability matrix."""
# ruff: noqa: N802

from dataclasses import dataclass

from utrn.v1 import meter_model_service_pb2 as pb
from utrn.v1 import meter_model_service_pb2_grpc as rpc

from core.api.authenticate import Authenticate
from core.api.change_messages import result_message
from core.api.meter_messages import model_message, new_model
from core.api.status import Context
from core.domain.effective_dated import Ms, ms_of
from core.ports.clock import Clock
from core.registry.participants import ParticipantAdmin
from core.registry.queries import RegistryQueries


@dataclass(frozen=True, kw_only=True)
class MeterModelServicer(rpc.MeterModelServiceServicer):
    """What each method promises is written in meter_model_service.proto."""

    authenticate: Authenticate
    parties: ParticipantAdmin
    view: RegistryQueries
    clock: Clock

    async def SetMeterModel(self, request: pb.SetMeterModelRequest, context: Context) -> pb.SetMeterModelResponse:
        """Write a row of the capability matrix."""
        principal, new = self.authenticate(context), new_model(request, now=self._now())
        done = await self.parties.set_model(principal, new.make, new.model, new.abilities, new.since)
        return pb.SetMeterModelResponse(result=result_message(done))

    async def ListMeterModels(self, request: pb.ListMeterModelsRequest, context: Context) -> pb.ListMeterModelsResponse:
        """List the capability matrix."""
        found = await self.view.models(self.authenticate(context))
        return pb.ListMeterModelsResponse(models=[model_message(model) for model in found])

    def _now(self) -> Ms:
        return ms_of(self.clock.now())
