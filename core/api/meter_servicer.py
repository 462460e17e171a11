"""MeterService: which meters there are, and whose."""
# ruff: noqa: N802

from dataclasses import dataclass, replace

from utrn.v1 import meter_service_pb2 as pb
from utrn.v1 import meter_service_pb2_grpc as rpc

from core.api import top_up_messages, validation
from core.api.authenticate import Authenticate
from core.api.change_messages import result_message, since_of
from core.api.meter_messages import added_meter, change_message, merged, meter_message, new_meter_of
from core.api.paging import fit, page_size, page_start, page_token
from core.api.status import Context
from core.domain.effective_dated import NEVER, Ms, ms_of
from core.domain.errors import BadField
from core.domain.meter import Custody, MeterId, Pan, PanRule, Settings, parse_pan
from core.domain.participant import ParticipantId, parse_participant_id
from core.ports.clock import Clock
from core.registry.counter_transfer import HandOver, TransferCounters
from core.registry.meter_exchange import ExchangeMeter
from core.registry.meters import MeterAdmin
from core.registry.queries import RegistryQueries, key_of

_PANS_MAX = 20
_CODES_MAX = 30


@dataclass(frozen=True, kw_only=True)
class MeterServicer(rpc.MeterServiceServicer):
    """What each method promises is written in meter_service.proto."""

    authenticate: Authenticate
    meters: MeterAdmin
    exchange: ExchangeMeter
    hand_over: TransferCounters
    view: RegistryQueries
    clock: Clock
    pan_rule: PanRule

    async def AddMeter(self, request: pb.AddMeterRequest, context: Context) -> pb.AddMeterResponse:
        """Register a meter."""
        principal = self.authenticate(context)
        meter = added_meter(request, now=self._now(), by=principal.participant_id)
        return pb.AddMeterResponse(result=result_message(await self.meters.add(principal, meter)))

    async def ChangeMeter(self, request: pb.ChangeMeterRequest, context: Context) -> pb.ChangeMeterResponse:
        """Change settings."""
        principal, asked = self.authenticate(context), request.settings
        merged(Settings(head_end=""), asked)
        done = await self.meters.change(
            principal,
            _meter_id(request.meter_id),
            lambda one: merged(one, asked),
            since_of(request, now=self._now()),
        )
        return pb.ChangeMeterResponse(result=result_message(done))

    async def ChangeSupplier(self, request: pb.ChangeSupplierRequest, context: Context) -> pb.ChangeSupplierResponse:
        """Change of Supplier."""
        done = await self.meters.change_supplier(
            self.authenticate(context),
            _meter_id(request.meter_id),
            parse_participant_id(request.losing_supplier_id, field="losing_supplier_id"),
            parse_participant_id(request.gaining_supplier_id, field="gaining_supplier_id"),
            since_of(request, now=self._now()),
        )
        return pb.ChangeSupplierResponse(result=result_message(done))

    async def ChangeTenant(self, request: pb.ChangeTenantRequest, context: Context) -> pb.ChangeTenantResponse:
        """Change of Tenancy."""
        if request.tenancy_before < 1:
            raise BadField("tenancy_before: 1 or more is needed", field="tenancy_before")
        done = await self.meters.change_tenant(
            self.authenticate(context),
            _meter_id(request.meter_id),
            since_of(request, now=self._now()),
            request.tenancy_before,
        )
        return pb.ChangeTenantResponse(result=result_message(done))

    async def ExchangeMeter(self, request: pb.ExchangeMeterRequest, context: Context) -> pb.ExchangeMeterResponse:
        """Exchange a meter."""
        principal = self.authenticate(context)
        if len(request.pans) > _PANS_MAX or len(set(request.pans)) < len(request.pans):
            raise BadField(f"pans: at most {_PANS_MAX}, each told once", field="pans")
        if request.new_meter.meter_id == request.old_meter_id:
            raise BadField("new_meter.meter_id: another one than the old one is needed", field="new_meter.meter_id")
        new = new_meter_of(
            request.new_meter, request.supplier_id, request.settings, enrolled=True, since=None, now=self._now(),
            by=principal.participant_id,
        )  # fmt: skip
        pans = [self._pan(pan, "pans") for pan in request.pans]
        done = await self.exchange(principal, _meter_id(request.old_meter_id, "old_meter_id"), new, pans)
        return pb.ExchangeMeterResponse(result=result_message(done))

    async def EndMeter(self, request: pb.EndMeterRequest, context: Context) -> pb.EndMeterResponse:
        """Take a meter out of service."""
        at = since_of(request, "at", now=self._now())
        done = await self.meters.end(self.authenticate(context), _meter_id(request.meter_id), at)
        return pb.EndMeterResponse(result=result_message(done))

    async def CancelChange(self, request: pb.CancelChangeRequest, context: Context) -> pb.CancelChangeResponse:
        """Cancel a change that waits."""
        done = await self.meters.cancel(
            self.authenticate(context), _meter_id(request.meter_id), registration=request.registration
        )
        return pb.CancelChangeResponse(result=result_message(done))

    async def TransferCounters(
        self, request: pb.TransferCountersRequest, context: Context
    ) -> pb.TransferCountersResponse:
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
                codes=tuple(top_up_messages.unspent_code(code, self.pan_rule, self._now()) for code in request.codes),
                settings=(lambda one: replace(merged(one, request.settings), enrolled=True))
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
        return pb.TransferCountersResponse(
            result=result_message(done.changed.written),
            change=None if note is None else change_message(note),
            open_codes=[top_up_messages.unspent_code_message(code) for code in done.open_codes],
        )

    async def RecordBalance(self, request: pb.RecordBalanceRequest, context: Context) -> pb.RecordBalanceResponse:
        """Keep a balance."""
        if not request.HasField("at"):
            raise BadField("at: is missing", field="at")
        at = validation.check_passed(validation.instant(request.at, "at"), "at", self._now())
        most = validation.BALANCE_PENCE_MAX
        pence = validation.check_pence(request.balance_pence, "balance_pence", least=-most, most=most)
        done = await self.meters.record_balance(self.authenticate(context), _meter_id(request.meter_id), pence, at)
        return pb.RecordBalanceResponse(result=result_message(done))

    async def GetMeter(self, request: pb.GetMeterRequest, context: Context) -> pb.GetMeterResponse:
        """Look a meter up."""
        found = await self.view.meter(self.authenticate(context), _meter_id(request.meter_id))
        return pb.GetMeterResponse(meter=meter_message(found))

    async def ListMeters(self, request: pb.ListMetersRequest, context: Context) -> pb.ListMetersResponse:
        """List meters."""
        most = page_size(request.page_size)
        found, after = await self.view.meters(self.authenticate(context), page_start(request.page_token), most)
        page, after = fit(((meter.meter_id, meter_message(meter)) for meter in found), after, most=most)
        return pb.ListMetersResponse(meters=page, next_page_token=page_token(after))

    async def ListSellers(self, request: pb.ListSellersRequest, context: Context) -> pb.ListSellersResponse:
        """Answer who could sell."""
        at = since_of(request, "at", now=self._now())
        pan = self._pan(request.pan, "pan") if request.pan else None
        meter_id = _meter_id(request.meter_id) if pan is None else None
        found = await self.view.sellers(self.authenticate(context), meter_id, pan, at)
        return pb.ListSellersResponse(
            meter_id=found.meter_id or "",
            supplier_id=found.supplier_id or "",
            sellers=[
                pb.Seller(
                    participant_id=seller.participant_id,
                    may_issue=seller.may_issue,
                    may_deliver=seller.may_deliver,
                    allowed_by=seller.rule,
                )
                for seller in found.sellers
            ],
        )

    async def ListRegistrationChanges(
        self, request: pb.ListRegistrationChangesRequest, context: Context
    ) -> pb.ListRegistrationChangesResponse:
        """List what was carried out."""
        principal = self.authenticate(context)
        whose = _participant_id(request.supplier_id) if request.supplier_id else principal.participant_id
        found, after = await self.view.changes(
            principal,
            whose,
            since=since_of(request, now=self._now()) or NEVER,
            after=page_start(request.page_token),
            limit=page_size(request.page_size),
        )
        page, after = fit(((key_of(change), change_message(change)) for change in found), after)
        return pb.ListRegistrationChangesResponse(changes=page, next_page_token=page_token(after))

    def _pan(self, text: str, field: str) -> Pan:
        return parse_pan(text, self.pan_rule, field=field)

    def _now(self) -> Ms:
        return ms_of(self.clock.now())


def _meter_id(text: str, field: str = "meter_id") -> MeterId:
    return validation.parse_meter_id(text, field)


def _participant_id(text: str) -> ParticipantId:
    return parse_participant_id(text, field="participant_id")
