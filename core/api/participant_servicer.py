"""ParticipantService: who takes part in the market."""
# ruff: noqa: N802

from dataclasses import dataclass

from utrn.v1 import participant_service_pb2 as pb
from utrn.v1 import participant_service_pb2_grpc as rpc

from core.api import validation
from core.api.approval_request import asked_of
from core.api.authenticate import Authenticate
from core.api.change_messages import result_message, since_of
from core.api.paging import fit, page_size, page_start, page_token
from core.api.participant_messages import new_participant, participant_message, profile_of, supplier_key_of
from core.api.status import Context
from core.domain.ceiling import parse_ceiling
from core.domain.effective_dated import NEVER, Ms, ms_of
from core.domain.errors import BadField
from core.domain.participant import ParticipantId, ParticipantStatus, Revocations, parse_participant_id
from core.ports.clock import Clock
from core.registry.participants import ParticipantAdmin
from core.registry.queries import RegistryQueries


@dataclass(frozen=True, kw_only=True)
class ParticipantServicer(rpc.ParticipantServiceServicer):
    """What each method promises is written in participant_service.proto."""

    authenticate: Authenticate
    parties: ParticipantAdmin
    view: RegistryQueries
    clock: Clock

    async def AddParticipant(self, request: pb.AddParticipantRequest, context: Context) -> pb.AddParticipantResponse:
        """Bring a participant on board."""
        principal, new = self.authenticate(context), new_participant(request)
        subject = f"bring {new.participant_id} on board as {new.role.name.lower()}: {', '.join(new.identities)}"
        done = await self.parties.add(principal, new, asked=asked_of("AddParticipant", request, subject))
        return pb.AddParticipantResponse(result=result_message(done))

    async def SetIdentities(self, request: pb.SetIdentitiesRequest, context: Context) -> pb.SetIdentitiesResponse:
        """Change name and certificates."""
        principal, participant_id = self.authenticate(context), _participant_id(request.participant_id)
        name = validation.parse_text(request.name, "name", least=1, most=200)
        identities = validation.parse_uris(request.identities, "identities")
        subject = f"certificates of {participant_id}: {', '.join(identities)}"
        asked = asked_of("SetIdentities", request, subject)
        done = await self.parties.set_identities(principal, participant_id, name, identities, asked=asked)
        return pb.SetIdentitiesResponse(result=result_message(done))

    async def RevokeCertificates(
        self, request: pb.RevokeCertificatesRequest, context: Context
    ) -> pb.RevokeCertificatesResponse:
        """Revoke certificates."""
        principal, participant_id = self.authenticate(context), _participant_id(request.participant_id)
        before = since_of(request, "issued_before", now=self._now())
        if before is None and not request.fingerprints:
            raise BadField("fingerprints: those, or issued_before, must be said", field="fingerprints")
        if before is not None and before > self._now():
            raise BadField("issued_before: must not be in the future", field="issued_before")
        more = Revocations(
            issued_before=before or NEVER,
            fingerprints=validation.parse_fingerprints(request.fingerprints, "fingerprints"),
        )
        done = await self.parties.revoke(principal, participant_id, more)
        return pb.RevokeCertificatesResponse(result=result_message(done))

    async def SetSupplierKey(self, request: pb.SetSupplierKeyRequest, context: Context) -> pb.SetSupplierKeyResponse:
        """Correct a supplier's key."""
        principal, participant_id = self.authenticate(context), _participant_id(request.participant_id)
        key = supplier_key_of(request.supplier_key)
        subject = f"make codes of {participant_id} with the HSM key {key.key_id}"
        asked = asked_of("SetSupplierKey", request, subject)
        done = await self.parties.set_supplier_key(principal, participant_id, key, asked=asked)
        return pb.SetSupplierKeyResponse(result=result_message(done))

    async def SetParticipantStatus(
        self, request: pb.SetParticipantStatusRequest, context: Context
    ) -> pb.SetParticipantStatusResponse:
        """Suspend, readmit, offboard."""
        status = ParticipantStatus(validation.number_in(request.status, "status", ParticipantStatus))
        principal, participant_id = self.authenticate(context), _participant_id(request.participant_id)
        asked = asked_of("SetParticipantStatus", request, f"{participant_id}: {status.name.lower()}")
        done = await self.parties.set_status(principal, participant_id, status, asked=asked)
        return pb.SetParticipantStatusResponse(result=result_message(done))

    async def SetCeiling(self, request: pb.SetCeilingRequest, context: Context) -> pb.SetCeilingResponse:
        """Set the most that a seller may sell in an hour."""
        principal = self.authenticate(context)
        if not request.HasField("ceiling_pence"):
            raise BadField("ceiling_pence: is missing; 0 stands for the agreed ceiling", field="ceiling_pence")
        pence = parse_ceiling(request.ceiling_pence, field="ceiling_pence")
        done = await self.parties.set_ceiling(principal, _participant_id(request.participant_id), pence)
        return pb.SetCeilingResponse(result=result_message(done))

    async def SetProfile(self, request: pb.SetProfileRequest, context: Context) -> pb.SetProfileResponse:
        """Choose who may issue and deliver."""
        done = await self.parties.set_profile(
            self.authenticate(context),
            parse_participant_id(request.supplier_id, field="supplier_id"),
            profile_of(request.profile),
            since_of(request, now=self._now()),
        )
        return pb.SetProfileResponse(result=result_message(done))

    async def CancelProfile(self, request: pb.CancelProfileRequest, context: Context) -> pb.CancelProfileResponse:
        """Cancel a profile that waits."""
        supplier_id = parse_participant_id(request.supplier_id, field="supplier_id")
        done = await self.parties.cancel_profile(self.authenticate(context), supplier_id)
        return pb.CancelProfileResponse(result=result_message(done))

    async def GetParticipant(self, request: pb.GetParticipantRequest, context: Context) -> pb.GetParticipantResponse:
        """Look a participant up."""
        principal = self.authenticate(context)
        wanted = _participant_id(request.participant_id) if request.participant_id else principal.participant_id
        found = await self.view.participant(principal, wanted)
        return pb.GetParticipantResponse(participant=participant_message(found))

    async def ListParticipants(
        self, request: pb.ListParticipantsRequest, context: Context
    ) -> pb.ListParticipantsResponse:
        """List participants."""
        limit = page_size(request.page_size)
        found, after = await self.view.participants(self.authenticate(context), page_start(request.page_token), limit)
        page, after = fit(
            ((participant.participant_id, participant_message(participant)) for participant in found), after
        )
        return pb.ListParticipantsResponse(participants=page, next_page_token=page_token(after))

    def _now(self) -> Ms:
        return ms_of(self.clock.now())


def _participant_id(text: str) -> ParticipantId:
    return parse_participant_id(text, field="participant_id")
