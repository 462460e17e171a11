"""Builds the market's part of a node: registry, appointments, credit, and the lines of the trail about them."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from google.protobuf.message import Message

from app.node.config import Config
from cluster.registry.replica import EtcdRegistryReplica
from core.access.approvals import TwoPeople
from core.access.certificates import Authority
from core.api.appointment_servicer import AppointmentServicer
from core.api.audit_subjects import subject_of
from core.api.authenticate import Authenticate, CertificateOf, name_of
from core.api.credit_servicer import CreditServicer
from core.api.registry_servicer import RegistryServicer
from core.api.status import Context
from core.credit.goodwill_credit import GiveGoodwillCredit
from core.domain.errors import NotReady
from core.domain.participant import Participant
from core.issuing.issue import IssueVend
from core.ports.audit_context import Notes
from core.ports.audit_log import AuditLog, AuditRecord
from core.ports.clock import Clock
from core.ports.head_ends import HeadEndNames
from core.ports.registry import RegistryStore
from core.registry.appointments import Appoint
from core.registry.bulk_load import LoadRecords
from core.registry.counter_transfer import TransferCounters
from core.registry.due_changes import ApplyDueChange
from core.registry.meter_exchange import ExchangeMeter
from core.registry.meters import MeterAdmin
from core.registry.pans import PanAdmin
from core.registry.participants import ParticipantAdmin
from core.registry.queries import RegistryQueries
from core.registry.reconcile import ReconcilePans
from core.registry.registrations import registrations


@dataclass(frozen=True, kw_only=True)
class Market:
    """What the market's services are made of.

    `clock` dates what is kept: cluster time. `certificate_of` knows a caller by its certificate; `callers` returns who
    vouches for participants' certificates now.
    """

    config: Config
    store: RegistryStore
    registry: EtcdRegistryReplica
    trail: AuditLog
    clock: Clock
    turn: ApplyDueChange
    vending: IssueVend
    head_ends: HeadEndNames
    certificate_of: CertificateOf
    callers: Callable[[], Authority]

    @cached_property
    def _authenticate(self) -> Authenticate:
        return Authenticate(self.registry, self.certificate_of)

    @cached_property
    def _appoint(self) -> Appoint:
        return Appoint(store=self.store, clock=self.clock, authority=self.callers)

    @cached_property
    def _view(self) -> RegistryQueries:
        return RegistryQueries(store=self.store, cards_of=self.registry.pans_of, clock=self.clock)

    @property
    def consents(self) -> TwoPeople:
        """What asks for a second operator."""
        wait_ms = 1000 * self.config.flow.approval_wait_s
        return TwoPeople(store=self.store, clock=self.clock, wait_ms=wait_ms)

    def registry_servicer(self) -> RegistryServicer:
        """Return the registry's service."""
        parties = ParticipantAdmin(store=self.store, clock=self.clock, consents=self.consents)
        ledger = self.vending.refuse.ledger
        flow = self.config.flow
        new = registrations(
            self.vending.clock,
            burst=flow.registrations_burst,
            per_minute=flow.registrations_per_minute,
            suppliers_register=flow.suppliers_register,
        )
        meters = MeterAdmin(
            store=self.store, turn=self.turn, clock=self.clock, head_ends=self.head_ends, registrations=new
        )
        return RegistryServicer(
            authenticate=self._authenticate,
            parties=parties,
            meters=meters,
            exchange=ExchangeMeter(meters=meters, store=self.store),
            hand_over=TransferCounters(meters=meters, store=self.store, ledger=ledger, clock=self.clock),
            pans=PanAdmin(store=self.store, clock=self.clock, registrations=new),
            load=LoadRecords(
                store=self.store,
                parties=parties,
                appoint=self._appoint,
                clock=self.clock,
                trail=self.trail,
                head_ends=self.head_ends,
                registrations=new,
            ),
            reconcile=ReconcilePans(registry=self.registry, book=self.registry, clock=self.clock),
            view=self._view,
            clock=self.clock,
            pan_rule=self.config.flow.pan,
        )

    def appointment_servicer(self) -> AppointmentServicer:
        """Return the appointments' service."""
        return AppointmentServicer(authenticate=self._authenticate, appoint=self._appoint, view=self._view)

    def credit_servicer(self) -> CreditServicer:
        """Return the service of credit without payment."""
        credit = GiveGoodwillCredit(
            store=self.store,
            authorise=self.vending.authorise,
            issue=self.vending,
            clock=self.clock,
            id_window=self.config.flow.hot_window,
            id_ahead=self.config.flow.ahead_max,
        )
        return CreditServicer(
            authenticate=self._authenticate, credit=credit, clock=self.clock, pan_rule=self.config.flow.pan
        )

    def note(self, context: Context, method: str, request: Message, outcome: str, notes: Notes) -> None:
        """Note what was asked for and decided: who, with which certificate, about what, by which role and records."""
        identity = name_of(self.certificate_of, context)
        caller = self._caller(identity)
        rule = "" if caller is None else caller.role.name.lower()
        at, clock = _instant(self.vending.clock)
        self.trail.note(
            AuditRecord(
                at=at,
                caller="" if caller is None else caller.participant_id,
                identity=identity,
                act=method,
                ask="",
                subject=subject_of(request),
                amount=0,
                outcome=outcome,
                rule=f"{rule}, written at {notes.written_at}" if notes.written_at else rule,
                read_set=notes.read_set,
                clock=clock,
            )
        )

    def _caller(self, uri: str) -> Participant | None:
        """Return who uses a certificate; None also if that cannot be said now: the line in the trail names the URI."""
        try:
            return self.registry.caller(uri)
        except NotReady:
            return None


def _instant(clock: Clock) -> tuple[datetime, str]:
    """Return when something was asked, and by which clock: a call that is refused for want of the time is noted too."""
    try:
        return clock.now(), "cluster"
    except NotReady:
        return clock.wall(), "wall"
