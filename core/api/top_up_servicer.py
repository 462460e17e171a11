"""Step 2: TopUpService: proto in, flow, proto out. The methods' names are the contract's."""
# ruff: noqa: N802

from dataclasses import dataclass
from typing import Final

from utrn.v1 import top_up_service_pb2 as pb
from utrn.v1 import top_up_service_pb2_grpc as rpc
from utrn.v1 import types_pb2

from core.api import top_up_messages
from core.api.approval_request import asked_of
from core.api.authenticate import Authenticate
from core.api.paging import page_size, page_start, page_token
from core.api.status import Context
from core.delivery.manual_entry import AdviseByHand
from core.delivery.open_cases import OpenCases
from core.domain.delivery import Delivery
from core.domain.errors import FENCED, IF_FIRST, BadField
from core.domain.meter import PanRule
from core.domain.participant import parse_participant_id
from core.domain.vend import Operation
from core.issuing.check_eligibility import CheckEligibility
from core.issuing.find_vend import FindVend
from core.issuing.issue import IssueVend
from core.issuing.recent_vends import Issued
from core.issuing.request_delivery import SendIssued

# What a gRPC library sends with an attempt that it makes by itself, after one that failed.
_ATTEMPTS_BEFORE: Final = "grpc-previous-rpc-attempts"


@dataclass(frozen=True, kw_only=True)
class TopUpServicer(rpc.TopUpServiceServicer):
    """The callers' service. What each method promises is written in top_up_service.proto."""

    authenticate: Authenticate
    issue: IssueVend
    send: SendIssued
    find: FindVend
    check: CheckEligibility
    advise: AdviseByHand
    cases: OpenCases
    pan_rule: PanRule

    async def IssueUtrn(self, request: pb.IssueUtrnRequest, context: Context) -> pb.IssueUtrnResponse:
        """Issue a code."""
        issued = await self._sell(request, Operation.ISSUE, context)
        return pb.IssueUtrnResponse(code=top_up_messages.issued_code(issued.stored.vend), replayed=issued.replayed)

    async def TopUp(self, request: pb.TopUpRequest, context: Context) -> pb.TopUpResponse:
        """Issue a code and owe its delivery."""
        issued = await self._sell(request, Operation.TOP_UP, context)
        return pb.TopUpResponse(code=top_up_messages.issued_code(issued.stored.vend), replayed=issued.replayed)

    async def DeliverVend(self, request: pb.DeliverVendRequest, context: Context) -> pb.DeliverVendResponse:
        """Owe the delivery of a code issued before, or made elsewhere."""
        if request.HasField("externally_issued"):
            issued = await self._sell(request, Operation.EXTERNALLY_ISSUED, context)
            return pb.DeliverVendResponse(
                delivery=self._delivery(issued.stored.vend.delivery), replayed=issued.replayed
            )
        principal, barred = self.authenticate.even_barred(context)
        owner, transaction_id = top_up_messages.vend_asked_for(request, principal)
        if barred is not None:
            requested = await self.send.refused(principal, owner, transaction_id, barred)
        else:
            requested = await self.send(principal, owner, transaction_id)
        return pb.DeliverVendResponse(delivery=self._delivery(requested.delivery), replayed=requested.replayed)

    async def _sell(self, request: top_up_messages.SaleRequest, operation: Operation, context: Context) -> Issued:
        """Return the committed code of what `request` asks for.

        Whoever may not ask, or asks for what cannot be, is answered what was committed before, if it was: another node
        may have seen it otherwise.
        """
        principal, barred = self.authenticate.even_barred(context)
        repeat = _is_repeat(request, context)
        try:
            sale = top_up_messages.sale_of(request, operation, principal, self.pan_rule)
        except BadField as wrong:
            asked = top_up_messages.as_asked(request, operation, principal)
            if asked is None:
                # Nothing is ever sold under what is no id: this is as good as closed.
                wrong.final = FENCED
                raise
            if barred is None and not repeat:
                wrong.final = IF_FIRST
                raise
            return await self.issue.refused(asked, barred or wrong, repeat=repeat)
        if barred is not None:
            return await self.issue.refused(sale, barred, repeat=repeat)
        return await self.issue(principal, sale, time_left_s=context.time_remaining(), repeat=repeat)

    async def CheckEligibility(
        self, request: pb.CheckEligibilityRequest, context: Context
    ) -> pb.CheckEligibilityResponse:
        """Say whether a sale would be allowed, and what stands against it."""
        principal = self.authenticate(context)
        pan, amount, channel = top_up_messages.eligibility_asked(request, self.pan_rule)
        eligibility = await self.check(principal, pan, amount=amount, channel=channel, deliver=request.deliver)
        return top_up_messages.eligibility_message(eligibility)

    async def ListOpenCases(self, request: pb.ListOpenCasesRequest, context: Context) -> pb.ListOpenCasesResponse:
        """List codes that nobody knows to be credited."""
        principal = self.authenticate(context)
        supplier_id = (
            parse_participant_id(request.supplier_id, field="supplier_id")
            if request.supplier_id
            else principal.participant_id
        )
        after, limit = page_start(request.page_token), page_size(request.page_size)
        vends, more = await self.cases.list_page(principal, supplier_id, after=after, limit=limit)
        return pb.ListOpenCasesResponse(
            vends=[
                top_up_messages.case_message(vend, digits=supplier_id == principal.participant_id) for vend in vends
            ],
            next_page_token=page_token(more),
        )

    async def SettleDelivery(self, request: pb.SettleDeliveryRequest, context: Context) -> pb.SettleDeliveryResponse:
        """Settle an open case."""
        principal = self.authenticate(context)
        owner, transaction_id = top_up_messages.vend_asked_for(request, principal)
        if not request.HasField("credited"):
            # Left out, it would read as "not credited", and money would be given back for a code that may be.
            raise BadField("credited: what the meter's credit log says must be said", field="credited")
        said = "credited" if request.credited else "not credited"
        asked = asked_of("SettleDelivery", request, f"settle {owner}/{transaction_id} as {said}")
        delivery = await self.cases.settle(principal, owner, transaction_id, credited=request.credited, asked=asked)
        return pb.SettleDeliveryResponse(delivery=top_up_messages.delivery_message(delivery, advised=False))

    async def GetVend(self, request: pb.GetVendRequest, context: Context) -> pb.GetVendResponse:
        """Look a vend up."""
        principal, barred = self.authenticate.even_barred(context)
        owner, transaction_id = top_up_messages.vend_asked_for(request, principal)
        if barred is not None and owner != principal.participant_id:
            raise barred
        stored = await self.find(principal, owner, transaction_id)
        return pb.GetVendResponse(
            vend=top_up_messages.vend_message(stored.vend, advised=self.advise(stored.vend.delivery))
        )

    def _delivery(self, delivery: Delivery) -> types_pb2.Delivery:
        return top_up_messages.delivery_message(delivery, advised=self.advise(delivery))


def _is_repeat(request: top_up_messages.SaleRequest, context: Context) -> bool:
    """Return whether an attempt before this one may be under way: its caller says so, or its gRPC library does.

    A library that repeats calls by itself counts them in a header, and leaves the request as it was. Source: gRPC A6.
    """
    return request.repeat or any(key == _ATTEMPTS_BEFORE for key, _ in context.invocation_metadata() or ())
