"""Administration keeps who takes part, meters, PANs, appointments and credit. Any node does so."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from core.access.approvals import Consents
from core.access.certificates import Authority
from core.assembly.issuing import Issuing
from core.assembly.ports import Ports
from core.credit.goodwill_credit import GiveGoodwillCredit
from core.delivery.open_cases import OpenCases
from core.registry.appointments import Appoint
from core.registry.bulk_load import LoadRecords
from core.registry.counter_transfer import TransferCounters
from core.registry.meter_exchange import ExchangeMeter
from core.registry.meters import MeterAdmin
from core.registry.pans import PanAdmin
from core.registry.participants import ParticipantAdmin
from core.registry.queries import RegistryQueries
from core.registry.reconcile import ReconcilePans
from core.registry.registrations import UNLIMITED, Registrations


@dataclass(frozen=True, kw_only=True)
class Administration:
    """Keeps the registry, appointments and credit.

    Attributes:
        consents: What asks for a second operator.
        authority: Who vouches for participants' certificates now.
        registrations: Who may register meters and PANs.
    """

    issuing: Issuing
    consents: Consents
    authority: Callable[[], Authority]
    registrations: Registrations = UNLIMITED

    @cached_property
    def parties(self) -> ParticipantAdmin:
        """Participants, their keys and profiles; and meter models."""
        return ParticipantAdmin(store=self._ports.store, clock=self._ports.clock, consents=self.consents)

    @cached_property
    def meters(self) -> MeterAdmin:
        """Meters."""
        return MeterAdmin(
            store=self._ports.store,
            turn=self.issuing.turn,
            clock=self._ports.clock,
            head_ends=self._ports.head_end_names,
            registrations=self.registrations,
        )

    @cached_property
    def exchange(self) -> ExchangeMeter:
        """Meter exchange."""
        return ExchangeMeter(meters=self.meters, store=self._ports.store)

    @cached_property
    def hand_over(self) -> TransferCounters:
        """Transfer of counters between generators."""
        ports = self._ports
        return TransferCounters(meters=self.meters, store=ports.store, ledger=ports.ledger, clock=ports.clock)

    @cached_property
    def pans(self) -> PanAdmin:
        """PANs."""
        return PanAdmin(store=self._ports.store, clock=self._ports.clock, registrations=self.registrations)

    @cached_property
    def appoint(self) -> Appoint:
        """Appointments of PSPs."""
        return Appoint(store=self._ports.store, clock=self._ports.clock, authority=self.authority)

    @cached_property
    def load(self) -> LoadRecords:
        """Records in bulk."""
        return LoadRecords(
            store=self._ports.store,
            parties=self.parties,
            appoint=self.appoint,
            clock=self._ports.clock,
            audit_log=self._ports.audit_log,
            head_ends=self._ports.head_end_names,
            registrations=self.registrations,
        )

    @cached_property
    def credit(self) -> GiveGoodwillCredit:
        """Credit without payment."""
        return GiveGoodwillCredit(
            store=self._ports.store,
            authorize=self.issuing.authorize,
            issue=self.issuing.issue,
            clock=self._ports.clock,
            id_window=self.issuing.config.hot_window,
            id_ahead=self.issuing.config.ahead_max,
        )

    @cached_property
    def reconcile(self) -> ReconcilePans:
        """Reconcile: finds PANs, meters and suppliers whose records contradict each other."""
        registry = self._ports.registry
        return ReconcilePans(registry=registry, book=registry, clock=self._ports.clock)

    @cached_property
    def view(self) -> RegistryQueries:
        """Reads of the registry."""
        ports = self._ports
        return RegistryQueries(store=ports.store, cards_of=ports.registry.pans_of, clock=ports.clock)

    @cached_property
    def cases(self) -> OpenCases:
        """Deliveries that wait for their supplier's word."""
        return OpenCases(
            ledger=self._ports.ledger,
            outbox=self._ports.outbox,
            answers=self.issuing.answers,
            clock=self._ports.clock,
            consents=self.consents,
        )

    @property
    def _ports(self) -> Ports:
        return self.issuing.ports
