"""CreditService: credit without payment, by two people of a supplier."""
# ruff: noqa: N802

from dataclasses import dataclass

from utrn.v1 import credit_service_pb2 as pb
from utrn.v1 import credit_service_pb2_grpc as rpc

from core.api import top_up_messages
from core.api.authenticate import Authenticate
from core.api.credit_messages import credit_message, credit_of
from core.api.paging import page_size, page_start, page_token
from core.api.status import Context
from core.credit.goodwill_credit import CreditQuery, GiveGoodwillCredit
from core.domain.effective_dated import ms_of
from core.domain.goodwill_credit import day_start
from core.domain.meter import PanRule
from core.domain.participant import parse_participant_id
from core.domain.transaction_id import parse_transaction_id
from core.ports.clock import Clock


@dataclass(frozen=True, kw_only=True)
class CreditServicer(rpc.CreditServiceServicer):
    """The credit service. What each method promises is written in credit_service.proto."""

    authenticate: Authenticate
    credit: GiveGoodwillCredit
    clock: Clock
    pan_rule: PanRule

    async def RequestCredit(self, request: pb.RequestCreditRequest, context: Context) -> pb.RequestCreditResponse:
        """Ask for credit."""
        principal = self.authenticate(context)
        asked = credit_of(request.credit, principal, self.pan_rule, ms_of(self.clock.now()))
        return pb.RequestCreditResponse(credit=credit_message(await self.credit.ask(principal, asked)))

    async def DecideCredit(self, request: pb.DecideCreditRequest, context: Context) -> pb.DecideCreditResponse:
        """Decide a request."""
        principal = self.authenticate(context)
        decided, issued = await self.credit.decide(
            principal,
            parse_transaction_id(request.transaction_id),
            approve=request.approve,
            time_left_s=context.time_remaining(),
            repeat=request.repeat,
        )
        code = None if issued is None else top_up_messages.issued_code(issued.stored.vend)
        return pb.DecideCreditResponse(credit=credit_message(decided), code=code)

    async def ListCredits(self, request: pb.ListCreditsRequest, context: Context) -> pb.ListCreditsResponse:
        """Report credit."""
        principal = self.authenticate(context)
        if request.day:
            day_start(request.day)
        after = page_start(request.page_token)
        whose = principal.participant_id
        if request.supplier_id:
            whose = parse_participant_id(request.supplier_id, field="supplier_id")
        asked = CreditQuery(
            day=request.day,
            waiting_only=request.waiting_only,
            after=parse_transaction_id(after, field="page_token") if after else "",
            limit=page_size(request.page_size),
        )
        told = await self.credit.report(principal, whose, asked)
        return pb.ListCreditsResponse(
            credits=[credit_message(credit) for credit in told.requests],
            approved=told.total.count,
            approved_pence=told.total.total_pence,
            next_page_token=page_token(told.next_key),
        )
