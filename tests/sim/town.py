"""Who takes part in the simulated market: suppliers, sellers, an operator, meters and their cards."""

import random
from dataclasses import dataclass, field, replace
from datetime import timedelta

from core.domain.appointment import Appointments
from core.domain.effective_dated import Ms, ms_of
from core.domain.meter import Custody, Meter, MeterId, Pan, PanAssignment, PanRecord, Registration
from core.domain.participant import (
    Participant,
    ParticipantId,
    ParticipantStatus,
    Principal,
    Profile,
    Role,
    SellingModel,
)
from core.ports.registry import StoredRecord
from tests.support.vends import (
    APPOINTMENT,
    KEY,
    NOW,
    PSP,
    PSP_ID,
    SUPPLIER,
    SUPPLIER_ID,
    TERMS,
    always,
    identity_history,
    meter,
)


def _supplier(name: str, originator_id: str, selling_model: SellingModel) -> Participant:
    return replace(
        SUPPLIER,
        participant_id=ParticipantId(f"supplier-{name}"),
        identity_history=identity_history(name.title(), f"supplier-{name}"),
        supplier_key=replace(KEY, originator_id=originator_id),
        profiles=always(Profile(selling_model=selling_model)),
    )


NORTH = SUPPLIER
SOUTH = _supplier("south", "90b3d51f30010002", SellingModel.PSP_ISSUES_AND_DELIVERS)
# Makes its codes itself, and has them delivered here.
WEST = _supplier("west", "90b3d51f30010003", SellingModel.SUPPLIER_GENERATES)
CORNER = PSP
HARBOUR = replace(
    PSP, participant_id=ParticipantId("psp-harbour"), identity_history=identity_history("Harbour", "psp-harbour")
)
OPERATOR = Participant(
    participant_id=ParticipantId("operator"), role=Role.OPERATOR,
    identity_history=identity_history("Operator", "operator"),
    statuses=always(ParticipantStatus.ACTIVE),
)  # fmt: skip
PARTICIPANTS = (NORTH, SOUTH, WEST, CORNER, HARBOUR, OPERATOR)
BY_ID = {participant.participant_id: participant for participant in PARTICIPANTS}
SUPPLIERS = (NORTH, SOUTH)


def principal(participant_id: ParticipantId) -> Principal:
    """Return who calls, by its first certificate."""
    participant = BY_ID[participant_id]
    return Principal(participant, participant.identities[0])


def appointed(supplier_id: ParticipantId, psp_id: ParticipantId, *, until: Ms | None = None) -> Appointments:
    """Return that a PSP may sell and deliver for a supplier, until then."""
    terms = replace(TERMS, appointment_id=str(psp_id), supplier_id=supplier_id, psp_id=psp_id, until=until)
    return Appointments(supplier_id=supplier_id, psp_id=psp_id, all=(replace(APPOINTMENT, terms=terms),))


@dataclass(slots=True)
class Town:
    """The meters and the cards that were given for each, the newest last."""

    chance: random.Random
    meter_ids: list[MeterId]
    foreign: MeterId | None
    cards: dict[MeterId, list[Pan]] = field(default_factory=dict)
    made: int = 0

    def records(self) -> list[StoredRecord]:
        """Return the registry as the run begins. Harbour's appointment by North ends while it goes on, now and then."""
        until = None
        if self.chance.random() < 0.4:
            until = ms_of(NOW + timedelta(seconds=self.chance.uniform(2.0, 8.0)))
        records: list[StoredRecord] = [
            *PARTICIPANTS,
            appointed(SUPPLIER_ID, PSP_ID),
            appointed(SUPPLIER_ID, HARBOUR.participant_id, until=until),
            appointed(SOUTH.participant_id, PSP_ID),
            appointed(SOUTH.participant_id, HARBOUR.participant_id),
        ]
        for id_ in self.meter_ids:
            records += [meter(id_), self._card(id_, SUPPLIER_ID)]
        if self.foreign is not None:
            records += [_west_meter(self.foreign), self._card(self.foreign, WEST.participant_id)]
        return records

    def new_pan(self, meter_id: MeterId) -> Pan:
        """Return a number that no card has."""
        self.made += 1
        return Pan(f"9826{self.made:03d}{int(meter_id[6:], 16):012d}")

    def pan(self) -> Pan:
        """Return a card that a consumer pays with: the newest of a meter, mostly."""
        cards = self.cards[self.chance.choice(self.meter_ids)]
        return cards[-1] if self.chance.random() < 0.9 else self.chance.choice(cards)

    def _card(self, meter_id: MeterId, supplier_id: ParticipantId) -> PanRecord:
        pan = self.new_pan(meter_id)
        self.cards[meter_id] = [pan]
        return PanRecord(pan=pan, uses=always(PanAssignment(meter_id=meter_id, supplier_id=supplier_id)))


def _west_meter(meter_id: MeterId) -> Meter:
    registration = Registration(supplier_id=WEST.participant_id, custody=Custody.SUPPLIER)
    return replace(meter(meter_id), registrations=always(registration))
