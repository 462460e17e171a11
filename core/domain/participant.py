"""Participant and Principal: who takes part in the market, under which profile, and who is calling now."""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Final, NewType

from core.domain.effective_dated import NEVER, EffectiveDated, Ms, ms_of
from core.domain.errors import BadField
from core.domain.money import Pence

ParticipantId = NewType("ParticipantId", str)

_PARTICIPANT_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}", re.ASCII)
# Source: the SPIFFE ID specification, section 2.
_SPIFFE_ID = re.compile(r"spiffe://[a-z0-9._-]{1,255}(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+)*", re.ASCII)
_SPIFFE_ID_MAX = 500
NODE_URI: Final = "spiffe://utrn/node/"


class Role(IntEnum):
    """Role says what a participant is in the market. Stored by number, and the same numbers as in utrn.v1."""

    SUPPLIER = 1
    PSP = 2
    OPERATOR = 3
    HELPDESK = 4
    AUDITOR = 5


class ParticipantStatus(IntEnum):
    """ParticipantStatus says whether a participant may act. Stored by number, and the same numbers as in utrn.v1."""

    ACTIVE = 1
    SUSPENDED = 2
    LEFT = 3


class SellingModel(IntEnum):
    """Who may issue and who may deliver the codes of a supplier's meters. Stored by number, the same as in utrn.v1.

    Source: IEPFR options 1, 2 and 3; the default is option 2.
    """

    SUPPLIER_ONLY = 1
    PSP_ISSUES = 2
    PSP_ISSUES_AND_DELIVERS = 3
    SUPPLIER_GENERATES = 4


class PspPermission(IntEnum):
    """PspPermission says what an appointed PSP may do for a supplier. Stored by number, the same as in utrn.v1."""

    NONE = 0
    ISSUE = 1
    ISSUE_AND_DELIVER = 2


_LEVELS = {
    SellingModel.SUPPLIER_ONLY: PspPermission.NONE,
    SellingModel.PSP_ISSUES: PspPermission.ISSUE,
    SellingModel.PSP_ISSUES_AND_DELIVERS: PspPermission.ISSUE_AND_DELIVER,
    SellingModel.SUPPLIER_GENERATES: PspPermission.NONE,
}


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
class Limit:
    """Amounts of one sale through one channel (by number; 0: every channel that has no limit of its own), in pence."""

    channel: int
    min_pence: int
    max_pence: int
    whole_pounds: bool = False
    closed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditRule:
    """Credit without payment: most pence at once and most pence a day; `approvers` are the SAN URIs that may approve.

    Without approvers, any other certificate of the supplier may. 0 pence a day: none is given.
    """

    each_max_pence: int = 0
    day_max_pence: int = 0
    approvers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A profile is what a supplier has chosen: selling model, limits in pence, credit rule."""

    selling_model: SellingModel = SellingModel.SUPPLIER_ONLY
    limits: tuple[Limit, ...] = ()
    credit: CreditRule = CreditRule()

    @property
    def psp_level(self) -> PspPermission:
        """The most that any appointed PSP may do."""
        return _LEVELS[self.selling_model]

    def limit_of(self, channel: int) -> Limit | None:
        """Return the limit of a channel: its own, or the one for every channel."""
        found = None
        for limit in self.limits:
            if limit.channel == channel:
                return limit
            if limit.channel == 0:
                found = limit
        return found


DEFAULT_PROFILE = Profile()
NO_PROFILES: EffectiveDated[Profile] = EffectiveDated()
AGREED_CEILING: EffectiveDated[Pence] = EffectiveDated()


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocations:
    """Which of a participant's certificates hold no more, whatever their authority says.

    Attributes:
        issued_before: Those whose own not-before is earlier than this instant.
        fingerprints: Those with these SHA-256 fingerprints (64 lower-case hex digits), 0 to REVOKED_MAX.
    """

    issued_before: Ms = NEVER
    fingerprints: tuple[str, ...] = ()

    def and_also(self, more: "Revocations") -> "Revocations":
        """Return these and more; nothing that is revoked comes back.

        Raises:
            BadField: they are too many by their fingerprints.
        """
        fingerprints = tuple(dict.fromkeys((*self.fingerprints, *more.fingerprints)))
        if len(fingerprints) > REVOKED_MAX:
            raise BadField(
                f"fingerprints: at most {REVOKED_MAX} are kept of a participant; revoke all that were issued before an "
                "instant",
                field="fingerprints",
            )
        return Revocations(issued_before=max(self.issued_before, more.issued_before), fingerprints=fingerprints)

    def covers(self, fingerprint: str, issued_at: datetime) -> bool:
        """Return whether a certificate is revoked."""
        return fingerprint in self.fingerprints or ms_of(issued_at) < self.issued_before


NOTHING_REVOKED: Final = Revocations()
REVOKED_MAX: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticipantIdentity:
    """A participant's name, the SAN URIs of its certificates, and which of its certificates are revoked."""

    name: str
    identities: tuple[str, ...]
    revoked: Revocations = NOTHING_REVOKED


