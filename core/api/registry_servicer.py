"""RegistryService: who takes part, which meters there are, which PANs stand for them."""
# ruff: noqa: N802

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from utrn.v1 import registry_service_pb2 as pb
from utrn.v1 import registry_service_pb2_grpc as rpc

from core.api import registry_messages as made
from core.api import top_up_messages, validation
from core.api.approval_request import asked_of
from core.api.authenticate import Authenticate
from core.api.limits import in_slices
from core.api.paging import fit
from core.api.registry_file import read_line
from core.api.status import Context
from core.domain.ceiling import parse_ceiling
from core.domain.effective_dated import NEVER, Ms, ms_of
from core.domain.errors import BadField, Refused
from core.domain.meter import Custody, MeterId, Pan, PanForm, PanRule, Settings, parse_pan
from core.domain.participant import ParticipantId, ParticipantStatus, Principal, Revocations, Role, parse_participant_id
from core.ports.clock import Clock
from core.registry.bulk_load import Loadable, LoadRecords
from core.registry.counter_transfer import HandOver, TransferCounters
from core.registry.meter_exchange import ExchangeMeter
from core.registry.meters import MeterAdmin
from core.registry.pans import PanAdmin
from core.registry.participants import ParticipantAdmin
from core.registry.queries import RegistryQueries, key_of
from core.registry.reconcile import Claim, ReconcilePans

REGISTRY_SERVICE: Final = "utrn.v1.RegistryService"
_LINES_MAX = 1000
_LINE_NUMBER_MAX = 10**12
_PANS_MAX = 20
_CODES_MAX = 30


