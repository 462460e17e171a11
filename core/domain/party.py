"""Participant and Principal: who takes part in the market, and who is calling now."""

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import NewType

from core.domain.errors import BadField

ParticipantId = NewType("ParticipantId", str)

_PARTICIPANT_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}", re.ASCII)


class Role(IntEnum):
    """What a participant is in the market. Stored by number."""

    SUPPLIER = 1
    PSP = 2
    OPERATOR = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SupplierKey:
    """Under which originator and with which HSM key a supplier's codes are made.

    `originator_id` is an EUI-64 in 16 hex digits; `key_id` the CKA_ID in hex;
    `public_point` is 65 bytes uncompressed P-256,
    against which the key found in the HSM is proven before its first use.
    """

    originator_id: str
    key_id: str
    public_point: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """A registered party. `identities` are the SAN URIs of its certificates; suppliers have a key, others none."""

    participant_id: ParticipantId
    role: Role
    name: str
    identities: tuple[str, ...]
    suspended: bool
    supplier_key: SupplierKey | None
    appointed_psps: frozenset[ParticipantId]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls: the participant that the peer's certificate names."""

    participant: Participant

    @property
    def participant_id(self) -> ParticipantId:
        """The caller's participant id."""
        return self.participant.participant_id


def parse_participant_id(text: str, *, field: str) -> ParticipantId:
    """Return `text` as a participant id: 1 to 64 of a-z, 0-9 and "-"; raise BadField if it is not."""
    if not _PARTICIPANT_ID.fullmatch(text):
        raise BadField(f'{field}: 1 to 64 characters of a-z, 0-9 and "-" are needed', field=field)
    return ParticipantId(text)
