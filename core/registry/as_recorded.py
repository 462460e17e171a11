"""AsRecorded: the records of one meter as this service went by them at an instant, for the rule to be asked again."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from core.domain.appointment import Appointment, Appointments
from core.domain.authorization import Question, authorize
from core.domain.effective_dated import NEVER, EffectiveDated, Ms
from core.domain.grant import Grants
from core.domain.meter import Meter, MeterId, Model, Pan, PanRecord
from core.domain.participant import Participant, ParticipantId
from core.domain.record import Versioned
from core.domain.vend import Operation

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class AsRecorded:
    """The records, each with what held at the instant and was recorded by then, and nothing else.

    Attributes:
        at: The instant.
        pan: The PAN that is quoted.
        of_meter: The meter that it stands for.
        of_model: What the meter's model could do; None if it was not in the capability matrix.
        participants: The supplier, and every PSP that it has appointed.
        appointed: Its appointments, by PSP.
    """

    at: Ms
    pan: PanRecord
    of_meter: Meter
    of_model: Model | None
    participants: Mapping[ParticipantId, Participant]
    appointed: Mapping[ParticipantId, Appointments]
    grants: Grants = field(default_factory=dict)

    def rule_of(self, caller: Participant, operation: Operation) -> str:
        """Return by which right a caller could do something then; "" if it could not."""
        question = Question(caller=caller, operation=operation, pan=self.pan.pan, amount=0, channel=0)
        permit = authorize(self, question, self.at).permit
        return "" if permit is None else permit.authorization.rule

    def participant(self, participant_id: ParticipantId) -> Versioned[Participant] | None:
        """Return a participant."""
        found = self.participants.get(participant_id)
        if found is None:
            return None
        held = replace(found, statuses=self._then(found.statuses), profiles=self._then(found.profiles))
        return Versioned(held, 0)

    def card(self, pan: Pan) -> Versioned[PanRecord] | None:
        """Return the PAN."""
        return Versioned(replace(self.pan, uses=self._then(self.pan.uses)), 0) if pan == self.pan.pan else None

    def meter(self, meter_id: MeterId) -> Versioned[Meter] | None:
        """Return the meter; nothing of it is due."""
        meter = self.of_meter
        if meter_id != meter.meter_id:
            return None
        held = replace(
            meter,
            registrations=self._then(meter.registrations),
            settings=self._then(meter.settings),
            effective_through=self.at,
            balance_at=NEVER,
        )
        return Versioned(held, 0)

    def appointments(self, supplier_id: ParticipantId, psp_id: ParticipantId) -> Versioned[Appointments] | None:
        """Return what a PSP was appointed to."""
        found = self.appointed.get(psp_id)
        if found is None or found.supplier_id != supplier_id:
            return None
        return Versioned(replace(found, all=tuple(map(self._appointment, found.all))), 0)

    def model(self, make: str, model: str) -> Versioned[Model] | None:
        """Return what the meter's model could do."""
        found = self.of_model
        if found is None or (make, model) != (found.make, found.model):
            return None
        return Versioned(replace(found, abilities=self._then(found.abilities)), 0)

    def _appointment(self, appointment: Appointment) -> Appointment:
        return replace(appointment, states=self._then(appointment.states))

    def _then(self, dated: EffectiveDated[_T]) -> EffectiveDated[_T]:
        period = dated.as_recorded_at(self.at)
        return EffectiveDated(() if period is None else (period._replace(until=None),))
