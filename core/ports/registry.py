"""Registry: PAN -> meter -> supplier, and who is who, from a copy in memory."""

from typing import Protocol

from core.domain.meter import Card, Meter, MeterId, Pan
from core.domain.party import Participant, ParticipantId


class Registry(Protocol):
    """Answers at once from a watched copy; None says that there is no such record."""

    @property
    def ready(self) -> bool:
        """True once the copy is complete."""
        ...

    def caller(self, identity: str) -> Participant | None:
        """Return the participant that uses the SAN URI `identity`."""
        ...

    def participant(self, participant_id: ParticipantId) -> Participant | None:
        """Return a participant."""
        ...

    def card(self, pan: Pan) -> Card | None:
        """Return what a PAN stands for."""
        ...

    def meter(self, meter_id: MeterId) -> Meter | None:
        """Return a meter."""
        ...
