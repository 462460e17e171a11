"""Issuing sells. Any number of nodes do so at once, as equals; the ledger alone decides between them."""

from dataclasses import dataclass, field
from functools import cached_property

from core.assembly.ports import Ports
from core.issuing.authorize import Authorize
from core.issuing.ceilings import Ceilings
from core.issuing.check_eligibility import CheckEligibility
from core.issuing.config import FlowConfig
from core.issuing.counter_cache import Counters
from core.issuing.find_vend import FindVend
from core.issuing.group_commit import GroupCommitter
from core.issuing.issue import IssueVend
from core.issuing.recent_vends import RecentVends
from core.issuing.refuse_sale import RefuseSale, closing_quota
from core.issuing.request_delivery import SendIssued
from core.metrics import StageTimes
from core.registry.due_changes import ApplyDueChange


@dataclass(frozen=True, kw_only=True)
class Issuing:
    """Sells, and answers for what was sold."""

    ports: Ports
    config: FlowConfig
    node_id: str
    answers: RecentVends
    times: StageTimes = field(default_factory=StageTimes)

    @cached_property
    def turn(self) -> ApplyDueChange:
        """ApplyDueChange: carries a due change out before a sale that needs the changed record."""
        return ApplyDueChange(store=self.ports.store, clock=self.ports.clock)

    @cached_property
    def authorize(self) -> Authorize:
        """Authorize: the rule, asked with this node's replica of the registry."""
        return Authorize(
            registry=self.ports.registry,
            store=self.ports.store,
            turn=self.turn,
            clock=self.ports.clock,
            audit_log=self.ports.audit_log,
            head_ends=self.ports.head_end_names,
        )

    @cached_property
    def counters(self) -> Counters:
        """Counters: the counter sequences that this node has read."""
        return Counters(
            self.ports.clock,
            trust_s=self.config.counter_trust_s,
            sequences_max=self.config.counter_cache_max,
            alarm=self.config.unapplied_alarm,
            refuse=self.config.unapplied_refuse,
        )

    @cached_property
    def line(self) -> GroupCommitter:
        """GroupCommitter: signs and commits vends, many in one transaction."""
        return GroupCommitter(
            ledger=self.ports.ledger,
            signer=self.ports.signer,
            counters=self.counters,
            answers=self.answers,
            clock=self.ports.clock,
            times=self.times,
            audit_log=self.ports.audit_log,
            batch_max=self.config.batch_max,
            in_flight_max=self.config.in_flight_max,
            attempts_max=self.config.commit_attempts_max,
        )

    @cached_property
    def ceilings(self) -> Ceilings:
        """Ceilings: the allotments of sellers' ceilings that this node has drawn."""
        return Ceilings(self.ports.ceilings, self.ports.clock)

    @cached_property
    def refuse(self) -> RefuseSale:
        """RefuseSale: closes the id of a refused sale."""
        quota = closing_quota(
            self.ports.clock, burst=self.config.closings_burst, per_minute=self.config.closings_per_minute
        )
        return RefuseSale(
            ledger=self.ports.ledger,
            answers=self.answers,
            clock=self.ports.clock,
            quota=quota,
            id_window=self.config.hot_window,
            node_id=self.node_id,
        )

    @cached_property
    def issue(self) -> IssueVend:
        """IssueVend: the way of one vend."""
        return IssueVend(
            authorize=self.authorize,
            answers=self.answers,
            line=self.line,
            clock=self.ports.clock,
            config=self.config,
            refuse=self.refuse,
            ceilings=self.ceilings,
        )

    @cached_property
    def find(self) -> FindVend:
        """FindVend: looks a vend up."""
        return FindVend(self.ports.ledger)

    @cached_property
    def send(self) -> SendIssued:
        """SendIssued: asks for the delivery of a vend that was issued."""
        return SendIssued(
            authorize=self.authorize,
            find=self.find,
            ledger=self.ports.ledger,
            answers=self.answers,
            clock=self.ports.clock,
        )

    @cached_property
    def check(self) -> CheckEligibility:
        """CheckEligibility: says whether a sale would be allowed."""
        return CheckEligibility(authorize=self.authorize, ledger=self.ports.ledger, counters=self.counters)