@dataclass(frozen=True, slots=True, kw_only=True)
class Participant:
    """A registered party and its history. Suppliers have a key, others none."""

    participant_id: ParticipantId
    role: Role
    identity_history: EffectiveDated[ParticipantIdentity]
    statuses: EffectiveDated[ParticipantStatus]
    supplier_key: SupplierKey | None = None
    profiles: EffectiveDated[Profile] = NO_PROFILES
    ceilings: EffectiveDated[Pence] = AGREED_CEILING

    @property
    def ceiling_pence(self) -> Pence:
        """The most pence that the participant may sell in an hour, 0 for the agreed ceiling; changed at once."""
        last = self.ceilings.last
        return Pence(0) if last is None else last.value

    @property
    def name(self) -> str:
        """The participant's name, for people."""
        last = self.identity_history.last
        return "" if last is None else last.value.name

    @property
    def identities(self) -> tuple[str, ...]:
        """The SAN URIs of the participant's certificates now; none once the participant has left."""
        last = self.identity_history.last
        return () if last is None or self.status is ParticipantStatus.LEFT else last.value.identities

    @property
    def revoked(self) -> Revocations:
        """The participant's revoked certificates; a revocation takes place at once, and outlasts the status LEFT."""
        last = self.identity_history.last
        return NOTHING_REVOKED if last is None else last.value.revoked

    @property
    def status(self) -> ParticipantStatus:
        """The participant's status now; every change of a status takes place at once."""
        last = self.statuses.last
        return ParticipantStatus.LEFT if last is None else last.value

    def profile_at(self, at: Ms) -> Profile:
        """Return what a supplier has chosen for that instant."""
        period = self.profiles.at(self.profiles.effective_now(at))
        return DEFAULT_PROFILE if period is None else period.value


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls: the participant that the peer's certificate names, and by which of its certificates."""

    participant: Participant
    identity: str = ""

    @property
    def participant_id(self) -> ParticipantId:
        """The caller's participant id."""
        return self.participant.participant_id

    @property
    def role(self) -> Role:
        """The caller's role."""
        return self.participant.role


def parse_participant_id(text: str, *, field: str) -> ParticipantId:
    """Return `text` as a participant id: 1 to 64 of a-z, 0-9 and "-"; raise BadField if it is not."""
    if not _PARTICIPANT_ID.fullmatch(text):
        raise BadField(f'{field}: 1 to 64 characters of a-z, 0-9 and "-" are needed', field=field)
    return ParticipantId(text)


def parse_identities(texts: tuple[str, ...], *, field: str) -> tuple[str, ...]:
    """Return SAN URIs, at least one and at most 20; raise BadField if one is none."""
    if not 1 <= len(texts) <= 20 or not all(is_spiffe_id(text) for text in texts):
        raise BadField(
            f"{field}: 1 to 20 SAN URIs are needed, each spiffe://name/path of a-z, A-Z, 0-9, dot, hyphen, underscore",
            field=field,
        )
    if any(text.startswith(NODE_URI) for text in texts):
        raise BadField(f"{field}: {NODE_URI} names nodes, never a participant", field=field)
    return texts


def is_spiffe_id(uri: str) -> bool:
    """Return whether a URI is a SPIFFE ID, at most 500 characters: nothing in it that two programs read differently."""
    return len(uri) <= _SPIFFE_ID_MAX and _SPIFFE_ID.fullmatch(uri) is not None
