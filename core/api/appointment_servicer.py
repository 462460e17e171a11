"""AppointmentService: suppliers appoint PSPs."""
# ruff: noqa: N802

from dataclasses import dataclass

from utrn.v1 import appointment_service_pb2 as pb
from utrn.v1 import appointment_service_pb2_grpc as rpc

from core.api.appointment_messages import appointment_messages, signed_appointment
from core.api.authenticate import Authenticate
from core.api.paging import fit, page_size, page_start, page_token
from core.api.status import Context
from core.domain.effective_dated import ms_of
from core.domain.errors import BadField
from core.domain.participant import ParticipantId, parse_participant_id
from core.registry.appointments import Appoint
from core.registry.queries import RegistryQueries


@dataclass(frozen=True, kw_only=True)
class AppointmentServicer(rpc.AppointmentServiceServicer):
    """The appointments' service. What each method promises is written in appointment_service.proto."""

    authenticate: Authenticate
    appoint: Appoint
    view: RegistryQueries

    async def Appoint(self, request: pb.AppointRequest, context: Context) -> pb.AppointResponse:
        """Propose an appointment."""
        principal = self.authenticate(context)
        signed = signed_appointment(request, now=ms_of(self.appoint.clock.now()))
        done = await self.appoint.propose(principal, signed.terms, signed.evidence)
        return pb.AppointResponse(changed=done.changed)

    async def AcceptAppointment(
        self, request: pb.AcceptAppointmentRequest, context: Context
    ) -> pb.AcceptAppointmentResponse:
        """Accept an appointment."""
        done = await self.appoint.accept(self.authenticate(context), *_named(request.name))
        return pb.AcceptAppointmentResponse(changed=done.changed)

    async def SuspendAppointment(
        self, request: pb.SuspendAppointmentRequest, context: Context
    ) -> pb.SuspendAppointmentResponse:
        """Suspend an appointment."""
        name = _named(request.name)
        done = await self.appoint.suspend(self.authenticate(context), *name, suspended=request.suspended)
        return pb.SuspendAppointmentResponse(changed=done.changed)

    async def EndAppointment(self, request: pb.EndAppointmentRequest, context: Context) -> pb.EndAppointmentResponse:
        """End an appointment."""
        done = await self.appoint.end(self.authenticate(context), *_named(request.name))
        return pb.EndAppointmentResponse(changed=done.changed)

    async def GetAppointments(self, request: pb.GetAppointmentsRequest, context: Context) -> pb.GetAppointmentsResponse:
        """Look appointments up."""
        found = await self.appoint.find(
            self.authenticate(context),
            parse_participant_id(request.supplier_id, field="supplier_id"),
            parse_participant_id(request.psp_id, field="psp_id"),
        )
        return pb.GetAppointmentsResponse(appointments=appointment_messages(found.all))

    async def ListAppointments(
        self, request: pb.ListAppointmentsRequest, context: Context
    ) -> pb.ListAppointmentsResponse:
        """List appointments."""
        whose = parse_participant_id(request.supplier_id, field="supplier_id") if request.supplier_id else None
        found, after = await self.view.appointments(
            self.authenticate(context), whose, page_start(request.page_token), page_size(request.page_size)
        )
        keys = (f"{appointment.terms.supplier_id}/{appointment.terms.psp_id}" for appointment in found)
        page, after = fit(zip(keys, appointment_messages(found), strict=True), after)
        return pb.ListAppointmentsResponse(appointments=page, next_page_token=page_token(after))


def _named(name: pb.AppointmentName) -> tuple[ParticipantId, ParticipantId, str]:
    if not name.appointment_id:
        raise BadField("name.appointment_id: is missing", field="name.appointment_id")
    return (
        parse_participant_id(name.supplier_id, field="name.supplier_id"),
        parse_participant_id(name.psp_id, field="name.psp_id"),
        name.appointment_id,
    )