@dataclass(frozen=True, kw_only=True)
class RegistryServicer(rpc.RegistryServiceServicer):
    """The registry's service. What each method promises is written in registry_service.proto."""

    authenticate: Authenticate
    parties: ParticipantAdmin
    meters: MeterAdmin
    exchange: ExchangeMeter
    hand_over: TransferCounters
    pans: PanAdmin
    load: LoadRecords
    reconcile: ReconcilePans
    view: RegistryQueries
    clock: Clock
    pan_rule: PanRule

    async def AddParticipant(self, request: pb.AddParticipantRequest, context: Context) -> pb.AddParticipantResponse:
        """Bring a participant on board."""
        principal, new = self.authenticate(context), made.new_participant(request)
        subject = f"bring {new.participant_id} on board as {new.role.name.lower()}: {', '.join(new.identities)}"
        done = await self.parties.add(principal, new, asked=asked_of("AddParticipant", request, subject))
        return pb.AddParticipantResponse(written=made.written(done))

    async def SetIdentities(self, request: pb.SetIdentitiesRequest, context: Context) -> pb.SetIdentitiesResponse:
        """Change name and certificates."""
        principal, participant_id = self.authenticate(context), _participant_id(request.participant_id)
        name = validation.parse_text(request.name, "name", least=1, most=200)
        identities = validation.parse_uris(request.identities, "identities")
        subject = f"certificates of {participant_id}: {', '.join(identities)}"
        asked = asked_of("SetIdentities", request, subject)
        done = await self.parties.set_identities(principal, participant_id, name, identities, asked=asked)
        return pb.SetIdentitiesResponse(written=made.written(done))

    async def RevokeCertificates(
        self, request: pb.RevokeCertificatesRequest, context: Context
    ) -> pb.RevokeCertificatesResponse:
        """Revoke certificates."""
        principal, participant_id = self.authenticate(context), _participant_id(request.participant_id)
        before = made.since_of(request, "issued_before", now=self._now())
        if before is None and not request.fingerprints:
            raise BadField("fingerprints: those, or issued_before, must be said", field="fingerprints")
        if before is not None and before > self._now():
            raise BadField("issued_before: must not be in the future", field="issued_before")
        more = Revocations(
            issued_before=before or NEVER,
            fingerprints=validation.parse_fingerprints(request.fingerprints, "fingerprints"),
        )
        done = await self.parties.revoke(principal, participant_id, more)
        return pb.RevokeCertificatesResponse(written=made.written(done))

    async def SetSupplierKey(self, request: pb.SetSupplierKeyRequest, context: Context) -> pb.SetSupplierKeyResponse:
        """Correct a supplier's key."""
        principal, participant_id = self.authenticate(context), _participant_id(request.participant_id)
        key = made.supplier_key_of(request.supplier_key)
        subject = f"make codes of {participant_id} with the HSM key {key.key_id}"
        asked = asked_of("SetSupplierKey", request, subject)
        done = await self.parties.set_supplier_key(principal, participant_id, key, asked=asked)
        return pb.SetSupplierKeyResponse(written=made.written(done))

    async def SetStanding(self, request: pb.SetStandingRequest, context: Context) -> pb.SetStandingResponse:
        """Suspend, readmit, offboard."""
        standing = ParticipantStatus(validation.number_in(request.standing, "standing", ParticipantStatus))
        principal, participant_id = self.authenticate(context), _participant_id(request.participant_id)
        asked = asked_of("SetStanding", request, f"{participant_id}: {standing.name.lower()}")
        done = await self.parties.set_standing(principal, participant_id, standing, asked=asked)
        return pb.SetStandingResponse(written=made.written(done))

    async def SetCeiling(self, request: pb.SetCeilingRequest, context: Context) -> pb.SetCeilingResponse:
        """Set the most that a seller may sell in an hour."""
        principal = self.authenticate(context)
        if not request.HasField("ceiling_pence"):
            raise BadField("ceiling_pence: is missing; 0 stands for the agreed ceiling", field="ceiling_pence")
        pence = parse_ceiling(request.ceiling_pence, field="ceiling_pence")
        done = await self.parties.set_ceiling(principal, _participant_id(request.participant_id), pence)
        return pb.SetCeilingResponse(written=made.written(done))

    async def SetProfile(self, request: pb.SetProfileRequest, context: Context) -> pb.SetProfileResponse:
        """Choose who may issue and deliver."""
        done = await self.parties.set_profile(
            self.authenticate(context),
            parse_participant_id(request.supplier_id, field="supplier_id"),
            made.profile_of(request.profile),
            made.since_of(request, now=self._now()),
        )
        return pb.SetProfileResponse(written=made.written(done))

    async def CancelProfile(self, request: pb.CancelProfileRequest, context: Context) -> pb.CancelProfileResponse:
        """Cancel a profile that waits."""
        supplier_id = parse_participant_id(request.supplier_id, field="supplier_id")
        done = await self.parties.cancel_profile(self.authenticate(context), supplier_id)
        return pb.CancelProfileResponse(written=made.written(done))

    async def GetParticipant(self, request: pb.GetParticipantRequest, context: Context) -> pb.GetParticipantResponse:
        """Look a participant up."""
        principal = self.authenticate(context)
        wanted = _participant_id(request.participant_id) if request.participant_id else principal.participant_id
        found = await self.view.participant(principal, wanted)
        return pb.GetParticipantResponse(participant=made.participant_message(found))

    async def ListParticipants(
        self, request: pb.ListParticipantsRequest, context: Context
    ) -> pb.ListParticipantsResponse:
        """List participants."""
        limit = made.page_limit(request.limit)
        found, after = await self.view.participants(self.authenticate(context), made.page_after(request.after), limit)
        page, after = fit(((one.participant_id, made.participant_message(one)) for one in found), after)
        return pb.ListParticipantsResponse(participants=page, next_after=after)

    async def SetModel(self, request: pb.SetModelRequest, context: Context) -> pb.SetModelResponse:
        """Write a row of the capability matrix."""
        done = await self.parties.set_model(
            self.authenticate(context), *made.model_of(request.model), made.since_of(request, now=self._now())
        )
        return pb.SetModelResponse(written=made.written(done))

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """List the capability matrix."""
        found = await self.view.models(self.authenticate(context))
        return pb.ListModelsResponse(models=[made.model_message(one) for one in found])

    async def AddMeter(self, request: pb.AddMeterRequest, context: Context) -> pb.AddMeterResponse:
        """Register a meter."""
        principal = self.authenticate(context)
        meter = made.new_meter_of(
            request.meter, request.supplier_id, request.settings, enrolled=not request.not_enrolled,
            since=made.since_of(request, now=self._now()), now=self._now(), by=principal.participant_id,
        )  # fmt: skip
        return pb.AddMeterResponse(written=made.written(await self.meters.add(principal, meter)))

    async def ChangeMeter(self, request: pb.ChangeMeterRequest, context: Context) -> pb.ChangeMeterResponse:
        """Change settings."""
        principal, asked = self.authenticate(context), request.settings
        made.merged(Settings(head_end=""), asked)
        done = await self.meters.change(
            principal,
            _meter_id(request.meter_id),
            lambda one: made.merged(one, asked),
            made.since_of(request, now=self._now()),
        )
        return pb.ChangeMeterResponse(written=made.written(done))

    async def ChangeSupplier(self, request: pb.ChangeSupplierRequest, context: Context) -> pb.ChangeSupplierResponse:
        """Change of Supplier."""
        done = await self.meters.change_supplier(
            self.authenticate(context),
            _meter_id(request.meter_id),
            parse_participant_id(request.losing_supplier_id, field="losing_supplier_id"),
            parse_participant_id(request.gaining_supplier_id, field="gaining_supplier_id"),
            made.since_of(request, now=self._now()),
        )
        return pb.ChangeSupplierResponse(written=made.written(done))

    async def ChangeTenant(self, request: pb.ChangeTenantRequest, context: Context) -> pb.ChangeTenantResponse:
        """Change of Tenancy."""
        if request.tenancy_before < 1:
            raise BadField("tenancy_before: 1 or more is needed", field="tenancy_before")
        done = await self.meters.change_tenant(
            self.authenticate(context),
            _meter_id(request.meter_id),
            made.since_of(request, now=self._now()),
            request.tenancy_before,
        )
        return pb.ChangeTenantResponse(written=made.written(done))

    async def ExchangeMeter(self, request: pb.ExchangeMeterRequest, context: Context) -> pb.ExchangeMeterResponse:
        """Exchange a meter."""
        principal = self.authenticate(context)
        if len(request.pans) > _PANS_MAX or len(set(request.pans)) < len(request.pans):
            raise BadField(f"pans: at most {_PANS_MAX}, each told once", field="pans")
        if request.new_meter.meter_id == request.old_meter_id:
            raise BadField("new_meter.meter_id: another one than the old one is needed", field="new_meter.meter_id")
        new = made.new_meter_of(
            request.new_meter, request.supplier_id, request.settings, enrolled=True, since=None, now=self._now(),
            by=principal.participant_id,
        )  # fmt: skip
        pans = [self._pan(pan, "pans") for pan in request.pans]
        done = await self.exchange(principal, _meter_id(request.old_meter_id, "old_meter_id"), new, pans)
        return pb.ExchangeMeterResponse(written=made.written(done))

    async def EndMeter(self, request: pb.EndMeterRequest, context: Context) -> pb.EndMeterResponse:
        """Take a meter out of service."""
        at = made.since_of(request, "at", now=self._now())
        done = await self.meters.end(self.authenticate(context), _meter_id(request.meter_id), at)
        return pb.EndMeterResponse(written=made.written(done))

    async def CancelChange(self, request: pb.CancelChangeRequest, context: Context) -> pb.CancelChangeResponse:
        """Cancel a change that waits."""
        done = await self.meters.cancel(
            self.authenticate(context), _meter_id(request.meter_id), registration=request.registration
        )
        return pb.CancelChangeResponse(written=made.written(done))

    async def HandOverMeter(self, request: pb.HandOverMeterRequest, context: Context) -> pb.HandOverMeterResponse:
        """Hand counters over."""
        principal = self.authenticate(context)
        if len(request.codes) > _CODES_MAX:
            raise BadField(f"codes: at most {_CODES_MAX}", field="codes")
        before = Custody(validation.number_in(request.custody_before, "custody_before", Custody))
        after = Custody(validation.number_in(request.custody, "custody", Custody))
        if request.HasField("settings") and before is not Custody.SMSO:
            raise BadField("settings: they go with an enrolment from an SMSO; else use ChangeMeter", field="settings")
        if (request.HasField("last_issued") or request.highest_applied) and after is not Custody.CENTRAL:
            raise BadField("last_issued: it goes with a hand-over to this service", field="last_issued")
        if after is Custody.CENTRAL and not request.HasField("last_issued"):
            # Left out it would mean that no counter was ever spent, and the next codes would repeat old counters.
            told = "last_issued: is missing; say 0 only if the generator before has never made a code for this meter"
            raise BadField(told, field="last_issued")
        done = await self.hand_over(
            principal,
            HandOver(
                meter_id=_meter_id(request.meter_id),
                custody_before=before,
                custody=after,
                last_issued=request.last_issued,
                highest_applied=request.highest_applied,
                codes=tuple(top_up_messages.unspent_code(one, self.pan_rule, self._now()) for one in request.codes),
                settings=(lambda one: replace(made.merged(one, request.settings), enrolled=True))
                if before is Custody.SMSO
                else (lambda one: replace(one, enrolled=False))
                if after is Custody.SMSO
                else None,
                public_point=validation.parse_point(request.public_point, "public_point")
                if request.public_point
                else None,
            ),
        )
        note = done.changed.note
        return pb.HandOverMeterResponse(
            written=made.written(done.changed.written),
            change=None if note is None else made.change_message(note),
            open_codes=[top_up_messages.unspent_code_message(one) for one in done.open_codes],
        )

    async def RecordBalance(self, request: pb.RecordBalanceRequest, context: Context) -> pb.RecordBalanceResponse:
        """Keep a balance."""
        if not request.HasField("at"):
            raise BadField("at: is missing", field="at")
        at = validation.check_passed(validation.instant(request.at, "at"), "at", self._now())
        most = validation.BALANCE_PENCE_MAX
        pence = validation.check_pence(request.balance_pence, "balance_pence", least=-most, most=most)
        done = await self.meters.record_balance(self.authenticate(context), _meter_id(request.meter_id), pence, at)
        return pb.RecordBalanceResponse(written=made.written(done))

    async def GetMeter(self, request: pb.GetMeterRequest, context: Context) -> pb.GetMeterResponse:
        """Look a meter up."""
        found = await self.view.meter(self.authenticate(context), _meter_id(request.meter_id))
        return pb.GetMeterResponse(meter=made.meter_message(found))

    async def ListMeters(self, request: pb.ListMetersRequest, context: Context) -> pb.ListMetersResponse:
        """List meters."""
        limit = made.page_limit(request.limit)
        found, after = await self.view.meters(self.authenticate(context), made.page_after(request.after), limit)
        page, after = fit(((one.meter_id, made.meter_message(one)) for one in found), after)
        return pb.ListMetersResponse(meters=page, next_after=after)

    async def ListSellers(self, request: pb.ListSellersRequest, context: Context) -> pb.ListSellersResponse:
        """Answer who could sell."""
        at = made.since_of(request, "at", now=self._now())
        pan = self._pan(request.pan, "pan") if request.pan else None
        meter_id = _meter_id(request.meter_id) if pan is None else None
        found = await self.view.sellers(self.authenticate(context), meter_id, pan, at)
        return pb.ListSellersResponse(
            meter_id=found.meter_id or "",
            supplier_id=found.supplier_id or "",
            sellers=[
                pb.Seller(
                    participant_id=one.participant_id,
                    may_issue=one.may_issue,
                    may_deliver=one.may_deliver,
                    allowed_by=one.rule,
                )
                for one in found.sellers
            ],
        )

    async def ListMarketChanges(
        self, request: pb.ListMarketChangesRequest, context: Context
    ) -> pb.ListMarketChangesResponse:
        """List what was carried out."""
        principal = self.authenticate(context)
        whose = _participant_id(request.supplier_id) if request.supplier_id else principal.participant_id
        found, after = await self.view.changes(
            principal,
            whose,
            since=made.since_of(request, now=self._now()) or NEVER,
            after=made.page_after(request.after),
            limit=made.page_limit(request.limit),
        )
        page, after = fit(((key_of(one), made.change_message(one)) for one in found), after)
        return pb.ListMarketChangesResponse(changes=page, next_after=after)

    async def GivePan(self, request: pb.GivePanRequest, context: Context) -> pb.GivePanResponse:
        """Give a PAN."""
        done = await self.pans.give(
            self.authenticate(context),
            self._pan(request.pan, "pan"),
            _form(request.form),
            _meter_id(request.meter_id),
            made.since_of(request, now=self._now()),
        )
        return pb.GivePanResponse(written=made.written(done))

    async def ReplacePan(self, request: pb.ReplacePanRequest, context: Context) -> pb.ReplacePanResponse:
        """Replace a lost PAN."""
        if request.new_pan == request.lost_pan:
            raise BadField("new_pan: another one than the lost one is needed", field="new_pan")
        done = await self.pans.replace_lost(
            self.authenticate(context),
            self._pan(request.lost_pan, "lost_pan"),
            self._pan(request.new_pan, "new_pan"),
            _form(request.form),
        )
        return pb.ReplacePanResponse(written=made.written(done))

    async def SetPanBlocked(self, request: pb.SetPanBlockedRequest, context: Context) -> pb.SetPanBlockedResponse:
        """Block a PAN."""
        pan = self._pan(request.pan, "pan")
        done = await self.pans.block(self.authenticate(context), pan, blocked=request.blocked)
        return pb.SetPanBlockedResponse(written=made.written(done))

    async def RepointPan(self, request: pb.RepointPanRequest, context: Context) -> pb.RepointPanResponse:
        """Point a PAN elsewhere."""
        done = await self.pans.repoint(
            self.authenticate(context),
            self._pan(request.pan, "pan"),
            _meter_id(request.from_meter_id, "from_meter_id"),
            _meter_id(request.to_meter_id, "to_meter_id"),
            made.since_of(request, now=self._now()),
        )
        return pb.RepointPanResponse(written=made.written(done))

    async def CancelPan(self, request: pb.CancelPanRequest, context: Context) -> pb.CancelPanResponse:
        """Cancel what a PAN was going to stand for."""
        done = await self.pans.cancel(self.authenticate(context), self._pan(request.pan, "pan"))
        return pb.CancelPanResponse(written=made.written(done))

    async def GetPan(self, request: pb.GetPanRequest, context: Context) -> pb.GetPanResponse:
        """Look a PAN up."""
        found = await self.view.pan(self.authenticate(context), self._pan(request.pan, "pan"))
        return pb.GetPanResponse(pan=made.pan_message(found))

    async def ListPans(self, request: pb.ListPansRequest, context: Context) -> pb.ListPansResponse:
        """List the PANs of a meter."""
        found = await self.view.pans_of(self.authenticate(context), _meter_id(request.meter_id))
        return pb.ListPansResponse(pans=[made.pan_message(one) for one in found])

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
            Claim(pan=self._pan(one.pan, "claims.pan"), meter_id=_meter_id(one.meter_id, "claims.meter_id"))
            for one in request.claims
        ]

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

    def _pan(self, text: str, field: str) -> Pan:
        return parse_pan(text, self.pan_rule, field=field)

    def _now(self) -> Ms:
        return ms_of(self.clock.now())


def _participant_id(text: str) -> ParticipantId:
    return parse_participant_id(text, field="participant_id")


def _meter_id(text: str, field: str = "meter_id") -> MeterId:
    return validation.parse_meter_id(text, field)


def _form(number: int) -> PanForm:
    return PanForm(validation.number_in(number or PanForm.PLASTIC, "form", PanForm))
